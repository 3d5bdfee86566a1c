# SPDX-License-Identifier: Apache-2.0
"""The innermost loops of sparse_conv2d spill nothing: no vector goes to the stack or comes from it.

They are looked at as the compiler made them, with the flags of the build: a loop is what lies
between a jump backwards and its target, if no other jump backwards lies in between.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import building
import pytest

RECIPE = (building.CSRC.parent / "CMakeLists.txt").read_text()
OF_A_SET = r'\$\{(\w+)_sources\} PROPERTIES\s+COMPILE_OPTIONS "(.+?)"'
FLAGS = {
    name: ("-O3", "-DNDEBUG", "-fPIC", "-fno-math-errno", *flags.split(";"))
    for name, flags in re.findall(OF_A_SET, RECIPE)
}
# Multiply-adds a turn of the loop: a weight's or, where they are few, several weights'. Of a single
# row or tile half of them.
SUMS = {"avx2": 8, "avx512": 16}
# One a patch of 1, 2 and 4 pixels, and one for 3 taps, or with AVX-512 one of 16 rows; one or two
# tiles.
NUMBERS = {
    "multiply_element": {"avx2": 4, "avx512": 4},
    "multiply_vector": {"avx2": 3, "avx512": 4},
    "multiply_dense": {"avx2": 2, "avx512": 2},
}
SPILL = re.compile(r"%[xyz]mm.*\(%r[sb]p|\(%r[sb]p.*%[xyz]mm")


def loops(listing: str) -> dict[str, list[list[str]]]:
    """The innermost loops of each function, as instructions."""
    found: dict[str, list[list[str]]] = {}
    for part in re.split(r"\n\n", listing):
        head = re.match(r"[0-9a-f]+ <(\w+)", part.strip())
        if head is None:
            continue
        lines = re.findall(r"^ +([0-9a-f]+):\t(.+)$", part, flags=re.MULTILINE)
        at = {int(address, 16): i for i, (address, _) in enumerate(lines)}
        backwards = []
        for i, (address, code) in enumerate(lines):
            jump = re.match(r"j\w+ +([0-9a-f]+)", code)
            if jump and int(jump[1], 16) <= int(address, 16) and int(jump[1], 16) in at:
                backwards.append((at[int(jump[1], 16)], i))
        inner = [
            (a, b) for a, b in backwards
            if not any((c, d) != (a, b) and a <= c and d <= b for c, d in backwards)
        ]  # fmt: skip
        found[head[1]] = [[code for _, code in lines[a : b + 1]] for a, b in inner]
    return found


def disassemble(instruction_set: str, folder: Path) -> str:
    source = building.CSRC / f"ops/sparse_conv2d/sparse_conv2d_cpu_{instruction_set}.cpp"
    made = building.compiled(source, FLAGS[instruction_set], folder)
    command = ["objdump", "-d", "--no-show-raw-insn", str(made)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("kernel", list(NUMBERS))
@pytest.mark.parametrize("instruction_set", list(SUMS))
def test_no_spill(instruction_set: str, kernel: str, programs: Path) -> None:
    of_function = loops(disassemble(instruction_set, programs))
    ours = {name: found for name, found in of_function.items() if kernel in name}
    least = SUMS[instruction_set] // (1 if kernel == "multiply_vector" else 2)
    assert len(ours) == NUMBERS[kernel][instruction_set]
    for name, found in ours.items():
        hot = [loop for loop in found if sum("vfmadd" in code for code in loop) >= least]
        assert hot, f"{name}: no loop of {least} multiply-adds; was it unrolled?"
        spilled = [code for loop in hot for code in loop if SPILL.search(code)]
        assert not spilled, f"{name}: {spilled}"


def test_loads_stay_in_order(programs: Path) -> None:
    """Those of the 16 multiply-adds of a weight, along the rows of pixels."""
    of_function = loops(disassemble("avx512", programs))
    (found,) = [
        f for name, f in of_function.items() if "multiply_elementINS1_6Avx512ELi4ELi6" in name
    ]
    (hot,) = [loop for loop in found if sum("vfmadd" in code for code in loop) == 16]
    places = [int(at or "0", 16) for at in re.findall(r"vfmadd\w+ +(0x\w+)?\(", "\n".join(hot))]
    assert places == [64 * (6 * row + column) for row in range(4) for column in range(4)]


def test_a_spill_is_found() -> None:
    body = "\n".join(f"   {i:x}:\tvfmadd231ps {0x40 * i:#x}(%rsp),%zmm0,%zmm{i}" for i in range(16))
    found = loops(f"0000 <_Zmultiply_element>:\n{body}\n  20:\tjne    0 <_Z>\n")
    assert len(found["_Zmultiply_element"][0]) == 17
    assert all(SPILL.search(code) for code in found["_Zmultiply_element"][0][:16])
