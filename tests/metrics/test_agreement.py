# SPDX-License-Identifier: Apache-2.0
"""`gansparse fid` against the programs whose numbers are quoted, on folders of real pictures.

All get the same random weights of Inception. BSD68 stands against itself with blur and noise; its
pictures are upright and oblong, so the peers, which resize no sizes apart, read one at a time.
At 64 features 68 pictures have a covariance of full rank, and the peers' whole programs are held
against ours. At 2048 they have not: pytorch-fid's matrix root then errs by 1e-4 and takes a minute,
so there the peers' features are held against ours, by one exact distance.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from gansparse.cli import main
from gansparse.metrics import frechet_distance_from_features

sys.path.insert(0, str(Path(__file__).parent))

from peers import CleanFidNetwork, fidelity_network, peer, pytorch_fid_network, random_inception

FEW = 5  # pictures of each at 2048 features

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random_inception.pth"
    torch.save(random_inception(), path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """BSD68, the same blurred and noisy, and a few of each."""
    root = os.environ.get("GANSPARSE_DATA")
    if not root:
        pytest.skip("GANSPARSE_DATA is not set")
    out = tmp_path_factory.mktemp("folders")
    rng = np.random.default_rng(0)
    names = ("real", "distorted", "few real", "few distorted")
    paths = {name: out / name for name in names}
    for path in paths.values():
        path.mkdir()
    for i, file in enumerate(sorted(Path(root, "sr", "BSD68").glob("*.png"))):
        with Image.open(file) as image:
            real = image.convert("RGB").reduce(2)
        blurred = np.asarray(real.filter(ImageFilter.GaussianBlur(1.5)), dtype=np.float64)
        noisy = np.clip(blurred + rng.normal(0, 10, blurred.shape), 0, 255)
        distorted = Image.fromarray(noisy.astype(np.uint8))
        for name, picture in (("real", real), ("distorted", distorted)):
            picture.save(paths[name] / file.name)
            if i < FEW:
                picture.save(paths[f"few {name}"] / file.name)
    return paths


@pytest.fixture
def ours(capsys, monkeypatch, weights):
    """The number that `gansparse fid` prints, run in this process."""

    def run(*arguments) -> float:
        command = ["gansparse", "fid", *map(str, arguments), "--weights", str(weights)]
        monkeypatch.setattr(sys, "argv", [*command, "--num-workers", "0", "--json"])
        with pytest.raises(SystemExit) as left:
            main()
        printed = capsys.readouterr()
        assert left.value.code == 0, printed.err
        return json.loads(printed.out)["fid"]

    return run


def test_fid_is_pytorch_fids(folders, ours, weights):
    pair = [str(folders["real"]), str(folders["distorted"])]
    score = peer("pytorch_fid.fid_score")
    root = scipy.linalg.sqrtm  # it takes no `disp` from SciPy 1.18 on
    with (
        mock.patch.object(score, "InceptionV3") as network,
        mock.patch.object(scipy.linalg, "sqrtm", lambda a, disp: (root(a), 0.0)),
    ):
        network.BLOCK_INDEX_BY_DIM = {64: 0}
        network.return_value = pytorch_fid_network(weights, [64])
        want = score.calculate_fid_given_paths(pair, 1, "cpu", 64, num_workers=0)
    assert ours(*pair, "--dims", 64) == pytest.approx(want, rel=1e-6)


def test_fid_in_mode_tf1_is_torch_fidelitys(folders, ours, weights):
    pair = folders["real"], folders["distorted"]
    metric = peer("torch_fidelity.metric_fid")
    statistics = (
        metric.fid_features_to_statistics(fidelity_features(folder, weights, 64)) for folder in pair
    )
    want = metric.fid_statistics_to_metric(*statistics, verbose=False)[metric.KEY_METRIC_FID]
    assert ours(*pair, "--dims", 64, "--mode", "tf1") == pytest.approx(want, rel=1e-4)


def fidelity_features(folder: Path, weights: Path, dims: int) -> Tensor:
    """torch-fidelity's features of a folder, by its own data set and loop."""
    utils = peer("torch_fidelity.utils")
    files = utils.glob_samples_paths(str(folder), False, "png", verbose=False)
    as_bytes = lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1)  # noqa: E731
    found = utils.get_featuresdict_from_dataset(
        utils.ImagesPathDataset(files, as_bytes),
        fidelity_network(weights, [str(dims)]),
        batch_size=1,
        cuda=False,
        save_cpu_ram=True,
        verbose=False,
    )
    return found[str(dims)]


def test_2048_features_in_mode_clean_are_clean_fids(folders, ours, weights):
    pair = folders["few real"], folders["few distorted"]
    clean = peer("cleanfid.fid")
    network = CleanFidNetwork(weights)
    options = {"num_workers": 0, "batch_size": FEW, "device": "cpu", "verbose": False}
    theirs = (clean.get_folder_features(str(folder), network, **options) for folder in pair)
    want = frechet_distance_from_features(*map(torch.from_numpy, theirs))
    assert ours(*pair, "--mode", "clean") == pytest.approx(want, rel=1e-4)
