# SPDX-License-Identifier: Apache-2.0
"""Fuse a captured graph: convolutions and InstanceNorms take in what stands before and after them.

* BatchNorm with running statistics (InstanceNorm, too) is folded into the convolution before it; or
  into the one after it, where no zeros are padded between the two.
* A padding goes into the convolution after it.
* A sum, a pixel shuffle and an activation go into the convolution or InstanceNorm before them, if
  nothing else reads what lies between.
"""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from gansparse.deploy.capture import random_state
from gansparse.deploy.steps import Conv, ConvLayer, Norm, Pair, Slope
from gansparse.ops.sparse_conv2d import Activation

_RELU = {F.relu, torch.relu, "relu"}
_TANH = {F.tanh, torch.tanh, "tanh"}
_LEAKY = {F.leaky_relu}
_PRELU = {F.prelu, torch.prelu, "prelu"}
_ADD = {torch.add, operator.add, "add", "__radd__"}
_SHUFFLE = {F.pixel_shuffle, torch.pixel_shuffle}
_PADS = {"reflect": "reflect", "replicate": "replicate", "constant": "zeros"}
_RANDOM = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, "bernoulli"}


class _Affine(NamedTuple):
    scale: Tensor  # [C] float64
    shift: Tensor  # [C] float64


def fuse(captured: fx.GraphModule) -> dict[str, str]:
    """Fuse in place.

    Args:
        captured: from `gansparse.deploy.capture`; convolutions and InstanceNorms become modules
            `Conv` and `Norm`, called ``step_0``, ``step_1``, … with input and residual.

    Returns:
        Steps by the name of their node → the name of the layer in the network.
    """
    with torch.no_grad():
        _fold_constants(captured)
        _relu_before_cat(captured.graph)
        names = _Fuser(captured).run()
        _own_outputs(captured)
    captured.graph.eliminate_dead_code()
    captured.delete_all_unused_submodules()
    captured.recompile()
    return names


def _fold_constants(module: fx.GraphModule) -> None:
    """What depends on the network's own tensors alone is computed now: a normed weight, say."""
    for number, node in enumerate(module.graph.nodes):
        read = node.all_input_nodes
        known = bool(read) and all(n.op == "get_attr" for n in read)
        if node.op not in ("call_function", "call_method") or not known or node.target in _RANDOM:
            continue
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: tensor_of(module, n))
        function = getattr(args[0], node.target) if node.op == "call_method" else node.target
        before = random_state()
        value = function(*(args[1:] if node.op == "call_method" else args), **kwargs)
        if not isinstance(value, Tensor) or random_state() != before:  # drawn anew on each call
            continue
        name = f"folded_{number}"
        module.register_buffer(name, value)
        with module.graph.inserting_before(node):
            constant = module.graph.create_node("get_attr", name)
        constant.meta.update(node.meta)
        node.replace_all_uses_with(constant)
        module.graph.erase_node(node)


def _computed(tensors: list[Tensor | None], given: list[Any]) -> bool:
    """Whether one of them is neither absent nor the network's own, but made of the input."""
    return any(t is None and x is not None for t, x in zip(tensors, given, strict=True))


def _own_outputs(module: fx.GraphModule) -> None:
    """Constants that are given out are copies: the user may write into them."""
    (output,) = module.graph.find_nodes(op="output")
    for node in [n for n in output.all_input_nodes if n.op == "get_attr"]:
        with module.graph.inserting_before(output):
            copied = module.graph.call_method("clone", (node,))
        copied.meta.update(node.meta)
        output.replace_input_with(node, copied)


def _relu_before_cat(graph: fx.Graph) -> None:
    """A relu of joined tensors becomes one of each, which the layer that made it may take in.

    Of a tensor that also goes through a leaky relu, what comes out there has the same relu: so
    nothing else reads the tensor, and its layer takes in the leaky one.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    for cat in list(graph.nodes):
        if cat.target is not torch.cat or len(cat.users) != 1:
            continue
        relu = next(iter(cat.users))
        if relu.target not in _RELU:
            continue
        joined = cat.args[0] if cat.args else cat.kwargs["tensors"]
        for read in dict.fromkeys(joined):
            same = [read, *(user for user in read.users if _keeps_sign(user))]
            source = max((n for n in same if order[n] < order[cat]), key=order.__getitem__)
            with graph.inserting_before(cat):
                each = graph.call_function(F.relu, (), {"input": source})
            each.meta.update(read.meta)
            cat.replace_input_with(read, each)
        relu.replace_all_uses_with(cat)
        graph.erase_node(relu)


def _keeps_sign(node: fx.Node) -> bool:
    slope = node.kwargs.get("negative_slope") if node.target in _LEAKY else None
    return isinstance(slope, float) and slope > 0


def tensor_of(module: fx.GraphModule, node: Any) -> Tensor | None:
    """The network's own tensor that the node stands for, if it does."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    return cast(Tensor, operator.attrgetter(str(node.target))(module)).detach()


class _Fuser:
    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.graph = module, module.graph
        self.names: dict[str, str] = {}

    def run(self) -> dict[str, str]:
        for node in list(self.graph.nodes):
            layer = self._conv(node)
            if layer is not None:
                self._fuse_conv(node, layer)
        for node in list(self.graph.nodes):
            self._fuse_norm(node)
        return self.names

    # ---- what a node is --------------------------------------------------------------------------

    def _conv(self, node: fx.Node) -> ConvLayer | None:
        """The layer of a convolution with weights of the network's own; None for anything else."""
        names = {
            F.conv2d: ("stride", "padding", "dilation", "groups"),
            F.conv_transpose2d: ("stride", "padding", "output_padding", "groups", "dilation"),
        }.get(cast(Any, node.target))
        if names is None or _value(node).dim() != 4:
            return None
        given = dict(zip(("input", "weight", "bias", *names), node.args, strict=False))
        given |= node.kwargs
        weight, bias = (tensor_of(self.module, given.get(key)) for key in ("weight", "bias"))
        if weight is None or (bias is None and given.get("bias") is not None):
            return None
        stride, dilation = _pair(given.get("stride", 1)), _pair(given.get("dilation", 1))
        padding: Any = given.get("padding", 0)
        if padding == "same":
            if any((k - 1) * d % 2 for k, d in zip(weight.shape[2:], dilation, strict=True)):
                return None
            padding = tuple(
                (k - 1) * d // 2 for k, d in zip(weight.shape[2:], dilation, strict=True)
            )
        return ConvLayer(
            weight,
            bias,
            stride,
            (0, 0) if padding == "valid" else _pair(padding),
            dilation,
            cast(int, given.get("groups", 1)),
            transposed=node.target is F.conv_transpose2d,
            output_padding=_pair(given.get("output_padding", 0)),
        )

    def _affine(self, node: fx.Node) -> _Affine | None:
        """A norm by running statistics as scale and shift."""
        flag = {F.batch_norm: "training", F.instance_norm: "use_input_stats"}.get(
            cast(Any, node.target)
        )
        if flag is None or node.kwargs[flag]:
            return None
        keys = ("running_mean", "running_var", "weight", "bias")
        tensors = [tensor_of(self.module, node.kwargs[key]) for key in keys]
        given = [node.kwargs[key] for key in keys]
        if _computed(tensors, given):
            return None
        mean, var, weight, bias = (None if t is None else t.double() for t in tensors)
        if mean is None or var is None:
            return None
        scale = (var + cast(float, node.kwargs["eps"])).rsqrt()
        scale = scale if weight is None else scale * weight
        return _Affine(scale, -mean * scale if bias is None else bias - mean * scale)

    def _activation(self, node: fx.Node) -> tuple[Activation, Slope] | None:
        target = node.target
        if target in _RELU:
            return "relu", 0.0
        if target in _TANH:
            return "tanh", 0.0
        if target in _LEAKY:
            slope = node.kwargs["negative_slope"]
            return ("leaky_relu", slope) if isinstance(slope, float) else None
        if target in _PRELU:
            weight = tensor_of(self.module, node.args[1] if len(node.args) > 1 else None)
            return None if weight is None else ("prelu", weight.clone())
        return None

    def _padding(self, node: fx.Node) -> tuple[Pair, str] | None:
        """Rows and columns on each side, and the mode."""
        if node.target is not F.pad:
            return None
        given = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)) | node.kwargs
        pad, mode = cast(Any, given["pad"]), _PADS.get(str(given.get("mode", "constant")))
        same = len(pad) == 4 and pad[0] == pad[1] and pad[2] == pad[3] and min(pad) >= 0
        if mode is None or not same or given.get("value") not in (None, 0):
            return None
        return (pad[2], pad[0]), mode

    # ---- convolutions ----------------------------------------------------------------------------

    def _fuse_conv(self, node: fx.Node, layer: ConvLayer) -> None:
        source = self._take_before(cast(fx.Node, _first(node)), layer)
        last, residual = node, None
        while (after := _only_user(last)) is not None:
            affine, activation = self._affine(after), self._activation(after)
            plain = layer.activation == "none"
            if affine is not None and plain and residual is None and layer.shuffle == 1:
                _fold_after(layer, affine)
            elif activation is not None and plain:
                layer.activation, layer.slope = activation
            elif plain and layer.shuffle == 1 and residual is None and (r := _added(after, last)):
                residual = r
            elif after.target in _SHUFFLE and self._may_shuffle(layer, residual):
                layer.shuffle = cast(int, (*after.args, *after.kwargs.values())[1])
            else:
                break
            layer.fused.append(_kind(after))
            last = after
        self._replace(node, last, Conv(layer), [source, residual])

    def _may_shuffle(self, layer: ConvLayer, residual: fx.Node | None) -> bool:
        """Activations of one slope may stand before or after a shuffle."""
        one_slope = not isinstance(layer.slope, Tensor) or layer.slope.numel() == 1
        return layer.shuffle == 1 and residual is None and one_slope

    def _take_before(self, source: fx.Node, layer: ConvLayer) -> fx.Node:
        """What the fused layer reads: what comes before padding and norm."""
        if not layer.transposed and (padding := self._padding(source)):
            (high, wide), mode = padding
            if layer.padding == (0, 0) or mode == layer.pad_mode == "zeros":
                layer.padding = (layer.padding[0] + high, layer.padding[1] + wide)
                layer.pad_mode = cast(Any, mode)
                layer.fused.append(f"{mode} padding")
                source = cast(fx.Node, _first(source))
        affine = self._affine(source)
        if affine is not None and layer.groups == 1 and not layer.transposed:
            zeros = layer.pad_mode == "zeros" and layer.padding != (0, 0)
            if not zeros or not bool(affine.shift.any()):
                _fold_before(layer, affine)
                layer.fused.append(_kind(source))
                source = cast(fx.Node, _first(source))
        return source

    # ---- norms -----------------------------------------------------------------------------------

    def _fuse_norm(self, node: fx.Node) -> None:
        instance = node.target is F.instance_norm and node.kwargs["use_input_stats"]
        batch = node.target is F.batch_norm and node.kwargs["training"]
        if not (instance or batch):
            return
        value = _value(node)
        one_picture = value.shape[0] == 1 and math.prod(value.shape[2:]) > 1
        affine = [node.kwargs[key] for key in ("weight", "bias")]
        weight, bias = (tensor_of(self.module, given) for given in affine)
        computed = _computed([weight, bias], affine)
        if value.dim() != 4 or (batch and not one_picture) or computed:
            return
        step = Norm(weight, bias, cast(float, node.kwargs["eps"]), fused=[])
        last, residual = node, None
        while (after := _only_user(last)) is not None and step.activation == "none":
            activation = self._activation(after)
            if activation is not None:
                step.activation, step.slope = activation
            elif residual is None and (r := _added(after, last)):
                residual = r
            else:
                break
            step.fused.append(_kind(after))
            last = after
        self._replace(node, last, step, [cast(fx.Node, _first(node)), residual])

    def _replace(
        self, node: fx.Node, last: fx.Node, step: Conv | Norm, read: list[fx.Node | None]
    ) -> None:
        """Put the step where the last of its parts stands."""
        target = f"step_{len(self.names)}"
        self.module.add_module(target, step)
        with self.graph.inserting_after(last):
            made = self.graph.call_module(target, tuple(read))
        made.meta.update(last.meta)
        owner = node.meta["owner"] or node.name
        count = sum(name.partition(" #")[0] == owner for name in self.names.values())
        self.names[target] = f"{owner} #{count + 1}" if count else owner
        last.replace_all_uses_with(made)
        self.graph.eliminate_dead_code()


def _fold_after(layer: ConvLayer, affine: _Affine) -> None:
    """γ (w x + b − μ) / σ + β, in float64."""
    scale, shift = affine
    weight = layer.weight.double()
    if layer.transposed:  # [C, O / groups]: the groups' output channels lie one after another
        parts = scale.view(layer.groups, 1, -1, 1, 1)
        weight = (weight.view(layer.groups, -1, *weight.shape[1:]) * parts).flatten(0, 1)
    else:
        weight = weight * scale.view(-1, 1, 1, 1)
    bias = shift if layer.bias is None else shift + layer.bias.double() * scale
    layer.weight, layer.bias = weight.to(layer.weight.dtype), bias.to(layer.weight.dtype)


def _fold_before(layer: ConvLayer, affine: _Affine) -> None:
    """Weight (s x + t) + b, in float64; exact where every tap reads a pixel."""
    weight = layer.weight.double()
    bias = (weight * affine.shift.view(-1, 1, 1)).sum((1, 2, 3))
    if layer.bias is not None:
        bias += layer.bias.double()
    layer.weight = (weight * affine.scale.view(-1, 1, 1)).to(layer.weight.dtype)
    layer.bias = bias.to(layer.weight.dtype)


def _only_user(node: fx.Node) -> fx.Node | None:
    """The one node that reads this one, if it reads it once."""
    users = list(node.users)
    if len(users) != 1 or users[0].op not in ("call_function", "call_method"):
        return None
    reads: list[fx.Node] = []
    fx.node.map_arg((users[0].args, users[0].kwargs), reads.append)
    return users[0] if reads.count(node) == 1 else None


def _added(node: fx.Node, term: fx.Node) -> fx.Node | None:
    """What the node adds to the term, if it is a tensor of the same shape."""
    if node.target not in _ADD or node.kwargs or len(node.args) != 2:
        return None
    other = node.args[1] if node.args[0] is term else node.args[0]
    if not isinstance(other, fx.Node) or not isinstance(_value(other), Tensor):
        return None
    fits = _value(other).shape == _value(term).shape and _value(other).dtype == _value(term).dtype
    return other if fits else None


def _first(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs.get("input")


def _value(node: fx.Node) -> Any:
    return node.meta.get("value")


def _kind(node: fx.Node) -> str:
    """How the table calls what was fused."""
    target = node.target
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))


def _pair(value: Any) -> Pair:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    return pair if len(pair) == 2 else (pair[0], pair[0])
