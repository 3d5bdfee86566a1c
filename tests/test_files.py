# SPDX-License-Identifier: Apache-2.0
"""Files are whole or not there; files from strangers run no code."""

import errno
import os
import pickle
import resource
import signal
import stat

import pytest
import torch

from gansparse.compress.checkpointing import (
    latest_checkpoint,
    load_checkpoint,
    pack,
    save_checkpoint,
    unpack,
)
from gansparse.errors import CheckpointError, OutputError
from gansparse.files import atomic_file, load_tensors, read_json, save_tensors, write_json


def left_over(folder):
    return sorted(p.name for p in folder.rglob("*"))


def test_tensors_come_back_bit_for_bit(tmp_path):
    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.tensor(3),
        "c": torch.zeros(0),
        "d": torch.randn(4, 4).T,
    }
    save_tensors(tmp_path / "w.safetensors", tensors, {"seed": "0"})
    loaded, metadata = load_tensors(tmp_path / "w.safetensors")
    assert metadata == {"seed": "0"}
    assert all(torch.equal(tensors[k], loaded[k]) for k in tensors)
    assert stat.S_IMODE((tmp_path / "w.safetensors").stat().st_mode) == 0o644


def test_a_failed_write_leaves_the_older_file(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"fid": 1})
    with pytest.raises(RuntimeError, match="half way"), atomic_file(path) as temporary:
        temporary.write_text('{"fi')
        raise RuntimeError("half way")
    assert read_json(path) == {"fid": 1}
    assert left_over(tmp_path) == ["result.json"]


@pytest.fixture
def full_disk():
    """Stands in for the writer on a disk that has no room left."""

    def refuse(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return refuse


def test_disk_full_is_one_line_and_loses_nothing(tmp_path, monkeypatch, full_disk):
    save_tensors(tmp_path / "w.safetensors", {"a": torch.ones(2)})
    monkeypatch.setattr("gansparse.files.save_file", full_disk)
    with pytest.raises(
        OutputError, match=r"could not write .*w\.safetensors: No space left"
    ) as error:
        save_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(2)})
    assert "\n" not in str(error.value)
    assert torch.equal(load_tensors(tmp_path / "w.safetensors")[0]["a"], torch.ones(2))
    assert left_over(tmp_path) == ["w.safetensors"]


def test_disk_full_while_checkpointing_keeps_the_checkpoint_before(
    tmp_path, monkeypatch, full_disk
):
    save_checkpoint(tmp_path, 5, {"a": torch.ones(2)})
    monkeypatch.setattr("gansparse.files.save_file", full_disk)
    with pytest.raises(OutputError) as error:
        save_checkpoint(tmp_path, 10, {"a": torch.zeros(2)})
    place = tmp_path / "step-000010"
    assert str(error.value) == (
        f"could not write {place}: No space left on device; free space, or choose another place"
    )
    assert load_checkpoint(latest_checkpoint(tmp_path))[0] == 5
    assert not [name for name in left_over(tmp_path) if "10" in name]


def test_a_really_full_disk(tmp_path):
    """A file size limit of the process stands for a disk with 4 KB left."""
    path = tmp_path / "w.safetensors"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OutputError, match="could not write"):
            save_tensors(path, {"a": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert left_over(tmp_path) == []


def test_an_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="could not write"):
        save_tensors(tmp_path / "file" / "w.safetensors", {"a": torch.ones(1)})


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch should_not_exist",))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("bomb.pth", "wb") as file:
        pickle.dump({"a": Bomb()}, file)
    with pytest.raises(CheckpointError, match="holds more than tensors") as error:
        load_tensors("bomb.pth")
    assert "\n" not in str(error.value)
    assert left_over(tmp_path) == ["bomb.pth"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "not a state_dict but a list"),
        ({"epoch": 3}, "entry 'epoch' is no tensor"),
        ({}, "not a state_dict"),
    ],
)
def test_a_pickle_that_is_no_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=message):
        load_tensors(tmp_path / "odd.pth")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_weights(tmp_path, name, share):
    path = tmp_path / name
    state = {"a": torch.randn(1000)}
    save_tensors(path, state) if path.suffix == ".safetensors" else torch.save(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"w\..*copy it again") as error:
        load_tensors(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bytes_kept", [1, 300])
def test_truncated_weights_of_old_torch(tmp_path, bytes_kept):
    path = tmp_path / "w.pth"
    torch.save({"a": torch.randn(9)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:bytes_kept])
    with pytest.raises(CheckpointError, match=r"w\.pth: .*copy it again"):
        load_tensors(path)


def test_missing_weights(tmp_path):
    with pytest.raises(CheckpointError, match="no weights file at .*nothing"):
        load_tensors(tmp_path / "nothing.pth")


def test_pack_and_unpack_are_inverse():
    tree = {"a": [torch.ones(2), {"b": torch.zeros(1)}], 0: {"step": torch.tensor(3.0)}, "lr": 0.1}
    tensors = {}
    back = unpack(pack(tree, tensors), tensors)
    assert len(tensors) == 3
    assert back["lr"] == 0.1
    assert torch.equal(back["a"][1]["b"], torch.zeros(1))
    assert back[0]["step"] == 3


def test_only_the_newest_two_checkpoints_stay(tmp_path):
    half = tmp_path / ".step-000010-killed"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    for step in (2, 4, 10, 100):
        save_checkpoint(tmp_path, step, {"a": torch.full((1,), float(step))})
    assert left_over(tmp_path / "step-000100") == ["state.json", "state.safetensors"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000010", "step-000100"]
    assert load_checkpoint(latest_checkpoint(tmp_path))[1]["a"] == 100


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_a_truncated_checkpoint_is_named(tmp_path, name):
    path = save_checkpoint(tmp_path, 3, {"a": torch.ones(50)})
    (path / name).write_bytes((path / name).read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=f"step-000003/{name}"):
        load_checkpoint(path)
