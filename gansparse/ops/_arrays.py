# SPDX-License-Identifier: Apache-2.0
"""CuPy's, NumPy's and others' arrays go into the ops in place of tensors, by DLPack."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from gansparse.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")


def takes_arrays(op: Callable[P, R]) -> Callable[P, R]:
    """Let an op take what speaks DLPack (CuPy's and NumPy's arrays) wherever it takes a tensor.

    The first argument tells: where that is a tensor, or a list of them, the others are, too.
    Nothing is copied: what the op writes, it writes into the caller's arrays. A call with CuPy's
    arrays runs on CuPy's current stream, which waits for torch's current stream on that device
    before and which that waits for afterwards, so that either library may go on with the results.
    What the op returns is torch's.
    """
    signature = inspect.signature(op)
    first = next(iter(signature.parameters))

    @functools.wraps(op)
    def taking(*args: P.args, **kwargs: P.kwargs) -> R:
        head: Any = args[0] if args else kwargs.get(first)
        if type(head) in (list, tuple) and head:
            head = head[0]
        if not _is_foreign(head):
            return op(*args, **kwargs)
        with _stream_of(head) as outer:
            bound = signature.bind(*args, **kwargs)
            for name, argument in bound.arguments.items():
                bound.arguments[name] = _shared(argument, op.__name__, name)
            result = op(*bound.args, **bound.kwargs)
            for made in result if isinstance(result, tuple) else (result,):
                if outer is not None and isinstance(made, Tensor):
                    made.record_stream(outer)  # its memory is not to be reused while that uses it
        return result

    return taking


def _is_foreign(argument: object) -> bool:
    return not isinstance(argument, Tensor) and hasattr(argument, "__dlpack__")


def _shared(argument: Any, op: str, name: str) -> Any:
    """The argument, where it is an array or a list of them as tensors on the same memory."""
    if type(argument) in (list, tuple):
        return [_shared(item, op, f"{name}[{i}]") for i, item in enumerate(argument)]
    if not _is_foreign(argument):
        return argument
    # torch ends the process on the one, and would write into the other.
    if any(stride < 0 for stride in getattr(argument, "strides", None) or ()):
        raise InputError(f"{op}: {name} must have no negative strides: copy it")
    if not getattr(getattr(argument, "flags", None), "writeable", True):
        raise InputError(f"{op}: {name} must be writable: copy it")
    try:
        return from_dlpack(argument)
    except (
        AssertionError,  # torch's own, where it was built without the array's kind of device
        AttributeError,
        BufferError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise InputError(f"{op}: {name} cannot be shared through DLPack: {error}") from error


@contextmanager
def _stream_of(array: Any) -> Iterator[torch.cuda.Stream | None]:
    """Make CuPy's current stream torch's, and yield the one that was; nothing for other arrays."""
    cupy = sys.modules.get("cupy")
    if cupy is None or not isinstance(array, cupy.ndarray) or not torch.cuda.is_available():
        yield None  # a torch without CUDA refuses CuPy's arrays by itself
        return
    device = torch.device("cuda", array.device.id)
    with array.device:
        handle = int(cupy.cuda.get_current_stream().ptr)
    outer = torch.cuda.current_stream(device)
    if handle == outer.cuda_stream:
        yield None
        return
    inner: torch.cuda.Stream = torch.cuda.default_stream(device)
    if handle:  # torch takes 0 for a wish for a new one
        inner = torch.cuda.ExternalStream(handle, device=device)  # type: ignore[no-untyped-call]
    inner.wait_stream(outer)
    try:
        with torch.cuda.stream(inner):
            yield outer
    finally:  # what an op that fails has begun runs, too
        outer.wait_stream(inner)
