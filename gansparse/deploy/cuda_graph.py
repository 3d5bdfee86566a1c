# SPDX-License-Identifier: Apache-2.0
"""How a whole generator runs on CUDA: as it was, in channels_last, as planned, in a CUDA graph."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gansparse.deploy.cuda import searching

Run = Callable[..., Any]
Inputs = tuple[Any, ...]

AS_IT_WAS = "as it was"
CHANNELS_LAST = "as it was, in channels_last"
PLANNED = "as planned"
GRAPH = "as planned, in a CUDA graph"
_WARM_UP = 3  # calls before a capture: torch's own advice


def ways(
    original: nn.Module, plan: nn.Module, inputs: Inputs, *, graph: bool
) -> dict[str, Callable[[], Run]]:
    """The ways to run a generator, by name; each is made when it is called.

    Args:
        original: the generator.
        plan: of it.
        inputs: what it is called with.
        graph: whether the plan may be captured in a CUDA graph.
    """
    made: dict[str, Callable[[], Run]] = {
        AS_IT_WAS: lambda: original,
        CHANNELS_LAST: lambda: in_channels_last(original),
        PLANNED: lambda: partial(search, plan),
    }
    if graph:
        made[GRAPH] = lambda: Graphed(plan, inputs)
    return made


def in_channels_last(generator: nn.Module) -> Run:
    """A copy of the generator whose weights and pictures lie in channels_last."""
    to: Any = copy.deepcopy(generator).to  # torch's annotation lacks memory_format
    network = to(memory_format=torch.channels_last)

    def run(*inputs: Any) -> Any:
        pictures = (isinstance(x, Tensor) and x.dim() == 4 for x in inputs)
        given = (
            x.contiguous(memory_format=torch.channels_last) if picture else x
            for x, picture in zip(inputs, pictures, strict=True)
        )
        return search(network, *given)

    return run


def search(run: Run, *inputs: Any) -> Any:
    """A call with cuDNN's search on."""
    with searching():
        return run(*inputs)


def _capture(
    graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream
) -> AbstractContextManager[None]:
    """On a stream of the right device: torch's own is of the one that captured first."""
    return torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")


@contextmanager
def _whole_after(current: torch.cuda.Stream, side: torch.cuda.Stream) -> Iterator[None]:
    """Undo what torch leaves behind a capture that fails.

    That is: the side stream as the current one, and a generator of random numbers that takes itself
    for captured, and refuses to give any, until a capture has ended well.
    """
    with torch.cuda.stream(current):
        try:
            yield
        except RuntimeError:
            with suppress(RuntimeError), _capture(torch.cuda.CUDAGraph(), side):
                torch.ones((), device=side.device)
            raise


class Graphed:
    """A function of tensors, captured in a CUDA graph for inputs of these shapes.

    Calls copy their inputs into the graph's own and return copies of its outputs, on torch's
    current stream; threads and streams take turns. The graph keeps the memory of all that lies
    between, as long as it lives. Within another capture the function itself is called.

    Args:
        run: without branches on numbers of a tensor; what is no tensor in its inputs is fixed.
        inputs: what it is called with.

    Raises:
        RuntimeError: it can't be captured.
    """

    def __init__(self, run: Run, inputs: Inputs) -> None:
        self.run = run
        (self.device,) = {x.device for x in inputs if isinstance(x, Tensor)}
        self.lock, self.done = threading.Lock(), torch.cuda.Event()  # type: ignore[no-untyped-call]
        own = partial(torch.clone, memory_format=torch.contiguous_format)
        self.given = tree_map_only(Tensor, own, inputs)
        with torch.cuda.device(self.device), searching():
            current = torch.cuda.current_stream()
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    run(*self.given)
            current.wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with _whole_after(current, side), _capture(self.graph, side):
                self.made = run(*self.given)
            self.done.record(current)

    def __call__(self, *inputs: Any) -> Any:
        """The function's outputs."""
        if torch.cuda.is_current_stream_capturing():
            return self.run(*inputs)
        with self.lock, torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self.done)
            for own, x in zip(self.given, inputs, strict=True):
                if isinstance(own, Tensor):
                    own.copy_(x)
            self.graph.replay()
            made = tree_map_only(Tensor, torch.clone, self.made)
            self.done.record(stream)
        return made
