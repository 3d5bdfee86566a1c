# SPDX-License-Identifier: Apache-2.0
"""Which channels of a network belong together, and which of them are constants.

The network is traced once with torch.fx, on meta tensors, so that shapes are known and nothing is
computed. Then a walk over the graph gives each tensor's channels two things:

* an *atom* each: channels that can only go together have the same one. A convolution makes new
  atoms; a norm or an activation keeps those of its input; a sum ties those of its terms; a
  concatenation lines them up; a pixel shuffle ties the r² channels that become one.
* a *constant* each: the value that the channel has everywhere, whatever the network's input is, or
  NaN. What an empty filter leaves behind is its bias. Norms, activations and paddings are run on
  such constants (in float64, as they stand in the network), which also says what their modes make
  of them, live statistics included.

An operation that is not known here *pins* the channels that it reads and makes: they stay.
"""

from __future__ import annotations

import copy
import inspect
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from gansparse.errors import InputError
from gansparse.sparsity.layers import Layer, find_layers

NORMS = (_BatchNorm, _InstanceNorm)
_NORM_STATE = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
#: Modules that make each channel of that channel alone.
_CHANNELWISE = (
    *NORMS, _DropoutNd, nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU,
    nn.GELU, nn.SiLU, nn.Mish, nn.Hardtanh, nn.Hardswish, nn.Softplus, nn.Tanh, nn.Sigmoid,
    nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ZeroPad2d, nn.ConstantPad2d, nn.CircularPad2d,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Upsample,
)  # fmt: skip
_FUNCTIONS: set[Any] = {
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul,
    operator.truediv, operator.neg, torch.add, torch.sub, torch.mul, torch.relu, torch.tanh,
    torch.sigmoid, F.relu, F.leaky_relu, F.elu, F.gelu, F.silu, F.hardtanh, F.softplus, F.tanh,
    F.interpolate, F.avg_pool2d, F.max_pool2d,
}  # fmt: skip
_METHODS = {"add", "add_", "mul", "mul_", "relu", "relu_", "tanh", "tanh_", "sigmoid", "sigmoid_"}
_METHODS |= {"clone", "contiguous"}
_IN_PLACE = {operator.iadd, operator.isub, operator.imul}
_JOINS = (torch.cat, torch.concat, torch.concatenate)

#: How far from each other a constant channel's float64 numbers may be, and from 0 what counts as 0.
_NOISE = 1e-9


@dataclass(frozen=True)
class Channels:
    """The channels of one tensor: an atom and a constant (NaN: varies) each."""

    atoms: list[int]
    constants: Tensor  # [C], float64


@dataclass
class ChannelMap:
    """What the walk found; layers by name.

    Args:
        layers: those that can lose channels: plain convolutions and linear layers, called once.
        inputs: what each of ``layers`` reads.
        outputs: the atoms that each of ``layers`` makes.
        per_channel: norms and PReLUs with a parameter a channel → their atoms.
        positions: how often one forward pass uses each weight of a layer.
        pinned: atom → why it stays.
        others: convolutions and linear layers that are not among ``layers`` → why.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    inputs: dict[str, Channels] = field(default_factory=dict)
    outputs: dict[str, list[int]] = field(default_factory=dict)
    per_channel: dict[str, list[int]] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    pinned: dict[int, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    _parents: list[int] = field(default_factory=list)

    def find(self, atom: int) -> int:
        """The atom that stands for all that are tied to this one."""
        while self._parents[atom] != atom:
            self._parents[atom] = atom = self._parents[self._parents[atom]]
        return atom

    def new(self, count: int) -> list[int]:
        """That many new atoms."""
        first = len(self._parents)
        self._parents += range(first, first + count)
        return self._parents[first:]

    def tie(self, one: Iterable[int], other: Iterable[int]) -> None:
        """Atom by atom, they stay or go together."""
        for a, b in zip(one, other, strict=True):
            self._parents[self.find(b)] = self.find(a)


def filters_first(layer: Layer, weight: Tensor) -> Tensor:
    """A view of the layer's weight as [O, C, taps...]; its own inverse."""
    return weight.transpose(0, 1) if layer.transposed else weight


def map_channels(model: nn.Module, inputs: tuple[Any, ...]) -> ChannelMap:
    """Trace the model in eval mode and follow its channels.

    Args:
        model: any ``nn.Module``; it is not changed.
        inputs: what it is called with.

    Raises:
        InputError: it can't be traced; the message says why.
    """
    layers = {layer.name: layer for layer in find_layers(model)}
    model = copy.deepcopy(model).eval()
    return _Walk(model, _trace(model, inputs), layers).found


class _ShapedProxy(fx.Proxy):
    """A proxy that answers questions about its tensor's form, so that code may depend on them."""

    @property
    def _value(self) -> Any:
        return self.node.meta["value"]

    shape = property(lambda self: self._value.shape)
    dtype = property(lambda self: self._value.dtype)
    ndim = property(lambda self: self._value.ndim)

    def size(self, dim: int | None = None) -> Any:
        return self._value.shape if dim is None else self._value.shape[dim]

    def dim(self) -> int:
        return int(self._value.dim())


class _Tracer(fx.Tracer):
    """Runs the model on meta tensors while it is traced; keeps each node's value."""

    def __init__(self, values: list[Any]) -> None:
        super().__init__()
        self.values = iter(values)
        self.running = False  # then modules are called and not traced

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, (*NORMS, _DropoutNd))  # with forward methods of their own, too
        return known or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _ShapedProxy(node, self)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        return (
            forward(*args, **kwargs)
            if self.running
            else super().call_module(m, forward, args, kwargs)
        )

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, *args, **kwargs)
        if kind != "output":
            self.running = True
            node.meta["value"] = self._run(node)
            self.running = False
        return node

    def _run(self, node: fx.Node) -> Any:
        target: Any = node.target
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
        if node.op == "placeholder":
            return next(self.values)
        if node.op == "get_attr":
            return operator.attrgetter(target)(self.root)
        if node.op == "call_module":
            return self.root.get_submodule(target)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)


@torch.no_grad()
def _trace(model: nn.Module, inputs: tuple[Any, ...]) -> fx.Graph:
    what = type(model).__name__
    try:
        bound = inspect.signature(model.forward).bind(*inputs)
    except TypeError as error:
        raise InputError(f"{what} can't be called with {len(inputs)} inputs: {error}") from None
    given = set(bound.arguments)
    bound.apply_defaults()
    arguments = bound.arguments
    plain = (bool, int, float, str, type(None))
    fixed = {n: x for n, x in arguments.items() if n not in given or isinstance(x, plain)}
    values = [x.to("meta") if isinstance(x, Tensor) else x for x in arguments.values()]
    try:
        return _Tracer(values).trace(copy.deepcopy(model).to("meta"), fixed)
    except InputError:
        raise
    except Exception as error:  # whatever the model's own code does when torch.fx calls it
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{what} can't be traced: {line}; torch.fx follows no branch that depends on a "
            "tensor's values"
        ) from None


class _Walk:
    """One pass over the graph in the order of execution."""

    def __init__(self, model: nn.Module, graph: fx.Graph, layers: dict[str, Layer]) -> None:
        self.model, self.layers = model, layers
        self.found = ChannelMap()
        for name, layer in layers.items():  # until a call shows better
            own = type(layer.module).__module__.startswith("torch.nn.")
            self.found.others[name] = "not called" if own else f"{layer.type} is not torch's own"
        self.env: dict[fx.Node, Channels] = {}
        self.calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        parameters = model.named_parameters(remove_duplicate=False)
        self.owners = Counter(id(parameter) for _, parameter in parameters)
        for node in graph.nodes:
            self._visit(node)

    def _visit(self, node: fx.Node) -> None:
        value = node.meta.get("value")
        module = self.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        sources = [n for n in node.all_input_nodes if isinstance(n.meta["value"], Tensor)]
        known = [self.env[n] for n in sources if n in self.env]
        made: Channels | None = None
        if known and len(known) == len(node.all_input_nodes) and isinstance(value, Tensor):
            if module is not None and self._is_layer(node, module, value):
                made = self._layer(str(node.target), known[0], node)
            elif terms := _joined(node):
                made = Channels(
                    [atom for term in terms for atom in self.env[term].atoms],
                    torch.cat([self.env[term].constants for term in terms]),
                )
            elif isinstance(module, nn.PixelShuffle) or node.target is F.pixel_shuffle:
                made = self._shuffle(known[0], len(known[0].atoms) // value.shape[1])
            elif self._is_channelwise(node, module, sources):
                made = self._channelwise(node, module, sources)
        if made is None:
            made = self._pin(node, known, value)
        if made is not None:
            self.env[node] = made

    def _is_layer(self, node: fx.Node, module: nn.Module, value: Tensor) -> bool:
        """A layer that can lose channels; if not, it is noted why."""
        name = str(node.target)
        layer = self.layers.get(name)
        if layer is None:
            return False
        if layer.groups > 1:
            self.found.others[name] = "has groups"
        elif value.dim() != layer.weight.dim():
            self.found.others[name] = f"its output has {value.dim()} dimensions"
        elif not self._unshared(node, module):
            self.found.others[name] = "called twice, or its weight is another's, too"
        else:
            self.found.others.pop(name)
        return name not in self.found.others

    def _unshared(self, node: fx.Node, module: nn.Module) -> bool:
        single = all(self.owners[id(parameter)] == 1 for parameter in module.parameters())
        return single and self.calls[node.target] == 1

    def _layer(self, name: str, read: Channels, node: fx.Node) -> Channels:
        layer, found = self.layers[name], self.found
        weight = filters_first(layer, layer.weight.detach()).cpu()
        filled = (weight != 0).reshape(*weight.shape[:2], -1).any(2)
        # A filter that reads any channel that isn't 0 everywhere is taken to vary (NaN != 0, too).
        varies = filled[:, read.constants != 0].any(1)
        bias = layer.module.bias
        constants = torch.zeros(len(filled), dtype=torch.float64)
        if isinstance(bias, Tensor):
            constants += bias.detach().cpu()
        atoms = found.new(len(filled))
        found.layers[name], found.inputs[name], found.outputs[name] = layer, read, atoms
        grid = node.all_input_nodes[0].meta["value"] if layer.transposed else node.meta["value"]
        found.positions[name] = grid.numel() // grid.shape[1]
        return Channels(atoms, constants.masked_fill(varies, math.nan))

    def _shuffle(self, read: Channels, times: int) -> Channels:
        atoms = [read.atoms[i::times] for i in range(times)]
        for other in atoms[1:]:
            self.found.tie(atoms[0], other)
        each = read.constants.view(-1, times)
        return Channels(atoms[0], torch.where((each == each[:, :1]).all(1), each[:, 0], math.nan))

    def _is_channelwise(
        self, node: fx.Node, module: nn.Module | None, sources: list[fx.Node]
    ) -> bool:
        if module is not None:
            fits = isinstance(module, _CHANNELWISE) and len(sources) == 1
            fits = fits and module.state_dict().keys() <= _NORM_STATE
            if isinstance(module, NORMS):  # no batch: its channels are elsewhere
                fits = fits and module.num_features == node.meta["value"].shape[1]
            fits = fits and (not _has_channels(module) or self._unshared(node, module))
        else:
            fits = node.target in (_METHODS if node.op == "call_method" else _FUNCTIONS)
        shapes = [n.meta["value"].shape for n in (*sources, node)]
        return fits and all(len(s) == len(shapes[0]) and s[1] == shapes[0][1] for s in shapes)

    def _channelwise(
        self, node: fx.Node, module: nn.Module | None, sources: list[fx.Node]
    ) -> Channels:
        read = [self.env[n] for n in sources]
        made = Channels(read[0].atoms, self._constants(node, module, sources))
        if len(read) > 1:  # its atoms are new, so that none of its terms seems to own what follows
            made = Channels(self.found.new(len(made.atoms)), made.constants)
            for each in read:
                self.found.tie(made.atoms, each.atoms)
        name = str(node.target)
        if module is not None and _has_channels(module):
            self.found.per_channel[name] = made.atoms
        in_place = getattr(module, "inplace", False) or node.target in _IN_PLACE
        in_place = in_place or node.kwargs.get("inplace", False) is True
        if in_place or (node.op == "call_method" and name.endswith("_")):
            self.env[sources[0]] = made
        return made

    def _constants(self, node: fx.Node, module: nn.Module | None, sources: list[fx.Node]) -> Tensor:
        """What the operation makes of channels that are constant in all of its inputs."""
        given = [self.env[n].constants for n in sources]
        varies = torch.stack(given).isnan().any(0)
        if varies.all():
            return given[0].masked_fill(varies, math.nan)
        if isinstance(module, _DropoutNd) and not _passes(module):  # live in eval mode
            return torch.where(given[0] == 0, 0.0, math.nan)
        probes = {
            n: _filled(constants, _roomy(node, module, n.meta["value"].shape))
            for n, constants in zip(sources, given, strict=True)
        }
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: probes[n])
        with torch.no_grad():
            if module is not None:
                out = copy.deepcopy(module).double().cpu()(*args, **kwargs)
            elif node.op == "call_method":
                out = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                assert callable(node.target)
                out = node.target(*args, **kwargs)
        low, high = out.transpose(0, 1).flatten(1).aminmax(dim=1)
        middle = (low + high) / 2
        varies |= ~middle.isfinite() | (high - low > _NOISE * middle.abs().clamp(min=1))
        return torch.where(middle.abs() < _NOISE, 0.0, middle).masked_fill(varies, math.nan)

    def _pin(self, node: fx.Node, known: list[Channels], value: Any) -> Channels | None:
        """All that the operation reads and makes stays."""
        what = "the output" if node.op == "output" else f"{_name(node)} reads it"
        for each in known:
            self.found.pinned |= dict.fromkeys(each.atoms, what)
        if not isinstance(value, Tensor) or value.dim() < 2:
            return None
        atoms = self.found.new(value.shape[1])
        self.found.pinned |= dict.fromkeys(atoms, f"tied to what {_name(node)} makes")
        return Channels(atoms, torch.full([len(atoms)], math.nan, dtype=torch.float64))


def _name(node: fx.Node) -> str:
    """What the user calls the operation."""
    target = node.target
    if callable(target):
        return str(getattr(target, "__name__", target))
    return f"layer {target}" if node.op == "call_module" else f"{target}"


def _joined(node: fx.Node) -> list[fx.Node]:
    """The tensors whose channels a concatenation lines up; none for anything else."""
    if node.target not in _JOINS or not node.args:
        return []
    terms, dim = (*node.args, node.kwargs.get("dim", 0))[:2]
    if not isinstance(terms, (list, tuple)) or dim not in (1, 1 - node.meta["value"].dim()):
        return []
    return [term for term in terms if isinstance(term, fx.Node)]


def _has_channels(module: nn.Module) -> bool:
    """Whether it says how many channels it takes: every norm, and a PReLU of a slope a channel."""
    return isinstance(module, NORMS) or (isinstance(module, nn.PReLU) and module.weight.numel() > 1)


def _passes(module: Callable[[Tensor], Tensor]) -> bool:
    ones = torch.ones(1, 4096, 1, 1)
    return torch.equal(module(ones), ones)


def _roomy(node: fx.Node, module: nn.Module | None, shape: torch.Size) -> torch.Size:
    """For an average pool, so much that some of its windows lie inside, whatever the example."""
    if isinstance(module, nn.AvgPool2d):
        kernel: Any = module.kernel_size
    elif node.target is F.avg_pool2d:
        kernel = (*node.args, node.kwargs.get("kernel_size"))[1]
    else:
        return shape
    most = max(kernel) if isinstance(kernel, (list, tuple)) else kernel
    return torch.Size([*shape[:2], *(pixels + 2 * most for pixels in shape[2:])])


def _filled(constants: Tensor, shape: torch.Size) -> Tensor:
    """A float64 tensor of that shape with the channels' constants, 0 for those that vary."""
    column = constants.nan_to_num(0.0).view(-1, *[1] * (len(shape) - 2))
    return column.expand(shape).clone()
