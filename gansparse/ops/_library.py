# SPDX-License-Identifier: Apache-2.0
"""What all op files share: registration with torch, and the way to the native core."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, overload

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from gansparse.errors import InputError

try:
    from gansparse import _C
except ImportError as error:  # the folder was imported without having been built
    raise ImportError(
        f"gansparse's native core could not be loaded ({error}); build it with `pip install .`"
    ) from error

__all__ = ["current_stream", "define", "define_gradient", "describe", "takes_arrays"]

P = ParamSpec("P")
R = TypeVar("R")

_LIBRARY: Any = torch.library.Library("gansparse", "DEF")  # type: ignore[no-untyped-call]


def define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register an op with torch.

    Args:
        schema: as torch writes them, without namespace: ``"name(Tensor x) -> Tensor"``.
        implementation: runs it on CPU and CUDA tensors.
        fake: checks the arguments and makes the outputs from shapes alone.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, implementation, key)
    torch.library.register_fake(f"gansparse::{name}", fake, lib=_LIBRARY)


def define_gradient(name: str, backward: Callable[..., Any], save: Callable[..., None]) -> None:
    """Give a defined op its gradient.

    Args:
        name: the op's.
        backward: from (ctx, gradient of the output) to those of the arguments.
        save: keeps in ctx what backward needs: save(ctx, inputs, output).
    """
    torch.library.register_autograd(
        f"gansparse::{name}", backward, setup_context=save, lib=_LIBRARY
    )


@overload
def describe(argument: Tensor) -> Any: ...
@overload
def describe(argument: Sequence[Tensor | None]) -> list[Any]: ...
@overload
def describe(argument: None) -> None: ...


def describe(argument: Tensor | Sequence[Tensor | None] | None) -> Any:
    """Turn tensors without memory into what the core checks in place of arrays.

    A fake calls the core with its arguments described, so real and fake tensors go through the
    same checks. A size that torch.compile keeps symbolic is checked at the value it has now, which
    adds a guard.
    """
    if argument is None:
        return None
    if not isinstance(argument, Tensor):
        return [describe(item) for item in argument]
    return _C.TensorSpec(
        [int(size) for size in argument.shape],
        [int(stride) for stride in argument.stride()],
        str(argument.dtype).removeprefix("torch."),
        "cuda" if argument.device.type == "cuda" else "cpu",
        argument.device.index or 0,
    )


def current_stream(tensor: Tensor) -> int:
    """The handle of torch's current stream on the tensor's device; 0 on the CPU.

    To be called before every call of the core. On the CPU it has torch apply `set_num_threads` to
    the calling Python thread, which torch puts off until it is asked, and which the core reads.
    """
    if not tensor.is_cuda:
        torch.get_num_threads()
        return 0
    return int(torch.cuda.current_stream(tensor.device).cuda_stream)


# ---- Arrays of other libraries -------------------------------------------------------------------


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
            if outer is not None and isinstance(result, Tensor):
                result.record_stream(outer)  # its memory is not to be reused while that uses it
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
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{op}: {name} cannot be shared through DLPack: {error}") from error


@contextmanager
def _stream_of(array: Any) -> Iterator[torch.cuda.Stream | None]:
    """Make CuPy's current stream torch's, and yield the one that was; nothing for other arrays."""
    cupy = sys.modules.get("cupy")
    if cupy is None or not isinstance(array, cupy.ndarray):
        yield None
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
    with torch.cuda.stream(inner):
        yield outer
    outer.wait_stream(inner)
