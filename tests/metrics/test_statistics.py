# SPDX-License-Identifier: Apache-2.0
"""Statistics of pictures: right, kept in pytorch-fid's files, resumed without a changed bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gansparse.data.folder import PictureFolder
from gansparse.errors import CheckpointError, InputError
from gansparse.files import save_tensors
from gansparse.metrics.evaluation import generated
from gansparse.metrics.features import get_extractor, module_extractor
from gansparse.metrics.generated import GeneratedPictures
from gansparse.metrics.statistics import Statistics, load_statistics, statistics_of
from gansparse.models import (
    DCGANGenerator,
    MSRResNet,
    ResNetGenerator,
    SRGANGenerator,
    StarGANGenerator,
    UNetGenerator,
    load_dcgan_generator,
)
from gansparse.tasks import dcgan_task
from gansparse.testing import close

F = 6  # features of PIXELS
PIXELS = module_extractor("pixels", lambda images: images.flatten(1), F)


@pytest.fixture
def folder(tmp_path):
    """23 pictures of 2x1 pixels."""
    path = tmp_path / "pictures"
    path.mkdir()
    rng = np.random.default_rng(0)
    for i in range(23):
        pixels = rng.integers(0, 256, (1, 2, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i:02}.png")
    return path


@pytest.fixture
def generator(tmp_path):
    """Weights of a small generator of 16x16 pictures."""
    torch.manual_seed(0)
    path = tmp_path / "g.safetensors"
    save_tensors(path, DCGANGenerator(nz=4, ngf=2, image_size=16).state_dict())
    return path


def refused(call, message, kind=InputError):
    with pytest.raises(kind, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def same_bits(a: Statistics, b: Statistics) -> bool:
    return torch.equal(a.mean, b.mean) and torch.equal(a.cov, b.cov) and a.count == b.count


# ---- Taking them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 23, 50])
@pytest.mark.parametrize("save_every", [1, 10, 5000])
def test_mean_and_covariance_of_a_folder(folder, batch_size, save_every):
    pictures = PictureFolder(folder)
    got = statistics_of(pictures, PIXELS, batch_size=batch_size, save_every=save_every)
    rows = PIXELS(torch.cat(list(pictures.batches(23)))).double()
    close(got.mean, rows.mean(0), terms=23, scale=1.0, name="mean")
    close(got.cov, torch.cov(rows.T), terms=4 * 23, scale=4.0, name="cov")
    assert (got.count, got.source, got.extractor) == (23, str(folder), PIXELS.describe())


def test_progress_begins_before_the_work(folder):
    told: list[int] = []
    statistics_of(PictureFolder(folder), PIXELS, batch_size=10, on_batch=told.append)
    assert told == [0, 10, 20, 23]


def test_refuses_one_picture_and_senseless_sizes(folder):
    for file in sorted(folder.iterdir())[1:]:
        file.unlink()
    pictures = PictureFolder(folder)
    refused(lambda: statistics_of(pictures, PIXELS), "pictures: a covariance needs at least 2")
    for bad in ({"batch_size": 0}, {"save_every": 0}):
        refused(lambda bad=bad: statistics_of(pictures, PIXELS, **bad), "must be at least 1")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_refuses_features_that_are_not_finite_and_says_whose(folder, value):
    def broken(images: torch.Tensor) -> torch.Tensor:
        features = images.flatten(1).clone()
        if features.shape[0] == 3:
            features[1, 2] = value
        return features

    refused(
        lambda: statistics_of(
            PictureFolder(folder), module_extractor("x", broken, F), batch_size=5
        ),
        r"pictures 21 to 23 of .*pictures: .* must be finite, got (nan|inf) in row 1, feature 2",
    )


# ---- A generator's pictures ----------------------------------------------------------------------


def test_generated_pictures_do_not_depend_on_the_batches(generator):
    pictures = GeneratedPictures(generator, 230, seed=3)
    whole = pictures._latents(0, 230)
    parts = [pictures._latents(i, min(i + 37, 230)) for i in range(0, 230, 37)]
    assert torch.equal(torch.cat(parts), whole)
    batches = list(pictures.batches(50, first=150))
    assert [len(batch) for batch in batches] == [50, 30]
    with torch.no_grad():
        want = load_dcgan_generator(generator).eval()(whole[150:])
    # The same pictures to rounding: a convolution of another batch may sum in another order.
    torch.testing.assert_close(torch.cat(batches), want, atol=1e-5, rtol=0)


def test_generated_pictures_are_those_that_evaluation_scores(generator):
    net = load_dcgan_generator(generator)
    task = dcgan_task(torch.zeros(1, 1, 16, 16), generator=net, nz=4, ndf=1, batch_size=1)
    want = torch.cat(list(generated(task.views[0], net.eval(), 120)))
    got = torch.cat(list(GeneratedPictures(generator, 120).batches(100)))
    assert torch.equal(got, want)


def test_a_generator_is_known_by_weights_and_seed(generator, tmp_path):
    same, other = (GeneratedPictures(generator, 9, seed=seed) for seed in (0, 1))
    assert GeneratedPictures(generator, 99).fingerprint(9) == same.fingerprint(9)
    assert same.fingerprint(9) != other.fingerprint(9)
    refused(lambda: GeneratedPictures(generator, 0), "at least 1 picture")
    refused(lambda: GeneratedPictures(tmp_path / "no.pth", 9), "no weights file", CheckpointError)


def small(kind: type[nn.Module]) -> nn.Module:
    """A generator of another family, of few weights."""
    sizes = {
        UNetGenerator: {"num_downs": 5, "ngf": 2},
        ResNetGenerator: {"ngf": 2, "num_blocks": 1},
        StarGANGenerator: {"conv_dim": 2, "repeat_num": 1},
        SRGANGenerator: {},
        MSRResNet: {},
    }
    return kind(**sizes[kind])


@pytest.mark.parametrize(
    "kind", [UNetGenerator, ResNetGenerator, StarGANGenerator, SRGANGenerator, MSRResNet]
)
def test_a_generator_of_pictures_from_pictures_is_sent_elsewhere(tmp_path, kind):
    path = tmp_path / "g.safetensors"
    save_tensors(path, small(kind).state_dict())
    refused(
        lambda: GeneratedPictures(path, 9),
        rf"g.safetensors: a {kind.__name__} makes pictures of other pictures, .*`gansparse eval`",
    )


# ---- Going on after a stop -----------------------------------------------------------------------


class Stop(Exception):
    pass


def stopped_at(pictures, partial, count, **options):
    def stop(done: int) -> None:
        if done >= count:
            raise Stop

    with pytest.raises(Stop):
        statistics_of(pictures, PIXELS, partial=partial, on_batch=stop, **options)


@pytest.mark.parametrize("batch_size", [1, 4, 10])
@pytest.mark.parametrize("save_every", [1, 5, 100])
def test_stopped_after_each_batch_and_resumed_gives_the_same_bits(
    folder, tmp_path, batch_size, save_every
):
    pictures = PictureFolder(folder)
    options = {"batch_size": batch_size, "save_every": save_every}
    undisturbed = statistics_of(pictures, PIXELS, **options)
    partial = tmp_path / "partial.safetensors"
    for count in range(batch_size, 23 + batch_size, batch_size):
        stopped_at(pictures, partial, min(count, 23), **options)
    told: list[int] = []
    resumed = statistics_of(pictures, PIXELS, partial=partial, on_batch=told.append, **options)
    assert same_bits(resumed, undisturbed)
    assert told == [23], "what is done is not done again"


def test_a_resumed_generator_gives_the_same_bits(generator, tmp_path):
    pictures, partial = GeneratedPictures(generator, 250), tmp_path / "partial.safetensors"
    lenet = get_extractor("lenet-mnist")
    options = {"batch_size": 30, "save_every": 60}
    undisturbed = statistics_of(pictures, lenet, **options)
    seen: list[int] = []

    def stop_once(done: int) -> None:
        seen.append(done)
        if done == 150 and seen.count(150) == 1:
            raise Stop

    with pytest.raises(Stop):
        statistics_of(pictures, lenet, partial=partial, on_batch=stop_once, **options)
    resumed = statistics_of(pictures, lenet, partial=partial, on_batch=stop_once, **options)
    assert same_bits(resumed, undisturbed)
    assert seen == [0, 30, 60, 90, 120, 150, 120, 150, 180, 210, 240, 250]


@pytest.mark.cuda
def test_a_run_on_a_gpu_resumes_with_the_same_bits(generator, tmp_path):
    pictures = GeneratedPictures(generator, 250, device="cuda")
    lenet, partial = get_extractor("lenet-mnist", "cuda"), tmp_path / "partial.safetensors"
    options = {"batch_size": 30, "save_every": 60, "device": "cuda"}

    def stop(done: int) -> None:
        if done == 150:
            raise Stop

    with pytest.raises(Stop):
        statistics_of(pictures, lenet, partial=partial, on_batch=stop, **options)
    resumed = statistics_of(pictures, lenet, partial=partial, **options)
    assert same_bits(resumed, statistics_of(pictures, lenet, **options))
    assert resumed.cov.device.type == "cpu"


def test_a_damaged_picture_can_be_mended_and_the_run_resumed(folder, tmp_path):
    whole = (folder / "15.png").read_bytes()
    (folder / "15.png").write_bytes(whole[:40])
    partial, options = tmp_path / "partial.safetensors", {"batch_size": 5, "save_every": 5}
    run = {"partial": partial, **options}
    refused(lambda: statistics_of(PictureFolder(folder), PIXELS, **run), r"15\.png: ")
    (folder / "15.png").write_bytes(whole)
    resumed = statistics_of(PictureFolder(folder), PIXELS, **run)
    assert same_bits(resumed, statistics_of(PictureFolder(folder), PIXELS, **options))


def test_refuses_the_partial_statistics_of_another_run(folder, tmp_path):
    partial = tmp_path / "partial.safetensors"
    stopped_at(PictureFolder(folder), partial, 10, batch_size=5, save_every=5)

    def run(extractor=PIXELS, batch_size=5, save_every=5):
        statistics_of(
            PictureFolder(folder),
            extractor,
            batch_size=batch_size,
            partial=partial,
            save_every=save_every,
        )

    other = module_extractor("other", lambda images: images.flatten(1), F)
    refused(lambda: run(other), r"partial.safetensors: is of another run \(extractor differ")
    refused(lambda: run(batch_size=10), r"another run \(batch_size, save_every differ")
    refused(lambda: run(save_every=10), r"another run \(save_every differ")
    files = sorted(folder.iterdir())
    files[3].write_bytes(files[4].read_bytes())
    refused(run, r"another run \(fingerprint differ")
    for file in files[8:]:
        file.unlink()
    refused(run, r"another run \(number of pictures differ")


def test_refuses_a_damaged_partial_file(folder, tmp_path):
    partial = tmp_path / "partial.safetensors"
    pictures = PictureFolder(folder)
    partial.write_bytes(b"cut")
    run = lambda: statistics_of(pictures, PIXELS, partial=partial)  # noqa: E731
    refused(run, "partial.safetensors: not a whole safetensors file", CheckpointError)
    save_tensors(partial, {"weight": torch.ones(1)})
    refused(run, "partial.safetensors: not partial statistics", CheckpointError)


# ---- Files ---------------------------------------------------------------------------------------


def some() -> Statistics:
    torch.manual_seed(0)
    rows = torch.randn(30, F, dtype=torch.float64)
    return Statistics(rows.mean(0), torch.cov(rows.T), "some", PIXELS.describe(), 30)


def test_a_file_gives_back_every_bit(tmp_path):
    path = tmp_path / "new" / "some.npz"
    some().save(path)
    got = load_statistics(path)
    assert same_bits(got, some())
    assert (got.source, got.extractor) == (str(path), PIXELS.describe())
    assert some().distance(got) <= 1e-9


def test_a_file_of_ours_reads_as_one_of_pytorch_fid(tmp_path):
    some().save(tmp_path / "some.npz")
    with np.load(tmp_path / "some.npz") as archive:  # as pytorch-fid 0.3.0 does
        np.testing.assert_array_equal(archive["mu"][:], some().mean.numpy())
        np.testing.assert_array_equal(archive["sigma"][:], some().cov.numpy())


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_file_of_pytorch_fid_is_read(tmp_path, write, dtype):
    mu, sigma = some().mean.numpy().astype(dtype), some().cov.numpy().astype(dtype)
    write(tmp_path / "theirs.npz", mu=mu, sigma=sigma)
    got = load_statistics(tmp_path / "theirs.npz")
    assert got.mean.dtype == got.cov.dtype == torch.float64
    np.testing.assert_array_equal(got.mean.numpy(), mu)
    np.testing.assert_array_equal(got.cov.numpy(), sigma)
    assert got.extractor is None
    assert got.count is None


EYE = np.eye(3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mean": EYE[0], "cov": EYE}, "needs arrays mu and sigma"),
        ({"mu": EYE[0]}, "needs arrays mu and sigma"),
        ({"mu": EYE, "sigma": EYE}, r"mu must be \[F\] and sigma \[F, F\], got \[3, 3\] and"),
        (
            {"mu": EYE[0], "sigma": EYE[:2]},
            r"mu must be \[F\] and sigma \[F, F\], got \[3\] and \[2, 3\]",
        ),
        ({"mu": EYE[0].astype(int), "sigma": EYE}, "mu must be floating point, got int64"),
        ({"mu": EYE[0], "sigma": EYE * np.nan}, "sigma holds NaN or infinity"),
        ({"mu": EYE[0] + np.inf, "sigma": EYE}, "mu holds NaN or infinity"),
        ({"mu": np.array([{}] * 3), "sigma": EYE}, "not a whole .npz of statistics"),
        ({"mu": EYE[0], "sigma": EYE, "gansparse": np.array("{")}, "not a whole .npz"),
        *(
            ({"mu": EYE[0], "sigma": EYE, "gansparse": np.array(entry)}, "not a whole .npz")
            for entry in ("[1]", '"text"', '{"extractor": "inception"}', '{"count": "9"}')
        ),
    ],
)
def test_refuses_other_arrays(tmp_path, arrays, message):
    np.savez(tmp_path / "odd.npz", **arrays)
    refused(lambda: load_statistics(tmp_path / "odd.npz"), rf"odd\.npz: {message}")


def test_refuses_damaged_and_missing_files(tmp_path):
    path = tmp_path / "some.npz"
    refused(lambda: load_statistics(path), r"some\.npz: no such file")
    some().save(path)
    path.write_bytes(path.read_bytes()[:300])
    refused(lambda: load_statistics(path), r"some\.npz: not a whole \.npz of statistics")
    path.write_text("mu")
    refused(lambda: load_statistics(path), r"some\.npz: not a whole \.npz of statistics")
    path.write_bytes(b"")
    refused(lambda: load_statistics(path), r"some\.npz: not a whole \.npz of statistics")


# ---- Comparing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["name", "dims", "dtype", "mode", "weights"])
def test_refuses_to_compare_what_differs(key):
    description = PIXELS.describe() | {key: "another"}
    other = Statistics(some().mean, some().cov, "other", description, 30)
    refused(
        lambda: some().distance(other),
        f"some and other can't be compared: extractor's {key} is .* in the first, 'another' in",
    )


def test_refuses_to_compare_other_sizes():
    other = Statistics(torch.zeros(2), torch.eye(2), "other")
    refused(lambda: some().distance(other), "can't be compared: 6 features against 2")
