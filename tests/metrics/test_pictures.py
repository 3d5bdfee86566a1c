# SPDX-License-Identifier: Apache-2.0
import io

import numpy as np
import pytest
import torch
from peers import peer
from PIL import Image

from gansparse.errors import InputError
from gansparse.metrics.pictures import MODES, SIZE, as_bytes, as_float, as_rgb, bicubic

EPS = torch.finfo(torch.float32).eps
SHAPES = [(1, 1), (32, 32), (299, 299), (300, 421), (640, 37)]


def pictures(height, width, count=2):
    generator = torch.Generator().manual_seed(height * width)
    size = (count, 3, height, width)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


# ---- Bytes and floats ----------------------------------------------------------------------------


def test_every_byte_comes_back():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    floats = as_float(every)
    assert (float(floats.min()), float(floats.max())) == (-1.0, 1.0)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(as_bytes(floats.to(dtype)), every)
    assert as_bytes(every) is every
    assert torch.equal(as_float(floats), floats)


def test_floats_are_rounded_as_in_a_saved_png():
    x = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    unit = x.add(1).div(2)[0].permute(1, 2, 0).double().numpy()
    file = io.BytesIO()
    Image.fromarray((unit * 255 + 0.5).clip(0, 255).astype(np.uint8)).save(file, "png")
    saved = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None]
    assert torch.equal(as_bytes(x), saved)


def test_half_precision_is_widened_first():
    x = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    assert torch.equal(as_bytes(x.half()), as_bytes(x.half().float()))
    assert as_float(x.bfloat16()).dtype == torch.float32


def test_infinity_is_clipped_and_nan_is_named():
    x = torch.zeros(3, 1, 2, 2)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = torch.inf, -torch.inf
    assert as_bytes(x)[0, 0, 0].tolist() == [255, 0]
    x[2, 0, 1, 1] = torch.nan
    with pytest.raises(InputError, match="must be finite, got NaN in picture 2 of the batch"):
        as_bytes(x)


@pytest.mark.parametrize("convert", [as_float, as_bytes])
@pytest.mark.parametrize(
    ("images", "told"),
    [
        (torch.zeros(3, 4, 4), r"\[N, C, H, W\] with pixels, got \[3, 4, 4\]"),
        (torch.zeros(2, 3, 0, 4), r"\[N, C, H, W\] with pixels, got \[2, 3, 0, 4\]"),
        (
            torch.zeros(2, 3, 4, 4, dtype=torch.int64),
            r"uint8 or float in \[-1, 1\], got torch.int64",
        ),
    ],
)
def test_what_is_no_batch_of_pictures_is_refused(convert, images, told):
    with pytest.raises(InputError, match=told):
        convert(images)


def test_grey_becomes_rgb_and_other_channels_are_refused():
    grey = pictures(4, 4)[:, :1]
    assert torch.equal(as_rgb(grey), torch.cat([grey] * 3, 1))
    with pytest.raises(InputError, match=r"RGB \[N, 3, H, W\], got \[2, 2, 4, 4\]"):
        as_rgb(grey.expand(-1, 2, -1, -1))


# ---- Resizing ------------------------------------------------------------------------------------
# Tolerances are in levels of 0..255.


@pytest.mark.parametrize("shape", SHAPES)
def test_bicubic_is_pillows(shape):
    images = pictures(*shape)
    resize = peer("cleanfid.resize").build_resizer("clean")
    wanted = np.stack([resize(image.permute(1, 2, 0).numpy()) for image in images])
    got = bicubic(images, SIZE).permute(0, 2, 3, 1).numpy()
    # Both sum in float64; Pillow rounds to float32 after the rows and after the columns, we once.
    # The weights' absolute values add up to at most 1.4 in each direction.
    tolerance = 255 * EPS / 2 * (1.4 * 1.4 + 2 * 1.4 * 1.4)
    assert np.abs(got - wanted).max() < tolerance
    assert torch.equal(MODES["clean"](images), (bicubic(images, SIZE) - 128) / 128)


@pytest.mark.parametrize("shape", SHAPES)
def test_tf1_is_torch_fidelitys(shape):
    images = pictures(*shape)
    module = peer("torch_fidelity.interpolate_compat_tensorflow")
    resize = module.interpolate_bilinear_2d_like_tensorflow1x
    wanted = resize(images.float(), size=(SIZE, SIZE), align_corners=False)
    got = MODES["tf1"](images) * 128 + 128
    # A place in the picture, up to its length, is rounded; a level can change by 255 to the next.
    assert float((got - wanted).abs().max()) <= 255 * (max(shape) + 8) * EPS


def test_pytorch_fids_is_bilinear_without_antialias():
    # Every fourth column of a picture four times as wide as Inception's, half a pixel off: two
    # neighbours' mean.
    images = pictures(SIZE, 4 * SIZE, count=1)
    columns = images.float()[..., 1::4] / 2 + images.float()[..., 2::4] / 2
    got = MODES["pytorch-fid"](images)
    assert float((got - (columns / 127.5 - 1)).abs().max()) < 8 * EPS


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_inceptions_size_stays_as_it_is(mode):
    images = pictures(SIZE, SIZE)
    wanted = as_float(images) if mode == "pytorch-fid" else (images.float() - 128) / 128
    assert float((MODES[mode](images) - wanted).abs().max()) < 8 * EPS
