# SPDX-License-Identifier: Apache-2.0
"""Our Inception against those of pytorch-fid, torch-fidelity and clean-fid, on random weights."""

import copy
import http.client
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peers import CleanFidNetwork, fidelity_network, peer, pytorch_fid_network

from gansparse.errors import CheckpointError, InputError
from gansparse.files import sha256_prefix
from gansparse.metrics import inception_weights
from gansparse.metrics.inception import DIMS, ConvNorm, InceptionV3
from gansparse.metrics.pictures import for_inception

# What features must agree to, relative to their norm. Float32 itself is off by 2e-7 to 4e-7 after
# the network's 47 layers: the tests against float64 hold ours to what the peers' own rounding is.
CLOSE = 1e-5


def pictures(*size, count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def distance(got, wanted):
    """Largest relative distance of a row."""
    return float(((got - wanted).norm(dim=1) / wanted.norm(dim=1)).max())


def variant(net, mode="pytorch-fid", dims=2048):
    """The same weights in another mode."""
    other = copy.copy(net)
    other.mode, other.dims = mode, dims
    return other


@pytest.fixture(scope="module")
def net(inception_file):
    return InceptionV3.from_file(inception_file)


# ---- The network ---------------------------------------------------------------------------------


def test_it_has_the_entries_of_the_public_weights(inception_file):
    own, theirs = InceptionV3().state_dict(), fidelity_network(inception_file).state_dict()
    assert len(own) == 566
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in theirs.items()}
    assert sum(p.numel() for p in InceptionV3().parameters()) == 23_850_960


def test_features_are_pytorch_fids(inception_file, net):
    images = pictures(61, 40)
    maps = pytorch_fid_network(inception_file, DIMS)(images.float() / 255)
    for dims, wanted in zip(DIMS, maps, strict=True):
        got = variant(net, dims=dims)(images)
        assert got.shape == (2, dims)
        assert distance(got, F.adaptive_avg_pool2d(wanted, 1).flatten(1)) < CLOSE


def test_features_and_logits_are_torch_fidelitys_and_as_near_to_float64(inception_file, net):
    images = pictures(61, 40)
    names = [*map(str, DIMS), "logits_unbiased", "logits"]
    peer_net = fidelity_network(inception_file, names)
    theirs = peer_net(images)
    peer_net.double().feature_extractor_internal_dtype = torch.float64
    exact = peer_net(images)
    tf1 = variant(net, "tf1")
    ours = [variant(net, "tf1", dims)(images) for dims in DIMS]
    ours += [tf1.logits(images), tf1.logits(images, bias=True)]
    # The float64 features are returned as float32: that rounding is the floor.
    floor = torch.finfo(torch.float32).eps
    for got, their, best in zip(ours, theirs, exact, strict=True):
        assert got.shape == their.shape
        assert distance(got, their) < CLOSE
        assert 0 < distance(got, best) < 2 * distance(their, best) + floor
    assert not torch.equal(*ours[-2:])


def test_features_are_clean_fids(inception_file, net):
    images = pictures(61, 40)
    resize = peer("cleanfid.resize").build_resizer("clean")
    theirs = np.stack([resize(picture.permute(1, 2, 0).numpy()) for picture in images])
    wanted = CleanFidNetwork(inception_file)(torch.from_numpy(theirs).permute(0, 3, 1, 2))
    assert distance(variant(net, "clean")(images), wanted) < CLOSE


def test_folding_changes_nothing_but_rounding(inception_file, net):
    images = pictures(64, 64)
    unfolded = InceptionV3()
    unfolded.load_state_dict(torch.load(inception_file, weights_only=True), strict=True)
    with torch.no_grad():
        assert distance(net(images), unfolded(images)) < CLOSE
    blocks = [module for module in net.modules() if isinstance(module, ConvNorm)]
    assert len(blocks) == 94
    assert all(isinstance(block.bn, torch.nn.Identity) for block in blocks)
    assert all(
        block.conv.weight.is_contiguous(memory_format=torch.channels_last) for block in blocks
    )
    assert len(net.state_dict()) == 190
    assert len(net.fold().state_dict()) == 190  # once is enough


def test_the_batch_size_is_rounding(net):
    images = pictures(32, 32, count=5)
    alone = torch.cat([net(images[i : i + 1]) for i in range(5)])
    assert distance(net(images), alone) < CLOSE


def test_mode_and_dims_are_the_files_readers_choice(inception_file, net):
    images = pictures(61, 40)
    other = InceptionV3.from_file(inception_file, "clean", 192)
    assert torch.equal(other(images), variant(net, "clean", 192)(images))
    assert distance(other(images), variant(net, dims=192)(images)) > 100 * CLOSE


def test_grey_floats_and_nothing_at_all(net):
    grey = pictures(40, 40)[:, :1]
    assert torch.equal(net(grey), net(grey.expand(-1, 3, -1, -1)))
    assert torch.equal(net(grey.float() / 127.5 - 1), net(grey))
    assert net(grey[:0]).shape == (0, 2048)
    assert net.logits(grey[:0]).shape == (0, 1008)


def test_lower_precision_around_it_does_not_reach_it(net):
    images = pictures(40, 40)
    wanted = net(images)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = net(images)
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert got.dtype == torch.float32
    assert torch.equal(got, wanted)


@pytest.mark.cuda
@pytest.mark.parametrize("mode", ["pytorch-fid", "clean", "tf1"])
def test_a_gpu_gives_the_same_features(inception_file, mode):
    images = pictures(61, 40)
    net = InceptionV3.from_file(inception_file, mode)
    wanted = net(images)
    assert distance(net.cuda()(images.cuda()).cpu(), wanted) < CLOSE


# ---- What it refuses -----------------------------------------------------------------------------


def test_bad_arguments(net):
    with pytest.raises(InputError, match="mode must be one of pytorch-fid, clean, tf1, got 'tf2'"):
        InceptionV3("tf2")
    with pytest.raises(InputError, match="dims must be one of 64, 192, 768, 2048, got 1000"):
        InceptionV3(dims=1000)
    with pytest.raises(InputError, match=r"grey \[N, 1, H, W\] or RGB .* got \[2, 4, 8, 8\]"):
        net(torch.zeros(2, 4, 8, 8))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda s: s.pop("fc.bias"), "it misses 'fc.bias'"),
        (lambda s: s.update({"AuxLogits.fc.bias": s["fc.bias"]}), "key too many, 'AuxLogits.fc.b"),
        (lambda s: s.update({"fc.bias": torch.zeros(1000)}), r"must have shape \[1008\], got"),
        (lambda s: s.update({"fc.bias": torch.full((1008,), torch.nan)}), "fc.bias holds NaN"),
    ],
)
def test_other_weights_are_refused(tmp_path, spoil, told):
    # One zero stands for all of a tensor: the file is small.
    shapes = {key: value.shape for key, value in InceptionV3().state_dict().items()}
    state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    spoil(state)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=told) as error:
        InceptionV3.from_file(tmp_path / "odd.pth")
    assert "odd.pth: " in str(error.value)
    assert "\n" not in str(error.value)


def test_the_hash_is_checked_where_it_is_given(inception_file):
    prefix = sha256_prefix(inception_file)
    inception_weights.check_hash(inception_file, prefix)
    told = f"random_inception.pth: SHA-256 begins {prefix} where 6726825d belongs"
    with pytest.raises(CheckpointError, match=told):
        InceptionV3.from_file(inception_file, sha256=inception_weights.SHA256)


# ---- Where the public weights come from ----------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache, an address where a small file waits, and that file's hash."""
    served = tmp_path / "served.pth"
    served.write_bytes(b"weights")
    monkeypatch.setattr(inception_weights, "URL", served.as_uri())
    monkeypatch.setattr(inception_weights, "SHA256", sha256_prefix(served))
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


def test_they_are_fetched_once(hub, monkeypatch):
    path = inception_weights.find_weights()
    assert path == hub / "pt_inception-2015-12-05-6726825d.pth"
    assert path.read_bytes() == b"weights"
    monkeypatch.setattr(inception_weights, "URL", "file:///nowhere")
    assert inception_weights.find_weights() == path


def test_torch_fidelitys_copy_will_do(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(inception_weights, "URL", "file:///nowhere")
    hub.mkdir(parents=True)
    shutil.copy(tmp_path / "served.pth", hub / "weights-inception-2015-12-05-6726825d.pth")
    assert inception_weights.find_weights().name.startswith("weights-inception")


def test_another_file_under_that_address_is_not_kept(hub, monkeypatch):
    monkeypatch.setattr(inception_weights, "SHA256", "00000000")
    with pytest.raises(CheckpointError, match="served.pth: SHA-256 begins .* where 00000000 belon"):
        inception_weights.find_weights()
    assert list(hub.iterdir()) == []


def test_a_damaged_file_in_the_cache_is_named(hub):
    path = inception_weights.find_weights()
    path.write_bytes(b"weigh")
    with pytest.raises(CheckpointError, match=f"{path.name}: SHA-256 begins .* remove it"):
        inception_weights.find_weights()


@pytest.mark.parametrize("failure", [ConnectionError("reset"), http.client.IncompleteRead(b"")])
def test_offline_the_message_says_what_to_do(hub, monkeypatch, failure):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(inception_weights.urllib.request, "urlopen", fail)
    with pytest.raises(CheckpointError) as error:
        inception_weights.find_weights()
    for part in ("served.pth", str(hub), "lenet-mnist", "efficientnet-lite0", "as weights"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_prepared_pictures_give_the_same_features(net):
    images = pictures(40, 30)
    assert torch.equal(net.of_prepared(for_inception(images, "pytorch-fid")), net(images))
