# SPDX-License-Identifier: Apache-2.0
"""`gansparse export`: one file for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gansparse.cli.networks import InputOption, NetworkOption, network_and_inputs
from gansparse.cli.options import BatchOption, EvalOption, SizeOption, check_file, say
from gansparse.errors import InputError


def export(
    generator: Annotated[Path, typer.Argument(help="Weights (.safetensors, .pth).")],
    out: Annotated[Path, typer.Argument(help="What to write: .onnx, .pt2 or .safetensors.")],
    network: NetworkOption = None,
    shape: InputOption = None,
    size: SizeOption = None,
    batch: BatchOption = 1,
    eval_mode: EvalOption = False,
    fixed: Annotated[
        bool, typer.Option("--fixed", help="ONNX: this size and batch only; faster in some.")
    ] = False,
    half: Annotated[bool, typer.Option("--half", help=".safetensors: weights as float16.")] = False,
) -> None:
    """Write a generator as ONNX, as a torch.export program, or packed: without its zeros.

    Examples:
      gansparse export latest_net_G.pth G.onnx
      gansparse export latest_net_G.pth G.onnx --size 512 --fixed
      gansparse export runs/ninety/generator.safetensors G.pt2
      gansparse export G.pth G.onnx --network my_models:Generator --input 1x3x256x256
      gansparse export runs/ninety/generator.safetensors small.safetensors --half

    ONNX and torch.export take any batch, and any size that the network takes. Dropout is left out.
    """
    from gansparse.export import to_onnx, to_torch_export
    from gansparse.sparsity import save_packed

    kind = out.suffix
    if kind not in (".onnx", ".pt2", ".safetensors"):
        raise InputError(f"{out} must end with .onnx, .pt2 or .safetensors")
    for flag, given, its in (("--fixed", fixed, ".onnx"), ("--half", half, ".safetensors")):
        if given and kind != its:
            raise InputError(f"{flag} is for {its} files, got {out}")
    if generator is not None and out.resolve() == Path(generator).resolve():
        raise InputError(f"{out} is the generator's own file; choose another place")
    check_file(out, "place")
    net, inputs = network_and_inputs(generator, network, shape, size, batch, eval_mode)
    if kind == ".safetensors":
        save_packed(net, out, "float16" if half else "float32")
        say(f"{out}  {out.stat().st_size:,} bytes")
    elif kind == ".onnx":
        say(str(to_onnx(net, inputs, out, dynamic=not fixed)))
    else:
        say(str(to_torch_export(net, inputs, out)))
