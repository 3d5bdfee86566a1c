# SPDX-License-Identifier: Apache-2.0
"""Time kernels against each other, and remember it on disk.

The cache is one JSON file, ``gansparse/kernels.json`` under ``$XDG_CACHE_HOME`` (``~/.cache``), or
``kernels.json`` in the folder that ``GANSPARSE_CACHE`` names: what was measured → candidate →
milliseconds. What was measured includes everything that a time depends on: the layer's shapes and
zeros, the candidates, processor, instruction set, threads, versions of torch and gansparse; on CUDA
the GPU with its driver, versions of CUDA and cuDNN, and the settings of cuDNN.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from gansparse import _C, __version__
from gansparse.deploy.cuda import tf32
from gansparse.errors import CheckpointError, OutputError
from gansparse.files import read_json, write_json
from gansparse.info import cpu_name
from gansparse.testing.timing import L2_FLUSH_BYTES

Times = dict[str, float]  # candidate → ms
Runs = dict[str, Callable[[], Any]]
CPU = torch.device("cpu")
_ROUNDS = 3
_SECONDS = 0.06
_MOST_ROUNDS = 50
_HOPELESS = 2.0
_TRIES = 3
#: Floats that push a layer's weights out of the caches.
_EVICTING = 16 << 20


def interleaved(
    runs: Mapping[str, Callable[[], Any]],
    rounds: int = _ROUNDS,
    seconds: float = _SECONDS,
    *,
    device: torch.device = CPU,
    whole: bool = False,
    cold: bool = False,
) -> Times:
    """Milliseconds of each, run in turns.

    Args:
        runs: what to time, by name; each runs once before the clock does. What takes more than
            twice the least, in each of three runs or in as many as fit into ``seconds``, is left.
        rounds: at least this many; more while they take less than ``seconds`` a candidate.
        seconds: see there.
        device: where they run. On CUDA each time is the device's, with a cold L2.
        whole: on CUDA, the time between launches counts, too.
        cold: on the CPU, with empty caches, as a layer with large weights finds them when the rest
            of the generator has run.

    Returns:
        The least of each one's times: what other programs on the machine take only adds to them.
    """
    others = torch.ones(_EVICTING if cold and device.type == "cpu" else 0)

    def ms(run: Callable[[], Any]) -> float:
        others.sum()
        return _ms(run, device, whole)

    for run in runs.values():
        run()
    best = {name: ms(run) for name, run in runs.items()}
    near = []
    for name, run in runs.items():
        took, tries = best[name], 1
        while (
            best[name] > _HOPELESS * min(best.values()) and tries < _TRIES and took < seconds * 1e3
        ):
            again = ms(run)  # whoever disturbed it is gone now
            best[name], took, tries = min(best[name], again), took + again, tries + 1
        if best[name] <= _HOPELESS * min(best.values()):
            near.append(name)
    end, done = time.perf_counter() + seconds * len(near), 1
    while done < rounds or (done < _MOST_ROUNDS and time.perf_counter() < end):
        for name in near:
            best[name] = min(best[name], ms(runs[name]))
        done += 1
    return best


def _ms(run: Callable[[], Any], device: torch.device, whole: bool) -> float:
    """By the clock; of a single thread its own time, to which a busy machine adds little."""
    if device.type == "cuda":
        return _cuda_ms(run, device, whole)
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    run()
    return (clock() - start) * 1e3


def _cuda_ms(run: Callable[[], Any], device: torch.device, whole: bool) -> float:
    """By events, with a cold L2.

    Unless it waits, the host launches a layer's kernels while L2 is still being filled.
    """
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.empty(L2_FLUSH_BYTES, dtype=torch.uint8, device=device).zero_()
        if whole:
            torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


def machine(device: torch.device) -> dict[str, Any]:
    """What a time depends on, but for what is measured."""
    versions = {"torch": torch.__version__, "gansparse": __version__}
    if device.type != "cuda":
        return {
            "processor": cpu_name(),
            "isa": [_C.build_info()["simd"], torch.backends.cpu.get_cpu_capability()],
            "threads": torch.get_num_threads(),
            **versions,
        }
    gpu, cudnn = torch.cuda.get_device_properties(device), torch.backends.cudnn
    return {
        "gpu": [gpu.name, gpu.major, gpu.minor, gpu.multi_processor_count],
        "driver": _C.cuda_devices()["driver"],
        "cuda": [torch.version.cuda, cudnn.version()],  # type: ignore[no-untyped-call]
        "built for": _C.build_info()["cuda_architectures"],
        "tf32": tf32(),
        "deterministic": cudnn.deterministic,
        **versions,
    }


def cache_file() -> Path:
    """Where measured times are kept."""
    own = os.environ.get("GANSPARSE_CACHE")
    if own:
        return Path(own) / "kernels.json"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gansparse" / "kernels.json"


class Cache:
    """Measured times; ``save`` adds the new ones to the file."""

    def __init__(self, device: torch.device = CPU) -> None:
        self.path = cache_file()
        self.known = _read(self.path)
        self.new: dict[str, Times] = {}
        self.device, self.machine = device, machine(device)

    def times(
        self,
        what: Mapping[str, Any],
        runs: Mapping[str, Callable[[], Callable[[], Any]]],
        *,
        cold: bool = False,
    ) -> Times:
        """Milliseconds of each candidate, measured if the cache has not all of them.

        Args:
            what: is measured; JSON-ready.
            runs: name → what makes the candidate ready and returns what is to be timed. A candidate
                that can't be made (it raises RuntimeError or ValueError) has no time.
            cold: as of `interleaved`.
        """
        named = {**what, **self.machine, "cold": cold, "candidates": sorted(runs)}
        key = json.dumps(named, sort_keys=True)
        found = self.new.get(key) or self.known.get(key)
        if found is None:
            ready = {}
            for name, make in runs.items():
                try:
                    ready[name] = make()
                except (RuntimeError, ValueError):
                    continue
            self.new[key] = found = interleaved(ready, device=self.device, cold=cold)
        return dict(found)

    def save(self) -> None:
        """Atomically; what other processes have added since stays. A failure is a warning."""
        if not self.new:
            return
        try:
            write_json(self.path, _read(self.path) | self.new)
        except OutputError as error:
            warnings.warn(f"measured times are not kept: {error}", stacklevel=2)
        self.known, self.new = self.known | self.new, {}


def _read(path: Path) -> dict[str, Times]:
    if not os.path.exists(path):  # Path.exists raises where a folder may not be read
        return {}
    try:
        found = read_json(path)
        right = isinstance(found, dict) and all(
            isinstance(times, dict) and all(isinstance(ms, float) for ms in times.values())
            for times in found.values()
        )
        problem = "not a cache of measured times"
    except CheckpointError as error:
        right, problem = False, str(error)
    if not right:
        warnings.warn(f"{path}: {problem}; kernels are measured again", stacklevel=2)
        return {}
    return dict(found)
