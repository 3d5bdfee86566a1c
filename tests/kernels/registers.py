# SPDX-License-Identifier: Apache-2.0
"""What ptxas says of every kernel: registers, shared memory, stack, spills.

    python tests/kernels/registers.py       # rewrites registers.json; look at the difference

Needs nvcc, no GPU.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import building

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
RECORD = HERE / "registers.json"
ARCHITECTURES = ("80", "90", "90a", "100")
ONLY = {"sm90a": ("90a",)}  # of sources *_sm90a.cu
FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-I{CSRC}", "-cubin", "-Xptxas", "-v"]

# {room: {kernel: {architecture: {"registers": …, "shared": …, "stack": …, "spilled": …}}}}
Usage = dict[str, dict[str, dict[str, dict[str, int]]]]

_ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def nvcc() -> str | None:
    """The compiler that the build would take."""
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if home and (Path(home) / "bin" / "nvcc").exists():
            return str(Path(home) / "bin" / "nvcc")
    return shutil.which("nvcc")


def release() -> str:
    """nvcc's version, "13.0": the numbers are a property of it, too."""
    told = subprocess.run([nvcc() or "nvcc", "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release ([\d.]+)", told)
    assert found, told
    return found[1]


def rooms() -> list[str]:
    """The ops that have CUDA kernels, and <op>_sm90a where it has some for that alone."""
    found = [*CSRC.glob("ops/*/*_cuda.cu"), *CSRC.glob("ops/*/*_sm90a.cu")]
    return sorted(path.stem.removesuffix("_cuda") for path in found)


def architectures(room: str) -> tuple[str, ...]:
    """Those for which a room's kernels are compiled."""
    return ONLY.get(room.rsplit("_", 1)[-1], ARCHITECTURES)


def _readable(names: Iterable[str]) -> list[str]:
    """Kernels without namespace and arguments: "masked_adam_update_kernel<float, 40>"."""
    mangled = "\n".join(names)
    told = subprocess.run(["c++filt"], input=mangled, capture_output=True, text=True, check=True)
    out = []
    for line in told.stdout.splitlines():
        name = line.removeprefix("void ").split(">(")[0].split("(")[0]
        name += ">" if "<" in name and not name.endswith(">") else ""
        out.append(re.sub(r"gansparse::(\w+::)*", "", name))
    return out


def _compile(room: str, architecture: str, folder: Path) -> str:
    """ptxas's report, kept in `folder` under a hash of what was compiled."""
    digest = hashlib.sha256(repr((release(), FLAGS, architecture)).encode())
    (source,) = [*CSRC.glob(f"ops/*/{room}_cuda.cu"), *CSRC.glob(f"ops/*/{room}.cu")]
    sources = [*CSRC.glob("common/*"), *source.parent.iterdir()]
    for path in sorted(path for path in sources if path.suffix in (".h", ".cuh", ".cu")):
        digest.update(path.read_bytes())
    kept = folder / f"ptxas-{room}-{architecture}-{digest.hexdigest()[:20]}.txt"
    command = [nvcc() or "nvcc", *FLAGS, f"-arch=sm_{architecture}", source, "-o", os.devnull]

    def compile_to(report: Path) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        waits = re.search(r"serialized|injected", done.stderr)
        assert waits is None, f"asynchronous products wait for one another: {done.stderr}"
        report.write_text(done.stderr + done.stdout)

    building.once(kept, compile_to)
    return kept.read_text()


def measure(folder: Path) -> Usage:
    """Compile every room for every architecture, one a core at a time."""
    jobs = [(room, arch) for room in rooms() for arch in architectures(room)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        reports = list(pool.map(lambda job: _compile(*job, folder), jobs))
    usage: Usage = {}
    for (room, arch), report in zip(jobs, reports, strict=True):
        found = list(_ENTRY.finditer(report))
        assert found, f"no kernel in ptxas's report on {room}: {report}"
        for entry, kernel in zip(found, _readable(e["kernel"] for e in found), strict=True):
            shared = re.search(r"(\d+) bytes smem", entry["rest"])
            usage.setdefault(room, {}).setdefault(kernel, {})[arch] = {
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
    """Record what this nvcc makes of the kernels."""
    folder = HERE.parent.parent / ".pytest_cache" / "d" / "kernels"
    folder.mkdir(parents=True, exist_ok=True)
    record = {"nvcc": release(), "usage": measure(folder)}
    RECORD.write_text(_one_line_an_entry(json.dumps(record, indent=1, sort_keys=True)) + "\n")


if __name__ == "__main__":
    write()
