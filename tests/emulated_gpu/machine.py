# SPDX-License-Identifier: Apache-2.0
"""What torch would run on the emulated GPU runs on the CPU, on the same memory.

To be imported before gansparse, in a process whose CUDA runtime is runtime.cpp's: then tensors on
"cuda" lie in the host's memory, and a dispatch mode gives every op of torch's their CPU twins.
gansparse's own ops go to a core whose CUDA kernels are emulated. A captured graph is the list of
what was called; like a real one, its capture leaves no trace in memory.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch._tensor_str
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

aten = torch.ops.aten
# They start no kernel: shapes, strides and memory alone.
WITHOUT_KERNELS = {
    aten.alias.default, aten.as_strided_.default, aten.detach.default, aten.detach_.default,
    aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default,
    aten.is_pinned.default, aten.lift_fresh.default, aten.new_empty.default,
    aten.new_empty_strided.default, aten.record_stream.default, aten.resize_.default,
    aten.set_.source_Storage, aten.set_.source_Storage_storage_offset, aten.set_.source_Tensor,
    aten.squeeze_.default, aten.squeeze_.dim, aten.t_.default, aten.transpose_.default,
    aten.unsqueeze_.default,
}  # fmt: skip
RUNTIME = ctypes.CDLL(os.environ["EMULATED_GPU"] + "/libcudart_emulated.so")
FAKE = torch._C._TorchDispatchModeKey.FAKE
CAPTURES = ctypes.c_int.in_dll(RUNTIME, "emulated_gpu_captures")

Calls = list[Callable[[], object]]
capture: Calls | None = None  # of the graph that is being captured
within = False  # an op that is being recorded
generators: dict[int, tuple[torch.Generator, torch.Generator]] = {}


def on_host(tensor: Tensor) -> Tensor:
    """A CPU tensor on the memory of one on the emulated GPU."""
    storage = tensor.untyped_storage()
    if not tensor.numel():
        return torch.empty(0, dtype=tensor.dtype).as_strided(tensor.shape, tensor.stride())
    memory = (ctypes.c_byte * storage.nbytes()).from_address(storage.data_ptr())
    whole = storage.nbytes() // tensor.element_size() * tensor.element_size()
    raw = torch.frombuffer(memory, dtype=torch.uint8)[:whole].view(tensor.dtype)
    return raw.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def on_gpu(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a CPU tensor on the emulated GPU, with its strides."""
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    on_host(made).copy_(tensor)
    return made


def gpu_tensors(tree: object) -> list[Tensor]:
    leaves = tree_flatten(tree)[0]
    return [x for x in leaves if isinstance(x, Tensor) and x.device.type == "cuda"]


class OnHost(TorchDispatchMode):
    """Runs every op that has to do with the emulated GPU on the host."""

    supports_higher_order_operators = True

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Or torch.compile would leave all to eager where it is on."""
        return True

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(op, torch._ops.HigherOrderOperator):
            return op(*args, **kwargs)
        leaves = tree_flatten((args, kwargs))[0]
        device = next((x for x in leaves if isinstance(x, torch.device)), None)
        fake = any(isinstance(x, FakeTensor) or "Functional" in type(x).__name__ for x in leaves)
        here = gpu_tensors(leaves) or (device is not None and device.type == "cuda")
        if fake or not here or torch._C._get_dispatch_mode(FAKE) is not None:
            return op(*args, **kwargs)
        composite = "CompositeImplicitAutograd"
        if torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), composite):
            with self:
                made = op.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        if op in WITHOUT_KERNELS or op.is_view:
            return op(*args, **kwargs)
        function = op if op.namespace == "gansparse" else functools.partial(host_op, op)
        run = functools.partial(function, *args, **kwargs)
        return recorded(run, written_by(op, args, kwargs))


def host_op(op: Any, *args: Any, **kwargs: Any) -> Any:
    """The op on the CPU; what it makes lies where torch would have put it."""
    leaves, spec = tree_flatten((args, kwargs))
    device = next((x for x in leaves if isinstance(x, torch.device)), None)
    reads = op is aten._local_scalar_dense.default or (device is not None and device.type == "cpu")
    if reads and capture is not None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
    if reads or (device is not None and device.type == "meta"):
        target = None
    elif device is not None:
        index = torch.cuda.current_device() if device.index is None else device.index
        target = torch.device("cuda", index)
    else:
        target = gpu_tensors(leaves)[0].device
    twins: list[tuple[Tensor, Tensor]] = []

    def down(x: Any) -> Any:
        if isinstance(x, Tensor) and x.device.type == "cuda":
            twins.append((on_host(x), x))
            return twins[-1][0]
        if isinstance(x, torch.device) and x.type == "cuda":
            return torch.device("cpu")
        return host_generator(x) if isinstance(x, torch.Generator) else x

    def up(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        same = next((origin for twin, origin in twins if twin is x), None)
        return same if same is not None else x if target is None else on_gpu(x, target)

    host_args, host_kwargs = tree_unflatten([down(x) for x in leaves], spec)
    if op is aten.cudnn_batch_norm.default:
        made = (*aten.native_batch_norm(*host_args), torch.empty(0, dtype=torch.uint8))
    elif op is aten.cudnn_batch_norm_backward.default:
        x, grad, weight, mean, var, save_mean, save_var, eps, _ = host_args
        rest = (mean, var, save_mean, save_var, True, eps, [True] * 3)
        made = aten.native_batch_norm_backward(grad, x, weight, *rest)
    else:
        made = op(*host_args, **host_kwargs)
    return tree_map(up, made)


def host_generator(generator: torch.Generator) -> torch.Generator:
    """The CPU generator that stands for one of the GPU's, by its seed."""
    if generator.device.type == "cpu":
        return generator
    found = generators.get(id(generator))
    if found is None or found[0].initial_seed() != generator.initial_seed():
        host = torch.Generator().manual_seed(generator.initial_seed())
        found = generators[id(generator)] = (host, generator)
    return found[0]


def written_by(op: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that the op writes to, by its schema."""
    found = []
    for i, argument in enumerate(op._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += gpu_tensors(args[i] if i < len(args) else kwargs.get(argument.name))
    return found


# ---- Graphs --------------------------------------------------------------------------------------


def recorded(run: Callable[[], Any], written: list[Tensor]) -> Any:
    """The call; within a capture it is kept for replays, and what it writes is undone."""
    global within
    if capture is None or within:
        return run()
    before = [(x, on_host(x).clone()) for x in written]
    within = True
    try:
        made = run()
    finally:
        within = False
    outputs = [x for x in gpu_tensors(made) if not any(x is y for y in written)]

    def again() -> None:
        made_again = [x for x in gpu_tensors(run()) if not any(x is y for y in written)]
        for to, x in zip(outputs, made_again, strict=True):
            on_host(to).copy_(on_host(x))

    capture.append(again)
    for x, was in before:
        on_host(x).copy_(was)
    for x in outputs:
        if x.is_floating_point():
            on_host(x).fill_(float("nan"))
    return made


class Graph:
    """In place of `torch.cuda.CUDAGraph`."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.calls: Calls | None = None

    def capture_begin(self, pool: object = None, **options: object) -> None:
        global capture
        self.calls = capture = []
        CAPTURES.value = 1

    def capture_end(self) -> None:
        global capture
        capture, CAPTURES.value = None, 0

    def replay(self) -> None:
        assert self.calls is not None
        for call in self.calls:
            call()

    def pool(self) -> tuple[int, int]:
        return 0, 1

    def reset(self) -> None:
        self.calls = None


# ---- Installation --------------------------------------------------------------------------------


def load_core() -> Any:
    """The core with emulated kernels, as gansparse._C; what is called without an op is recorded."""
    path = os.environ["EMULATED_GPU"] + "/_C.so"
    spec = importlib.util.spec_from_file_location("gansparse._C", path)
    assert spec is not None
    assert spec.loader is not None
    core: Any = importlib.util.module_from_spec(spec)
    sys.modules["gansparse._C"] = core
    spec.loader.exec_module(core)
    for name in ("masked_adam", "instance_norm"):
        setattr(core, name, functools.partial(called, getattr(core, name)))
    return core


def called(function: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    recorded(functools.partial(function, *args, **kwargs), gpu_tensors((args, kwargs)))


def install() -> None:
    mode = OnHost()
    mode.__enter__()
    in_library, in_thread, text = (
        torch.library.Library.impl,
        threading.Thread.run,
        torch._tensor_str._str,
    )

    def implement(self: Any, name: str, function: Any, key: str = "", **options: Any) -> Any:
        def within(*args: Any, **kwargs: Any) -> Any:
            with mode:
                return function(*args, **kwargs)

        return in_library(self, name, within if key == "CUDA" else function, key, **options)

    def run(self: threading.Thread) -> None:
        with mode:
            in_thread(self)

    def told(self: Tensor, **options: Any) -> str:
        here = self.is_cuda and type(self) in (Tensor, torch.nn.Parameter)
        return text(on_host(self.detach()) if here else self, **options)

    torch.library.Library.impl = implement  # type: ignore[method-assign]
    threading.Thread.run = run  # type: ignore[method-assign]
    torch._tensor_str._str = told
    torch.cuda.CUDAGraph = torch.cuda.graphs.CUDAGraph = Graph  # type: ignore[misc,assignment]
    torch.cuda._sleep = lambda cycles: None
    load_core()


install()
