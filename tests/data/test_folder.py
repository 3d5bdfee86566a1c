# SPDX-License-Identifier: Apache-2.0
"""Pictures of every kind become the bytes that the module's table promises, or one clear line."""

from __future__ import annotations

import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gansparse.data.folder import PictureFolder, read_picture
from gansparse.errors import InputError
from gansparse.metrics.features import for_lenet

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)  # [H, W, C]
GREY = COLOUR[..., 0]
ALPHA = RNG.integers(0, 256, (7, 5), dtype=np.uint8)
WIDE = RNG.integers(0, 65536, (7, 5, 3), dtype=np.uint16)


def wide_png(pixels: np.ndarray) -> bytes:
    """A PNG with 16 bits a channel, which Pillow can't write in colour."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def grey_three_times(pixels: np.ndarray) -> np.ndarray:
    return np.stack([pixels] * 3, -1)


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)
    return path


def expect(path: Path, pixels: np.ndarray, channels: int = 3) -> None:
    got = read_picture(path, channels)
    assert got.dtype == torch.uint8
    assert got.is_contiguous()
    want = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    np.testing.assert_array_equal(got.numpy(), want)


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tif", "PNG"])
def test_colour(tmp_path, suffix):
    expect(save(tmp_path / f"a.{suffix}", COLOUR), COLOUR)


def test_greyscale(tmp_path):
    path = save(tmp_path / "a.png", GREY)
    expect(path, grey_three_times(GREY))
    expect(path, GREY, channels=1)
    one_bit = tmp_path / "b.png"
    Image.fromarray(GREY > 127).save(one_bit)
    expect(one_bit, grey_three_times((GREY > 127) * np.uint8(255)))


def test_colour_to_grey_is_luma(tmp_path):
    got = read_picture(save(tmp_path / "a.png", COLOUR), channels=1)
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])
    assert got.shape == (1, 7, 5)
    # Weights of 16 bits, rounded at the end: half a step and three half units of 2^-16 of 255.
    assert np.abs(got[0].numpy() - luma).max() <= 0.5 + 3 * 255 * 2**-17


def test_alpha_is_dropped(tmp_path):
    expect(save(tmp_path / "a.png", np.dstack([COLOUR, ALPHA])), COLOUR)
    expect(save(tmp_path / "b.png", np.dstack([COLOUR, 0 * ALPHA])), COLOUR)
    expect(save(tmp_path / "c.png", np.dstack([GREY, ALPHA])), grey_three_times(GREY))


@pytest.mark.parametrize("transparency", [None, 1, bytes(range(0, 256, 32))])
def test_palette(tmp_path, transparency):
    image = Image.fromarray(COLOUR).quantize(8)
    options = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "a.png", **options)
    expect(tmp_path / "a.png", np.asarray(image.convert("RGB")))


def test_sixteen_bits_give_their_higher_byte(tmp_path):
    grey, high = WIDE[..., 0], (WIDE >> 8).astype(np.uint8)
    for name in ("a.png", "b.tif"):
        path = save(tmp_path / name, grey)
        expect(path, grey_three_times(high[..., 0]))
        expect(path, high[..., 0], channels=1)
    (tmp_path / "c.png").write_bytes(wide_png(WIDE))
    expect(tmp_path / "c.png", high)
    with_alpha = np.dstack([WIDE, WIDE[..., 0]])
    (tmp_path / "d.png").write_bytes(wide_png(with_alpha))
    expect(tmp_path / "d.png", high)


def test_sixteen_bits_of_a_pgm(tmp_path):
    """Pillow gives them as 32 bits; in bytes and in words, and fewer bits stretched to 16."""
    grey = WIDE[..., 0].copy()
    grey[0] = (0, 255, 256, 32768, 65535)
    high = (grey >> 8).astype(np.uint8)
    assert high[0].tolist() == [0, 0, 1, 128, 255]
    for path in (save(tmp_path / "a.pgm", grey), save(tmp_path / "a.png", grey)):
        expect(path, grey_three_times(high))
        expect(path, high, channels=1)
    (tmp_path / "b.pgm").write_bytes(b"P5 5 7 65535\n" + grey.astype(">u2").tobytes())
    expect(tmp_path / "b.pgm", high, channels=1)
    (tmp_path / "c.pgm").write_text("P2 5 7 65535\n" + " ".join(map(str, grey.flatten())))
    expect(tmp_path / "c.pgm", high, channels=1)
    ten = np.array([[0, 4, 512, 1022, 1023]], dtype=np.uint16)
    (tmp_path / "d.pgm").write_bytes(b"P5 5 1 1023\n" + ten.astype(">u2").tobytes())
    expect(tmp_path / "d.pgm", (ten / 1023 * 65535 // 256).astype(np.uint8), channels=1)


def test_cmyk(tmp_path):
    path = save(tmp_path / "a.jpg", COLOUR, "CMYK")
    with Image.open(path) as image:
        assert image.mode == "CMYK"
        expect(path, np.asarray(image.convert("RGB")))


def test_first_frame_and_stored_orientation(tmp_path):
    first, second = Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)
    first.save(tmp_path / "a.png", save_all=True, append_images=[second])
    expect(tmp_path / "a.png", COLOUR)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    first.save(tmp_path / "b.png", exif=exif)
    expect(tmp_path / "b.png", COLOUR)


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_refuses_pixels_without_a_white(tmp_path, mode):
    path = tmp_path / "a.tif"
    Image.new(mode, (3, 2)).save(path)
    refused(
        lambda: read_picture(path), f"a.tif: pixels of Pillow's mode {mode} have no fixed white"
    )


def refused(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def cut(path: Path, share: float) -> Path:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated(tmp_path, suffix, share):
    pixels = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = cut(save(tmp_path / f"a.{suffix}", pixels), share)
    refused(lambda: read_picture(path), rf"a\.{suffix}: (damaged or truncated|not a picture)")


def test_a_flipped_byte_in_a_png(tmp_path):
    path = save(tmp_path / "a.png", COLOUR)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 6] ^= 0xFF
    path.write_bytes(bytes(data))
    refused(lambda: read_picture(path), r"a\.png: damaged or truncated")


def test_a_picture_too_large_to_be_honest(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", COLOUR)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", COLOUR[..., 0].size // 3)
    refused(lambda: read_picture(path), r"a\.png: damaged or truncated \(Image size .* exceeds")


def test_no_picture_at_all(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").write_text("")
    refused(lambda: read_picture(tmp_path / "text.jpg"), r"text\.jpg: not a picture")
    refused(lambda: read_picture(tmp_path / "empty.png"), r"empty\.png: not a picture")
    refused(lambda: read_picture(tmp_path / "gone.png"), r"gone\.png: no such file")


# ---- Folders -------------------------------------------------------------------------------------


def folder_of(path: Path, count: int, size: tuple[int, int] = (7, 5)) -> np.ndarray:
    """`count` pictures 000.png, 001.png, ...; returns them [count, H, W, 3]."""
    path.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        save(path / f"{i:03}.png", picture)
    return pixels


def test_which_files_are_pictures(tmp_path):
    for name in ("b.png", "A.JPG", "c.jpeg", "sub/d.png", "sub/.hidden/e.png", ".thumb.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save(tmp_path / name, COLOUR)
    (tmp_path / "notes.txt").write_text("")
    names = [file.name for file in PictureFolder(tmp_path).files]
    assert names == ["A.JPG", "b.png", "c.jpeg"]
    names = [file.name for file in PictureFolder(tmp_path, recursive=True).files]
    assert names == ["A.JPG", "b.png", "c.jpeg", "d.png"]


def test_refuses_a_folder_without_pictures(tmp_path):
    refused(lambda: PictureFolder(tmp_path / "nowhere"), "no folder of pictures at .*nowhere")
    refused(lambda: PictureFolder(tmp_path), r"holds no pictures \(\.bmp, .*\.webp\)$")
    folder_of(tmp_path / "sub", 1)
    refused(lambda: PictureFolder(tmp_path), "its subfolders do: read them with recursive")


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("first", [0, 4, 10, 11])
def test_batches(tmp_path, num_workers, first):
    pixels = folder_of(tmp_path, 11)
    pictures = PictureFolder(tmp_path, num_workers=num_workers)
    batches = list(pictures.batches(4, first))
    left = 11 - first
    assert [len(b) for b in batches] == [4] * (left // 4) + ([left % 4] if left % 4 else [])
    if batches:
        want = torch.from_numpy(pixels[first:]).permute(0, 3, 1, 2)
        assert torch.equal(torch.cat(batches), want)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_sizes_may_differ_where_pictures_are_resized(tmp_path, num_workers):
    sizes = [(7, 5), (5, 7), (40, 33), (32, 32), (1, 1)]
    for i, size in enumerate(sizes):
        save(tmp_path / f"{i}.png", RNG.integers(0, 256, size, dtype=np.uint8))
    pictures = PictureFolder(tmp_path, channels=1, num_workers=num_workers)
    got = torch.cat(list(pictures.batches(2, prepare=for_lenet)))
    alone = [for_lenet(read_picture(file, channels=1)[None]) for file in pictures.files]
    assert got.shape == (5, 1, 32, 32)
    assert torch.equal(got, torch.cat(alone))
    refused(
        lambda: list(pictures.batches(2)),
        r"1\.png: is 7x5, but 0\.png is 5x7; pictures of several sizes need an extractor",
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_picture_is_named_in_one_line_by_the_workers_too(tmp_path, num_workers):
    folder_of(tmp_path, 9)
    cut(tmp_path / "006.png", 0.5)
    batches = PictureFolder(tmp_path, num_workers=num_workers).batches(2)
    for _ in range(3):
        assert next(batches).shape == (2, 3, 7, 5)
    refused(lambda: next(batches), r"006\.png: damaged or truncated")


def test_workers_read_ahead(tmp_path):
    folder_of(tmp_path / "pictures", 12)
    log = tmp_path / "read"

    def note(picture: torch.Tensor) -> torch.Tensor:
        with log.open("a") as file:
            file.write("1")
        return picture

    batches = PictureFolder(tmp_path / "pictures", num_workers=2).batches(2, prepare=note)
    next(batches)
    # The first batch was replaced at once: two batches a worker are under way, 10 pictures in all.
    deadline = time.monotonic() + 60
    while log.stat().st_size < 10:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)


def test_a_worker_that_dies(tmp_path):
    folder_of(tmp_path, 4)
    pictures = PictureFolder(tmp_path, num_workers=1)
    dies = lambda picture: os._exit(1)  # noqa: E731
    refused(lambda: list(pictures.batches(2, prepare=dies)), "use fewer workers, or 0")


def test_an_error_of_prepare_is_not_taken_for_a_dead_worker(tmp_path):
    folder_of(tmp_path, 4)

    def fails(picture: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("own fault")

    with pytest.raises(RuntimeError, match="own fault"):
        list(PictureFolder(tmp_path, num_workers=1).batches(2, prepare=fails))


def test_fingerprint_covers_what_was_read_and_no_more(tmp_path):
    folder_of(tmp_path, 4)
    pictures = PictureFolder(tmp_path)
    before = [pictures.fingerprint(count) for count in range(5)]
    assert len(set(before)) == 5
    save(tmp_path / "002.png", np.zeros((9, 9, 3), np.uint8))
    after = [PictureFolder(tmp_path).fingerprint(count) for count in range(5)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True] * 3 + [False] * 2
    (tmp_path / "002.png").unlink()
    refused(lambda: pictures.fingerprint(4), r"002\.png: No such file")


@pytest.mark.data
def test_bsd68():
    root = os.environ.get("GANSPARSE_DATA")
    if not root:
        pytest.skip("GANSPARSE_DATA is not set")
    pictures = PictureFolder(Path(root, "sr", "BSD68"), num_workers=2)
    assert len(pictures) == 68
    for file, batch in zip(pictures.files, pictures.batches(1), strict=True):
        with Image.open(file) as image:  # as pytorch-fid, torch-fidelity and clean-fid read it
            want = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        np.testing.assert_array_equal(batch[0].numpy(), want)


def test_a_link_back_does_not_multiply_pictures(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    (tmp_path / "sub" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert len(PictureFolder(tmp_path, recursive=True)) == 2
