# SPDX-License-Identifier: Apache-2.0
"""No kernel spills, and none takes other registers or shared memory than recorded.

A difference may well be wanted: then `python tests/kernels/registers.py` records that of the last
build, and the difference of registers.json is reviewed with the change.
"""

from __future__ import annotations

from importlib import import_module

import pytest
import registers


@pytest.fixture(scope="module")
def usage() -> registers.Usage:
    """What ptxas said when the package was built."""
    if not registers.release():
        pytest.skip("this machine lacks nvcc: registers and spills of the kernels not checked")
    return registers.measure()


def test_nothing_spills(usage: registers.Usage) -> None:
    spills = {
        (kernel, arch): numbers["spilled"]
        for kernels in usage.values()
        for kernel, by_arch in kernels.items()
        for arch, numbers in by_arch.items()
        if numbers["spilled"] > 0
    }
    assert not spills


@pytest.mark.parametrize("room", registers.rooms())
def test_as_recorded(usage: registers.Usage, room: str) -> None:
    record = registers.recorded()
    if registers.release() != record["nvcc"]:
        pytest.skip(
            f"this machine lacks nvcc {record['nvcc']}, for which registers.json was written "
            f"(here: {registers.release()})"
        )
    if missing := set(registers.architectures(room)) - registers.built():
        pytest.skip(f"this machine lacks a build for {sorted(missing)}, which registers.json has")
    assert usage[room] == record["usage"].get(room), (
        "look at the difference; if it is wanted: python tests/kernels/registers.py"
    )


def test_every_kernel_is_recorded_for_every_architecture() -> None:
    """Needs no nvcc: the record itself is whole."""
    record = registers.recorded()["usage"]
    assert sorted(record) == registers.rooms()
    for room, kernels in record.items():
        for kernel, by_arch in kernels.items():
            assert sorted(by_arch) == sorted(registers.architectures(room)), kernel
            assert all(numbers["spilled"] == 0 for numbers in by_arch.values()), kernel


def test_the_sanitizers_look_at_every_kernel() -> None:
    """At each instantiation that is built; the tests that name them assert that they ran."""
    rooms = registers.recorded()["usage"].values()
    modules = [import_module(path.stem) for path in registers.HERE.glob("test_*_kernels.py")]
    checked = set().union(*(getattr(module, "CHECKED", ()) for module in modules))
    assert checked == {kernel for kernels in rooms for kernel in kernels}
