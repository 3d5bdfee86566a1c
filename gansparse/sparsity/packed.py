# SPDX-License-Identifier: Apache-2.0
"""Smaller files: only the weights that are not zero, and where they stand.

A packed file is a safetensors file. A tensor with enough zeros is kept as two entries: its other
values in the tensor's order (``KEY:values``), and their places, in the smaller of two forms:

* ``KEY:bitmap``: one bit a weight, 1 where there is a value; the first of eight is the highest;
* ``KEY:gaps``: one byte a value, the number of zeros before it; 255 means 255 zeros and no value.

At 75 % zeros the bitmap makes 0.25 + 1/32 = 0.281 of float32's size, at 90 % the gaps 0.125. All
other tensors are there as they are. The header's ``gansparse`` entry says in JSON which module it
was, the packed tensors' shapes and dtypes, and the SHA-256 of the whole file, taken with zeros in
its own place.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from gansparse.errors import CheckpointError, InputError
from gansparse.files import atomic_file

PackedDtype = Literal["float32", "float16"]
_FORMAT = "gansparse packed 1"
_NO_DIGEST = "0" * 64
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_LONG_GAP = 255
_ENTRY = 256  # bytes, about, that one more entry takes in the header


def save_packed(module: nn.Module, path: str | Path, dtype: PackedDtype = "float32") -> None:
    """Writes the module's state with its zeros left out, atomically.

    Args:
        module: any; a tensor without zeros is kept as it is.
        path: target, best with the ending ``.safetensors``; its folder is made.
        dtype: ``float32`` keeps every bit of every tensor, whatever its dtype; ``float16`` rounds
            weights (tensors of two and more dimensions), and leaves biases and norms as they are.

    Raises:
        InputError: another dtype, a weight too large for float16, or a state that isn't tensors.
        OutputError: it could not be written; an older file of that name is untouched.

    Example:
        >>> import tempfile
        >>> from gansparse.sparsity import Pruner
        >>> layer, path = nn.Linear(256, 64), Path(tempfile.mkdtemp(), "layer.safetensors")
        >>> _ = Pruner(layer, 0.9, include="Linear").prune_to(0.9)
        >>> save_packed(layer, path)
        >>> path.stat().st_size < 0.2 * 4 * 256 * 64
        True
        >>> torch.equal(load_packed(path, nn.Linear(256, 64)).weight, layer.weight)
        True
    """
    if dtype not in get_args(PackedDtype):
        raise InputError(f"dtype must be float32 or float16, got {dtype!r}")
    entries: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Any]] = {}
    for key, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise InputError(f"save_packed: state {key!r} is no tensor but {type(value).__name__}")
        stored = value.detach().cpu().contiguous()
        if dtype == "float16" and stored.is_floating_point() and stored.dim() >= 2:
            stored = _halved(key, stored)
        parts = _pack(stored)
        entries |= {f"{key}{part}": tensor.clone() for part, tensor in parts.items()}
        if stored.dtype != value.dtype or len(parts) > 1:
            packed[key] = {"shape": list(value.shape), "dtype": str(value.dtype).split(".")[1]}
    index = {
        "format": _FORMAT,
        "module": type(module).__name__,
        "sha256": _NO_DIGEST,
        "tensors": packed,
    }
    data = safetensors.torch.save(entries, {"gansparse": json.dumps(index)})
    digest = hashlib.sha256(data).hexdigest()
    with atomic_file(Path(path)) as temporary:
        temporary.write_bytes(data.replace(_NO_DIGEST.encode(), digest.encode(), 1))


def load_packed(path: str | Path, module: nn.Module) -> nn.Module:
    """Fills the module with a packed file's tensors; float32 ones to the last bit.

    Args:
        path: of a file that `save_packed` wrote.
        module: of the class and sizes that were saved; its dtypes and devices stay.

    Returns:
        The module.

    Raises:
        CheckpointError: missing, not a packed file, a byte of it changed, or another module's; the
            first key that differs is named, and the module is as before.
    """
    path = Path(path)
    index, entries = _read(path)
    own = module.state_dict()
    what = f"{path}: packed from {index['module']}, which doesn't fit {type(module).__name__}"
    packed = index["tensors"]
    plain = {key for key in entries if key.rpartition(":")[0] not in packed}
    odd = sorted((plain | packed.keys()) ^ own.keys())
    if odd:
        fault = "the file misses" if odd[0] in own else "the module has no"
        raise CheckpointError(f"{what}: {fault} {odd[0]!r}")
    state = {}
    for key, value in own.items():
        shape = packed[key]["shape"] if key in packed else list(entries[key].shape)
        if shape != list(value.shape):
            raise CheckpointError(f"{what}: {key} has shape {shape}, not {list(value.shape)}")
        state[key] = entries[key] if key not in packed else _unpack(key, packed[key], entries, path)
    module.load_state_dict(state)
    return module


def unpacked(path: str | Path) -> dict[str, Tensor]:
    """The state of a packed file, whichever module's it was; its keys come in no order.

    Raises:
        CheckpointError: missing, not a packed file, or a byte of it changed.
    """
    index, entries = _read(Path(path))
    packed = index["tensors"]
    plain = {k: v for k, v in entries.items() if k.rpartition(":")[0] not in packed}
    return plain | {k: _unpack(k, entry, entries, Path(path)) for k, entry in packed.items()}


def _halved(key: str, tensor: Tensor) -> Tensor:
    half = tensor.to(torch.float16)
    lost = half.isinf() & tensor.isfinite()
    if bool(lost.any()):
        largest = float(tensor[lost].abs().max())
        raise InputError(f"{key} holds {largest:g}, more than float16's 65504; take float32")
    return half


def _pack(tensor: Tensor) -> dict[str, Tensor]:
    """The entries of one tensor by what their key ends with; "" alone: the tensor as it is."""
    whole = {"": tensor}
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return whole
    flat = tensor.flatten()
    filled = flat.view(_BITS[tensor.element_size()]) != 0  # by bits, so that -0.0 is a value
    bitmap = np.packbits(filled.numpy())
    gaps = _gaps(filled.nonzero().flatten().numpy())
    places = {":gaps": gaps} if gaps.size < bitmap.size else {":bitmap": bitmap}
    parts = {":values": flat[filled], **{k: torch.from_numpy(v) for k, v in places.items()}}
    size = sum(part.nbytes for part in parts.values()) + _ENTRY
    return parts if size < tensor.nbytes else whole


def _gaps(positions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Positions [K], ascending → bytes: the zeros before each, in as many bytes as that takes."""
    zeros = np.diff(positions, prepend=-1) - 1
    ends = np.cumsum(zeros // _LONG_GAP + 1)  # where each position's last byte is, plus 1
    stream = np.full(ends[-1] if ends.size else 0, _LONG_GAP, np.uint8)
    stream[ends - 1] = zeros % _LONG_GAP
    return stream


def _unpack(key: str, entry: dict[str, Any], entries: dict[str, Tensor], path: Path) -> Tensor:
    dtype = getattr(torch, entry["dtype"])
    if key in entries:
        return entries[key].to(dtype)
    values, count = entries[f"{key}:values"], math.prod(entry["shape"])
    if f"{key}:gaps" in entries:
        stream = entries[f"{key}:gaps"].numpy()
        ends = np.cumsum(stream + (stream != _LONG_GAP), dtype=np.int64)
        positions = torch.from_numpy(ends[stream != _LONG_GAP] - 1)
    else:
        bits = np.unpackbits(entries[f"{key}:bitmap"].numpy(), count=count)
        positions = torch.from_numpy(bits.nonzero()[0])
    if len(positions) != len(values) or bool((positions >= count).any()):
        raise CheckpointError(f"{path}: {key} has {len(values)} values for other places")
    flat = torch.zeros(count, dtype=dtype)
    flat[positions] = values.to(dtype)
    return flat.view(entry["shape"])


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The index and the entries of a packed file none of whose bytes has changed."""
    if not path.is_file():
        raise CheckpointError(f"no packed file at {path}")
    data = path.read_bytes()
    try:
        end = 8 + int.from_bytes(data[:8], "little")
        index = json.loads(json.loads(data[8:end])["__metadata__"]["gansparse"])
        digest = index["sha256"].encode()
        known = index["format"] == _FORMAT
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path}: not a whole packed file; copy it again") from None
    if not known:
        raise CheckpointError(f"{path}: of format {index['format']!r}, not {_FORMAT!r}")
    blank = data[:end].replace(digest, _NO_DIGEST.encode(), 1) + data[end:]
    if hashlib.sha256(blank).hexdigest().encode() != digest:
        raise CheckpointError(f"{path}: its bytes have changed since it was saved; copy it again")
    try:
        return index, safetensors.torch.load(data)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole packed file ({error})") from None
