# SPDX-License-Identifier: Apache-2.0
"""Compiles kernels with the emulator for the host, plain or sanitized, and runs them.

A program is one driver from this folder and the emulator. Programs are kept in pytest's cache under
a name that is a hash of all they are made of.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from registers import readable

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
EMULATOR = [CSRC / "emulator" / "fiber.cpp", CSRC / "emulator" / "block.cpp"]
BASE = ["-std=c++17", "-g1", f"-I{CSRC}", f"-I{HERE}", "-Wall", "-Wextra", "-Werror"]
BASE += ["-Wno-unknown-pragmas"]  # "#pragma unroll" is nvcc's
TYPES = {  # in the names of kernels
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
}


@dataclass(frozen=True)
class Variant:
    """One way to compile.

    Args:
        flags: for the driver, which is instrumented.
        emulator_flags: for the emulator, which is not.
        link: for the linker.
        environment: for the run.
        status: exit status when the sanitizer has found something.
    """

    flags: tuple[str, ...]
    emulator_flags: tuple[str, ...] = ()
    link: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    status: int = 0


# -fwhole-program gives static arrays in templates (a kernel's shared memory) internal linkage:
# AddressSanitizer guards no others. -fno-strict-aliasing: atomics look at floats as integers.
_DRIVER = ("-O1", "-fwhole-program", "-fno-strict-aliasing")
VARIANTS = {
    "plain": Variant(("-O2", *_DRIVER[1:])),
    "thread": Variant(
        (*_DRIVER, "-fsanitize=thread"),
        ("-DEMULATOR_TSAN",),
        ("-fsanitize=thread",),
        (("TSAN_OPTIONS", "halt_on_error=1:exitcode=66"),),
        66,
    ),
    "address": Variant(
        (*_DRIVER, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        ("-DEMULATOR_ASAN",),
        ("-fsanitize=address,undefined",),
        (("ASAN_OPTIONS", "exitcode=67:detect_leaks=0"), ("UBSAN_OPTIONS", "exitcode=67")),
        67,
    ),
}


def why_not() -> str | None:
    """What this machine lacks to run the emulator, or None."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"the emulator runs on x86-64, this is {platform.machine()}"
    return None if _compiler() else "the emulator needs g++"


@functools.cache
def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("g++")


def _run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr}"
    return done.stdout


def once(target: Path, make: Callable[[Path], object]) -> None:
    """Has `make` write the file, if it is not there yet; a second process waits for the first."""
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            fresh = target.with_suffix(".tmp")
            make(fresh)
            fresh.replace(target)


@functools.cache
def _hash_of(source: Path, flags: tuple[str, ...]) -> str:
    """Over the compiler, the flags, and all files that the source includes."""
    compiler = _compiler()
    assert compiler is not None
    listed = _run(compiler, *BASE, *flags, "-MM", source)
    files = listed.replace("\\\n", " ").split(":", 1)[1].split()
    digest = hashlib.sha256(repr((_run(compiler, "--version"), BASE, flags)).encode())
    for file in files:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:20]


def compiled(source: Path, flags: tuple[str, ...], folder: Path) -> Path:
    target = folder / f"{source.stem}-{_hash_of(source, flags)}.o"
    compiler = _compiler()
    assert compiler is not None
    once(target, lambda fresh: _run(compiler, *BASE, *flags, "-c", source, "-o", fresh))
    return target


def build(driver: str, variant: str, folder: Path) -> Path:
    """The program of `driver`.cpp, compiled if it is not in `folder` yet."""
    how = VARIANTS[variant]
    compiler = _compiler()
    assert compiler is not None
    objects = [compiled(HERE / f"{driver}.cpp", how.flags, folder)]
    objects += [compiled(source, ("-O2", *how.emulator_flags), folder) for source in EMULATOR]
    digest = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:20]
    target = folder / f"{driver}-{variant}-{digest}"
    once(target, lambda fresh: _run(compiler, *how.link, *objects, "-o", fresh))
    return target


def run(program: Path, variant: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program of that variant. Where it can, without randomised addresses.

    ThreadSanitizer's shadow has fixed places; kernels that randomise more than 28 bits put
    libraries on top of them.
    """
    command = [str(program), *map(str, arguments)]
    if variant == "thread" and (setarch := shutil.which("setarch")):
        unrandomised = [setarch, platform.machine(), "--addr-no-randomize"]
        allowed = subprocess.run([*unrandomised, "true"], capture_output=True, check=False)
        if allowed.returncode == 0:
            command = unrandomised + command
    environment = {**os.environ, **dict(VARIANTS[variant].environment)}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def write_arguments(path: Path, arrays: list[np.ndarray | None]) -> None:
    """The file that arguments.h reads."""
    with path.open("wb") as file:
        for array in arrays:
            data = b"" if array is None else np.ascontiguousarray(array).tobytes()
            file.write(np.int64(len(data)).tobytes() + data)


def in_both_orders(
    program: Path, variant: str, folder: Path, arrays: list[np.ndarray | None], *names: str
) -> list[bytes]:
    """The records that a driver writes of these arguments, the same in two orders of threads."""
    write_arguments(folder / "arguments", arrays)
    found = []
    for seed in ("0", "1"):
        results = folder / f"results{seed}"
        done = run(program, variant, folder / "arguments", results, *names, seed)
        assert done.returncode == 0, done.stdout + done.stderr
        found.append(read_results(results))
    assert found[0] == found[1], "the order of threads changes the result"
    return found[0]


def launched(folder: Path) -> set[str]:
    """The kernels that `in_both_orders` has just run there, by the names of registers.json."""
    return set(readable((folder / "results0.kernels").read_text().split()))


def read_results(path: Path) -> list[bytes]:
    """The records that a driver wrote."""
    data, out = path.read_bytes(), []
    while data:
        count = int(np.frombuffer(data[:8], np.int64)[0])
        out.append(data[8 : 8 + count])
        data = data[8 + count :]
    return out


def build_for_host(driver: str, includes: Path, folder: Path) -> Path:
    """The program of `driver`.cpp alone, without the emulator, with further headers."""
    flags = ("-O1", f"-I{includes}", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    compiler = _compiler()
    assert compiler is not None
    target = folder / f"{driver}-host-{_hash_of(HERE / f'{driver}.cpp', flags)}"
    once(target, lambda x: _run(compiler, *BASE, *flags, HERE / f"{driver}.cpp", "-o", x))
    return target
