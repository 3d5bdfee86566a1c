# SPDX-License-Identifier: Apache-2.0
"""Reads JSON objects that may hold anything; every complaint names file, entry and what it got."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from gansparse.errors import InputError

#: How a file that is missing or broken comes back.
REMEDY = "run the comparison again with the same --out; what is finished is kept"

_MOST = sys.float_info.max


class Entry:
    """One JSON object of a file.

    Args:
        path: the file, for messages and to find files named relative to it.
        where: what its entries' names begin with in messages, "runs[2]." for one.
        value: what stands there; must be an object.
    """

    def __init__(self, path: Path, where: str, value: Any) -> None:
        self.path, self.where = path, where
        if not isinstance(value, dict):
            self.where = where.rstrip(".: ")
            raise self.error(" must be an object", value)
        self.value: dict[str, Any] = value

    def text(self, name: str, default: str | None = None) -> str:
        """A string; without a default it must be there."""
        value = self.value.get(name)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self.error(f"{name} must be a string", value)
        return value

    def number(self, name: str) -> float:
        """A finite number that must be there."""
        value = self.maybe_number(name)
        if value is None:
            raise self.error(f"{name} must be a number", None)
        return value

    def maybe_number(self, name: str) -> float | None:
        """A finite number, or None where there is none."""
        value = self.value.get(name)
        if value is None:
            return None
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not numeric or not -_MOST <= value <= _MOST:
            raise self.error(f"{name} must be a finite number", value)
        return float(value)

    def maybe_whole(self, name: str) -> int | None:
        """A whole number, or None where there is none."""
        value = self.maybe_number(name)
        if value is not None and value != int(value):
            raise self.error(f"{name} must be a whole number", value)
        return None if value is None else int(value)

    def part(self, name: str) -> Entry:
        """An object inside this one; an empty one where there is none."""
        return Entry(self.path, f"{self.where}{name}.", self.value.get(name) or {})

    def parts(self, name: str, at_least: int = 1) -> list[Entry]:
        """A list of that many objects at least; of none it may be absent."""
        value = self.value.get(name)
        if value is None and not at_least:
            return []
        if not isinstance(value, list) or len(value) < at_least:
            entries = " with at least one entry" if at_least else ""
            raise self.error(f"{name} must be a list{entries}", value)
        return [Entry(self.path, f"{self.where}{name}[{i}].", one) for i, one in enumerate(value)]

    def maybe_file(self, name: str) -> Path | None:
        """A file inside the folder of this one, or None where none is named."""
        value = self.value.get(name)
        if value is None:
            return None
        folder = self.path.parent
        if isinstance(value, str) and (folder / value).resolve().is_relative_to(folder.resolve()):
            return folder / value
        raise self.error(f"{name} must name a file inside the run's folder", value)

    def error(self, rule: str, got: Any) -> InputError:
        """The complaint: file, place, rule, what stands there."""
        shown = "nothing" if got is None else repr(got)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        return InputError(f"{self.path}: {self.where}{rule}, got {shown}")
