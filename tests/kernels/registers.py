# SPDX-License-Identifier: Apache-2.0
"""What ptxas said of every kernel when the package was built: registers, stack, spills.

    pip install -e . && python tests/kernels/registers.py   # rewrites registers.json; review it

The build keeps ptxas's reports in the build folder (csrc/keep_log.sh). Needs nvcc, no GPU.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gansparse.info import collect

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
BUILD = HERE.parent.parent / "build"
RECORD = HERE / "registers.json"
ARCHITECTURES = ("80", "90", "100")
ONLY = {"sm90a": ("90a",)}  # of sources *_sm90a.cu

# {room: {kernel: {architecture: {"registers": …, "shared": …, "stack": …, "spilled": …}}}}
Usage = dict[str, dict[str, dict[str, dict[str, int]]]]

_ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def release() -> str | None:
    """Of the nvcc that built the package, "13.0": the numbers are a property of it, too."""
    version = collect()["cuda"]["nvcc"]
    return ".".join(version.split(".")[:2]) if version else None


def built() -> set[str]:
    """Architectures with machine code in the package: {"80", …}."""
    names: list[str] = collect()["cuda"]["architectures"]
    return {name.removesuffix("-real") for name in names if not name.endswith("-virtual")}


def rooms() -> list[str]:
    """The ops that have CUDA kernels, and <op>_sm90a where it has some for that alone."""
    found = [*CSRC.glob("ops/*/*_cuda.cu"), *CSRC.glob("ops/*/*_sm90a.cu")]
    return sorted(path.stem.removesuffix("_cuda") for path in found)


def architectures(room: str) -> tuple[str, ...]:
    """Those for which a room's kernels are compiled."""
    return ONLY.get(room.rsplit("_", 1)[-1], ARCHITECTURES)


def readable(names: Iterable[str]) -> list[str]:
    """Kernels without namespace and arguments: "masked_adam_update_kernel<float, 40>".

    The names are mangled, of the kernels themselves or of types Named<kernel> (arguments.h).
    """
    mangled = "\n".join(names)
    told = subprocess.run(
        ["c++filt", "-t"], input=mangled, capture_output=True, text=True, check=True
    )
    out = []
    for line in told.stdout.splitlines():
        name = re.sub(r"^Named<&\(?(.+?)\)?>$", r"\1", line)
        name = name.removeprefix("void ").split(">(")[0].split("(")[0]
        name += ">" if "<" in name and not name.endswith(">") else ""
        out.append(re.sub(r"gansparse::(\w+::)*", "", name))
    return out


def report(room: str) -> str:
    """All that the compilers said of a room's kernels in the last build.

    Raises:
        FileNotFoundError: the package comes from elsewhere, so that there is no build folder.
    """
    name = room if room.rsplit("_", 1)[-1] in ONLY else f"{room}_cuda"
    found = sorted(BUILD.glob(f"*/**/{name}.cu.o.txt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"no report of ptxas on {room} in {BUILD}: pip install -e .")
    return found[-1].read_text()


def measure() -> Usage:
    """Every room's kernels on every architecture that the package was built for."""
    usage: Usage = {}
    for room in rooms():
        text = report(room)
        waits = re.search(r"serialized|injected", text)
        assert waits is None, f"asynchronous products wait for one another: {text}"
        found = list(_ENTRY.finditer(text))
        assert found, f"no kernel in ptxas's report on {room}: {text}"
        for entry, kernel in zip(found, readable(e["kernel"] for e in found), strict=True):
            shared = re.search(r"(\d+) bytes smem", entry["rest"])
            usage.setdefault(room, {}).setdefault(kernel, {})[entry["arch"]] = {
                "registers": int(entry["registers"]),
                "shared": int(shared[1]) if shared else 0,
                "stack": int(entry["stack"]),
                "spilled": int(entry["stores"]) + int(entry["loads"]),
            }
    return usage


def recorded() -> dict[str, Any]:
    """registers.json: {"nvcc": release, "usage": …}."""
    found: dict[str, Any] = json.loads(RECORD.read_text())
    return found


def _one_line_an_entry(text: str) -> str:
    """The innermost dicts of indented JSON on one line each."""
    return re.sub(
        r"\{\s*(\"registers\"[^}]*?)\s*\}",
        lambda entry: "{" + re.sub(r"\s*\n\s*", " ", entry[1]) + "}",
        text,
    )


def write() -> None:
    """Record what this nvcc made of the kernels."""
    record = {"nvcc": release(), "usage": measure()}
    RECORD.write_text(_one_line_an_entry(json.dumps(record, indent=1, sort_keys=True)) + "\n")


if __name__ == "__main__":
    write()
