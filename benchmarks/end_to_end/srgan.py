# SPDX-License-Identifier: Apache-2.0
"""What keeps a pruned SRGAN's PSNR: readings of technique b, one thing changed at a time.

    python benchmarks/end_to_end/families.py prepare srgan --data DATA --out runs/families
    python benchmarks/end_to_end/families.py baseline srgan --data DATA --out runs/families
    python benchmarks/end_to_end/srgan.py --data DATA --out runs/families

The public x4 generator, 50 % element, PSNR and SSIM of Set5 and Set14 in each row. DATA, and the
settings that the first row has, are those of `families.py`. A stopped command goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from families import FAMILIES, Workshop, comparison_of

from gansparse.cli.compare import finish, run_entries
from gansparse.cli.options import choose_device
from gansparse.compress import TrainConfig
from gansparse.compress.compare import Entry
from gansparse.errors import GansparseError
from gansparse.progress import ProgressBars

READINGS: dict[str, tuple[str, ...]] = {
    "chosen": (),
    "output MSE 100": ("output_weight=100",),
    "output MSE 1000": ("output_weight=1000",),
    "output MSE 10000": ("output_weight=10000",),
    "output L1 100": ("output_term=l1", "output_weight=100"),
    "D fixed": ("d_update=fixed",),
    "no L_DC": ("lambda_=0",),
    "no adversarial term": ("adversarial_weight=0",),
    "G's rate 1e-4": ("lr=1e-4",),
    "constant rates": ("lr_decay=none",),
    "small layers keep more": ("scope=erk",),
    "no average of weights": ("ema=0",),
    "BatchNorm by batch, recalibrated": ("g_norm=batch",),
    "BatchNorm by batch, its running averages": ("g_norm=batch", "recalibration=0"),
    "fp32": ("precision=fp32",),
    "nothing pruned": ("sparsity=0",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", default=Path("runs/families"), type=Path)
    parser.add_argument("--only", nargs="*", default=list(READINGS), choices=list(READINGS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    try:
        device = choose_device(given.device, given.threads)
        shop = Workshop("srgan", given.data, given.out, device)
        base = TrainConfig(
            steps=given.steps, sparsity=0.5, precision=given.precision, seed=given.seed
        )
        base = base.with_settings(FAMILIES["srgan"].settings)
        entries = [Entry(base.with_settings(READINGS[name]), label=name) for name in given.only]
        with ProgressBars() as bars:
            comparison = comparison_of(shop, "readings", bars)
            run_entries(comparison, entries, bars)
        sys.exit(finish(comparison.out))
    except GansparseError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
