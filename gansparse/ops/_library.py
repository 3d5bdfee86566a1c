# SPDX-License-Identifier: Apache-2.0
"""What all op files share: registration with torch, and the way to the native core."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor
from torch.autograd import forward_ad

try:
    from gansparse import _C
except ImportError as error:  # the folder was imported without having been built
    raise ImportError(
        f"gansparse's native core could not be loaded ({error}); build it with `pip install .`"
    ) from error

__all__ = [
    "current_stream",
    "define",
    "define_autocast",
    "define_gradient",
    "describe",
    "has_tangent",
    "tell_written",
    "wants_gradient",
]

_LIBRARY: Any = torch.library.Library("gansparse", "DEF")  # type: ignore[no-untyped-call]


# Kernels have memory of their own from where tensors have theirs.
_C.set_device_memory_source(torch.cuda.caching_allocator_alloc, torch.cuda.caching_allocator_delete)


def define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register an op with torch.

    Args:
        schema: as torch writes them, without namespace: ``"name(Tensor x) -> Tensor"``.
        implementation: runs it on CPU and CUDA tensors.
        fake: checks the arguments and makes the outputs from shapes alone.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    arguments = getattr(torch.ops.gansparse, name).default._schema.arguments
    written = [i for i, x in enumerate(arguments) if x.alias_info and x.alias_info.is_write]
    run = implementation

    def run_and_tell(*given: Any) -> None:
        implementation(*given)
        for i in written:
            tell_written(given[i])

    if written:
        run = run_and_tell
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, run, key)
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


def define_autocast(name: str, dtype: torch.dtype) -> None:
    """Let a defined op take 16-bit tensors under `torch.autocast`; float64 stays what it is.

    Args:
        name: the op's.
        dtype: what they are brought to there.
    """
    for device in ("cpu", "cuda"):
        if hasattr(torch.library, "register_autocast"):
            torch.library.register_autocast(f"gansparse::{name}", device, dtype, lib=_LIBRARY)
        else:  # torch 2.6
            key = f"Autocast{device.upper()}"
            _LIBRARY.impl(name, partial(_without_autocast, name, device, dtype), key)


def _without_autocast(name: str, device: str, dtype: torch.dtype, *arguments: Any) -> Any:
    def cast(x: Any) -> Any:
        fits = isinstance(x, Tensor) and x.is_floating_point() and x.device.type == device
        return x.to(dtype) if fits and x.dtype != torch.float64 else x

    with torch.autocast(device, enabled=False):
        return getattr(torch.ops.gansparse, name)(*map(cast, arguments))


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


def tell_written(tensors: Tensor | Iterable[Tensor] | None) -> None:
    """Tell autograd that these were written in place, so that who saved them before learns of it.

    The core writes through pointers; torch sees nothing of that.
    """
    written = (tensors,) if isinstance(tensors, Tensor) else tensors or ()
    if _TAKES_MANY:
        torch.autograd.graph.increment_version(written)
        return
    for tensor in written:
        torch.autograd.graph.increment_version(tensor)


def _takes_many() -> bool:
    """Whether this torch's `increment_version` takes several tensors at once, 40 µs faster."""
    try:
        torch.autograd.graph.increment_version(())
    except TypeError:
        return False
    return True


_TAKES_MANY = _takes_many()


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether one of them is differentiated, backward or forward (`torch.func.jvp`)."""
    there = [tensor for tensor in tensors if tensor is not None]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in there):
        return True
    return has_tangent(*there)


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether one of them is differentiated forward."""
    if forward_ad._current_level < 0:
        return False
    unpack: Any = forward_ad.unpack_dual  # untyped in torch
    return any(t is not None and unpack(t).tangent is not None for t in tensors)


def current_stream(tensor: Tensor) -> int:
    """The handle of torch's current stream on the tensor's device; 0 on the CPU.

    To be called before every call of the core. On the CPU it has torch apply `set_num_threads` to
    the calling Python thread, which torch puts off until it is asked, and which the core reads.
    """
    if not tensor.is_cuda:
        torch.get_num_threads()
        return 0
    return int(torch.cuda.current_stream(tensor.device).cuda_stream)
