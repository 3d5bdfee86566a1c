# SPDX-License-Identifier: Apache-2.0
"""From a fused graph to one whose layers run on the kernels that were measured fastest."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gansparse.deploy import cuda, measure
from gansparse.deploy.capture import expect
from gansparse.deploy.fuse import fuse
from gansparse.deploy.layout import choose_layouts, convert
from gansparse.deploy.memory import MEMORY, Buffers, add_buffers
from gansparse.deploy.packable import unpackable
from gansparse.deploy.steps import (
    FORMATS,
    WORTH_PACKING,
    Conv,
    ConvLayer,
    Kernel,
    Layout,
    Norm,
    Sparse,
    Winograd,
    kernels,
)

#: A kernel's output may differ from torch's by this share of the largest of the layer's outputs.
TOLERANCE = 1e-4
#: Bytes of a weight that the second cache does not keep while other layers run.
LARGE_WEIGHT = 1 << 20
#: How the table and choices call a norm that takes its convolution's moments.
MOMENTS = "its convolution's moments"
_EITHER_LAYOUT = {
    F.relu, F.leaky_relu, F.prelu, F.tanh, F.elu, F.gelu, F.silu, F.hardtanh, F.softplus,
    F.dropout, torch.relu, torch.prelu, torch.tanh, torch.sigmoid, torch.cat, torch.add, torch.mul,
    operator.add, operator.mul, "add", "mul", "sub", "div", "relu", "tanh", "sigmoid",
}  # fmt: skip


@dataclass
class Row:
    """One line of `explain`.

    Args:
        layer: name in the network.
        shape: from what to what.
        sparsity: of the layer's weight; None where it has none.
        kernel: that runs it.
        times: candidate → ms; of what has no candidates, the one time.
        why: this kernel.
        fused: what was fused into it.
    """

    layer: str
    shape: str
    sparsity: float | None
    kernel: str
    times: measure.Times
    why: str
    fused: tuple[str, ...] = ()


@dataclass
class Plan:
    """A graph that is ready to run, and what `explain` says of it."""

    module: fx.GraphModule
    rows: list[Row]
    choices: dict[str, str]  # layer → kernel


#: Layers that are ready to run, for plans of other shapes: (layer, kernel) → module.
Bank = dict[tuple[str, str], nn.Module]


def make_plan(
    captured: fx.GraphModule,
    inputs: tuple[Any, ...],
    cache: measure.Cache,
    *,
    bank: Bank,
    memory: Buffers,
    choices: dict[str, str] | None = None,
) -> Plan:
    """Fuse, measure, choose.

    Args:
        captured: from `gansparse.deploy.capture`; it is changed.
        inputs: what it is called with; layers are measured on what they read then.
        cache: of measured times.
        bank: layers made before; new ones are added.
        memory: for large tensors between layers.
        choices: layer → kernel, as chosen before: then nothing is measured.
    """
    names = fuse(captured)
    runner = _Runner(captured, names, cache, bank, choices)
    runner.run(*inputs)
    costs = {node: layer.costs() for node, layer in runner.layers.items()}
    costs |= {n: _FREE for n in captured.graph.nodes if runner.takes_either(n)}
    costs |= {n: runner.costs.get(n, _FREE) for n in runner.norms}
    price = _estimated if choices else _measured(cache)
    layouts = choose_layouts(captured.graph, costs, price)
    picked: dict[str, str] = {}
    for node, layer in runner.layers.items():
        kernel = layer.best[layouts[node]]
        target, name = str(node.target), names[str(node.target)]
        picked[name] = kernel
        bank[name, kernel] = layer.ready[kernel]
        captured.add_module(target, layer.ready[kernel])
        runner.rows[node] = layer.row(name, node, kernel)
    for node, norm in runner.norms.items():
        if layouts[node] == "channels_last":
            captured.add_module(str(node.target), norm)
            if node in runner.rows:
                runner.rows[node].kernel = "torch channels_last"
                runner.rows[node].why = "InstanceNorm in channels_last"
    for node, pair in runner.pairs.items():
        conv: Any = node.args[0]
        if layouts[node] == layouts[conv] == "channels_last":
            captured.add_module(str(node.target), pair.module)
            node.update_arg(0, conv.args[0])
            captured.graph.erase_node(conv)
            picked[names[str(node.target)]] = MOMENTS
            if node in runner.rows:
                runner.rows[node].kernel, runner.rows[node].why = MOMENTS, pair.why
    convert(captured.graph, layouts, set(runner.layers))
    captured.add_module(MEMORY, memory)
    on_cpu = [node for node in runner.layers if node.meta["value"].device.type == "cpu"]
    add_buffers(captured, [node for node in on_cpu if _writes(captured, node)], names)
    captured.recompile()
    return Plan(captured, list(runner.rows.values()), picked)


_FREE: dict[Layout, float] = {"NCHW": 0.0, "channels_last": 0.0}


@dataclass
class _Layer:
    """One convolution of the graph, and the fastest kernel in each layout."""

    layer: ConvLayer
    size: torch.Size
    times: measure.Times
    refused: dict[str, str] = field(default_factory=dict)  # kernel → why
    best: dict[Layout, str] = field(default_factory=dict)
    ready: dict[str, nn.Module] = field(default_factory=dict)

    def costs(self) -> dict[Layout, float]:
        """Milliseconds in each layout that it can run in."""
        return {layout: self.times[name] for layout, name in self.best.items()}

    def row(self, name: str, node: fx.Node, kernel: str) -> Row:
        """What `explain` says."""
        fastest = min(self.times, key=self.times.__getitem__)
        why = "fastest" if len(self.times) > 1 else "as chosen before"
        if fastest != kernel:
            why = f"{fastest} is faster alone, but not with conversions from and to its neighbours"
        for other, reason in self.refused.items():
            why += f"; not {other}: {reason}"
        shape = f"{shape_text(self.size)} → {shape_text(node.meta['value'].shape)}"
        sparsity = self.layer.sparsity
        return Row(name, shape, sparsity, kernel, self.times, why, tuple(self.layer.fused))


@dataclass
class _Pair:
    """A convolution that leaves moments, and its norm."""

    module: nn.Module
    why: str


class _Runner(fx.Interpreter):
    """Runs the fused graph once, layer by layer, with each layer's kernels beside it."""

    def __init__(
        self,
        module: fx.GraphModule,
        names: dict[str, str],
        cache: measure.Cache,
        bank: Bank,
        choices: dict[str, str] | None,
    ) -> None:
        super().__init__(module)
        self.names, self.cache, self.bank, self.choices = names, cache, bank, choices
        self.layers: dict[fx.Node, _Layer] = {}
        self.rows: dict[fx.Node, Row] = {}
        self.norms: dict[fx.Node, nn.Module] = {}  # that can be channels_last, in it
        self.costs: dict[fx.Node, dict[Layout, float]] = {}  # of these norms
        self.pairs: dict[fx.Node, _Pair] = {}  # by the norm
        self.read: dict[fx.Node, Tensor] = {}  # of a convolution, for its norm alone

    def takes_either(self, node: fx.Node) -> bool:
        """Whether a node other than a convolution runs as fast in channels_last, and keeps it."""
        return node.op.startswith("call") and node.target in _EITHER_LAYOUT

    def run_node(self, n: fx.Node) -> Any:
        """The node's value; its kernels are measured on the way."""
        out = super().run_node(n)
        if not n.op.startswith("call"):
            return out
        on_cuda = isinstance(out, Tensor) and cuda.on_cuda(out.device)
        step = self.module.get_submodule(str(n.target)) if n.op == "call_module" else None
        if isinstance(step, Conv):
            self.rows[n] = Row("", "", None, "", {}, "")  # its place; filled in when all is chosen
            arguments, _ = self.fetch_args_kwargs_from_env(n)
            self.layers[n] = self._layer(self.names[str(n.target)], step.layer, arguments, out)
            if on_cuda and self._feeds_a_norm(n):
                self.read[n] = arguments[0]
            return out
        if isinstance(step, Norm) and on_cuda:
            self.norms[n] = norm = cuda.ChannelsLastNorm(step)
            self._pair(n, norm, out)
        elif isinstance(step, Norm):
            step.on_cpu = True
        if self.choices is None and isinstance(out, Tensor) and n.target is not expect:
            again: measure.Runs = {"torch": lambda: super(_Runner, self).run_node(n)}
            if n in self.norms:
                read = self.fetch_args_kwargs_from_env(n)[0]
                again["torch channels_last"] = _on(self.norms[n], read, "channels_last")
            times = measure.interleaved(again, seconds=0.01, device=out.device)
            if n in self.norms:
                last = times["torch channels_last"]
                self.costs[n] = {"NCHW": times["torch"], "channels_last": last}
            fused = tuple(step.fused) if isinstance(step, Norm) else ()
            name = self.names.get(str(n.target), _label(n))
            why = "InstanceNorm by group norm" if isinstance(step, Norm) else "not fused"
            if isinstance(step, Norm) and step.on_cpu:
                why = "InstanceNorm in one pass"
            if step is not None and not isinstance(step, Norm):
                why = "runs as it was"
            self.rows[n] = Row(name, shape_text(out.shape), None, "torch", times, why, fused)
        return out

    def _feeds_a_norm(self, conv: fx.Node) -> bool:
        """Whether a norm, and nothing else, reads what the convolution alone has computed."""
        user = next(iter(conv.users), conv)
        if len(conv.users) != 1 or user.op != "call_module" or conv.args[1] is not None:
            return False
        step = self.module.get_submodule(str(user.target))
        return isinstance(step, Norm) and user.args[1] is not conv

    def _pair(self, n: fx.Node, norm: cuda.ChannelsLastNorm, out: Tensor) -> None:
        """Measure a norm with the convolution before it, if that can leave moments.

        Both in channels_last, where the convolution has been found to be fastest by tiles: what it
        saves the norm does not make another kernel lose.
        """
        conv: Any = n.args[0]
        x, layer = self.read.pop(conv, None), self.layers.get(conv)
        if x is None or layer is None or not cuda.has_own_norm(out):
            return
        kernel = layer.best.get("channels_last", "")
        tiles = layer.ready.get(kernel)
        chosen = self.choices is None or self.choices.get(self.names[str(n.target)]) == MOMENTS
        if not (isinstance(tiles, cuda.Tiles) and tiles.leaves_moments and chosen):
            return
        pair = cuda.NormedTiles(tiles, norm)
        read = (x, self.fetch_args_kwargs_from_env(n)[0][1])
        runs = {
            "apart": _on(lambda x, added: norm(tiles(x), added), read, "channels_last"),
            f"{kernel} and norm": _on(pair, read, "channels_last"),
        }
        try:
            want, got = (run() for run in runs.values())
        except (RuntimeError, ValueError):  # this size is not for it
            return
        if not (got - want).abs().max() <= torch.finfo(out.dtype).eps * want.abs().max():
            return
        why = "as chosen before"
        if self.choices is None:
            apart, both = measure.interleaved(runs, seconds=0.01, device=out.device).values()
            if both >= apart:
                return
            name = self.names[str(conv.target)]
            why = f"with {name} {both:.3f} ms, {apart:.3f} where the norm makes them"
        self.pairs[n] = _Pair(pair, why)

    def _layer(self, name: str, layer: ConvLayer, read: Any, expected: Tensor) -> _Layer:
        """Measure a convolution's kernels, and make the best of each layout ready."""
        size = read[0].shape
        on_cuda = cuda.on_cuda(read[0].device)
        ways = (cuda.kernels if on_cuda else kernels)(layer, tuple(size))
        if self.choices is not None:
            kept = self.choices.get(name, "torch")
            ways = {n: way for n, way in ways.items() if n in (kept, "torch")}
            times = {kept if kept in ways else "torch": 0.0}
        else:
            times = self.cache.times(
                _key(layer, size, expected.shape, read[1] is not None),
                {n: _timed(way, read) for n, way in ways.items()},
                cold=layer.weight.numel() * layer.weight.element_size() >= LARGE_WEIGHT,
            )
        found = _Layer(layer, size, times)
        if layer.sparsity >= WORTH_PACKING and (reason := unpackable(layer)):
            found.refused["sparse"] = reason
        if on_cuda:
            expected, most = cuda.truth(layer, read, expected)
        else:
            most = TOLERANCE * max(1.0, float(expected.abs().max()))
        layouts: tuple[Layout, ...] = ("NCHW", "channels_last")
        for layout in layouts:
            while names := [n for n in found.times if ways[n].layout == layout]:
                best = min(names, key=found.times.__getitem__)
                try:
                    made = self.bank.get((name, best)) or ways[best].make()
                    gap = float((made(*read) - expected).abs().max()) if expected.numel() else 0.0
                    reason = f"differs from torch by {gap:.1g}"
                except (RuntimeError, ValueError) as error:  # this size is not for it
                    gap, reason = math.inf, (str(error).splitlines() or [""])[0]
                if gap <= most:
                    found.best[layout], found.ready[best] = best, made
                    break
                del found.times[best]
                found.refused[best] = reason
        if not found.best:  # NaN in the network: nothing is near it
            found.times = {"torch": 0.0}
            found.best["NCHW"], found.ready["torch"] = "torch", ways["torch"].make()
        return found


def _writes(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the step can write into memory that it is given."""
    step = module.get_submodule(str(node.target))
    return isinstance(step, Sparse | Winograd) and step.shuffle == 1


def _timed(way: Kernel, read: Any) -> Callable[[], Callable[[], Any]]:
    """What makes the kernel ready and returns its run, on input of its own layout."""

    def make() -> Callable[[], Any]:
        run = _on(way.make(), read, way.layout)
        run()  # a kernel that refuses the layer does so now
        return run

    return make


def _on(step: Callable[..., Any], read: Any, layout: Layout) -> Callable[[], Any]:
    """Its run on input of the layout."""
    own = [t if t is None else t.contiguous(memory_format=FORMATS[layout]) for t in read]
    return lambda: step(*own)


def _key(layer: ConvLayer, size: torch.Size, made: torch.Size, adds: bool) -> dict[str, Any]:
    """All that a layer's time depends on, but for the machine; sparsity in steps of 1 %."""
    filled = float((layer.filters != 0).flatten(1).any(1).double().mean())
    blocks = cuda.kept_blocks(layer, 16) if cuda.on_cuda(layer.weight.device) else 0.0
    return {
        "input": list(size), "dtype": str(layer.weight.dtype), "output": list(made),
        "weight": list(layer.weight.shape), "blocks": round(blocks, 2),
        "zeros": round(layer.sparsity, 2), "filters": round(filled, 2),
        "stride": layer.stride, "padding": layer.padding, "mode": layer.pad_mode,
        "dilation": layer.dilation, "groups": layer.groups, "transposed": layer.transposed,
        "output_padding": layer.output_padding, "shuffle": layer.shuffle,
        "activation": layer.activation, "adds": adds,
    }  # fmt: skip


def _measured(cache: measure.Cache) -> Callable[[Tensor, Layout], float]:
    """What converting a tensor costs here."""
    known: dict[tuple[torch.Size, Layout], float] = {}

    def price(value: Tensor, layout: Layout) -> float:
        if (value.shape, layout) not in known:
            other: Layout = "NCHW" if layout == "channels_last" else "channels_last"
            x = torch.zeros(value.shape, dtype=value.dtype, device=value.device)
            run = partial(
                x.contiguous(memory_format=FORMATS[other]).contiguous, memory_format=FORMATS[layout]
            )
            what = {"input": list(value.shape), "dtype": str(value.dtype), "to": layout}
            times = cache.times(what, {"copy": lambda: run})
            known[value.shape, layout] = times["copy"]
        return known[value.shape, layout]

    return price


def _estimated(value: Tensor, layout: Layout) -> float:
    return value.numel() * 1e-6


def _label(node: fx.Node) -> str:
    owner = node.meta.get("owner") or ""
    if node.op == "call_module":
        return str(node.target)
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return f"{owner}: {name}" if owner else str(name)


def shape_text(shape: torch.Size | tuple[int, ...]) -> str:
    """As tables show it: 1×3×8×8."""
    return "×".join(map(str, shape))
