# SPDX-License-Identifier: Apache-2.0
"""What is installed, what it was built for, what it finds here, what each op can use."""

from __future__ import annotations

import platform
from typing import Any


def collect() -> dict[str, Any]:
    """Gather everything, as JSON-ready values. Asks the CUDA driver for its devices.

    Returns:
        ``versions``, ``cpu`` (instruction sets and threads), ``cuda`` (what was built and found)
        and ``ops`` (op → implementations built, the one in use on the CPU marked in ``cpu``).

    Example:
        >>> sorted(collect())
        ['cpu', 'cuda', 'ops', 'versions']
    """
    import numpy
    import torch

    from gansparse import _C, __version__

    build = _C.build_info()
    found = _C.cuda_devices()
    return {
        "versions": {
            "gansparse": __version__,
            "core": build["version"],
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "compiler": build["compiler"],
        },
        "cpu": {
            "machine": cpu_name(),
            "simd_built": build["simd_built"],
            "simd_available": build["simd_available"],
            "simd": build["simd"],
            "native_bf16": build["native_bf16"],
            "threads": torch.get_num_threads(),
            "openmp": build["openmp"],
        },
        "cuda": {
            "built": build["cuda"],
            "nvcc": build["nvcc"],
            "architectures": build["cuda_architectures"].split(),
            "devices": [
                {**device, "capability": ".".join(map(str, device["capability"]))}
                for device in found["devices"]
            ],
            "problem": found["problem"],
            "driver": found["driver"],
            "torch_cuda": torch.version.cuda,
        },
        "ops": {name: list(built) for name, built in _C.OPS.items()},
    }


def format_info() -> str:
    """`collect` as text, one fact a line.

    Example:
        >>> print(format_info().splitlines()[0].split()[0])
        gansparse
    """
    facts = collect()
    versions, cpu, cuda = facts["versions"], facts["cpu"], facts["cuda"]
    lines = [(name, version) for name, version in versions.items() if name != "core"]
    if versions["core"] != versions["gansparse"]:
        stale = f"{versions['core']}: built from another version, run `pip install .` again"
        lines.append(("core", stale))
    lines += [
        ("cpu", cpu["machine"]),
        ("simd", f"{cpu['simd']} (built: {', '.join(cpu['simd_built'])})"),
        ("bf16", "native" if cpu["native_bf16"] else "not native"),
        ("threads", f"{cpu['threads']}, by {cpu['openmp'] or 'no OpenMP runtime: one thread'}"),
    ]
    if cuda["built"]:
        lines.append(("cuda", f"nvcc {cuda['nvcc']}, for {', '.join(cuda['architectures'])}"))
    else:
        lines.append(("cuda", "not built (no nvcc was found, or GANSPARSE_CUDA=OFF)"))
    if known := cuda["driver"]:
        lines.append(("driver", f"knows CUDA {known // 1000}.{known % 1000 // 10}"))
    lines += [
        ("device", f"{d['name']}, compute {d['capability']}, {d['memory_bytes'] / 2**30:.0f} GiB")
        for d in cuda["devices"]
    ] or [("device", f"none ({cuda['problem']})")]
    if cuda["devices"] and cuda["torch_cuda"] is None:
        lines.append(("", "this torch is a CPU build: it cannot use the device"))
    lines += [(f"op {name}", ", ".join(built)) for name, built in facts["ops"].items()]
    width = max(len(label) for label, _ in lines)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in lines)


def cpu_name() -> str:
    """The processor's name as Linux gives it, with its generation, or the architecture's.

    Virtual machines often call every generation the same: family and model tell them apart.
    """
    facts: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                facts.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    if "model name" not in facts:
        return platform.machine()
    parts = (("", "model name"), ("family ", "cpu family"), ("model ", "model"))
    return " ".join(label + facts[key] for label, key in parts if key in facts)
