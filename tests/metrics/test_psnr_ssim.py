# SPDX-License-Identifier: Apache-2.0
"""PSNR and SSIM: closed forms, scipy, torchmetrics, and the figures papers give for bicubic."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from peers import peer
from PIL import Image

from gansparse.errors import InputError
from gansparse.metrics import (
    PeakSignalNoiseRatio,
    StructuralSimilarityIndexMeasure,
    psnr,
    ssim,
)
from gansparse.metrics.pictures import as_float

EPS = torch.finfo(torch.float64).eps


def noisy(channels: int, height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Two pictures of one scene [2, C, H, W], uint8."""
    generator = torch.Generator().manual_seed(seed)
    scene = torch.randn(2, channels, 4, 5, generator=generator)
    scene = torch.nn.functional.interpolate(scene, size=(height, width), mode="bilinear")
    scene = 60 * scene + 128
    worse = scene + 12 * torch.randn(scene.shape, generator=generator)
    return tuple(x.clamp(0, 255).to(torch.uint8) for x in (scene, worse))


def y_of(images: torch.Tensor) -> np.ndarray:
    """MATLAB's documented rgb2ycbcr: Y of [N, 3, H, W] as [N, H, W]."""
    r, g, b = (images[:, i].double().numpy() / 255 for i in range(3))
    return 65.481 * r + 128.553 * g + 24.966 * b + 16


# ---- PSNR ----------------------------------------------------------------------------------------


def test_psnr_is_the_definition() -> None:
    x, y = noisy(3, 20, 30)
    error = ((y_of(x) - y_of(y)) ** 2)[:, 4:-4, 4:-4].mean((1, 2))
    want = 10 * np.log10(255**2 / error)
    assert psnr(x, y, border=4).tolist() == pytest.approx(want.tolist(), rel=1e-12)
    rounded = ((y_of(x).round() - y_of(y).round()) ** 2).mean((1, 2))
    want = 10 * np.log10(255**2 / rounded)
    assert psnr(x, y, round_luma=True).tolist() == pytest.approx(want.tolist(), rel=1e-12)
    colour = (x.double() - y.double()).square().mean((1, 2, 3))
    want = 10 * (255**2 / colour).log10()
    assert psnr(x, y, luma=False).tolist() == pytest.approx(want.tolist(), rel=1e-12)


@pytest.mark.parametrize(
    ("colour", "luma"),
    [((255, 255, 255), 235), ((0, 0, 0), 16), ((255, 0, 0), 81.481), ((0, 255, 0), 144.553)],
)
def test_y_of_pure_colours_is_bt601(colour: tuple[int, ...], luma: float) -> None:
    """Against black, whose Y is 16: 255² / (Y - 16)², where the numbers are the standard's."""
    picture = torch.tensor(colour, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    found = float(psnr(picture, torch.zeros_like(picture)))
    if luma == 16:
        assert found == float("inf")
    else:
        assert found == pytest.approx(20 * np.log10(255 / (luma - 16)), rel=1e-12)


def test_grey_is_taken_as_it_is() -> None:
    x, y = noisy(1, 12, 12)
    error = (x.double() - y.double()).square().mean((1, 2, 3))
    assert psnr(x, y).tolist() == (10 * (255**2 / error).log10()).tolist()
    assert torch.equal(ssim(x, y), ssim(x, y, luma=False))


def test_floats_are_rounded_as_a_png_is() -> None:
    x, y = noisy(3, 16, 16)
    jitter = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)).sub(0.5) * 0.9 / 127.5
    for figure in (psnr, ssim):
        assert torch.equal(figure(as_float(x) + jitter, as_float(y)), figure(x, y))
    assert torch.equal(psnr(as_float(x) * 0 + 7, as_float(y)), psnr(x * 0 + 255, y))  # clipped


def test_equal_pictures() -> None:
    x, _ = noisy(3, 16, 16)
    assert psnr(x, x).tolist() == [float("inf")] * 2
    assert ssim(x, x).tolist() == [1, 1]
    metric = PeakSignalNoiseRatio()
    metric.update(x, x)
    assert metric.compute() == float("inf")


# ---- SSIM ----------------------------------------------------------------------------------------


def by_scipy(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. 2004 on [H, W], with scipy's Gaussian cut at 5 pixels."""

    def blurred(z: np.ndarray) -> np.ndarray:
        return scipy.ndimage.gaussian_filter(z, 1.5, truncate=3.4)[5:-5, 5:-5]

    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    both = blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    quality = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    return float((quality / (mean_x**2 + mean_y**2 + c1) / (var_x + var_y + c2)).mean())


# E[x²] - E[x]² of numbers up to 255² loses digits: ε · 255² over the constant (0.03 · 255)².
SSIM_ROUNDING = 100 * EPS * 255**2 / (0.03 * 255) ** 2


@pytest.mark.parametrize(("height", "width"), [(11, 11), (11, 40), (37, 26)])
def test_ssim_agrees_with_scipy(height: int, width: int) -> None:
    x, y = noisy(3, height, width)
    want = [by_scipy(a, b) for a, b in zip(y_of(x), y_of(y), strict=True)]
    assert ssim(x, y).tolist() == pytest.approx(want, abs=SSIM_ROUNDING)
    colour = [
        np.mean([by_scipy(a, b) for a, b in zip(p, q, strict=True)])
        for p, q in zip(x.double().numpy(), y.double().numpy(), strict=True)
    ]
    assert ssim(x, y, luma=False).tolist() == pytest.approx(colour, abs=SSIM_ROUNDING)


def test_ssim_and_psnr_agree_with_torchmetrics() -> None:
    theirs = peer("torchmetrics.functional.image")
    x, y = noisy(3, 40, 30)
    a, b = x.double(), y.double()
    _, everywhere = theirs.structural_similarity_index_measure(
        a, b, data_range=255.0, reduction="none", return_full_image=True
    )
    # It also counts places that reach over the picture's edge, into its reflection.
    want = everywhere[..., 5:-5, 5:-5].mean((1, 2, 3))
    assert ssim(x, y, luma=False).tolist() == pytest.approx(want.tolist(), abs=SSIM_ROUNDING)
    want = theirs.peak_signal_noise_ratio(a, b, data_range=255.0, reduction="none", dim=(1, 2, 3))
    # Its 10 log10(255²) is float32: 48, to half a unit in the last of 24 bits, twice.
    assert psnr(x, y, luma=False).tolist() == pytest.approx(want.tolist(), abs=2 * 48 * 2**-24)


def test_the_border_is_cut_before_the_window_is_laid() -> None:
    x, y = noisy(3, 30, 34)
    inner = ssim(x[..., 3:-3, 3:-3].contiguous(), y[..., 3:-3, 3:-3].contiguous())
    assert ssim(x, y, border=3).tolist() == pytest.approx(inner.tolist(), rel=1e-14)


def test_the_objects_pass_their_settings_on() -> None:
    x, y = noisy(3, 30, 34)
    settings = {"border": 2, "luma": True, "round_luma": True}
    for kind, figure in ((PeakSignalNoiseRatio, psnr), (StructuralSimilarityIndexMeasure, ssim)):
        metric = kind(**settings)
        metric.update(x, y)
        assert metric.compute() == pytest.approx(float(figure(x, y, **settings).mean()), rel=1e-15)
        assert settings.items() <= metric.result().items()


# ---- What papers print ---------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "decibels", "similarity"), [("Set5", 28.42, 0.8104), ("Set14", 26.00, 0.7027)]
)
def test_bicubic_times_four_has_its_known_figures(
    name: str, decibels: float, similarity: float
) -> None:
    """Bicubic x4, Y channel, 4 pixels cut, as in the tables of Kim, Lee and Lee (CVPR 2016).

    They used MATLAB's bicubic, we Pillow's: hence the tolerance. All channels give 1.6 dB less.
    """
    root = os.environ.get("GANSPARSE_DATA")
    if not root:
        pytest.skip("GANSPARSE_DATA is not set")
    metrics = PeakSignalNoiseRatio(border=4), StructuralSimilarityIndexMeasure(border=4)
    for path in sorted(Path(root, "sr", name).glob("*.png")):
        with Image.open(path) as file:
            picture = file.convert("RGB")
        width, height = (side // 4 * 4 for side in picture.size)
        picture = picture.crop((0, 0, width, height))
        small = picture.resize((width // 4, height // 4), Image.Resampling.BICUBIC)
        large = small.resize((width, height), Image.Resampling.BICUBIC)
        pair = [torch.from_numpy(np.array(p)).permute(2, 0, 1)[None] for p in (large, picture)]
        for metric in metrics:
            metric.update(*pair)
    assert metrics[0].compute() == pytest.approx(decibels, abs=0.1)
    assert metrics[1].compute() == pytest.approx(similarity, abs=0.003)


# ---- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("figure", [psnr, ssim])
@pytest.mark.parametrize(
    ("x", "y", "border", "message"),
    [
        ((1, 3, 16, 16), (1, 3, 16, 17), 0, r"pictures' shape \[1, 3, 16, 16\], got .* 17\]"),
        ((3, 16, 16), (3, 16, 16), 0, r"must be \[N, C, H, W\] .* got \[3, 16, 16\]"),
        ((1, 4, 16, 16), (1, 4, 16, 16), 0, "must have 1 or 3 channels, got 4"),
        ((1, 3, 8, 16), (1, 3, 8, 16), 4, "border of 4 leaves nothing of pictures of 8x16"),
        ((1, 3, 8, 16), (1, 3, 8, 16), -1, "border of -1"),
    ],
)
def test_refuses(figure, x: tuple[int, ...], y: tuple[int, ...], border: int, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        figure(torch.zeros(x), torch.zeros(y), border=border)
    assert "\n" not in str(caught.value)


def test_refuses_other_dtypes_and_too_small_a_picture() -> None:
    with pytest.raises(InputError, match="must be uint8 or float in .*, got torch.int64"):
        psnr(torch.zeros(1, 3, 8, 8).long(), torch.zeros(1, 3, 8, 8).long())
    with pytest.raises(InputError, match="11x11 after the border of 2 is cut off, got 10x28"):
        ssim(torch.zeros(1, 3, 14, 32), torch.zeros(1, 3, 14, 32), border=2)
