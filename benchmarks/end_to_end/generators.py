# SPDX-License-Identifier: Apache-2.0
"""Whole generators: ours at each pattern and sparsity beside every runtime on PyPI that runs here.

    python benchmarks/end_to_end/generators.py --save                 # all of it: an hour
    python benchmarks/end_to_end/generators.py --layers --save        # single layers
    python benchmarks/end_to_end/generators.py --families stargan --patterns element --rounds 5
    python benchmarks/end_to_end/generators.py --roofline             # the picture, from the CSV

Standard sizes, batch 1 (DCGAN also 16), weights as torch draws them, pruned by size without
training: for times only. Pix2Pix runs without dropout and with running statistics, which everyone
can fold. --save replaces the measured families' rows of results/generators-<machine>.csv, --layers
--save of results/layers-<machine>.csv: there a network is one of the convolutions that cost most in
them, from torch's layout and back to it. A runtime that is not installed is said and left out:
pip install 'gansparse[bench]'.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import harness
from gansparse import runtimes
from gansparse.errors import GansparseError, InputError
from gansparse.models import (
    DCGANGenerator,
    ResNetGenerator,
    SRGANGenerator,
    StarGANGenerator,
    UNetGenerator,
    example_inputs,
)
from gansparse.runtimes import OURS, PATTERNS, PEERS, Row
from gansparse.testing import timing
from gansparse.testing.samples import sparse_conv2d, sparse_conv_transpose2d

# family → the network and the batches it is measured at
FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cyclegan": (ResNetGenerator, (1,)),
    "stargan": (StarGANGenerator, (1,)),
    "srgan": (lambda: SRGANGenerator(4), (1,)),
    "pix2pix": (lambda: UNetGenerator().live_in_eval(False), (1,)),
    "dcgan": (lambda: DCGANGenerator(nc=3), (1, 16)),
}
LAYERS = {
    layer.name: layer
    for layer in sparse_conv2d.samples("model") + sparse_conv_transpose2d.samples("model")
}
SPARSITIES = (0.0, 0.25, 0.5, 0.75, 0.9)
PICTURE = harness.ROOT / "docs" / "images" / "roofline-cpu.png"
CASE = ("family", "batch", "threads")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--families", nargs="+", choices=[*FAMILIES, *LAYERS], help="or layers (all)")
    add("--layers", action="store_true", help="single layers instead of whole generators")
    add("--patterns", nargs="+", choices=PATTERNS, help="a single layer has no filter (all)")
    add("--sparsities", nargs="+", type=float, default=list(SPARSITIES))
    add("--threads", nargs="+", type=int, default=[1, 2])
    add("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    add("--rounds", type=int, default=11)
    add("--size", type=int, help="of the pictures (the standard one)")
    add("--save", action="store_true", help="write the CSV and the roofline picture")
    add("--roofline", action="store_true", help="draw the picture from the CSV, measure nothing")
    chosen = parser.parse_args()
    known = list(LAYERS) if chosen.layers else list(FAMILIES)
    families = chosen.families or known
    if other := [name for name in families if name not in known]:
        parser.error(f"--layers is {'' if chosen.layers else 'not '}given: {', '.join(other)}")
    # A single layer's outputs are nobody's inputs: none of them can go.
    chosen.patterns = chosen.patterns or [p for p in PATTERNS if not chosen.layers or p != "filter"]
    kind = "layers" if chosen.layers else "generators"
    path = harness.results_file().with_name(f"{kind}-{harness.results_file().name}")
    try:
        if chosen.roofline:
            roofline(harness.read_results(path), PICTURE)
            return 0
        machine = harness.machine()
        print("  ".join(f"{name}: {value}" for name, value in machine.items()))
        for family in families:
            for batch in FAMILIES[family][1] if family in FAMILIES else LAYERS[family].shape[:1]:
                for count in chosen.threads:
                    rows = measure(family, batch, count, chosen)
                    case = {"family": family, "batch": str(batch), "threads": str(count)}
                    report(case, rows)
                    if chosen.save:  # case by case: what is measured is kept, whatever comes then
                        save([{**case, **row.texts(), **machine} for row in rows], path)
        if chosen.save:
            print(f"saved {path}")
        if chosen.save and not chosen.layers:
            roofline(harness.read_results(path), PICTURE)
            print(f"saved {PICTURE}")
    except GansparseError as error:
        parser.exit(2, f"{error}\n")
    return 0


def measure(family: str, batch: int, count: int, chosen: argparse.Namespace) -> list[Row]:
    torch.manual_seed(0)
    if family in LAYERS:
        network, inputs = single(LAYERS[family])
    else:
        network = FAMILIES[family][0]()
        inputs = example_inputs(network, None if family == "dcgan" else chosen.size, batch)
    # Nothing pruned is the same in every pattern: once is enough.
    variants = [("element", 0.0)] if 0.0 in chosen.sparsities else []
    variants += [(p, s) for p in chosen.patterns for s in chosen.sparsities if s]
    with timing.threads(count):
        return runtimes.line_up(
            network, inputs, variants=variants, peers=chosen.peers, rounds=chosen.rounds
        )


def single(layer: sparse_conv2d.Sample) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A network of this layer alone, dense, and its input."""
    channels = layer.shape[1]
    if layer.transposed:
        conv: nn.Module = nn.ConvTranspose2d(
            channels, layer.out, layer.kernel, layer.stride, layer.padding, layer.output_padding
        )
    else:
        conv = nn.Conv2d(
            channels, layer.out, layer.kernel, layer.stride, layer.padding,
            padding_mode=layer.padding_mode,
        )  # fmt: skip
    return nn.Sequential(conv), (torch.randn(layer.shape),)


def report(case: dict[str, str], rows: list[Row]) -> None:
    head = "  ".join(f"{name} {value}" for name, value in case.items())
    print(f"\n{head}  peak {rows[0].peak_gflops:.0f} GFLOP/s  copy {rows[0].copy_gbs:.0f} GB/s")
    for row in rows:
        name = f"{row.candidate} {row.pattern} {row.sparsity:.0%}" if row.pattern else row.candidate
        print(
            f"{name:<26} {row.median_ms:9.2f} ms ±{row.spread:4.0%}  {row.times_best:6.2f}x best "
            f"±{row.times_best_iqr:.2f} ({row.best})  {row.times_torch:6.2f}x torch  "
            f"{row.share_of_peak:4.0%} of peak  error {row.error:.1e}"
        )
    for pattern in dict.fromkeys(row.pattern for row in rows if row.candidate == OURS):
        print(f"break-even {pattern}: {runtimes.break_even(rows, pattern)}")
    slower = runtimes.slower_than_torch(rows)
    print(
        "; ".join(["slower than torch", *slower]) if slower else "never slower than torch",
        flush=True,
    )


def save(rows: list[dict[str, str]], path: Path) -> None:
    """Replace the rows of the same family, batch, threads, pattern and sparsity."""
    key = (*CASE, "candidate", "pattern", "sparsity")
    measured = {tuple(row[k] for k in key) for row in rows}
    kept = [r for r in harness.read_results(path) if tuple(r[k] for k in key) not in measured]
    harness.write_rows(sorted(kept + rows, key=lambda row: [row[k] for k in CASE]), path)


def roofline(rows: list[dict[str, str]], path: Path) -> None:
    """What each of ours reaches on one thread, under the machine's two limits.

    Args:
        rows: of the CSV.
        path: of the PNG.

    Raises:
        InputError: there is no row to draw.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ours = [row for row in rows if row["candidate"] == OURS and row["threads"] == "1"]
    if not ours:
        raise InputError("no row to draw: run generators.py --threads 1 --save first")
    peak = max(float(row["peak_gflops"]) for row in ours)
    copy = max(float(row["copy_gbs"]) for row in ours)
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    intensities = [float(row["gflop"]) / float(row["mbytes"]) * 1e3 for row in ours]
    ends = [min([*intensities, peak / copy]) / 2, max([*intensities, peak / copy]) * 2]
    axes.plot(
        [ends[0], peak / copy, ends[1]],
        [ends[0] * copy, peak, peak],
        color="black",
        label=f"limits: {copy:.0f} GB/s, {peak:.0f} GFLOP/s",
    )
    markers = dict(zip(PATTERNS, "osD", strict=True))
    colours = {name: f"C{index}" for index, name in enumerate(FAMILIES)}
    for row, intensity in zip(ours, intensities, strict=True):
        rate = float(row["gflop"]) / float(row["median_ms"]) * 1e3
        axes.scatter(
            intensity,
            rate,
            s=90 * (1.05 - float(row["sparsity"])),
            marker=markers[row["pattern"]],
            color=colours[row["family"]],
            alpha=0.75,
        )
    for name in dict.fromkeys(row["family"] for row in ours):
        axes.scatter([], [], color=colours[name], label=name)
    for name in dict.fromkeys(row["pattern"] for row in ours):
        axes.scatter([], [], color="grey", marker=markers[name], label=name)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="FLOP per byte (weights that are not zero, each layer's input and output)",
        ylabel="GFLOP/s of the weights that are not zero",
        title="Whole generators on one thread; smaller marks: sparser",
    )
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
