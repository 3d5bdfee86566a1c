# SPDX-License-Identifier: Apache-2.0
"""What is shipped: the source distribution builds, the wheel is complete, imports are light.

The wheel is built from the source distribution without CUDA, optimization (for the time that takes)
and build isolation.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import requires, version
from pathlib import Path

import pytest

from gansparse import _C

ROOT = Path(__file__).parents[1]
SITE_PACKAGES = Path(pytest.__file__).parents[1]


def run(
    *command: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def source_distribution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    code = f"from scikit_build_core.build import build_sdist; build_sdist({str(out)!r})"
    run(sys.executable, "-c", code, cwd=ROOT)
    (archive,) = out.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(source_distribution: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    with tarfile.open(source_distribution) as archive:
        archive.extractall(out, filter="data")
    (source,) = (folder for folder in out.iterdir() if folder.is_dir())
    run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation",
        "--config-settings", "cmake.define.GANSPARSE_CUDA=OFF",
        "--config-settings", "cmake.build-type=Debug",
        "-w", str(out), str(source), cwd=out,
    )  # fmt: skip
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files in a folder of their own."""
    out = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out)
    return out


def test_source_distribution_holds_the_native_sources(source_distribution: Path) -> None:
    with tarfile.open(source_distribution) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    native = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "csrc").rglob("*")
        if path.suffix in (".h", ".cpp", ".cu", ".cuh", ".sh")
    }
    assert native <= names
    assert {"CMakeLists.txt", "pyproject.toml", "LICENSE", "README.md"} <= names
    assert not any(name.endswith(".so") or name.startswith("build/") for name in names)


def test_wheel_holds_the_package_and_nothing_else(wheel: Path, source_distribution: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/", 1)[0] for name in names}
    assert tops == {"gansparse", f"gansparse-{version('gansparse')}.dist-info"}
    unwanted = {".h", ".cpp", ".cu", ".cuh", ".o", ".pyc", ".orig"}
    assert not [name for name in names if Path(name).suffix in unwanted]
    assert [name for name in names if name.startswith("gansparse/_C.") and name.endswith(".so")]
    assert {"gansparse/py.typed", "gansparse/_C.pyi"} <= set(names)
    with tarfile.open(source_distribution) as archive:
        files = [member.name.split("/", 1)[1] for member in archive if member.isfile()]
    package = {name for name in files if name.startswith("gansparse/")}
    assert any(name.endswith(".py") for name in package)
    assert package <= set(names), "modules, weights and templates go along"
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_installed_wheel_works(installed: Path) -> None:
    # -S keeps the developer's own installation out, which PYTHONPATH does not bring back.
    path = os.pathsep.join((str(installed), str(SITE_PACKAGES)))
    code = (
        "import torch, gansparse\n"
        f"assert gansparse.__file__.startswith({str(installed)!r}), gansparse.__file__\n"
        "w = torch.nn.Parameter(torch.ones(3)); w.sum().backward()\n"
        "gansparse.optim.MaskedAdam([w], lr=0.5).step()\n"
        "from gansparse.info import format_info\n"
        "print(w.tolist(), format_info())\n"
    )
    done = run(sys.executable, "-S", "-c", code, cwd=installed, PYTHONPATH=path)
    assert done.stdout.startswith("[0.5, 0.5, 0.5]")
    assert "not built" in done.stdout


def test_torch_is_needed_to_run_and_not_to_build() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = re.search(r"^\[build-system\]\nrequires = \[(.+)\]$", text, re.M)
    assert needed
    assert re.findall(r'"([\w-]+)', needed[1]) == ["scikit-build-core", "pybind11"]
    assert "torch>=2.6" in (requires("gansparse") or [])


def test_cmake_is_as_new_as_the_architectures_are() -> None:
    """The same minimum wherever one stands; 3.25 is the first that knows the suffix of 90a."""
    lists, project = ((ROOT / x).read_text() for x in ("CMakeLists.txt", "pyproject.toml"))
    least = re.findall(r"^cmake_minimum_required\(VERSION 3\.(\d+)\)", lists, re.M)
    least += re.findall(r"\bcmake(?:\.version = \")?>=3\.(\d+)\"", project)
    assert len(least) == 3
    assert len(set(least)) == 1
    assert "90a-real" in lists
    assert int(least[0]) >= 25


def test_cupy_is_to_be_had_for_either_cuda() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r'^(cupy[\w-]*) = \["(cupy-cuda\d+x)>=13"\]$', text, re.M)
    assert dict(extras) == {"cupy": "cupy-cuda13x", "cupy-cuda12": "cupy-cuda12x"}


def test_one_version() -> None:
    assert _C.build_info()["version"] == version("gansparse")


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, gansparse\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'PIL', 'rich', 'typer', 'jinja2'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    run(sys.executable, "-c", code)


def test_importing_all_of_it_asks_no_gpu_and_draws_nothing() -> None:
    code = (
        "import sys, torch\n"
        "def asked(*args): raise AssertionError('the GPU was asked')\n"
        "for name in ('is_available', 'device_count', 'current_device', 'init', '_lazy_init'):\n"
        "    setattr(torch.cuda, name, asked)\n"
        "import gansparse\n"
        "for name in gansparse.__all__: getattr(gansparse, name)\n"
        "assert 'matplotlib' not in sys.modules\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    run(sys.executable, "-c", code)
