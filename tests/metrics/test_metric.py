# SPDX-License-Identifier: Apache-2.0
"""What holds for every metric object: batches, merging, checkpoints, refusals."""

from __future__ import annotations

import json

import pytest
import torch
from line_up import FAKE, METRICS, QUARTERS, REAL, TOTAL, feed, numbers

from gansparse.errors import InputError
from gansparse.files import load_tensors, save_tensors
from gansparse.metrics import (
    FrechetInceptionDistance,
    InceptionScore,
    KernelInceptionDistance,
    PeakSignalNoiseRatio,
    PrecisionRecall,
)
from gansparse.metrics.features import module_extractor
from gansparse.metrics.metric import Mean, Metric, Rows

EPS = torch.finfo(torch.float64).eps
# Another order of additions moves a sum of TOTAL float64 terms by TOTAL · ε of them at most, and a
# distance is a difference of sums some tens of times itself.
REORDERED = 100 * TOTAL * EPS

every_metric = pytest.mark.parametrize("name", METRICS)


def whole(name: str) -> Metric:
    return feed(METRICS[name]())


@every_metric
@pytest.mark.parametrize("batch", [1, 7, TOTAL - 1])
def test_the_batch_size_changes_nothing(name: str, batch: int) -> None:
    metric = METRICS[name]()
    for start in range(0, TOTAL, batch):
        feed(metric, start, min(start + batch, TOTAL))
    got, want = numbers(metric.compute()), numbers(whole(name).compute())
    exact = name in ("fid", "fid-kept", "kid", "inception-score", "precision-recall")
    assert got == want if exact else got == pytest.approx(want, rel=REORDERED)


@every_metric
def test_the_numbers_tell_something(name: str) -> None:
    """Not zero, not the best there is: else the tests below could not fail."""
    first, *_ = numbers(whole(name).compute())
    half, *_ = numbers(feed(METRICS[name](), 0, TOTAL // 2).compute())
    assert first not in (0.0, 1.0)
    assert first != half


@every_metric
@pytest.mark.parametrize("cut", [0, 1, 25, TOTAL])
def test_merged_parts_are_the_whole(name: str, cut: int) -> None:
    merged, second = METRICS[name](), METRICS[name]()
    if cut > 0:
        feed(merged, 0, cut)
    if cut < TOTAL:
        feed(second, cut, TOTAL)
    merged.merge_state(second)
    want = pytest.approx(numbers(whole(name).compute()), rel=REORDERED)
    assert numbers(merged.compute()) == want
    by_state = METRICS[name]()
    by_state.merge_state(merged.state_dict())
    assert numbers(by_state.compute()) == want


@every_metric
def test_a_checkpoint_goes_on_with_the_same_bits(name: str, tmp_path) -> None:
    straight = feed(METRICS[name](), 0, 23)
    save_tensors(tmp_path / "half.safetensors", straight.state_dict())
    resumed = METRICS[name]()
    resumed.load_state_dict(load_tensors(tmp_path / "half.safetensors")[0])
    assert numbers(feed(resumed, 23).compute()) == numbers(feed(straight, 23).compute())


@every_metric
def test_compute_leaves_the_states_alone(name: str) -> None:
    metric = feed(METRICS[name](), 0, 40)
    metric.compute()
    metric.result()
    want = pytest.approx(numbers(whole(name).compute()), rel=REORDERED)
    assert numbers(feed(metric, 40).compute()) == want


@every_metric
def test_inference_mode_may_come_and_go(name: str) -> None:
    metric = METRICS[name]()
    with torch.inference_mode():
        feed(metric, 0, 20)
        metric.compute()
        middle = METRICS[name]()
        middle.load_state_dict(metric.state_dict())
    feed(middle, 20, 40)
    with torch.inference_mode():
        feed(middle, 40)
    want = pytest.approx(numbers(whole(name).compute()), rel=REORDERED)
    assert numbers(middle.compute()) == want


@every_metric
def test_reset_forgets(name: str) -> None:
    metric = whole(name)
    metric.reset()
    with pytest.raises(InputError, match=f"{type(metric).__name__}: needs .* got 0"):
        metric.compute()
    assert numbers(feed(metric).compute()) == numbers(whole(name).compute())


def test_reset_may_keep_the_real_pictures() -> None:
    metric = feed(FrechetInceptionDistance(QUARTERS, reset_real_features=False))
    want = metric.compute()
    metric.reset()
    assert (metric.real.count, metric.fake.count) == (TOTAL, 0)
    metric.update(FAKE, real=False)
    assert metric.compute() == want


@every_metric
def test_the_result_is_json_and_says_what_it_depends_on(name: str) -> None:
    metric = whole(name)
    result = metric.result()
    assert json.loads(json.dumps(result)) == result
    assert result["metric"] == type(metric).__name__
    assert all(number in result.values() for number in numbers(metric.compute()))
    assert TOTAL in (result.get("num_fake"), result.get("num_images"))
    if name in ("fid", "fid-kept", "kid", "precision-recall"):
        assert result["num_real"] == TOTAL
    if hasattr(metric, "extractor"):
        assert result["extractor"] == QUARTERS.describe()
        assert result["extractor"]["dtype"] == "float32"


def test_features_may_be_shared() -> None:
    fid, kid = METRICS["fid"](), METRICS["kid"]()
    for images, real in ((REAL, True), (FAKE, False)):
        features = QUARTERS(images)
        fid.update_features(features, real)
        kid.update_features(features, real)
    assert fid.compute() == whole("fid").compute()
    assert kid.compute() == whole("kid").compute()


def test_an_extractor_may_be_named() -> None:
    assert FrechetInceptionDistance("lenet-mnist").settings()["extractor"]["dims"] == 120
    assert InceptionScore("lenet-mnist").settings()["extractor"]["name"] == "lenet-mnist"


class Quarters(torch.nn.Module):
    """`QUARTERS` as a module that knows nothing of this library."""

    num_features = 12

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return QUARTERS.features(images)


@pytest.mark.parametrize(
    "kind", [FrechetInceptionDistance, KernelInceptionDistance, PrecisionRecall, InceptionScore]
)
def test_a_module_is_taken_where_it_tells_its_width(kind: type) -> None:
    metric = kind(Quarters())
    assert metric.settings()["extractor"] == QUARTERS.describe() | {"name": "Quarters"}
    if kind is FrechetInceptionDistance:
        assert feed(metric).compute() == whole("fid").compute()
    with pytest.raises(
        InputError, match="got Flatten; make one by gansparse.metrics.module_extractor"
    ):
        kind(torch.nn.Flatten())


@pytest.mark.cuda
@every_metric
def test_states_follow_the_pictures_and_the_call(name: str) -> None:
    want = pytest.approx(numbers(whole(name).compute()), rel=1e-5)  # features are float32
    metric = feed(METRICS[name](), 0, 30, device="cuda")
    assert metric.device is not None
    assert metric.device.type == "cuda"
    assert numbers(feed(metric, 30, device="cuda").compute()) == want
    # Two ways to the CPU, and a checkpoint of one goes on on the GPU.
    metric.to("cpu")
    assert numbers(metric.compute()) == want
    assert numbers(feed(METRICS[name]().to("cpu"), device="cuda").compute()) == want
    resumed = METRICS[name]()
    resumed.load_state_dict(feed(METRICS[name](), 0, 30).state_dict())
    assert numbers(feed(resumed, 30, device="cuda").compute()) == want


def test_to_says_where_and_changes_no_number() -> None:
    metric = feed(METRICS["fid"](), 0, 30).to("cpu")
    assert metric.device == torch.device("cpu")
    assert feed(metric, 30).compute() == pytest.approx(whole("fid").compute(), rel=REORDERED)


# ---- Refusals ------------------------------------------------------------------------------------


def refusal(call) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_only_the_like_can_be_merged() -> None:
    metric, other = METRICS["kid"](), KernelInceptionDistance(QUARTERS, subsets=6, subset_size=20)
    message = refusal(lambda: metric.merge_state(other))
    assert "KernelInceptionDistance: can't be merged with KernelInceptionDistance" in message
    assert "'subsets': 5" in message
    assert "'subsets': 6" in message
    assert "FrechetInceptionDistance" in refusal(lambda: metric.merge_state(METRICS["fid"]()))
    pixels = FrechetInceptionDistance(module_extractor("pixels", torch.nn.Flatten(), 12))
    assert "'pixels'" in refusal(lambda: METRICS["fid"]().merge_state(pixels))


def test_a_state_of_something_else_is_refused_and_changes_nothing() -> None:
    metric = whole("fid")
    want = metric.compute()
    message = refusal(lambda: metric.load_state_dict(whole("psnr").state_dict()))
    assert "its state has the keys ['real.count'" in message
    narrow = FrechetInceptionDistance(module_extractor("narrow", torch.nn.Flatten(), 3))
    assert "must have shapes" in refusal(lambda: metric.load_state_dict(narrow.state_dict()))
    assert metric.compute() == want


@every_metric
def test_nan_is_refused_with_the_kind_of_fault(name: str) -> None:
    metric = METRICS[name]()
    images = torch.zeros(3, 3, 16, 16)
    images[1, 0] = torch.nan
    if name in ("psnr", "ssim", "lpips"):
        message = refusal(lambda: metric.update(images, torch.zeros(3, 3, 16, 16)))
    elif name == "inception-score":
        message = refusal(lambda: metric.update(images))
    else:
        message = refusal(lambda: metric.update(images, real=False))
    assert "must be finite, got" in message
    with pytest.raises(InputError, match="needs"):  # nothing was taken in
        metric.compute()


@pytest.mark.parametrize("name", ["fid", "kid", "precision-recall"])
@pytest.mark.parametrize("kind", ["real", "generated"])
def test_one_picture_is_too_few(name: str, kind: str) -> None:
    metric = METRICS[name]()
    metric.update(REAL if kind == "generated" else REAL[:1], real=True)
    metric.update(FAKE if kind == "real" else FAKE[:1], real=False)
    assert f"{kind} pictures, got 1" in refusal(metric.compute)


@pytest.mark.parametrize("name", ["fid", "kid", "precision-recall"])
def test_features_of_another_width_are_refused(name: str) -> None:
    metric = METRICS[name]()
    message = refusal(lambda: metric.update_features(torch.zeros(4, 11), real=True))
    assert "must have shape [N, 12], got [4, 11]" in message


# ---- States --------------------------------------------------------------------------------------


def test_rows_are_copied_and_keep_their_order() -> None:
    rows = Rows("rows")
    batch = torch.arange(6.0).view(3, 2)
    rows.update(batch)
    batch.zero_()
    rows.update(torch.full((1, 2), 9.0))
    rows.update(torch.zeros(0, 2))
    assert rows.all.tolist() == [[0, 1], [2, 3], [4, 5], [9, 9]]
    assert rows.count == 4
    message = refusal(lambda: rows.update(torch.zeros(2, 3)))
    assert message == "rows: the batch after row 4 must have shape [N, 2], got [2, 3]"
    assert refusal(lambda: Rows("rows").update(torch.zeros(3))).endswith("got [3]")


def test_rows_of_nothing() -> None:
    rows = Rows("rows")
    rows.load_state_dict(Rows("rows").state_dict())
    rows.merge(Rows("rows"))
    assert rows.all.shape == (0, 0)
    rows.update(torch.ones(1, 5))
    assert rows.all.tolist() == [[1.0] * 5]


def test_a_mean_is_taken_in_float64() -> None:
    mean = Mean()
    for _ in range(3):
        mean.update(torch.full((100,), 0.1))
    assert mean.value == pytest.approx(float(torch.tensor(0.1)), rel=300 * EPS)


def test_sizes_may_change_between_updates() -> None:
    metric = PeakSignalNoiseRatio()
    for size, gap in ((8, 1), (20, 2), (12, 4)):
        images = torch.zeros(1, 1, size, size + 1, dtype=torch.uint8)
        metric.update(images + gap, images)
    each = [20 * torch.tensor(255 / gap, dtype=torch.float64).log10() for gap in (1, 2, 4)]
    assert metric.compute() == pytest.approx(float(sum(each)) / 3, rel=10 * EPS)
