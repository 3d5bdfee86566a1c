# SPDX-License-Identifier: Apache-2.0
"""At all of Inception's sizes: pytorch-fid's distance against ours. Too long for a test.

    GANSPARSE_DATA=... python tests/metrics/agreement.py OUT [--tile 64] [--network-to 768]

BSD68 stands against itself with blur and noise, whole or cut into tiles; one random state_dict for
both networks. OUT keeps pictures and features, so that the distances can be taken again. Each takes
its own features of the same files. Of the relative differences the first says what the features'
rounding does (their features, our distance), the second what their own distance adds. Their network
is slow: above `--network-to` features their distance is given ours.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import scipy.linalg
import torch
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).parent))

from peers import peer, pytorch_fid_network, random_inception

from gansparse.data.folder import PictureFolder
from gansparse.metrics import FeatureMoments, frechet_distance
from gansparse.metrics.inception import CPU_BATCH, DIMS, NETWORK, InceptionV3
from gansparse.metrics.pictures import for_inception
from gansparse.metrics.precision import plain_float32

Features = dict[int, np.ndarray]  # by their number: [N, F] float32


def write_pictures(out: Path, tile: int, every: int) -> None:
    """BSD68 and its distortion, whole or each N-th tile of them, as PNG."""
    rng = np.random.default_rng(0)
    numbers = {"real": itertools.count(), "distorted": itertools.count()}
    for name in ("real", "distorted"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for file in sorted(Path(os.environ["GANSPARSE_DATA"], "sr", "BSD68").glob("*.png")):
        with Image.open(file) as image:
            real = image.convert("RGB")
        blurred = np.asarray(real.filter(ImageFilter.GaussianBlur(1.5)), dtype=np.float64)
        noisy = np.clip(blurred + rng.normal(0, 10, blurred.shape), 0, 255)
        for name, picture in (("real", real), ("distorted", Image.fromarray(noisy.astype("u1")))):
            width, height = picture.size
            step_x, step_y = (tile, tile) if tile else (width, height)
            for y in range(0, height - step_y + 1, step_y):
                for x in range(0, width - step_x + 1, step_x):
                    if next(numbers[name]) % every == 0:
                        part = picture.crop((x, y, x + step_x, y + step_y))
                        part.save(out / name / f"{file.stem}-{y:03}-{x:03}.png")


@torch.no_grad()
def our_features(folder: Path, weights: Path, batch: int) -> Features:
    """Of one pass, by our reading, resizing and network."""
    net = InceptionV3.from_file(weights)
    found: dict[int, list[torch.Tensor]] = {dims: [] for dims in DIMS}
    for pictures in PictureFolder(folder).batches(batch):
        for few in pictures.split(CPU_BATCH):
            x = for_inception(few, "pytorch-fid").contiguous(memory_format=torch.channels_last)
            for dims, steps in NETWORK.items():
                with plain_float32(x.device):
                    x = net.run(steps, x)
                found[dims].append(x.mean((2, 3)))
    return {dims: torch.cat(parts).numpy() for dims, parts in found.items()}


@torch.no_grad()
def their_features(folder: Path, weights: Path, batch: int, largest: int) -> Features:
    """Of one pass, by pytorch-fid's reading, resizing and network."""
    score = peer("pytorch_fid.fid_score")
    sizes = [dims for dims in DIMS if dims <= largest]
    net = pytorch_fid_network(weights, sizes)
    data = score.ImagePathDataset(sorted(folder.glob("*.png")), score.TF.ToTensor())
    found: dict[int, list[np.ndarray]] = {dims: [] for dims in sizes}
    for pictures in torch.utils.data.DataLoader(data, batch_size=batch):
        for dims, x in zip(sizes, net(pictures), strict=True):
            pooled = torch.nn.functional.adaptive_avg_pool2d(x, (1, 1)).flatten(1)
            found[dims].append(pooled.numpy())
    return {dims: np.concatenate(parts) for dims, parts in found.items()}


def kept(path: Path, take: Callable[[], Features]) -> Features:
    """Features from a file; where there is none they are taken and written."""
    if not path.exists():
        np.savez(path, **{str(dims): rows for dims, rows in take().items()})
    with np.load(path) as archive:
        return {int(dims): rows for dims, rows in archive.items()}


def ours(x: np.ndarray, y: np.ndarray) -> float:
    """As `gansparse fid` comes to it."""
    sides = []
    for rows in (x, y):
        moments = FeatureMoments(rows.shape[1])
        moments.update(torch.from_numpy(rows))
        sides += [moments.mean, moments.cov]
    return frechet_distance(*sides)


def theirs(x: np.ndarray, y: np.ndarray) -> float:
    """As pytorch-fid comes to it, which keeps its float32 features in float64."""
    score = peer("pytorch_fid.fid_score")
    root = scipy.linalg.sqrtm  # it takes no `disp` from SciPy 1.18 on
    wide = (rows.astype(np.float64) for rows in (x, y))
    sides = [part for rows in wide for part in (rows.mean(0), np.cov(rows, rowvar=False))]
    with mock.patch.object(scipy.linalg, "sqrtm", lambda a, disp: (root(a), 0.0)):
        return float(score.calculate_frechet_distance(*sides))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tile", type=int, default=0, help="pixels; 0: whole pictures")
    parser.add_argument("--every", type=int, default=1, help="only each N-th tile")
    parser.add_argument("--network-to", type=int, default=2048, help="0: not their network")
    args = parser.parse_args()
    weights = args.out / "inception.pth"
    if not weights.exists():
        write_pictures(args.out, args.tile, args.every)
        torch.save(random_inception(), weights)
    batch = 16 if args.tile else 1  # whole pictures are upright and oblong
    own, their = [], []
    for folder in (args.out / "real", args.out / "distorted"):
        take = functools.partial(our_features, folder, weights, batch)
        own.append(kept(args.out / f"ours-{folder.name}.npz", take))
        if args.network_to:
            take = functools.partial(their_features, folder, weights, batch, args.network_to)
            their.append(kept(args.out / f"theirs-{folder.name}.npz", take))
    say = sys.stdout.write
    say(f"{len(own[0][64])} pictures a side\nfeatures | our FID | their features | their FID\n")
    for dims in DIMS:
        value = ours(*(side[dims] for side in own))
        used = their if dims <= args.network_to else own
        pair = [side[dims] for side in used]
        gaps = (abs(value - want) / want for want in (ours(*pair), theirs(*pair)))
        say(" | ".join([str(dims), f"{value:.8g}", *(f"{gap:.1e}" for gap in gaps)]) + "\n")


if __name__ == "__main__":
    main()
