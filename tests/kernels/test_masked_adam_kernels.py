# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernel of masked_adam, run by the emulator against the float64 reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import building
import numpy as np
import pytest
import torch

from gansparse.ops import masked_adam_reference
from gansparse.testing import close
from gansparse.testing.samples.masked_adam import Sample, samples

TERMS = 16  # roundings on the way to a weight, as in tests/ops/test_masked_adam.py
WRITTEN = ("params", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs")
# Around a vector, a block and, for 16 bits, a block of twice as many.
COUNTS = Sample("counts", tuple((n,) for n in (1, 3, 4, 5, 8, 255, 4095, 4096, 4097, 8200)))
FEW = Sample("few", ((5,), (4097,)), options={"amsgrad": True})
MANY = Sample("many", ((5,),) * 40 + ((4097,),))  # more than a small batch holds


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's bytes, whatever its dtype, in the order of memory."""
    if tensor.dim() == 4 and not tensor.is_contiguous():
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.contiguous().flatten().view(torch.uint8).numpy()


def in_emulator(
    arguments: dict[str, Any], dtype: torch.dtype, program: Path, variant: str, folder: Path,
    on_device: bool = False,
) -> dict[str, list[torch.Tensor]]:  # fmt: skip
    """What the kernel makes of the arguments, flat and in the order of memory."""
    lists = [arguments[name] for name in ("params", "grads", "exp_avgs", "exp_avg_sqs")]
    count = len(lists[0])
    lists.append(arguments.get("max_exp_avg_sqs", [None] * count))
    lists.append(arguments["masks"])
    betas = arguments.get("betas", (0.9, 0.999))
    hyper = [arguments["lr"], *betas, arguments.get("eps", 1e-8)]
    names = ("weight_decay", "decoupled_weight_decay", "maximize")
    hyper += [float(arguments.get(name, 0)) for name in names] + [float(on_device)]
    sizes = np.array([param.numel() for param in lists[0]])
    records: list[np.ndarray | None] = [np.array(hyper), sizes]
    for i in range(count):
        records += [None if values[i] is None else as_array(values[i]) for values in lists]
        records.append(arguments["steps"][i].reshape(1).numpy())
    name = str(dtype).removeprefix("torch.")
    found = building.in_both_orders(program, variant, folder, records, name)

    state = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        name: [
            torch.frombuffer(bytearray(record), dtype=dtype if name == "params" else state)
            for record in found[i::4]
            if record
        ]
        for i, name in enumerate(WRITTEN)
    }


def reference(arguments: dict[str, Any]) -> dict[str, Any]:
    wide: dict[str, Any] = {}
    for name, value in arguments.items():
        wide[name] = value
        if isinstance(value, list) and name != "masks":
            wide[name] = [item.double() for item in value]
    masked_adam_reference(**wide)
    return wide


def check(
    sample: Sample, dtype: torch.dtype, variant: str, programs: Path, folder: Path,
    on_device: bool = False,
) -> None:  # fmt: skip
    program = building.build("masked_adam_driver", variant, programs)
    arguments = sample.arguments(dtype=dtype)
    if on_device:  # where it is a float32
        arguments["lr"] = float(np.float32(arguments["lr"]))
    got = in_emulator(arguments, dtype, program, variant, folder, on_device)
    want = reference(arguments)
    for i in range(len(sample.shapes)):
        inputs = [arguments[name][i] for name in ("params", "grads", *WRITTEN[1:3])]
        scale = torch.stack([x.double().abs() for x in inputs]).sum(0)  # size of all that is added
        for name in WRITTEN:
            if name in want:
                flat = torch.frombuffer(
                    bytearray(as_array(want[name][i]).tobytes()), dtype=torch.float64
                )
                sizes = torch.frombuffer(bytearray(as_array(scale).tobytes()), dtype=torch.float64)
                close(got[name][i], flat, terms=TERMS, scale=sizes, name=f"{name}[{i}]")


@pytest.mark.parametrize("sample", [*samples("tiny"), COUNTS], ids=lambda sample: sample.name)
def test_values(sample: Sample, programs: Path, tmp_path: Path) -> None:
    check(sample, torch.float32, "plain", programs, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_values_of_other_dtypes(dtype: torch.dtype, programs: Path, tmp_path: Path) -> None:
    check(COUNTS, dtype, "plain", programs, tmp_path)


@pytest.mark.parametrize("variant", ["plain", "address"])
def test_learning_rate_and_steps_of_the_device(
    variant: str, programs: Path, tmp_path: Path
) -> None:
    """As in a captured graph; those of the host are NaN then."""
    check(FEW, torch.float32, variant, programs, tmp_path, on_device=True)


def kernel_of(sample: Sample, dtype: torch.dtype) -> str:
    return f"masked_adam_update_kernel<{building.TYPES[dtype]}, {380 if sample == MANY else 40}>"


CASES = [(sample, torch.float32) for sample in samples("tiny")[:3]]
CASES += [(sample, dtype) for sample in (FEW, MANY) for dtype in building.TYPES]
CHECKED = {kernel_of(*case) for case in CASES}


@pytest.mark.parametrize(("sample", "dtype"), CASES, ids=lambda x: getattr(x, "name", str(x)))
def test_no_race_and_in_bounds(
    sample: Sample, dtype: torch.dtype, variant: str, programs: Path, tmp_path: Path
) -> None:
    check(sample, dtype, variant, programs, tmp_path)
    assert building.launched(tmp_path) == {kernel_of(sample, dtype)}
