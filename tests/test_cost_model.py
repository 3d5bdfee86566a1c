# SPDX-License-Identifier: Apache-2.0
"""docs/cuda.md holds what the cost model prints, the counted registers, and the tests to run."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gansparse.metrics import frechet

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "cuda.md").read_text(encoding="utf-8")


def test_the_page_has_every_table_of_the_cost_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    import_module("benchmarks.cost_model").main()
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) > 5
    for table in tables:
        if not table.startswith("| norm"):  # which the page tells in words
            assert f"\n\n{table}\n\n" in f"{PAGE}\n"


def test_the_frechet_distance_takes_the_products_of_its_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    model = import_module("benchmarks.cost_model")
    monkeypatch.setattr(frechet, "_tile", lambda matrix: matrix.shape[0])  # as on a GPU
    torch.manual_seed(0)
    one, other = (torch.cov(torch.randn(96, 300, dtype=torch.float64)) for _ in range(2))
    with FlopCounterMode(display=False) as counted:
        assert frechet._overlap_from_eigenvalues(one, other) is not None
    gpu = model.Gpu()
    products = model.frechet_times(96, False, gpu)["products"] * gpu.blas
    assert counted.get_total_flops() == pytest.approx(products, rel=1e-12)


def test_the_page_has_the_registers_of_masked_adam() -> None:
    file = ROOT / "tests" / "kernels" / "registers.json"
    kernels = json.loads(file.read_text(encoding="utf-8"))["usage"]["masked_adam"]
    for double in (False, True):
        counted = [
            usage["registers"]
            for name, by_architecture in kernels.items()
            if ("<double" in name) == double
            for usage in by_architecture.values()
        ]
        assert f"{min(counted)} to {max(counted)} registers" in PAGE


def test_the_page_names_all_tests_of_ops_that_need_a_gpu() -> None:
    section = PAGE.split("By hand:")[1].split("\n## ")[0]
    files = [p for room in ("ops", "optim") for p in (ROOT / "tests" / room).glob("test_*.py")]
    marked = [p for p in files if "mark.cuda" in p.read_text(encoding="utf-8")]
    assert len(marked) > 5
    assert not [p.name for p in marked if f"tests/{p.parent.name}/{p.name}" not in section]
