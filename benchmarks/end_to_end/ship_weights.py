# SPDX-License-Identifier: Apache-2.0
"""Turns a finished `gansparse train dcgan` folder into the weights that ship with the package.

    python benchmarks/end_to_end/ship_weights.py runs/dcgan --command "gansparse train dcgan ..."

Half precision, G (the EMA) and D, with the command, seed, steps and commit in the file's header.
Of a pair trained in stages (`--generator`, `--discriminator`), give --command once for each
stage, the first one first, and their steps together as --trained-steps.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import torch

from gansparse.files import load_tensors, read_json, save_tensors
from gansparse.models import shipped


def half(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.half() if v.is_floating_point() else v for k, v in state.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--command", required=True, action="append", help="what trained them")
    parser.add_argument("--trained-steps", help="of all stages; default: the folder's")
    parser.add_argument("--r1", default="0", help="weight of D's R1 penalty in that training")
    parser.add_argument("--commit", default="", help="default: the checkout's")
    arguments = parser.parse_args()
    config = read_json(arguments.run / "config.json")
    commit = (
        arguments.commit
        or subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    header = {
        "command": "; then ".join(arguments.command),
        "seed": str(config["seed"]),
        "trained_steps": arguments.trained_steps or str(config["steps"]),
        "r1": arguments.r1,
        "commit": commit,
        "torch": torch.__version__,
    }
    for kind in ("generator", "discriminator"):
        state, _ = load_tensors(arguments.run / f"{kind}.safetensors")
        target = shipped(f"dcgan_mnist_{kind[0]}.safetensors")
        save_tensors(target, half(state), header)
        print(f"{target}  {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
