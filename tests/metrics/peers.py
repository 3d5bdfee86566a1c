# SPDX-License-Identifier: Apache-2.0
"""The programs that other people's numbers come from, with weights that we choose.

Install them with `pip install --no-deps -r tests/peers.txt`. They import torchvision, which often
fails to import beside a CPU build of torch; of it they use three things, which stand in for it
here where it is missing: `ToTensor`, Inception's blocks, which torch-fidelity has too, and names.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn


def peer(name: str) -> types.ModuleType:
    """The peer's module; without the package the test is skipped, and says how to install it."""
    package = name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        import pytest  # benchmarks ask first, and may have none

        pytest.skip(f"{package} is not installed: pip install --no-deps -r tests/peers.txt")
    with _torchvision():
        return importlib.import_module(name)


def random_inception(seed: int = 0) -> dict[str, torch.Tensor]:
    """A state_dict of FID's Inception whose activations keep their scale from layer to layer."""
    from gansparse.metrics.inception import InceptionV3

    generator = torch.Generator().manual_seed(seed)

    def draw(shape: torch.Size) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    state = InceptionV3().state_dict()
    for key, value in state.items():
        if key.endswith("conv.weight"):
            state[key] = draw(value.shape) * (2 / value[0].numel()) ** 0.5
        elif key.endswith("running_var"):
            state[key] = draw(value.shape).mul(0.3).exp()
        elif key.endswith("bn.weight"):
            state[key] = draw(value.shape).mul(0.2).exp()
        elif value.is_floating_point():
            state[key] = draw(value.shape) * 0.1
    return state


def fidelity_network(weights: Path, features: Sequence[str] = ("2048",)) -> nn.Module:
    """torch-fidelity's Inception: uint8 [N, 3, H, W] -> a tuple of the features asked for."""
    module = peer("torch_fidelity.feature_extractor_inceptionv3")
    net: nn.Module = module.FeatureExtractorInceptionV3(
        "inception-v3-compat", list(features), feature_extractor_weights_path=str(weights)
    )
    return net


def pytorch_fid_network(weights: Path, dims: Sequence[int] = (2048,)) -> nn.Module:
    """pytorch-fid's Inception: float [N, 3, H, W] in [0, 1] -> a list of feature maps."""
    module = peer("pytorch_fid.inception")
    state = torch.load(weights, weights_only=True)
    with (
        _torchvision(),
        mock.patch.object(module, "load_state_dict_from_url", return_value=state),
    ):
        blocks = module.InceptionV3.BLOCK_INDEX_BY_DIM
        net: nn.Module = module.InceptionV3([blocks[size] for size in dims])
    return net.eval()


class CleanFidNetwork(nn.Module):
    """What clean-fid runs: its own TorchScript file's place is taken by torch-fidelity's layers.

    float [N, 3, 299, 299] in 0..255, resized by clean-fid -> features [N, 2048].
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.net = fidelity_network(weights)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        module = sys.modules[type(self.net).__module__]
        resize = "interpolate_bilinear_2d_like_tensorflow1x"
        with (
            mock.patch.object(module, resize, side_effect=lambda x, **_: x),
            mock.patch.object(module, "vassert"),  # that the pictures are bytes
        ):
            features: torch.Tensor = self.net(images)[0]
        return features


# ---- In place of torchvision ---------------------------------------------------------------------


@contextmanager
def _torchvision() -> Iterator[None]:
    """`import torchvision` works in the block: the real one where it can, else what stands in."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    names = ["torchvision"]
    for part in ("datasets", "models", "models.inception", "transforms", "transforms.functional"):
        names.append(f"torchvision.{part}")
    modules: dict[str, Any] = {name: mock.MagicMock(name=name) for name in names}
    # Its version and its spec are looked at.
    modules["torchvision"].__version__ = "0.20"
    for name, module in modules.items():
        module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    modules["torchvision.transforms"].ToTensor = ToTensor
    modules["torchvision.transforms"].Compose = Compose
    sys.modules.update(modules)
    try:
        blocks = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        inception = modules["torchvision.models.inception"]
        for letter in "ABCD":
            setattr(inception, f"Inception{letter}", getattr(blocks, f"Inception{letter}"))
        inception.InceptionE = blocks.InceptionE_1
        modules["torchvision.models"].inception_v3 = _unfilled
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _unfilled(**_: Any) -> nn.Module:
    """Inception with torchvision's names and no weights yet; pytorch-fid puts its blocks in."""
    blocks = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    network = blocks.FeatureExtractorInceptionV3
    with (
        mock.patch.object(network, "load_state_dict"),
        mock.patch.object(blocks, "load_state_dict_from_url"),
    ):
        net: nn.Module = network("", ["2048"])
    return net


class ToTensor:
    """A Pillow picture or an array [H, W, C] as a tensor [C, H, W]; bytes become 0..1."""

    def __call__(self, picture: Any) -> torch.Tensor:
        array = np.array(picture)
        tensor = torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1).contiguous()
        return tensor.float().div(255) if tensor.dtype == torch.uint8 else tensor


class Compose:
    """Functions one after the other."""

    def __init__(self, steps: list[Any]) -> None:
        self.steps = steps

    def __call__(self, x: Any) -> Any:
        for step in self.steps:
            x = step(x)
        return x
