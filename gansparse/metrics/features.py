# SPDX-License-Identifier: Apache-2.0
"""Feature extractors by name: a Fréchet distance means nothing without its extractor's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from gansparse.errors import CheckpointError, InputError
from gansparse.files import load_tensors
from gansparse.models.checkpoint import shipped
from gansparse.models.lenet import LeNet

EXTRACTORS = ("lenet-mnist",)


@dataclass(frozen=True)
class Extractor:
    """Pictures to feature vectors.

    Attributes:
        name: printed with every number.
        num_features: F.
        features: pictures [N, C, H, W] in [-1, 1] -> features [N, F], float32.
        classify: pictures -> class logits [N, K], where the network can tell classes.
    """

    name: str
    num_features: int
    features: Callable[[torch.Tensor], torch.Tensor]
    classify: Callable[[torch.Tensor], torch.Tensor] | None = None

    @torch.no_grad()
    def __call__(
        self,
        images: torch.Tensor,  # [N, C, H, W], in [-1, 1]
    ) -> torch.Tensor:  # [N, F], float32
        """Features of the pictures."""
        features = self.features(images)
        if features.ndim != 2 or features.shape != (images.shape[0], self.num_features):
            raise InputError(
                f"extractor {self.name}: must return [{images.shape[0]}, {self.num_features}], "
                f"got {list(features.shape)}"
            )
        return features.float()


def for_lenet(
    images: torch.Tensor,  # [N, 1, H, W], in [-1, 1]
) -> torch.Tensor:  # [N, 1, 32, 32], in [0, 1]
    """Resizes to LeNet's 32x32 (bilinear, antialiased) and shifts to [0, 1]."""
    if images.ndim != 4 or images.shape[1] != 1:
        raise InputError(f"lenet-mnist: pictures must be [N, 1, H, W], got {list(images.shape)}")
    if images.shape[-2:] != (32, 32):
        images = F.interpolate(
            images, size=(32, 32), mode="bilinear", align_corners=False, antialias=True
        )
    return images.add(1.0).mul(0.5).clamp(0.0, 1.0)


def lenet_extractor(
    weights: str | Path | None = None, device: str | torch.device = "cpu"
) -> Extractor:
    """The digit extractor: layer C5 (120 features) of a LeNet-5.

    Args:
        weights: a file with the keys of `gansparse.models.lenet.LeNet`; default: the shipped one.
        device: where it runs.
    """
    path = Path(weights) if weights is not None else shipped("lenet_mnist.safetensors")
    state, _ = load_tensors(path)
    net = LeNet()
    try:
        net.load_state_dict({key: value.float() for key, value in state.items()})
    except RuntimeError as error:
        line = str(error).replace("\n", " ")
        raise CheckpointError(f"{path}: not the weights of a LeNet-5: {line}") from None
    net = net.eval().requires_grad_(False).to(device)
    name = "lenet-mnist" if weights is None else f"lenet ({path.name})"
    return Extractor(
        name,
        LeNet.num_features,
        features=lambda images: net.features(for_lenet(images)),
        classify=lambda images: net(for_lenet(images)),
    )


def module_extractor(
    name: str, module: nn.Module | Callable[[torch.Tensor], torch.Tensor], num_features: int
) -> Extractor:
    """Any module or function that maps pictures in [-1, 1] to [N, num_features]."""
    return Extractor(name, num_features, features=module)


def get_extractor(name: str, device: str | torch.device = "cpu") -> Extractor:
    """An extractor by name.

    Raises:
        InputError: no such name.
    """
    if name != "lenet-mnist":
        raise InputError(f"no extractor {name!r}; there are: {', '.join(EXTRACTORS)}")
    return lenet_extractor(device=device)
