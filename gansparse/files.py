# SPDX-License-Identifier: Apache-2.0
"""Files that are either whole or not there: atomic writes, and weights from strangers."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gansparse.errors import CheckpointError, InputError, OutputError

# Where BasicSR keeps the state_dicts within its files: averaged weights first.
_BASICSR = ("params_ema", "params")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; moves it there when the block ends without error.

    Raises:
        OutputError: the disk is full, the folder can't be written, ...; ``path`` is as before.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _sync(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise _output_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Like `atomic_file` for a folder; an existing folder of that name is replaced.

    Raises:
        OutputError: it could not be written; ``path`` is as before.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
        yield temporary
        for item in temporary.iterdir():
            _sync(item)
        temporary.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise _output_error(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps a second run out of a folder while the block runs; a killed one no longer holds it.

    Raises:
        InputError: another run is at work in it.
        OutputError: it can't be made, or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise _output_error(folder, error) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{folder}: another run is at work in it; wait for it, or choose another --out"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _output_error(path: Path, error: Exception) -> OutputError:
    # Of a file within the folder the reason alone: its own name is a temporary one.
    cause = (isinstance(error, OutputError) and error.__cause__) or error
    reason = getattr(cause, "strerror", None) or str(cause)
    return OutputError(f"could not write {path}: {reason}; free space, or choose another place")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON, or says in one line why not."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from None


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors as safetensors, atomically.

    Args:
        path: target; its folder is made.
        tensors: name -> tensor of any device; written contiguous.
        metadata: strings kept in the file's header.

    Raises:
        OutputError: it could not be written; an older file of that name is untouched.
    """
    packed = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        save_file(packed, temporary, dict(metadata or {}))


def load_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Reads a state_dict from a safetensors file, or from a ``.pth`` that holds nothing else.

    Pickles are read with ``weights_only=True``: no code of the file runs. Of BasicSR's
    ``{"params": ..., "params_ema": ...}`` the averaged weights are taken where there are any.

    Returns:
        The tensors, and the header's metadata (empty for a ``.pth``).

    Raises:
        CheckpointError: missing, truncated, or not a state_dict.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}: give a .safetensors, or a .pth")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path}: not a whole safetensors file ({error}); copy it again"
            ) from None
    return _load_pickle(path), {}


def sha256_prefix(path: Path, digits: int = 8) -> str:
    """The first hexadecimal digits of the file's SHA-256; eight, as torch's hub names files."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:digits]


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of damaged bytes the reader raises whatever comes
        if isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(
                f"{path}: is damaged, or holds more than tensors, which could run code when read; "
                "copy it again, or save the module's state_dict() instead"
            ) from None
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a whole weights file ({line}); copy it again") from None
    if isinstance(state, dict):
        state = next((state[key] for key in _BASICSR if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not state:
        raise CheckpointError(
            f"{path}: not a state_dict but a {type(state).__name__}; save the module's state_dict()"
        )
    strays = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if strays:
        raise CheckpointError(
            f"{path}: not a state_dict: entry {strays[0]!r} is no tensor; save the module's "
            "state_dict() and nothing beside it"
        )
    return state
