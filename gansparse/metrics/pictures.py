# SPDX-License-Identifier: Apache-2.0
"""Pictures as a feature network wants them: bytes or floats, three channels, its own size.

How a picture is resized changes its features by 0.4 to 7 %, far more than any rounding does (Parmar
et al., CVPR 2022), so the three ways in use have names, after the programs that compute them:

===========  ==========================================  ==================
mode         resized to 299x299                          a byte v becomes
===========  ==========================================  ==================
pytorch-fid  bilinear, no antialias                      2 (v / 255) - 1
clean        bicubic, antialiased, as Pillow does it     (v - 128) / 128
tf1          bilinear, as TensorFlow 1 does it           (v - 128) / 128
===========  ==========================================  ==================
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from gansparse.errors import InputError

SIZE = 299  # of Inception's pictures


def as_float(
    images: torch.Tensor,  # [N, C, H, W], uint8, or float in [-1, 1]
) -> torch.Tensor:  # [N, C, H, W], float32 in [-1, 1]
    """Bytes 0..255 to -1..1; floats as they are.

    Raises:
        InputError: another dtype or number of dimensions.

    Example:
        >>> as_float(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).tolist()
        [[[[-1.0, 1.0]]]]
    """
    _check(images)
    if images.dtype == torch.uint8:
        return images.to(torch.float32).div_(127.5).sub_(1.0)
    return images.to(torch.float32)


def as_bytes(
    images: torch.Tensor,  # [N, C, H, W], uint8, or float in [-1, 1]
) -> torch.Tensor:  # [N, C, H, W], uint8
    """Floats rounded to 8 bits, as a PNG saved from them holds; bytes as they are.

    The byte is the nearest to 127.5 (x + 1), halves upwards; what lies outside [-1, 1] is clipped.
    Pictures thus score the same whether they come from a generator or from its saved files.

    Raises:
        InputError: another dtype or number of dimensions, or a pixel is NaN.

    Example:
        >>> as_bytes(torch.tensor([[[[-1.0, 0.0, 0.5, 7.0]]]])).tolist()
        [[[[0, 128, 191, 255]]]]
    """
    _check(images)
    if images.dtype == torch.uint8:
        return images
    if bool(images.isnan().any()):
        index = int(images.isnan().flatten(1).any(1).nonzero()[0])
        raise InputError(f"pictures must be finite, got NaN in picture {index} of the batch")
    scaled = images.to(torch.float32).add(1.0).mul_(127.5)
    return scaled.add_(0.5).clamp_(0.0, 255.0).to(torch.uint8)


def as_rgb(
    images: torch.Tensor,  # [N, 1 or 3, H, W]
) -> torch.Tensor:  # [N, 3, H, W]
    """Grey pictures with their channel three times, as the peers read them; colour as it is.

    Raises:
        InputError: another number of channels.
    """
    if images.shape[1] not in (1, 3):
        raise InputError(
            f"pictures must be grey [N, 1, H, W] or RGB [N, 3, H, W], got {list(images.shape)}"
        )
    return images.expand(-1, 3, -1, -1)


def bicubic(
    images: torch.Tensor,  # [N, C, H, W], uint8
    size: int,
) -> torch.Tensor:  # [N, C, size, size], float32 in 0..255
    """Bicubic and antialiased, as Pillow resizes float pictures; overshoot is clipped.

    Like Pillow it sums in float64: in float32 torch places the taps with errors that show in the
    third decimal of a level.
    """
    if not images.shape[0]:
        return images.new_zeros(0, images.shape[1], size, size, dtype=torch.float32)
    resized = F.interpolate(
        images.to(torch.float64),
        size=(size, size),
        mode="bicubic",
        align_corners=False,
        antialias=True,
    )
    return resized.to(torch.float32).clamp_(0.0, 255.0)


def _check(images: torch.Tensor) -> None:
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise InputError(f"pictures must be [N, C, H, W] with pixels, got {list(images.shape)}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise InputError(f"pictures must be uint8 or float in [-1, 1], got {images.dtype}")


# ---- Inception's three ways ----------------------------------------------------------------------
# Each takes bytes [N, 3, H, W] and gives float32 [N, 3, 299, 299], about -1..1.


def _pytorch_fid(images: torch.Tensor) -> torch.Tensor:
    unit = images.to(torch.float32).div_(255.0)
    resized = F.interpolate(unit, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return resized.mul_(2.0).sub_(1.0)


def _clean(images: torch.Tensor) -> torch.Tensor:
    return bicubic(images, SIZE).sub_(128.0).div_(128.0)


def _tf1(images: torch.Tensor) -> torch.Tensor:
    """TensorFlow 1 puts output pixel i at i (H / 299) of the input, not at the pixels' centres."""
    x = images.to(torch.float32)
    for axis in (2, 3):
        length = x.shape[axis]
        place = torch.arange(SIZE, dtype=torch.float32, device=x.device) * (length / SIZE)
        low = place.floor().long().clamp_(max=length - 1)
        share = (place - low).view((-1, 1) if axis == 2 else (-1,))
        here = x.index_select(axis, low)
        after = x.index_select(axis, (low + 1).clamp_(max=length - 1))
        x = here + (after - here) * share
    return x.sub_(128.0).div_(128.0)


MODES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "pytorch-fid": _pytorch_fid,
    "clean": _clean,
    "tf1": _tf1,
}


def for_inception(
    images: torch.Tensor,  # [N, 1 or 3, H, W], uint8, or float in [-1, 1]
    mode: str,
) -> torch.Tensor:  # [N, 3, 299, 299], float32
    """What Inception takes: floats rounded to 8 bits, grey as RGB, resized and scaled by a mode.

    Args:
        images: pictures.
        mode: a key of MODES.
    """
    images = as_rgb(as_bytes(images))
    return MODES[mode](images) if images.shape[0] else images.new_zeros(0, 3, SIZE, SIZE).float()
