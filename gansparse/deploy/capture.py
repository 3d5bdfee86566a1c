# SPDX-License-Identifier: Apache-2.0
"""From any module to a torch.fx graph of what it computes for inputs of these shapes.

The module's own ``forward`` is run once on fake tensors, which have shapes and no numbers, and each
torch function that it calls is written down, as `torch.export` does one level lower. So whatever
Python there is between the calls is followed; branches that ask for a tensor's numbers can't be. A
submodule with such a branch stays in the graph as a whole; so does one with a hook that returns
nothing, unless it runs before the module and sets a tensor there (a normed weight, say): its effect
is elsewhere.

The graph computes and does not write: where the module works in place, later readers get the new
tensor. Norms, activations and paddings appear as the functions of `torch.nn.functional` that the
modules of `torch.nn` call, so that a graph looks the same whichever of the two a network uses.
"""

from __future__ import annotations

import copy
import inspect
import operator
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from gansparse.deploy import hooks

#: Where a norm says whether it uses the statistics of what it reads.
_STATISTICS = {F.batch_norm: "training", F.instance_norm: "use_input_stats"}


class ShapeChanged(Exception):
    """A submodule that runs as a whole returned another shape than when it was captured."""


class NotCaptured(Exception):
    """Why a module, or one within it, can't be written down."""

    def __init__(self, module: str, reason: str) -> None:
        super().__init__(reason)
        self.module, self.reason = module, reason


def capture(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[fx.GraphModule, dict[str, str]]:
    """Write down what the module computes in eval mode.

    Args:
        module: in eval mode; it is not changed.
        inputs: what it is called with: tensors, and anything else, which is taken as fixed.

    Returns:
        The graph with the module's own tensors, and the submodules that stay whole: name → why.
        Each node's ``meta`` has its fake ``value`` and the ``owner``: the submodule that called.

    Raises:
        NotCaptured: the module itself can't be captured.
    """
    whole: dict[str, str] = {}
    made: dict[str, list[Any]] = {}
    while True:
        recorder = _Recorder(module, made)
        try:
            graph = recorder.record(inputs)
        except NotCaptured as failure:
            if not failure.module or failure.module in whole:
                raise NotCaptured("", failure.reason) from None
            whole[failure.module] = failure.reason
            made = _outputs(module, inputs, list(whole))
            continue
        parts: dict[str, Any] = {name: module.get_submodule(name) for name in made}
        captured = fx.GraphModule(recorder.tensors | parts, graph)
        captured.graph.eliminate_dead_code()
        return captured, whole


def _outputs(module: nn.Module, inputs: tuple[Any, ...], names: list[str]) -> dict[str, list[Any]]:
    """What these submodules return, call by call, when the module is run."""
    made: dict[str, list[Any]] = {name: [] for name in names}
    versions: dict[str, list[int]] = {}
    handles = []

    def before(name: str, *read: Any) -> None:
        versions[name] = [_version(t) for t in leaves(read)]

    def after(name: str, part: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if versions[name] != [_version(t) for t in leaves((part, args, kwargs))]:
            raise NotCaptured("", f"{name} writes into what it reads, and can't be followed")
        made[name].append(out)

    for name in names:
        part = module.get_submodule(name)
        handles.append(part.register_forward_pre_hook(partial(before, name), with_kwargs=True))
        handles.append(part.register_forward_hook(partial(after, name), with_kwargs=True))
    try:
        with torch.no_grad():
            module(*copied(inputs))
    finally:
        for handle in handles:
            handle.remove()
    return made


class _Recorder(TorchFunctionMode):
    """One run of the module's forward."""

    def __init__(self, module: nn.Module, made: dict[str, list[Any]]) -> None:
        super().__init__()
        self.made = {name: list(outputs) for name, outputs in made.items()}
        self.graph = fx.Graph()
        self.tensors: dict[str, Tensor] = {}  # the module's, by the name of their node
        self.names = {id(t): n for n, t in (*module.named_buffers(), *module.named_parameters())}
        self.nodes: dict[int, fx.Node] = {}  # id of a tensor → what made it
        self.alive: list[Tensor] = []  # so that no id is used twice
        self.stale: set[int] = set()  # views of what was written over
        self.owners = [""]
        self.inputs: set[int] = set()  # their storages
        # Its tensors are the module's; its attributes are its own, as forward may set some.
        self.module = copy.deepcopy(module, {id(t): t for t in _tensors_of(module)})
        for name, part in self.module.named_modules():
            if not isinstance(part, torch.jit.ScriptModule):
                part.forward = types.MethodType(_Watched(self, name, part.forward), part)
            for held, key, first in hooks.of(part):
                held[key] = partial(self.hook, name, held[key], first)

    def record(self, inputs: tuple[Any, ...]) -> fx.Graph:
        """The graph of one call."""
        with FakeTensorMode(allow_non_fake_inputs=True) as self.fakes, torch.no_grad():
            given = []
            for i, value in enumerate(inputs):
                fake = torch.empty_like(value) if isinstance(value, Tensor) else value
                self._made(self.graph.placeholder(f"input_{i}"), fake)
                given.append(fake)
            self.inputs = set(map(_storage, leaves(given)))
            with self:
                out = self.module(*given)
        try:
            _check_containers(out)
            map_aggregate(out, _check_output)
            self.graph.output(self._arguments(out))
        except RuntimeError as error:
            raise NotCaptured("", str(error)) from None
        return self.graph

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = leaves((args, kwargs))
        versions = [_version(tensor) for tensor in read]
        out = function(*args, **kwargs)
        written = [t for t, v in zip(read, versions, strict=True) if _version(t) != v]
        made = leaves(out)
        name = getattr(function, "__name__", "")
        if written or (name.endswith("_") and not name.endswith("__")):
            function = self._out_of_place(function, written, out)
        elif all(any(t is r for r in read) for t in made):
            return out  # nothing new: a size, a dropout in eval mode, contiguous() of what is so
        if any(not isinstance(tensor, FakeTensor) for tensor in made):
            raise RuntimeError(f"{name} makes a tensor that can't be followed")
        node = self.graph.create_node(*self._arguments(_as_node(function, args, kwargs)))
        if written:
            storage = _storage(out)
            self.stale |= {id(t) for t in self.alive if _storage(t) == storage}
        self._made(node, out)
        return out

    def call(self, name: str, forward: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """One call of a submodule: followed, or as a whole where that failed before."""
        if name in self.made and name:
            return self._whole(name, args, kw)
        self.owners.append(name)
        try:
            return forward(*args, **kw)
        except NotCaptured:
            raise
        except Exception as error:  # whatever the module's own code does with a fake tensor
            lines = str(error).strip().splitlines() or [""]
            raise NotCaptured(name, f"{type(error).__name__}: {lines[0]}"[:160]) from error
        finally:
            self.owners.pop()

    def hook(self, name: str, hook: Callable[..., Any], first: bool, *given: Any) -> Any:
        """One call of a submodule's hook; a submodule that stays whole calls it itself."""
        if name in self.made and name:
            return None
        before = hooks.tensors(given[0])
        made = self.call(name, hook, *given)
        after = hooks.tensors(given[0])
        same = len(before) == len(after) and all(map(operator.is_, before, after))
        if made is None and (same or not first):
            raise NotCaptured(name, "its hook returns nothing, and may have an effect elsewhere")
        return made

    def _whole(self, name: str, args: Any, kwargs: Any) -> Any:
        if not self.made[name]:
            raise NotCaptured("", f"{name} is called a different number of times on each run")
        real = self.made[name].pop(0)
        node = self.graph.create_node("call_module", name, *self._arguments((args, kwargs)))
        out = map_aggregate(real, lambda t: torch.empty_like(t) if isinstance(t, Tensor) else t)
        form = _form(out)
        self._made(self.graph.call_function(expect, (node, form)), out)
        return out

    def _out_of_place(self, function: Any, written: list[Tensor], out: Any) -> Any:
        """The function that returns what this one writes."""
        if any(_storage(tensor) in self.inputs for tensor in written):
            raise NotCaptured("", "it writes into its input")
        name = getattr(function, "__name__", "")
        plain = function if _has_inplace(function) else None
        for where in (Tensor, torch):
            if getattr(where, name, None) is function and name.endswith("_"):
                plain = getattr(where, name[:-1], None)
        if plain is None or len(written) != 1 or out is not written[0]:
            raise RuntimeError(f"{name} writes into a tensor")
        return plain

    def _made(self, node: fx.Node, value: Any) -> None:
        """Note who made the value; parts of a tuple get nodes of their own."""
        node.meta.update(value=value, owner=self.owners[-1])
        if isinstance(value, Tensor):
            self.nodes[id(value)] = node
            self.stale.discard(id(value))
            self.alive.append(value)
        elif isinstance(value, (tuple, list)):
            for i, part in enumerate(value):
                if isinstance(part, Tensor):
                    self._made(self.graph.call_function(_item, (node, i)), part)

    def _arguments(self, values: Any) -> Any:
        return map_aggregate(values, self._argument)

    def _argument(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in self.stale:
            raise RuntimeError("a view of a tensor is read after the tensor was written over")
        if id(value) not in self.nodes:
            if isinstance(value, FakeTensor):
                raise RuntimeError("a tensor comes from what torch can't be asked about")
            name = self.names.get(id(value), f"constant_{len(self.tensors)}")
            self.tensors[name] = value
            node = self.graph.create_node("get_attr", name)
            node.meta.update(value=value, owner=name.rpartition(".")[0])
            self.nodes[id(value)] = node
            self.alive.append(value)
        return self.nodes[id(value)]


class _Watched:
    """A submodule's forward as the recorder sees it."""

    def __init__(self, recorder: _Recorder, name: str, forward: Callable[..., Any]) -> None:
        self.recorder, self.name, self.forward = recorder, name, forward

    def __call__(self, _: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.recorder.call(self.name, self.forward, *args, **kwargs)


def _has_inplace(function: Any) -> bool:
    return isinstance(function, types.FunctionType) and "inplace" in _parameters(function)


def _parameters(function: Any) -> Any:
    return inspect.signature(function).parameters


def _as_node(function: Any, args: Any, kwargs: Any) -> tuple[str, Any, Any, Any]:
    """Kind, target and arguments of the node for a call."""
    name = getattr(function, "__name__", "")
    if name == "__get__":  # a property that gives a tensor: x.T, x.data
        return "call_function", getattr, (args[0], function.__self__.__name__), {}
    if getattr(Tensor, name, None) is function:
        return "call_method", name, args, kwargs
    flag = _STATISTICS.get(function)
    if flag is not None or _has_inplace(function):
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        bound.arguments.pop("inplace", None)
        if (
            flag is not None
            and bound.arguments[flag]
            and bound.arguments["running_mean"] is not None
        ):
            raise RuntimeError(f"{name} updates its running statistics")
        args, kwargs = (), dict(bound.arguments)
    return "call_function", function, args, kwargs


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _check_containers(value: Any) -> None:
    """Refuse lists, tuples and dicts of a class of their own: a graph gives plain ones."""
    if isinstance(value, (list, tuple, dict)):
        plain = type(value) in (list, tuple, dict) or hasattr(value, "_fields")
        if not plain:
            raise RuntimeError(f"it returns a {type(value).__name__}")
        for each in value.values() if isinstance(value, dict) else value:
            _check_containers(each)


def _check_output(value: Any) -> Any:
    """Refuse what could hide a tensor."""
    if not isinstance(value, (Tensor, bool, int, float, str, type(None))):
        raise RuntimeError(f"it returns a {type(value).__name__}")
    return value


def _form(values: Any) -> tuple[Any, ...]:
    """Shapes of the tensors in nested tuples, lists and dicts, and all else that is in them."""
    found: list[Any] = []
    map_aggregate(values, lambda v: found.append(v.shape if isinstance(v, Tensor) else v))
    return tuple(found)


def expect(values: Any, form: tuple[Any, ...]) -> Any:
    """What a submodule returned as a whole, if the graph fits its shapes and plain values.

    Raises:
        ShapeChanged: it does not.
    """
    if _form(values) != form:
        raise ShapeChanged
    return values


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _item(values: Any, index: int) -> Any:
    return values[index]


def leaves(values: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    found: list[Tensor] = []
    map_aggregate(values, lambda v: found.append(v) if isinstance(v, Tensor) else v)
    return found


def copied(values: Any) -> Any:
    """The same with tensors of their own, which may be written over."""
    return tree_map_only(Tensor, torch.clone, values)


def random_state() -> list[bytes]:
    """Where torch's random numbers are, on the CPU and on CUDA's current device."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states.append(torch.cuda.get_rng_state())
    return [state.numpy().tobytes() for state in states]


def _tensors_of(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
