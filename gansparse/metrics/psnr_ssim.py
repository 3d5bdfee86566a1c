# SPDX-License-Identifier: Apache-2.0
"""PSNR and SSIM as super resolution counts them: on the Y channel, the border cut off.

Both compare 8-bit pictures: floats in [-1, 1] are rounded as a PNG saved from them would be. A
colour picture's Y is MATLAB's (`rgb2ycbcr`, ITU-R BT.601, 16 … 235), left unrounded unless asked
for: MATLAB rounds it where the picture is uint8, most Python programs don't. A grey picture is
taken as it is. The figure of a set is the mean of its pictures' figures, of any sizes.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from gansparse.errors import InputError
from gansparse.metrics.metric import Mean, Metric
from gansparse.metrics.pictures import as_bytes

_PEAK = 255.0
_LUMA = (65.481, 128.553, 24.966)  # of R, G, B in [0, 1], above 16
_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03


def psnr(
    images: torch.Tensor,  # [N, 1 or 3, H, W], uint8, or float in [-1, 1]
    target: torch.Tensor,  # as `images`
    *,
    border: int = 0,
    luma: bool = True,
    round_luma: bool = False,
) -> torch.Tensor:  # [N] float64, dB
    """Peak signal-to-noise ratio of each picture: 10 log10(255² / mean squared error).

    Args:
        images: [N, 1 or 3, H, W], uint8, or float in [-1, 1].
        target: what they should be.
        border: pixels cut off at each side; super resolution cuts its scale.
        luma: compare Y; False: all channels alike.
        round_luma: round Y to whole numbers, as MATLAB does for uint8 pictures.

    Returns:
        [N] float64 in dB; infinite where picture and target are equal.

    Raises:
        InputError: shape, dtype or value of an argument breaks a rule.

    Example:
        >>> grey = torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
        >>> psnr(grey, grey + 1)
        tensor([48.1308], dtype=torch.float64)
    """
    x, y = _prepared("psnr", images, target, border, luma, round_luma)
    error = (x - y).square().mean((1, 2, 3))
    return 10 * (_PEAK**2 / error).log10()


def ssim(
    images: torch.Tensor,  # [N, 1 or 3, H, W], uint8, or float in [-1, 1]
    target: torch.Tensor,  # as `images`
    *,
    border: int = 0,
    luma: bool = True,
    round_luma: bool = False,
) -> torch.Tensor:  # [N] float64
    """Structural similarity of each picture, with an 11x11 Gaussian window (Wang et al. 2004).

    Mean over the window's places wholly inside the picture, sigma 1.5, K1 0.01, K2 0.03; with
    `luma=False` over the channels, too.

    Args:
        images: [N, 1 or 3, H, W], uint8, or float in [-1, 1]; 11x11 at least after the cut.
        target: what they should be.
        border: pixels cut off at each side; super resolution cuts its scale.
        luma: compare Y; False: all channels alike.
        round_luma: round Y to whole numbers, as MATLAB does for uint8 pictures.

    Returns:
        [N] float64, at most 1.

    Raises:
        InputError: shape, dtype or value of an argument breaks a rule.

    Example:
        >>> grey = torch.arange(144, dtype=torch.uint8).view(1, 1, 12, 12)
        >>> ssim(grey, grey).tolist()
        [1.0]
    """
    x, y = _prepared("ssim", images, target, border, luma, round_luma)
    if min(x.shape[-2:]) < _WINDOW:
        raise InputError(
            f"ssim: pictures must be at least {_WINDOW}x{_WINDOW} after the border of {border} is "
            f"cut off, got {x.shape[-2]}x{x.shape[-1]}"
        )
    mean_x, mean_y, xx, yy, xy = (_blurred(z) for z in (x, y, x * x, y * y, x * y))
    variance_x, variance_y = xx - mean_x * mean_x, yy - mean_y * mean_y
    covariance = xy - mean_x * mean_y
    c1, c2 = (_K1 * _PEAK) ** 2, (_K2 * _PEAK) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean((1, 2, 3))


class _PairMetric(Metric):
    """Mean of a figure that compares each picture with its target."""

    states = ("mean",)

    def __init__(
        self,
        *,
        border: int = 0,
        luma: bool = True,
        round_luma: bool = False,
        process_group: dist.ProcessGroup | None = None,
        sync_on_compute: bool = True,
    ) -> None:
        self.border, self.luma, self.round_luma = border, luma, round_luma
        super().__init__(process_group=process_group, sync_on_compute=sync_on_compute)

    @abstractmethod
    def _values(self, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The figure of each picture [N]."""

    def update(
        self,
        images: torch.Tensor,  # [N, 1 or 3, H, W], uint8, or float in [-1, 1]
        target: torch.Tensor,  # as `images`
    ) -> None:
        """Takes a batch in; sizes may change from one to the next.

        Raises:
            InputError: shape, dtype or value of an argument breaks a rule.
        """
        values = self._bring(self._values(images, target))
        self.mean.update(values)

    def settings(self) -> dict[str, Any]:
        """Of the channel and the border."""
        return {"border": self.border, "luma": self.luma, "round_luma": self.round_luma}

    def _clear(self) -> None:
        self.mean = Mean()

    def _counts(self) -> dict[str, int]:
        return {"num_images": self.mean.count}

    def _compute(self) -> float:
        if self.mean.count == 0:
            raise InputError(f"{type(self).__name__}: needs at least 1 picture, got 0")
        return self.mean.value


class PeakSignalNoiseRatio(_PairMetric):
    """Mean PSNR of pictures in dB: see `psnr`.

    Args:
        border: pixels cut off at each side; super resolution cuts its scale.
        luma: compare Y; False: all channels alike.
        round_luma: round Y to whole numbers, as MATLAB does for uint8 pictures.
        process_group: of torch.distributed; None: all ranks.
        sync_on_compute: False: this rank's own number.

    Example:
        >>> metric = PeakSignalNoiseRatio(border=4)
        >>> metric.update(torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.5))
        >>> round(metric.compute(), 3)
        13.466
    """

    def _values(self, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return psnr(images, target, **self.settings())


class StructuralSimilarityIndexMeasure(_PairMetric):
    """Mean SSIM of pictures: see `ssim`.

    Args:
        border: pixels cut off at each side; super resolution cuts its scale.
        luma: compare Y; False: all channels alike.
        round_luma: round Y to whole numbers, as MATLAB does for uint8 pictures.
        process_group: of torch.distributed; None: all ranks.
        sync_on_compute: False: this rank's own number.

    Example:
        >>> metric = StructuralSimilarityIndexMeasure()
        >>> metric.update(torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.5))
        >>> round(metric.compute(), 3)
        0.939
    """

    def _values(self, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return ssim(images, target, **self.settings())


def _prepared(
    caller: str,
    images: torch.Tensor,
    target: torch.Tensor,
    border: int,
    luma: bool,
    round_luma: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as float64 0 … 255 [N, C, H, W], Y or as they are, without the border."""
    if images.shape != target.shape:
        raise InputError(
            f"{caller}: target must have the pictures' shape {list(images.shape)}, "
            f"got {list(target.shape)}"
        )
    pair = []
    for pictures in (images, target):
        bytes_ = as_bytes(pictures).double()
        channels, height, width = bytes_.shape[1:]
        if channels not in (1, 3):
            raise InputError(f"{caller}: pictures must have 1 or 3 channels, got {channels}")
        if border < 0 or min(height, width) <= 2 * border:
            raise InputError(
                f"{caller}: a border of {border} leaves nothing of pictures of {height}x{width}"
            )
        if luma and channels == 3:
            weights = bytes_.new_tensor(_LUMA) / 255.0
            bytes_ = torch.einsum("nchw,c->nhw", bytes_, weights)[:, None] + 16.0
            bytes_ = bytes_.round() if round_luma else bytes_
        pair.append(bytes_[..., border : height - border, border : width - border])
    return pair[0], pair[1]


def _blurred(
    x: torch.Tensor,  # [N, C, H, W] float64
) -> torch.Tensor:  # [N, C, H - 10, W - 10]
    """Weighted mean under the Gaussian window, one axis after the other."""
    place = torch.arange(_WINDOW, dtype=x.dtype, device=x.device) - _WINDOW // 2
    window = (-0.5 * (place / _SIGMA).square()).exp()
    window = window / window.sum()
    n, c, h, w = x.shape
    x = F.conv2d(x.reshape(n * c, 1, h, w), window.view(1, 1, -1, 1))
    return F.conv2d(x, window.view(1, 1, 1, -1)).view(n, c, h - _WINDOW + 1, w - _WINDOW + 1)
