# SPDX-License-Identifier: Apache-2.0
"""TensorBoard logging, for those who have the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gansparse.errors import InputError


def tensorboard_logger(folder: Path) -> Callable[[dict[str, Any]], None]:
    """A function that logs a trainer's rows under ``folder/tensorboard``.

    Raises:
        InputError: the package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard needs: pip install 'gansparse[tensorboard]'") from None
    writer = SummaryWriter(str(folder / "tensorboard"))

    def log(row: dict[str, Any]) -> None:
        if row["loss"] is not None:
            writer.add_scalar("loss", row["loss"], row["step"])
        writer.add_scalar("sparsity", row["sparsity"], row["step"])
        for name, value in row["terms"].items():
            writer.add_scalar(f"terms/{name}", value, row["step"])
        writer.flush()

    return log
