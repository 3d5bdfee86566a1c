# SPDX-License-Identifier: Apache-2.0
"""Choose each tensor's layout, so that all kernels and conversions together take least time.

Each node of the graph runs in NCHW or in channels_last, at its own cost; where a node reads a
tensor of the other layout, a conversion is added. The best of all choices is a minimum cut (Greig,
Porteous and Seheult 1989): nodes on the source's side are NCHW.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import networkx  # type: ignore[import-untyped]  # torch needs it, too
from torch import Tensor, fx

from gansparse.deploy.steps import FORMATS, Layout

Cost = Mapping[Layout, float]  # ms; a layout that is absent can't be had


def choose_layouts(
    graph: fx.Graph,
    costs: Mapping[fx.Node, Cost],
    conversion: Callable[[Tensor, Layout], float],
) -> dict[fx.Node, Layout]:
    """The layout of each node that makes a tensor of four dimensions.

    Args:
        graph: with fake values.
        costs: of nodes that may be channels_last; all others are NCHW.
        conversion: milliseconds to bring a tensor like this one into this layout.
    """
    # What is paid where the first is NCHW and the second is not.
    capacity: defaultdict[tuple[Any, Any], float] = defaultdict(float)
    nodes = [n for n in graph.nodes if is_picture(n)]
    for node in nodes:
        cost = costs.get(node, {"NCHW": 0.0})
        capacity[node, "sink"] += cost.get("NCHW", math.inf)
        capacity["source", node] += cost.get("channels_last", math.inf)
    for node in graph.nodes:
        reader = node if is_picture(node) else "source"
        for read in node.all_input_nodes:
            if is_picture(read):
                value = read.meta["value"]
                capacity[read, reader] += conversion(value, "channels_last")
                capacity[reader, read] += conversion(value, "NCHW")
    if not nodes:
        return {}
    cut = networkx.DiGraph()
    for (one, other), price in capacity.items():
        cut.add_edge(one, other, capacity=price)
    _, (first, _) = networkx.minimum_cut(cut, "source", "sink")
    return {node: "NCHW" if node in first else "channels_last" for node in nodes}


def is_picture(node: Any) -> bool:
    """Whether the node makes a tensor of four dimensions."""
    value = node.meta.get("value")
    return isinstance(value, Tensor) and value.dim() == 4


def convert(
    graph: fx.Graph, layouts: Mapping[fx.Node, Layout], by_themselves: set[fx.Node]
) -> None:
    """Add the conversions to the graph.

    Args:
        graph: is changed.
        layouts: as chosen.
        by_themselves: nodes that bring what they read into their layout.
    """
    made: dict[tuple[fx.Node, Layout], fx.Node] = {}
    for node in list(graph.nodes):
        if node in by_themselves:
            continue
        wanted = layouts.get(node, "NCHW")
        for read in node.all_input_nodes:
            if layouts.get(read, wanted) == wanted:
                continue
            if (read, wanted) not in made:
                with graph.inserting_after(read):
                    keyword: dict[str, Any] = {"memory_format": FORMATS[wanted]}
                    made[read, wanted] = graph.call_method("contiguous", (read,), keyword)
                    made[read, wanted].meta.update(read.meta)
            node.replace_input_with(read, made[read, wanted])
