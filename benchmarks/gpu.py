# SPDX-License-Identifier: Apache-2.0
"""What a CUDA machine has to show, in one go and without network: `make gpu`, or

    OUT=/tmp/out python benchmarks/gpu.py [--minutes 9] [--jobs 16]

(COMMIT=… names the commit where git cannot.)

Builds the core for the devices found with the Python at hand, runs the CUDA tests, the benchmarks,
compute-sanitizer on a few tests, and, as far as the time goes, the rest of the suite. A stage that
fails or lacks a tool says so, and the next one begins. Written to $OUT (benchmarks/results):
gpu-<machine>.csv, the table that is printed last; gpu-<machine>-tests.csv, every test;
gpu-<machine>.log, all output; and <machine>.csv, the benchmarks. Exit status: 0 all well, 1 a stage
failed, 2 nothing to run on.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.goals import Row, compared

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "gpu"
PYTHON = BUILD / "venv" / "bin" / "python"
# Op, the cases that the goals are about, seconds. All: benchmarks/run.py --device cuda --save
BENCHMARKS = (
    ("sparse_conv2d", "cyclegan-256@64 .*", 150),
    ("masked_adam", "pix2pix-unet", 40),
    ("mask_update", "pix2pix-unet", 40),
    ("feature_moments", "inception-50k|updates-.*", 60),
    ("frechet", "decaying-2048", 100),
)
SANITIZED = "test_stays_within_its_arrays"  # of every op, small, and at every border
SANITIZER_SECONDS = 75  # each of its tools
MOST_SANITIZED = 7  # of each file's, up to ninety, at even distances
# Checked where code is written, with tools that a machine with a GPU need not have.
NOT_HERE = "tests/test_style.py"
# Versions and plugins are what is there: neither a warning nor an unknown setting is a failure.
# A file that needs a package which isn't here stops no other.
PYTEST = ("-m", "pytest", "-o", "addopts=", "-W", "default", "--continue-on-collection-errors")


@dataclass
class Run:
    """The stages so far with what they found, and the time left for the others."""

    log: Path
    seconds: float
    environment: dict[str, str]
    began: float = field(default_factory=time.monotonic)
    stages: list[Row] = field(default_factory=list)
    tests: list[Row] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)  # of the benchmarks

    def stage(
        self,
        name: str,
        *command: str | Path,
        limit: float,
        tell: Callable[[str], str] | None = None,
    ) -> tuple[int | None, str]:
        """Run a command until it ends, its limit, or that of all. Its status and output.

        `tell` finds what a failure is called in the output; it is the last line without.
        """
        start = time.monotonic()
        left = self.seconds - (start - self.began)
        if left < 5:
            self.add(name, "not run: no time left", 0.0)
            return None, ""
        limit = min(limit, left)
        print(f"{name} …", flush=True)
        with self.log.open("a+", encoding="utf-8", errors="replace") as log:
            log.write(f"\n==== {name}: {' '.join(map(str, command))}\n")
            log.flush()
            begin = log.seek(0, os.SEEK_END)
            process = subprocess.Popen(
                list(map(str, command)), cwd=ROOT, env=self.environment, stdout=log,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                status = process.wait(limit)
            except BaseException as error:  # Ctrl-C does not reach it by itself
                os.killpg(process.pid, signal.SIGKILL)  # and what it has started
                status = process.wait()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
            log.seek(begin)
            output = log.read()
        result = "ok" if status == 0 else f"FAILED: {(tell or last_line)(output)}"
        if status == -signal.SIGKILL:
            result = f"FAILED: stopped after {limit:.3g} s"
        self.add(name, result, time.monotonic() - start)
        return status, output

    def add(self, name: str, result: str, seconds: float) -> None:
        self.stages.append({"name": name, "result": result, "seconds": f"{seconds:.0f}"})
        print(f"{name}: {result}", flush=True)

    def note(self, addition: str) -> None:
        """Add to the last stage's result."""
        self.stages[-1]["result"] += f"; {addition}"


def first_error(output: str) -> str:
    """The first line in which a compiler or CMake tells of an error, or what was said last."""
    told = re.search(r"^.*(?:\berror *: |CMake Error).*(?:\n +\S.*)?", output, re.M)
    return " ".join(told[0].split())[:150] if told else last_line(output)


def last_line(output: str) -> str:
    return next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "")[:150]


# ---- The machine ---------------------------------------------------------------------------------


def nvcc() -> str | None:
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    path = os.pathsep.join([os.environ["PATH"], *(f"{home}/bin" for home in homes if home)])
    return shutil.which("nvcc", path=path)


def problem() -> str | None:
    """Why nothing can run here, or None."""
    if importlib.util.find_spec("torch") is None:
        return f"{sys.executable} has no torch"
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU build"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device (nvidia-smi tells more)"
    return None if nvcc() else "nvcc is missing: put it on PATH or set CUDA_HOME"


def machine() -> dict[str, str]:
    """Where and with what: the head of the summary."""
    import torch

    driver = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    commit = ("git", "describe", "--always", "--exclude=*", "--abbrev=10", "--dirty=+changes")
    return {
        "gpu": f"{torch.cuda.get_device_name(0)} x{torch.cuda.device_count()}",
        "driver": told(*driver).split("\n")[0],
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "nvcc": last_line(told(nvcc() or "nvcc", "--version")),
        "commit": os.environ.get("COMMIT") or told(*commit),
        "date": time.strftime("%Y-%m-%d"),
    }


def told(*command: str) -> str:
    """What a command prints, "unknown" where that is nothing or there is no such command."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


# ---- Stages --------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """Ours, and where the tools are that came with the Python at hand."""
    path = os.pathsep.join([str(PYTHON.parent), str(Path(sys.executable).parent)])
    # Nothing of the user's may stand before the venv's gansparse.
    keep = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**keep, "PATH": path + os.pathsep + os.environ["PATH"], "PYTHONUNBUFFERED": "1"}


def make_venv() -> str:
    """A venv that sees this tree as the installed gansparse, and all that this Python has.

    Needs neither pip nor the network. Returns the version.
    """
    builder = venv.EnvBuilder(clear=True, symlinks=True)
    builder.create(PYTHON.parents[1])
    (packages,) = (PYTHON.parents[1] / "lib").glob("python*/site-packages")
    here = {"", str(ROOT), str(Path(__file__).parent)}
    paths = [str(ROOT), *(path for path in sys.path if path not in here)]
    (packages / "gansparse.pth").write_text("\n".join(paths) + "\n")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "(.+)"', project, re.MULTILINE)
    assert found
    facts = packages / f"gansparse-{found[1]}.dist-info"
    facts.mkdir()
    needs = re.search(r"^dependencies = \[\n(.+?)^\]", project, re.MULTILINE | re.DOTALL)
    assert needs
    lines = ["Metadata-Version: 2.1", "Name: gansparse", f"Version: {found[1]}"]
    found_needs = re.findall(r'^ *"(.+)",$', needs[1], re.MULTILINE)
    lines += [f"Requires-Dist: {need}" for need in found_needs]
    (facts / "METADATA").write_text("\n".join(lines) + "\n")
    script = PYTHON.with_name("gansparse")
    script.write_text(f"#!{PYTHON}\nfrom gansparse.cli import main\nmain()\n")
    script.chmod(0o755)
    return found[1]


def pybind11_folder() -> Path:
    """Its CMake files; where it is not installed, a stand-in around the headers in torch."""
    if importlib.util.find_spec("pybind11"):
        import pybind11

        return Path(pybind11.get_cmake_dir())
    import torch

    folder = BUILD / "pybind11"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pybind11Config.cmake").write_text(
        "find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)\n"
        "function(pybind11_add_module target)\n"
        "  list(REMOVE_ITEM ARGN MODULE NO_EXTRAS)\n"
        "  python_add_library(${target} MODULE WITH_SOABI ${ARGN})\n"
        "  set_target_properties(${target} PROPERTIES\n"
        "    CXX_VISIBILITY_PRESET hidden CUDA_VISIBILITY_PRESET hidden)\n"
        "  target_include_directories(${target} SYSTEM PRIVATE\n"
        f'    "{Path(torch.__file__).parent / "include"}")\n'
        "endfunction()\n"
    )
    return folder


def architectures() -> str:
    """Those to build for, where the devices need but two of all; "" elsewhere: as CMake has it."""
    import torch

    devices = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
    hopper = "CUDAARCHS" not in os.environ and set(devices) == {(9, 0)}
    return "90-real;90a-real" if hopper else ""


def build(run: Run, jobs: int) -> bool:
    """Straight with CMake, as scikit-build-core would; the module goes beside its sources."""
    core = BUILD / "core"
    made = make_venv()
    if not (cmake := shutil.which("cmake", path=run.environment["PATH"])):
        run.add("build", "FAILED: cmake is missing", 0.0)
        return False
    ninja = shutil.which("ninja", path=run.environment["PATH"])
    configure = [
        cmake, "-S", ROOT, "-B", core, "-DCMAKE_BUILD_TYPE=Release", "-DGANSPARSE_CUDA=ON",
        f"-DSKBUILD_PROJECT_VERSION_FULL={made}", f"-DPython_EXECUTABLE={PYTHON}",
        f"-DCMAKE_PREFIX_PATH={pybind11_folder()}", f"-DCMAKE_CUDA_COMPILER={nvcc()}",
        *(["-G", "Ninja"] if ninja else []),
    ]  # fmt: skip
    wanted = architectures()
    # Without warpgroups, where this nvcc can't build those, is better than nothing.
    for built, name in ((wanted, ""), ("90-real", " without 90a")):
        chosen = [f"-DCMAKE_CUDA_ARCHITECTURES={built}"] if built else []
        command = (*configure, *chosen)
        status, _ = run.stage("configure" + name, *command, limit=60, tell=first_error)
        if status == 0:
            compile_core = (cmake, "--build", core, "--parallel", str(jobs))
            status, _ = run.stage("build" + name, *compile_core, limit=240, tell=first_error)
        if status in (0, None, -signal.SIGKILL) or "90a" not in wanted:
            break
    install = (cmake, "--install", core, "--prefix", ROOT)
    return status == 0 and run.stage("install", *install, limit=30)[0] == 0


def pytest(run: Run, name: str, *options: str, jobs: int, limit: float) -> None:
    """Run tests, and count them. What plugins there are is used."""
    if importlib.util.find_spec("pytest") is None:
        run.add(name, "not run: pytest is missing", 0.0)
        return
    spread = importlib.util.find_spec("xdist") and jobs > 1
    parallel = ["-n", str(jobs), "--dist", "worksteal"] if spread else []
    command = (PYTHON, *PYTEST, "-v", "-rf", "--durations=15", *parallel, *options)
    _, output = run.stage(name, *command, limit=limit)
    tests = outcomes(output)
    if tests:
        count = {word: sum(t["outcome"] == word for t in tests) for word in OUTCOMES}
        run.note(", ".join(f"{n} {word}" for word, n in count.items() if n))
        if broken := [t["test"] for t in tests if t["outcome"] in ("failed", "error")]:
            run.note(f"first: {broken[0]}")
    run.tests += [{"stage": name, **test} for test in tests]


OUTCOMES = ("passed", "failed", "error", "skipped")
_WORDS = "|".join(OUTCOMES).upper()
_SPREAD = re.compile(
    rf"^\[gw\d+\] \[ *\d+%\] (?P<outcome>{_WORDS}) (?P<test>\S+\.py::.+?) *$", re.M
)
_ALONE = re.compile(rf"^(?P<test>\S+\.py::.+?) (?P<outcome>{_WORDS})\b.*\[ *\d+%\]$", re.M)


def outcomes(output: str) -> list[Row]:
    """Every test that `pytest -v` told of, with pytest-xdist or without; it need not have ended."""
    found = [*_SPREAD.finditer(output), *_ALONE.finditer(output)]
    return [{"test": one["test"], "outcome": one["outcome"].lower()} for one in found]


def benchmarks(run: Run, results: Path) -> None:
    """Each op's."""
    script = ROOT / "benchmarks" / "run.py"
    options = ("--device", "cuda", "--seconds", "3", "--save", "--file", results)
    for op, cases, limit in BENCHMARKS:
        command = (PYTHON, script, op, "--cases", cases, *options)
        measure(run, results, f"benchmark {op}", *command, limit=limit)


def generators(run: Run, results: Path) -> None:
    """One family; torch.compile alone searches for a minute. All: end_to_end/generators_cuda.py."""
    script = ROOT / "benchmarks" / "end_to_end" / "generators_cuda.py"
    options = ("--families", "stargan", "--save", "--file", results)
    measure(run, results, "benchmark generators", PYTHON, script, *options, limit=150)


def measure(run: Run, results: Path, name: str, *command: str | Path, limit: float) -> None:
    """Run a benchmark; what it measured are the rows that are new."""
    before = read_csv(results)
    run.stage(name, *command, limit=limit)
    run.rows += [row for row in read_csv(results) if row not in before]


def sanitizer(run: Run) -> None:
    home = Path(nvcc() or "nvcc").resolve().parent
    tool = shutil.which("compute-sanitizer", path=f"{run.environment['PATH']}{os.pathsep}{home}")
    if tool is None:
        run.add("compute-sanitizer", "not run: it is missing", 0.0)
        return
    if not (tests := sanitized(run)):
        return
    # Memory that torch keeps for later looks allocated: let it keep none.
    run.environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    for check in ("memcheck", "racecheck"):
        command = (tool, "--tool", check, "--error-exitcode", "9", "--report-api-errors", "no")
        command += (str(PYTHON), *PYTEST, "-v", *tests)
        name = f"compute-sanitizer {check}"
        status, output = run.stage(name, *command, limit=SANITIZER_SECONDS)
        if "Device not supported" in output:
            run.stages[-1]["result"] = "not run: Device not supported"
        elif summary := re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", output):
            run.note(summary[-1])
        elif status == -signal.SIGKILL and not re.search(r"^=+ +(?:Invalid|Error)", output, re.M):
            passed = len(re.findall(r" PASSED\b", output))
            run.stages[-1]["result"] = f"stopped by the clock: no error in {passed} tests"
    del run.environment["PYTORCH_NO_CUDA_MEMORY_CACHING"]


def sanitized(run: Run) -> list[str]:
    """The tests to run under it, convolutions first: the time may be too short for all."""
    files = sorted(ROOT.glob("tests/ops/test_*.py"), reverse=True)
    command = (PYTHON, *PYTEST, "-q", "--collect-only", *files, "-m", "cuda", "-k", SANITIZED)
    _, output = run.stage("compute-sanitizer: which tests", *command, limit=30)
    found: dict[str, list[str]] = {}
    for line in output.splitlines():
        if SANITIZED in line:
            found.setdefault(line.partition("::")[0], []).append(line)
    least = {file: min(len(tests), MOST_SANITIZED) for file, tests in found.items()}
    return [
        tests[i * len(tests) // least[file]]
        for file, tests in found.items()
        for i in range(least[file])
    ]


# ---- Summary -------------------------------------------------------------------------------------


def finish(run: Run, facts: Row, out: Path, slug: str) -> None:
    """Write everything, the table at the end of the screen, too."""
    table = [{"kind": "machine", "name": name, "result": value} for name, value in facts.items()]
    table += [{"kind": "stage", **stage} for stage in run.stages]
    table += compared(run.rows)
    columns = ("kind", "name", "result", "seconds", "goal", "met")
    write_csv(out / f"gpu-{slug}.csv", columns, table)
    write_csv(out / f"gpu-{slug}-tests.csv", ("stage", "test", "outcome"), run.tests)
    print(f"\n{show(table)}\n\nwritten to {out}")


def show(table: list[Row]) -> str:
    width = max(len(row["name"]) for row in table)
    lines, kind = [], "machine"
    for row in table:
        clock = f"{row['seconds']:>4} s" if "seconds" in row else ""
        line = f"{row['name']:<{width}} {clock:6}  {row['result']}"
        if row.get("goal"):
            line += f"   goal {row['goal']}" + (f": {row['met']}" if row["met"] else "")
        if row["kind"] != kind:
            lines.append("")
        kind = row["kind"]
        lines.append(line)
    return "\n".join(lines)


def read_csv(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, columns: tuple[str, ...], rows: list[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for all stages together (9)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (cores)")
    chosen = parser.parse_args()
    if reason := problem():
        print(f"make gpu: nothing to run on: {reason}", file=sys.stderr)
        return 2
    facts = machine()
    out = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results").absolute()
    out.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", facts["gpu"].lower()).strip("-")
    log = out / f"gpu-{slug}.log"
    log.unlink(missing_ok=True)
    run = Run(log, 60 * chosen.minutes, environment())
    others = ("-m", "not cuda", f"--ignore={NOT_HERE}")
    few = min(chosen.jobs, 8)  # processes that share the device
    try:
        if build(run, chosen.jobs):
            pytest(run, "CUDA tests", "-m", "cuda", jobs=few, limit=150)
            benchmarks(run, out / f"{slug}.csv")
            generators(run, out / f"{slug}.csv")
            sanitizer(run)
            # With what is left of the time: they run without a GPU, too.
            pytest(run, "other tests", *others, jobs=chosen.jobs, limit=300)
    finally:
        finish(run, facts, out, slug)
    return int(any("FAILED" in stage["result"] for stage in run.stages))


if __name__ == "__main__":
    sys.exit(main())
