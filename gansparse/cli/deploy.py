# SPDX-License-Identifier: Apache-2.0
"""`gansparse deploy`: a pruned generator's files, and how fast it runs here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gansparse.cli.networks import InputOption, NetworkOption, network_and_inputs
from gansparse.cli.options import (
    BatchOption,
    EvalOption,
    SizeOption,
    ThreadsOption,
    check_place,
    say,
)


def deploy(
    generator: Annotated[Path, typer.Argument(help="Weights (.safetensors, .pth).")],
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("deployed"),
    packed: Annotated[
        bool, typer.Option("--packed", help="A file without the zeros (the default).")
    ] = False,
    half: Annotated[bool, typer.Option("--half", help="The same with float16 weights.")] = False,
    shrink: Annotated[
        bool, typer.Option("--shrink", help="A smaller dense network without empty filters.")
    ] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="For ONNX Runtime, OpenVINO, ...")] = False,
    torch_export: Annotated[
        bool, typer.Option("--torch-export", help="For torch alone, without gansparse.")
    ] = False,
    network: NetworkOption = None,
    shape: InputOption = None,
    size: SizeOption = None,
    batch: BatchOption = 1,
    eval_mode: EvalOption = False,
    threads: ThreadsOption = 0,
) -> None:
    """Write what a pruned generator is deployed as; compile it here, tell each layer and the time.

    Examples:
      gansparse deploy runs/ninety/generator.safetensors --out deployed
      gansparse deploy G.pth --out deployed --packed --half
      gansparse deploy G.pth --out deployed --shrink --onnx --size 512
      gansparse deploy G.pth --torch-export --threads 2
      gansparse deploy G.pth --network my_models:Generator --input 1x3x256x256

    gansparse.load_generator reads packed and shrunk files. In Python, gansparse.deploy.compile
    gives the fast generator itself.
    """
    import torch

    from gansparse.deploy import compile
    from gansparse.export import to_onnx, to_torch_export
    from gansparse.sparsity import save_packed, save_shrunk, sparsity_report
    from gansparse.sparsity import shrink as shrunk

    if threads > 0:
        torch.set_num_threads(threads)
    check_place(out)
    net, inputs = network_and_inputs(generator, network, shape, size, batch, eval_mode)
    dense = 4 * sum(p.numel() for p in net.parameters())
    zeros = sparsity_report(net).total.sparsity
    say(f"{generator}  {type(net).__name__}, {zeros:.1%} zeros, {dense:,} bytes as dense float32")

    def tell(path: Path) -> None:
        written = path.stat().st_size
        say(f"{path}  {written:,} bytes ({written / dense:.2f}x)")

    if packed or half or not (shrink or onnx or torch_export):
        path = out / "packed.safetensors"
        save_packed(net, path, "float16" if half else "float32")
        tell(path)
    small = net
    if shrink:
        small = shrunk(net, *inputs)
        save_shrunk(small, out / "shrunk.safetensors", of=net)
        tell(out / "shrunk.safetensors")
    if onnx:
        say(str(to_onnx(small, inputs, out / "generator.onnx")))
    if torch_export:
        say(str(to_torch_export(small, inputs, out / "generator.pt2")))
    say(str(compile(small, inputs).explain()))
