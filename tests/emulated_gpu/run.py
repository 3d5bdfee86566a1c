# SPDX-License-Identifier: Apache-2.0
"""The CUDA tests without a GPU: `python tests/emulated_gpu/run.py [arguments of pytest]`.

With a Python whose torch is a build for CUDA 13 and which has what the tests need. Builds the core
with its CUDA kernels in the emulator and runs `pytest -m cuda` on two GPUs that are not there; or
`-- COMMAND …`, any command, there. README.md beside this tells what that shows.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE.parent / "kernels")]

from building import EMULATOR, compiled  # noqa: E402

BUILD = ROOT / "build" / "emulated_gpu"
# Real layers take the emulator minutes each, and times mean nothing here.
NOT_HERE = (
    "cyclegan-256 or cyclegan-64 or stargan-256 or srgan-64 or pix2pix-down or pix2pix-up"
    " or test_times_are_the_devices"
)
SIMD = {
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
}


def folder_of_headers() -> Path:
    """CUDA's own, for runtime.cpp."""
    nvcc = shutil.which("nvcc")
    beside = Path(nvcc).resolve().parents[1] if nvcc else None
    places = [os.environ.get("CUDA_HOME"), beside, "/usr/local/cuda"]
    for place in filter(None, places):
        if (Path(place) / "include" / "cuda_runtime_api.h").is_file():
            return Path(place) / "include"
    sys.exit("the emulated GPU needs CUDA 13's headers: set CUDA_HOME")


def link(objects: list[Path], name: str, *options: str) -> Path:
    target = BUILD / name
    command = ["g++", "-shared", *map(str, objects), *options, "-o", f"{target}.tmp"]
    subprocess.run(command, check=True)
    Path(f"{target}.tmp").replace(target)
    return target


def build() -> None:
    """The runtime and the core; what has not changed is not compiled again."""
    import pybind11

    BUILD.mkdir(parents=True, exist_ok=True)
    shared = ("-O2", "-fPIC", "-fno-strict-aliasing", "-Wno-error", "-w")
    runtime = compiled(HERE / "runtime.cpp", (*shared, f"-I{folder_of_headers()}"), BUILD)
    link([runtime], "libcudart_emulated.so")
    link([runtime], "libcuda.so.1", "-Wl,-soname,libcuda.so.1")
    includes = (HERE / "include", sysconfig.get_path("include"), pybind11.get_include())
    defined = ("WITH_CUDA", "WITH_SM90A", "WITH_X86", 'VERSION="0"', 'NVCC_VERSION="none"')
    flags = (*shared, "-fvisibility=hidden", *(f"-I{x}" for x in includes))
    flags += tuple(f"-DGANSPARSE_{x}" for x in (*defined, 'CUDA_ARCHITECTURES="90-real 90a-real"'))
    listed = re.findall(r"csrc/\S+\.(?:cpp|cu)\b", (ROOT / "CMakeLists.txt").read_text())
    sources = [ROOT / path for path in listed] + EMULATOR

    def compile_one(source: Path) -> Path:
        own = SIMD.get(source.stem.rpartition("_")[2], ())
        language = ("-x", "c++") if source.suffix == ".cu" else ()
        return compiled(source, (*flags, *own, *language), BUILD)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    link(objects, "_C.so", f"-L{BUILD}", "-lcudart_emulated", "-ldl", f"-Wl,-rpath,{BUILD}")


def main() -> int:
    build()
    environment = os.environ | {
        "EMULATED_GPU": str(BUILD),
        "LD_PRELOAD": str(BUILD / "libcudart_emulated.so"),
        "LD_LIBRARY_PATH": f"{BUILD}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "PYTHONPATH": f"{HERE}:{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }
    given = sys.argv[1:]
    tests = [sys.executable, "-m", "pytest", "-m", "cuda", "-k", f"not ({NOT_HERE})", *given]
    command = given[1:] if given[:1] == ["--"] else tests
    return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
