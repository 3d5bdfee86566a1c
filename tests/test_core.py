# SPDX-License-Identifier: Apache-2.0
"""The native core in its process: one OpenMP runtime, torch's threads, the instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from gansparse import _C
from gansparse.errors import InputError
from gansparse.info import collect, cpu_name, format_info
from gansparse.optim import MaskedAdam

# Runtimes that are mapped into the process, by file.
LIST_RUNTIMES = """
import os, re
found = {line.split()[-1] for line in open("/proc/self/maps")
         if re.search(r"/lib(gomp|omp|iomp5)[-.]", line)}
assert len(found) == 1, found
used = os.path.realpath(_C.build_info()["openmp"])
assert used in found, (used, found)
assert _C.build_info()["threads"] == torch.get_num_threads()
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "order",
    [
        "import torch\nfrom gansparse import _C",
        "from gansparse import _C\nimport torch",
        "from gansparse import _C\n_C.build_info()\nimport torch",
    ],
    ids=["torch-first", "core-first", "core-used-first"],
)
def test_one_openmp_runtime_whatever_the_order(order: str) -> None:
    done = run(f"{order}\n{LIST_RUNTIMES}")
    assert done.returncode == 0, done.stderr


def test_torch_governs_the_threads() -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert _C.build_info()["threads"] == threads
    finally:
        torch.set_num_threads(before)


def test_torch_governs_the_threads_of_other_python_threads() -> None:
    found: list[int] = []

    def step() -> None:
        w = torch.nn.Parameter(torch.ones(3))
        w.grad = torch.ones(3)
        MaskedAdam([w]).step()
        found.append(_C.build_info()["threads"])

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 3)
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert found == [before + 3]


def test_without_torch_the_core_runs_on_one_thread() -> None:
    done = run(
        "import sys, numpy as np\n"
        "from gansparse import _C\n"
        "w = np.ones(200_000, dtype='f')\n"
        "z = [np.zeros_like(w) for _ in range(2)]\n"
        "_C.masked_adam([w], [np.ones_like(w)], [z[0]], [z[1]], [np.ones((), dtype='f')],\n"
        "    masks=None, max_exp_avg_sqs=None, lr=0.5, beta1=0.9, beta2=0.9,\n"
        "    eps=0.0, weight_decay=0.0, decoupled_weight_decay=False, maximize=False)\n"
        "assert abs(w - 0.5).max() < 1e-6 and 'torch' not in sys.modules\n"
        "assert _C.build_info()['openmp'] == '' and _C.build_info()['threads'] == 1\n"
    )
    assert done.returncode == 0, done.stderr


def test_the_environment_chooses_a_lower_instruction_set() -> None:
    for level in _C.build_info()["simd_available"]:
        done = run("from gansparse import _C\nprint(_C.simd_level())", GANSPARSE_SIMD=level)
        assert done.stdout.strip() == level, done.stderr


def test_an_unknown_instruction_set_is_refused() -> None:
    done = run("from gansparse import _C\n_C.simd_level()", GANSPARSE_SIMD="sse9")
    assert "GANSPARSE_SIMD must be plain" in done.stderr
    assert "got 'sse9'" in done.stderr
    with pytest.raises(InputError, match="set_simd_level: name must be plain"):
        _C.set_simd_level("sse9")


def test_info_tells_everything_as_json_and_as_text() -> None:
    facts = collect()
    text = format_info()
    assert facts["versions"]["core"] == facts["versions"]["gansparse"]
    assert set(facts["ops"]) == set(_C.OPS)
    for name, built in facts["ops"].items():
        assert f"op {name}" in text
        assert "plain" in built
    assert facts["cpu"]["simd"] in facts["cpu"]["simd_available"]
    assert facts["cpu"]["machine"] in text
    assert facts["cuda"]["devices"] or facts["cuda"]["problem"]


def test_native_bf16_is_what_the_system_says_of_the_processor() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    expected = "avx512_bf16" in flags and "avx512" in _C.build_info()["simd_available"]
    assert _C.build_info()["native_bf16"] is expected


def test_the_processor_s_name_tells_its_generation() -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    if "model name" not in facts:
        pytest.skip("this system names no processor")
    assert cpu_name().startswith(facts["model name"])
    if "cpu family" in facts:
        assert cpu_name().endswith(f"family {facts['cpu family']} model {facts['model']}")
