# SPDX-License-Identifier: Apache-2.0
"""`compile`: from a pruned generator to one that runs on the fastest kernels of this machine."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import operator
import os
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gansparse import _C
from gansparse.deploy import cuda, cuda_graph, hooks, measure
from gansparse.deploy.agreement import allowed_gap, changed, output_gap
from gansparse.deploy.as_it_was import as_it_was
from gansparse.deploy.capture import NotCaptured, ShapeChanged, capture, copied, leaves
from gansparse.deploy.explain import Explanation
from gansparse.deploy.marks import Marks, marks
from gansparse.deploy.memory import Buffers
from gansparse.deploy.plan import Bank, Plan, make_plan, shape_text
from gansparse.errors import InputError
from gansparse.sparsity import shrink as shrink_filters
from gansparse.sparsity.shrunk import Spread

_ON_CPU = (torch.float32,)
#: Of input, for which there are plans at a time.
_MOST_SHAPES = 32
_PLAIN = (bool, int, float, str, type(None))


def compile(
    generator: nn.Module,
    example_input: Tensor | tuple[Any, ...],
    *,
    shrink: bool = True,
    replan: bool = False,
    cuda_graph: bool | None = None,
) -> CompiledGenerator:
    """The generator in eval mode, each layer on the kernel that is fastest here.

    It is captured as a graph (`gansparse.deploy.capture`); norms, paddings, sums, pixel shuffles
    and activations are fused into its convolutions (`gansparse.deploy.fuse`); for each convolution
    the fastest of the sparse kernels, Winograd's for 3 x 3 taps, and torch's dense ones, in NCHW
    and channels_last, is chosen by measuring them on what the layer reads, with the threads that
    torch has now. Measured times are kept on disk (`gansparse.deploy.measure`). Between layers
    everything stays in torch's own layouts: the sparse kernels convert within the first cache, and
    of three blocked layouts that were built none was faster (docs/results.md).
    Memory between layers is torch's, but for large tensors (see `gansparse.deploy.memory`).

    On CUDA the kernels are cuDNN's with its search for the fastest algorithm, in NCHW and
    channels_last, and `gansparse.ops.sparse_conv2d`'s for float32 or for float16 and bfloat16;
    times are the device's own, with a cold L2; and the whole can be captured in a CUDA graph for
    each shape of input. No deployed generator has been timed on a GPU yet.

    The result is never slower than the generator, on pictures in NCHW and in channels_last (on
    CUDA: as it was, and in channels_last with cuDNN's search): all are measured in turns, on the
    first call with each shape of input and number of threads, and where the plan does not win,
    perhaps in one layout only, the generator runs as it was. So it does where it can't be captured,
    is not float32 (on CUDA: nor float16 nor bfloat16), is on another device, under
    ``torch.autocast``, or is called with keywords that its signature does not name or takes by
    keyword only; `CompiledGenerator.explain` says so, with the time of each layer.

    Its output is within 1e-4 of the generator's, as a share of the largest number or of 1. Where
    rounding alone moves the generator's own output further from what it is in float64, the plan's
    may be twice as far from that. A new plan is checked on what it is called with first.

    In a process that is forked later torch has one thread, as in a DataLoader's workers: with more,
    libgomp, torch's usual OpenMP, waits there for threads that did not come along.

    Args:
        generator: any, pruned or not. It is copied; later changes to it have no effect.
        example_input: what it is called with: shapes, threads and numbers as they will be.
        shrink: leave out filters that are empty, where the output stays the same. Live dropout
            then draws for fewer channels.
        replan: measure each layer again for each new shape of input. Otherwise a new shape keeps
            the kernels of the example's and their packed weights, and is only checked and timed
            against the generator as a whole. The last 32 shapes are remembered.
        cuda_graph: capture the plan in a CUDA graph: None: where that is faster; True: in any case;
            False: never. A graph's memory stays taken, for each shape of input. Where there is a
            submodule that can't be followed, or the capture fails, the plan runs without one.

    Returns:
        A module with the same call. It computes no gradients.

    Raises:
        InputError: the generator can't be called with the example, or hooks name parts of it.

    Example:
        >>> import os, tempfile
        >>> os.environ["GANSPARSE_CACHE"] = tempfile.mkdtemp()
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> _ = net[0].weight.data[:, 1:].fill_(0)
        >>> x = torch.randn(1, 3, 9, 9)
        >>> fast = compile(net, x)
        >>> torch.allclose(fast(x), net(x), atol=1e-4)
        True
    """
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    _mind_forks()
    hooks.check(generator)
    with torch.inference_mode(False):
        own = copy.deepcopy(generator, _computed(generator)).eval()
        compiled = CompiledGenerator(own, shrink=shrink, replan=replan, graph=cuda_graph)
    try:
        with torch.no_grad(), compiled._searching(inputs):
            compiled.original(*copied(inputs))
    except TypeError as error:
        raise InputError(f"compile: the generator can't be called so: {error}") from None
    compiled._add_plan(inputs)
    return compiled


class CompiledGenerator(nn.Module):
    """What `compile` makes. Call it as the generator; threads may share it.

    Its state is the generator's (under ``original.``), and its plans are made of that: copies,
    pickles, and a generator that is loaded with another state or moved to another dtype or device
    make new ones on their first call, with the kernels that were chosen at first; so they do when
    ``original`` itself is loaded, trained or given other layers. In training mode it runs as it is.
    Torch does not count, and nothing here notices, what is written through a parameter's ``.data``,
    by an optimizer with ``fused=True``, or in a CUDA graph.

    Attributes:
        original: the generator, which runs where no plan is better.
        shrunk: the generator without empty filters, of which the plans are made; or None.
    """

    def __init__(
        self, original: nn.Module, *, shrink: bool, replan: bool, graph: bool | None = None
    ) -> None:
        super().__init__()
        self.original = original
        self.shrunk: nn.Module | None = None
        self._replan, self._graph, self._mode = replan, graph, original.training
        self._shrink = self._to_shrink = shrink  # whether it may be, and is to be tried
        self._way = ""  # of cuda_graph.ways, or the only layout: how the first shape runs
        self._planned: tuple[torch.device, torch.dtype] | None = None  # what choices are for
        self._choices: dict[str, str] | None = None  # of the first plan; None: runs as it was
        self._memory = [Buffers()]  # in a list: no submodule
        self._forget()

    def _forget(self) -> None:
        """What follows from the state. No submodules: they differ with the shape of the input."""
        self._plans: dict[Any, list[cuda_graph.Run]] = {}  # none, or one
        self._only: dict[Any, str] = {}  # the layout of inputs that the plan is for; "": any
        self._bank: Bank = {}
        self._told: dict[Any, Explanation] = {}
        self._marks: Marks | None = None  # of the state

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the generator gives for these inputs."""
        inputs = self._positional(args, kwargs)
        device = measure.CPU if self._planned is None else self._planned[0]
        with torch.no_grad():
            other_mode = self.original.training != self._mode
            if inputs is None or other_mode or torch.is_autocast_enabled(device.type):
                return self.original(*args, **kwargs)
            if self._marks is not None and not self._marks.hold():
                self.shrunk, self._to_shrink = None, self._shrink
                self._forget()
            key = _signature(inputs)
            plans = self._plans.get(key)
            if plans is None:
                plans = self._add_plan(inputs)
            fits = self._only.get(key, "") in ("", _layout(inputs))
            for plan in plans if fits else []:
                with suppress(ShapeChanged):
                    return plan(*_contiguous(inputs))
            return self.original(*inputs)

    def explain(self) -> Explanation:
        """Which layer runs how and why, for the first shape of input; of others, whether.

        Example:
            >>> net = nn.Conv2d(1, 1, 1).double()
            >>> compile(net, torch.zeros(1, 1, 2, 2, dtype=torch.float64)).explain().verdict
            'runs as it was: weight is float64; the kernels take float32'
        """
        if not self._told:
            return Explanation("", verdict="not called yet")
        first, *others = self._told.items()
        notes = [f"input {told.headline(key[0])}" for key, told in others]
        return replace(first[1], notes=[*first[1].notes, *notes])

    def train(self, mode: bool = True) -> CompiledGenerator:
        """Stays in eval mode."""
        super().train(False)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._forget()  # also where a module that holds this one is loaded
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> CompiledGenerator:
        self._forget()
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        empty: dict[str, Any] = {"_plans": {}, "_only": {}, "_bank": {}, "_told": {}}
        return self.__dict__ | empty | {"_marks": None, "_memory": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"_memory": [Buffers()]})  # type: ignore[no-untyped-call]

    def _gap_elsewhere(self, plan: nn.Module, inputs: tuple[Any, ...], dtype: torch.dtype) -> float:
        """How far the plan is off where nothing was seen: what it took for constant shows here."""
        try:
            return output_gap(self.original, plan, inputs, dtype)
        except ShapeChanged:  # then the original runs
            return 0.0
        except Exception:
            with suppress(Exception):
                self.original(*inputs)
                return math.inf
            return 0.0  # the generator doesn't take these numbers either

    def _positional(self, args: Any, kwargs: Any) -> tuple[Any, ...] | None:
        """The inputs without keywords; None where they can't be."""
        if not kwargs:
            return tuple(args)
        bound = inspect.signature(self.original.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        return None if bound.kwargs else bound.args

    def _searching(self, inputs: tuple[Any, ...]) -> AbstractContextManager[None]:
        """On CUDA cuDNN is to choose its fastest algorithms."""
        on_cuda = cuda.on_cuda(_kind(self.original, inputs)[0])
        return cuda.searching() if on_cuda else nullcontext()

    def _add_plan(self, inputs: tuple[Any, ...]) -> list[cuda_graph.Run]:
        """Make the plan for inputs of this shape, or find that there is none."""
        state = self._marks or marks(self.original)
        shrink, self._to_shrink = self._to_shrink, False
        told, key = Explanation(", ".join(map(_text, inputs))), _signature(inputs)
        kind, reason = _kind(self.original, inputs), _unfit(self.original, inputs)
        first = self._planned is None
        if reason is None and self._planned != kind:
            self._choices, self._way = None, ""
        measures = self._replan or self._planned != kind
        if reason is None and not measures and self._choices is None:
            reason = "so it did for the first shape of input"
        plan = None
        if reason is None:
            gpu = kind[0].index
            forked = torch.random.fork_rng(devices=[] if gpu is None else [gpu])
            searching = self._searching(inputs)
            plain = torch.autocast(kind[0].type, enabled=False)
            with torch.inference_mode(False), torch.no_grad(), forked, searching, plain:
                own = copied(inputs)
                if shrink:
                    self.shrunk = _shrunk(self.original, own, told)
                plan, reason = self._plan(own, told, measures)
                if plan is None and self.shrunk is not None and first:
                    told.notes.append(f"not shrunk: {reason}")
                    self.shrunk, self._shrink = None, False
                    self._bank.clear()
                    plan, reason = self._plan(own, told, measures)
        self._planned = kind
        told.verdict = f"runs {reason or 'as planned'}" if plan else f"runs as it was: {reason}"
        if plan is None:
            told.rows = as_it_was(self.original, inputs) if measures else []
        elif reason == cuda_graph.CHANNELS_LAST:
            told.rows = []
        plans = [] if plan is None else [plan]
        if len(self._plans) >= _MOST_SHAPES:
            oldest = next(iter(self._plans))
            self._plans.pop(oldest, None)
            self._only.pop(oldest, None)
            if oldest != next(iter(self._told)):  # which goes on telling of the layers
                self._told.pop(oldest, None)
        self._told[key], self._plans[key] = told, plans
        self._marks = state.still()
        return plans

    def _plan(
        self, inputs: tuple[Any, ...], told: Explanation, measures: bool
    ) -> tuple[cuda_graph.Run | None, str]:
        """A plan for these inputs and how it runs, or None and why there is none."""
        device, dtype = _kind(self.original, inputs)
        source = _without_spread(self.original if self.shrunk is None else self.shrunk)
        given, inputs = inputs, _contiguous(inputs)
        try:
            captured, told.whole = capture(source, inputs)
        except NotCaptured as failure:
            return None, f"it can't be captured: {failure.reason}"
        finally:
            torch.clear_autocast_cache()  # of casts that were only followed
        cache = measure.Cache(device)
        choices = None if measures else self._choices
        try:
            (memory,) = self._memory
            plan = make_plan(
                captured, inputs, cache, bank=self._bank, memory=memory, choices=choices
            )
        except torch.cuda.OutOfMemoryError:
            return None, "there is not enough memory to measure its layers"
        told.rows = plan.rows
        gap = output_gap(self.original, plan.module, inputs, dtype)
        if not gap <= allowed_gap(dtype):
            return None, f"the plan's output differs by {gap:.1g}"
        gap = self._gap_elsewhere(plan.module, changed(inputs), dtype)
        if not gap <= allowed_gap(dtype):
            return None, f"of other inputs the plan's output differs by {gap:.1g}"
        if cuda.on_cuda(device):
            return self._on_cuda(plan, inputs, told, cache, measures)
        if self._graph:
            told.notes.append("no CUDA graph: the generator is not on CUDA")
        cache.save()
        layouts, won = _layouts(given), []
        for layout, pictures in layouts.items():
            runs = {
                "before": partial(self.original, *pictures),
                "after": partial(_run, plan.module, pictures),
            }
            times = measure.interleaved(runs, rounds=5 if measures else 2)
            if layout == _layout(given):
                told.before, told.after = times["before"], times["after"]
            if times["after"] < times["before"]:
                won.append(layout)
        if not won:
            return None, "the plan is not faster"
        way = won[0] if len(won) < len(layouts) else ""
        if self._choices is None:
            self._choices = plan.choices
        self._only[_signature(inputs)] = way
        return plan.module, f"as it was, but as planned on pictures in {way}" if way else ""

    def _on_cuda(
        self,
        plan: Plan,
        inputs: tuple[Any, ...],
        told: Explanation,
        cache: measure.Cache,
        measures: bool,
    ) -> tuple[cuda_graph.Run | None, str]:
        """The fastest way to run all of it, and its name: of all, or the first shape's and none."""
        whole = ", ".join(told.whole)
        graph = self._graph is not False and not whole
        if whole and self._graph is not False:
            told.notes.append(f"no CUDA graph: {whole} runs as it was, and may read numbers")
        ways = cuda_graph.ways(self.original, plan.module, inputs, graph=graph)
        runs: dict[str, cuda_graph.Run] = {}
        for name, make in ways.items():
            if not measures and name not in (cuda_graph.AS_IT_WAS, self._way):
                continue
            try:
                run = make()
                run(*inputs)
                runs[name] = run
            except (RuntimeError, ValueError) as error:
                told.notes.append(f"not {name}: {(str(error).splitlines() or [''])[0]}")
        if not measures and self._way not in runs:
            runs[cuda_graph.PLANNED] = ways[cuda_graph.PLANNED]()
        if self._graph and cuda_graph.GRAPH in runs:
            runs.pop(cuda_graph.PLANNED, None)
        calls = {name: partial(run, *inputs) for name, run in runs.items()}
        rounds = 5 if measures else 2
        times = measure.interleaved(calls, rounds, device=cache.device, whole=True)
        cache.save()
        way = min(times, key=times.__getitem__)
        told.before, told.after = times[cuda_graph.AS_IT_WAS], times[way]
        told.notes.append(", ".join(f"{name}: {ms:.3f} ms" for name, ms in times.items()))
        if way == cuda_graph.AS_IT_WAS:
            return None, "the plan is not faster"
        if self._choices is None:
            self._choices, self._way = plan.choices, way
        return runs[way], way


def _computed(module: nn.Module) -> dict[int, Tensor]:
    """What `copy.deepcopy` takes for copied: tensors with a history, which it refuses.

    Such is the weight that ``nn.utils.spectral_norm`` has computed, and computes again.
    """
    held = (value for part in module.modules() for value in vars(part).values())
    return {id(t): t.detach().clone() for t in held if isinstance(t, Tensor) and not t.is_leaf}


@functools.cache
def _mind_forks() -> None:
    if "libgomp" in _C.build_info()["openmp"]:
        os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


def _run(plan: cuda_graph.Run, inputs: tuple[Any, ...]) -> Any:
    return plan(*_contiguous(inputs))


def _contiguous(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.contiguous() if isinstance(x, Tensor) else x for x in inputs)


def _layout(inputs: tuple[Any, ...]) -> str:
    return "NCHW" if all(map(operator.is_, inputs, _contiguous(inputs))) else "channels_last"


def _layouts(inputs: tuple[Any, ...]) -> dict[str, tuple[Any, ...]]:
    """The inputs in NCHW, and in channels_last where that is another."""

    def last(x: Any) -> Any:
        picture = isinstance(x, Tensor) and x.dim() == 4
        return x.contiguous(memory_format=torch.channels_last) if picture else x

    ways = (_contiguous(inputs), tuple(map(last, inputs)))
    return {_layout(way): way for way in ways}


def _kind(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[torch.device, torch.dtype]:
    """Where it runs, and in which dtype, if that is one."""
    for tensor in (*module.parameters(), *module.buffers(), *leaves(inputs)):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return measure.CPU, torch.float32


def _shrunk(original: nn.Module, inputs: tuple[Any, ...], told: Explanation) -> nn.Module | None:
    """The generator without its empty filters; None where it has none that can go."""
    if any(True for part in original.modules() for _ in hooks.of(part)):
        told.notes.append("not shrunk: its hooks would find fewer channels")
        return None
    try:
        small = shrink_filters(original, *inputs, spread=False)
    except InputError as error:
        told.notes.append(f"not shrunk: {error}")
        return None
    before, after = (sum(p.numel() for p in net.parameters()) for net in (original, small))
    if after == before:
        return None
    told.notes.append(f"shrunk: {before:,} parameters became {after:,}")
    return small


def _without_spread(network: nn.Module) -> nn.Module:
    """The network with the filters that `shrink` left out: kernels leave them out, too."""
    if not any(isinstance(part, Spread) for part in network.modules()):
        return network
    network = copy.deepcopy(network)
    for part in network.modules():
        if isinstance(part, Spread):
            dim = int(part.transposed)
            shape = list(part.weight.shape)
            shape[dim] = part.out_channels
            whole = part.weight.new_zeros(shape).index_copy(dim, part.channels, part.weight)
            part.weight = nn.Parameter(whole)
            plain: Any = nn.ConvTranspose2d if part.transposed else nn.Conv2d
            part.__class__ = plain
    return network


def _unfit(module: nn.Module, inputs: tuple[Any, ...]) -> str | None:
    """Why the kernels can't be used, if they can't."""
    named = [*module.named_parameters(), *module.named_buffers()]
    device, dtype = _kind(module, inputs)
    on_cuda = cuda.on_cuda(device)
    for i, x in enumerate(inputs):
        if isinstance(x, Tensor):
            named.append((f"input {i}", x))
        elif not isinstance(x, _PLAIN):
            return f"input {i} is a {type(x).__name__}; only tensors and plain values are followed"
    for name, tensor in named:
        if tensor.device.type != "cpu" and not on_cuda:
            return f"{name} is on {tensor.device}; the kernels run on the CPU and on CUDA"
        if tensor.device != device:
            return f"{name} is on {tensor.device}, and others are on {device}"
        if tensor.is_floating_point() and tensor.dtype not in (cuda.DTYPES if on_cuda else _ON_CPU):
            taken = "float32, float16 and bfloat16" if on_cuda else "float32"
            return f"{name} is {str(tensor.dtype)[6:]}; the kernels take {taken}"
        if tensor.is_floating_point() and tensor.dtype != dtype:
            return f"{name} is {str(tensor.dtype)[6:]}, and others are {str(dtype)[6:]}"
        if not tensor.numel() and name.startswith("input"):
            return f"{name} is empty"
    return None


def _signature(inputs: tuple[Any, ...]) -> Any:
    """What a plan depends on."""
    each = ((x.shape, x.dtype, x.device) if isinstance(x, Tensor) else _text(x) for x in inputs)
    return torch.get_num_threads(), *each


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return shape_text(value.shape)
    return repr(value) if isinstance(value, _PLAIN) else type(value).__name__
