# SPDX-License-Identifier: Apache-2.0
"""Every op is a complete room: native files, one Python file, samples, tests, a benchmark.

And the parts agree: the contract's table names the arguments that the docstring explains and the
signature takes.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

from gansparse import _C, ops

ROOT = Path(__file__).parents[1]
OPS = sorted(folder.name for folder in (ROOT / "csrc/ops").iterdir() if folder.is_dir())

ROOM = (
    "csrc/ops/{op}/{op}.h",
    "csrc/ops/{op}/{op}_bind.cpp",
    "csrc/ops/{op}/{op}_cpu.cpp",
    "gansparse/ops/{op}.py",
    "gansparse/testing/samples/{op}.py",
    "tests/ops/test_{op}.py",
    "benchmarks/ops/bench_{op}.py",
)
CUDA = ("csrc/ops/{op}/{op}_kernels.cuh", "csrc/ops/{op}/{op}_cuda.cu")
# The six tests, by how the names of their functions begin.
SIX = (
    "test_values",
    "test_(no_)?gradient",
    "test_opcheck",
    "test_compile",
    "test_refuses",
    "test_stays_within_its_arrays",
)

every_op = pytest.mark.parametrize("op", OPS)


def read(pattern: str, op: str) -> str:
    return (ROOT / pattern.format(op=op)).read_text(encoding="utf-8")


def table_arguments(header: str) -> set[str]:
    """First column of the contract's table: | params | P, dense | … |"""
    cells = re.findall(r"^// \|\s*(\w*)\s*\|", header, flags=re.MULTILINE)
    return {cell for cell in cells if cell} - {"argument"}


def docstring_arguments(docstring: str) -> set[str]:
    """Names under "Args:", which inspect.getdoc leaves indented by four."""
    section = docstring.split("Args:\n", 1)[1].split("\n\n", 1)[0]
    return set(re.findall(r"^    (\w+): ", section, flags=re.MULTILINE))


def test_there_are_ops() -> None:
    assert "masked_adam" in OPS


@every_op
def test_room_is_complete(op: str) -> None:
    missing = [name for part in ROOM if not (ROOT / (name := part.format(op=op))).is_file()]
    assert not missing


@every_op
def test_cuda_kernels_are_complete_or_not_there(op: str) -> None:
    there = [(ROOT / part.format(op=op)).is_file() for part in CUDA]
    assert all(there) or not any(there)
    built = _C.build_info()["cuda"]
    assert ("cuda" in _C.OPS[op]) == (built and all(there))


@every_op
def test_every_source_of_the_room_is_built(op: str) -> None:
    listed = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    sources = [*(ROOT / "csrc/ops" / op).glob("*.cpp"), *(ROOT / "csrc/ops" / op).glob("*.cu")]
    unbuilt = [s.name for s in sources if f"csrc/ops/{op}/{s.name}\n" not in listed]
    assert not unbuilt


@every_op
def test_op_is_in_the_core_and_exported(op: str) -> None:
    assert "plain" in _C.OPS[op]
    assert callable(getattr(_C, op))
    assert {op, f"{op}_reference"} <= set(ops.__all__)


@every_op
def test_contract_docstring_and_signature_name_the_same_arguments(op: str) -> None:
    function = getattr(ops, op)
    signature = set(inspect.signature(function).parameters)
    assert docstring_arguments(inspect.getdoc(function) or "") == signature
    assert table_arguments(read(ROOM[0], op)) == signature
    reference = getattr(ops, f"{op}_reference")
    assert set(inspect.signature(reference).parameters) == signature


@every_op
def test_python_file_is_in_order(op: str) -> None:
    """Public function, then reference, then what torch calls; nothing else that is public."""
    names = re.findall(r"^def (\w+)", read("gansparse/ops/{op}.py", op), flags=re.MULTILINE)
    assert names[:2] == [op, f"{op}_reference"]
    assert all(name.startswith("_") for name in names[2:])


@every_op
def test_samples_have_three_sizes_and_refusals(op: str) -> None:
    table = importlib.import_module(f"gansparse.testing.samples.{op}")
    for size in ("tiny", "edge", "model"):
        assert table.samples(size)
    assert table.REFUSALS


@every_op
@pytest.mark.parametrize("kind", SIX)
def test_all_six_tests_are_there(op: str, kind: str) -> None:
    assert re.search(rf"^def {kind}", read("tests/ops/test_{op}.py", op), flags=re.MULTILINE)


@every_op
def test_only_the_binding_knows_python_and_nothing_knows_torch(op: str) -> None:
    for source in (ROOT / "csrc/ops" / op).iterdir():
        text = source.read_text(encoding="utf-8")
        assert not re.search(r"#include <(torch|ATen|c10)", text), source.name
        if not source.name.endswith("_bind.cpp"):
            assert "pybind11" not in text, source.name
