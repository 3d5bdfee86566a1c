# SPDX-License-Identifier: Apache-2.0
"""A generator on this machine: pruned and compiled by us, and dense in every runtime that is here.

All run in one interleaved line-up with the threads that torch has. Inputs and outputs are torch
tensors for everyone, so that conversions are part of each time. A runtime that is not installed, or
that can't run the network, is left out, and it is said why.
"""

from __future__ import annotations

import copy
import functools
import importlib
import math
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gansparse.errors import GansparseError, InputError
from gansparse.export import quietly, still, to_onnx
from gansparse.sparsity import Layer, Pruner, filter_channels, find_layers, shrink, sparsity_report
from gansparse.testing.timing import Candidate, arithmetic_limits, interleave, memory_limits

OURS = "gansparse"
PATTERNS = ("element", "vector", "filter")
Inputs = tuple[Tensor, ...]
Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Row:
    """One candidate of a line-up.

    Args:
        candidate: ``gansparse``, or the runtime, which runs the network as it is.
        pattern: what ours lost; empty where nothing.
        sparsity: the share that ours lost of the pruned layers' weights; of a generator that was
            pruned before, the share of zeros.
        median_ms: time of a call.
        spread: interquartile range over the median.
        times_best: the time of the fastest float32 peer over this one's.
        times_best_iqr: its interquartile range over the rounds.
        best: that peer.
        times_torch: the time of torch eager, the better of both layouts, over this one's.
        times_compile: the time of torch.compile over this one's; 0 where that did not run.
        gflop: of the weights that are not zero, a multiply-add counts two.
        mbytes: of those weights, and of each layer's input and output.
        share_of_peak: GFLOP/s over the most that torch's own kernels reach here; 0 for int8.
        peak_gflops: that most.
        copy_gbs: GB/s of a large copy.
        error: largest difference to the same network in float64, over its largest output.
        rounds: turns that each candidate took.
    """

    candidate: str
    pattern: str
    sparsity: float
    median_ms: float
    spread: float
    times_best: float
    times_best_iqr: float
    best: str
    times_torch: float
    times_compile: float
    gflop: float
    mbytes: float
    share_of_peak: float
    peak_gflops: float
    copy_gbs: float
    error: float
    rounds: int

    def texts(self) -> dict[str, str]:
        """Every field as a short text, for a CSV."""
        return {
            name: f"{value:.4g}" if isinstance(value, float) else str(value)
            for name, value in asdict(self).items()
        }


class _Job:
    """One network for the peers, and its ONNX file, which several of them read."""

    def __init__(self, network: nn.Module, inputs: Inputs, folder: Path) -> None:
        self.network, self.inputs, self.folder = network, inputs, folder
        self.threads = torch.get_num_threads()

    @functools.cached_property
    def onnx(self) -> Path:
        return to_onnx(self.network, self.inputs, self.folder / "g.onnx", dynamic=False).path

    def feed(self, names: Iterable[str]) -> dict[str, Any]:
        return {name: x.numpy() for name, x in zip(names, self.inputs, strict=True)}


def _eager(job: _Job) -> Run:
    return lambda: job.network(*job.inputs)


def _channels_last(job: _Job) -> Run:
    to: Any = copy.deepcopy(job.network).to  # torch's annotation lacks memory_format
    network: nn.Module = to(memory_format=torch.channels_last)

    def run() -> Tensor:
        given = [
            x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
            for x in job.inputs
        ]
        made: Tensor = network(*given)
        return made.contiguous()

    return run


def _inductor(job: _Job) -> Run:
    import torch._inductor.config as config

    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(job.network))
    with config.patch(freezing=True):
        compiled(*job.inputs)
    return lambda: compiled(*job.inputs)


def _onnx_session(job: _Job, path: Path) -> Run:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda: torch.from_numpy(session.run(None, job.feed(names))[0])


def _onnx_runtime(job: _Job) -> Run:
    importlib.import_module("onnxruntime")
    return _onnx_session(job, job.onnx)


def _onnx_runtime_int8(job: _Job) -> Run:
    quantization: Any = importlib.import_module("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            onnxruntime: Any = importlib.import_module("onnxruntime")
            session = onnxruntime.InferenceSession(str(job.onnx))
            self.left = [job.feed(each.name for each in session.get_inputs())]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    path = job.folder / "int8.onnx"
    quantization.quantize_static(str(job.onnx), str(path), Reader(), per_channel=True)
    return _onnx_session(job, path)


def _openvino(job: _Job) -> Run:
    openvino: Any = importlib.import_module("openvino")
    settings = {
        "INFERENCE_NUM_THREADS": job.threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(str(job.onnx), "CPU", settings)
    request = compiled.create_infer_request()
    given = [x.numpy() for x in job.inputs]
    return lambda: torch.from_numpy(request.infer(given, share_inputs=True)[0].copy())


def _ncnn(job: _Job) -> Run:
    """It takes one picture at a time; pnnx converts what torch has traced."""
    ncnn: Any = importlib.import_module("ncnn")
    numpy: Any = importlib.import_module("numpy")
    converter: Any = importlib.import_module("pnnx")
    one = tuple(x[:1] for x in job.inputs)
    torch.jit.trace(job.network, one).save(str(job.folder / "g.pt"))  # type: ignore[no-untyped-call]
    shapes = ",".join(f"[{','.join(map(str, x.shape))}]f32" for x in one)
    command = [converter.EXEC_PATH, "g.pt", f"inputshape={shapes}", "fp16=0"]
    subprocess.run(command, cwd=job.folder, check=True, capture_output=True)
    net = ncnn.Net()
    net.opt.num_threads = job.threads
    for option in (
        "use_fp16_packed",
        "use_fp16_storage",
        "use_fp16_arithmetic",
        "use_bf16_storage",
    ):
        setattr(net.opt, option, False)
    net.load_param(str(job.folder / "g.ncnn.param"))
    net.load_model(str(job.folder / "g.ncnn.bin"))

    def run() -> Tensor:
        made = []
        for index in range(job.inputs[0].shape[0]):
            extractor = net.create_extractor()
            for name, x in zip(net.input_names(), job.inputs, strict=True):
                extractor.input(name, ncnn.Mat(x[index].numpy()))
            made.append(torch.from_numpy(numpy.array(extractor.extract(net.output_names()[0])[1])))
        return torch.stack(made)

    return run


_EAGER = ("torch", "torch channels_last")
_COMPILED = "torch.compile"
#: Seconds for which a runtime's threads are given to stop spinning before the next one's turn. With
#: 5 ms those of ONNX Runtime made what came after it on two threads up to five times slower. On one
#: thread nobody spins, and what took a millisecond took up to a third longer after a pause.
_PAUSE = 0.05
_CONTEXT = "ONNX Runtime int8"
_PEERS: dict[str, Callable[[_Job], Run]] = {
    "torch": _eager,
    "torch channels_last": _channels_last,
    _COMPILED: _inductor,
    "ONNX Runtime": _onnx_runtime,
    "OpenVINO": _openvino,
    "ncnn": _ncnn,
    _CONTEXT: _onnx_runtime_int8,
}
#: Every runtime that is known here; the last, of less precision, is no peer but context.
PEERS = tuple(_PEERS)


def pruned(network: nn.Module, inputs: Inputs, pattern: str, sparsity: float) -> nn.Module:
    """A copy that lost that share of each convolution's weights, by size, without training.

    Args:
        network: dense.
        inputs: what it is called with.
        pattern: ``element``; ``vector``, of 16 output channels; or ``filter``, whole channels of
            all but the output layer.
        sparsity: 0 ≤ sparsity < 1.

    Raises:
        InputError: another pattern or sparsity, or at ``filter`` a network that can't be traced.
    """
    _check_pattern(pattern)
    network = copy.deepcopy(network)
    channels = filter_channels(network, *inputs) if pattern == "filter" else None
    granularity: Any = pattern
    Pruner(network, sparsity, granularity, channels=channels).prune_to(sparsity)
    return network


def _check_pattern(pattern: str) -> None:
    if pattern not in PATTERNS:
        raise InputError(f"pattern must be one of {', '.join(PATTERNS)}, got {pattern!r}")


def line_up(
    generator: nn.Module,
    inputs: Inputs,
    *,
    variants: Sequence[tuple[str, float]] = (("element", 0.75),),
    peers: Sequence[str] = PEERS,
    rounds: int = 11,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Times the generator in all of them, on torch's present number of threads.

    Args:
        generator: dense, or pruned already; its eval mode without dropout is measured.
        inputs: what it is called with.
        variants: pattern and sparsity of ours; sparsity 0: the generator as it is, once.
        peers: of `PEERS`; they run the generator as it is. Both of torch's layouts always run.
        rounds: turns of each candidate, at least 2.
        say: gets a sentence for each runtime that is left out.

    Raises:
        InputError: an unknown peer or pattern, a sparsity out of range, or too few rounds.
    """
    for name in peers:
        if name not in _PEERS:
            raise InputError(f"no runtime {name!r} known here; there are: {', '.join(PEERS)}")
    if rounds < 2:
        raise InputError(f"rounds must be at least 2, got {rounds}")
    for pattern, _ in variants:
        _check_pattern(pattern)
    # Without zeros all patterns are the same: once is enough.
    variants = [(pattern if share else variants[0][0], share) for pattern, share in variants]
    network, inputs = still(generator, inputs)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        job = _Job(network, inputs, Path(folder))
        runs: dict[str, Run] = {}
        for name in _PEERS:
            if name in peers or name in _EAGER:
                try:
                    with quietly():
                        runs[name] = _PEERS[name](job)
                        runs[name]()
                except Exception as error:  # whatever another project's code raises
                    runs.pop(name, None)
                    say(f"{name} is left out: {_reason(error)}")
        dense = network
        networks = dict.fromkeys(runs, dense)
        zeros = round(sparsity_report(dense).total.sparsity, 4)  # one in millions is chance
        labels = {name: (name, "", zeros) for name in runs}
        for pattern, sparsity in dict.fromkeys(variants):
            key = f"{OURS} {pattern} {sparsity:g}"
            net = pruned(dense, inputs, pattern, sparsity) if sparsity else dense
            runs[key], networks[key] = _ours(net, inputs), net
            labels[key] = (OURS, pattern, sparsity or zeros)
        small = {
            key: shrink(net, *inputs) if labels[key][1] == "filter" else net
            for key, net in networks.items()
        }
        works = {id(net): work(net, inputs) for net in small.values()}
        errors = _errors(runs, networks, inputs)
        return _rows(runs, labels, {k: works[id(n)] for k, n in small.items()}, errors, rounds)


def _ours(network: nn.Module, inputs: Inputs) -> Run:
    from gansparse.deploy import compile

    fast = compile(network, inputs)
    return lambda: fast(*inputs).contiguous()


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed (pip install 'gansparse[bench]')"
    if isinstance(error, subprocess.CalledProcessError):
        return f"its converter failed with status {error.returncode}"
    line = next(iter(str(error).strip().splitlines()), "")
    known = isinstance(error, GansparseError)
    return line if known else f"{type(error).__name__} {line}"[:200].strip()


def _errors(
    runs: dict[str, Run], networks: dict[str, nn.Module], inputs: Inputs
) -> dict[str, float]:
    exact: dict[int, Tensor] = {}
    errors = {}
    for name, run in runs.items():
        net = networks[name]
        if id(net) not in exact:
            wide = [x.double() if x.is_floating_point() else x for x in inputs]
            exact[id(net)] = copy.deepcopy(net).double()(*wide)
        made, truth = run(), exact[id(net)]
        same = made.shape == truth.shape
        scale = float(truth.abs().max()) or 1.0
        errors[name] = float((made - truth).abs().max()) / scale if same else math.inf
    return errors


def _rows(
    runs: dict[str, Run],
    labels: dict[str, tuple[str, str, float]],
    works: dict[str, tuple[int, int]],
    errors: dict[str, float],
    rounds: int,
) -> list[Row]:
    limits = arithmetic_limits() | {"copy": memory_limits()["copy"]}
    beside: dict[str, Candidate] = {f"limit {name}": run for name, (run, _) in limits.items()}
    pause = _PAUSE if torch.get_num_threads() > 1 else 0.0
    measured = interleave({**runs, **beside}, rounds, warm_up=1, pause=pause, warm=True)
    rates = {
        name: amount / measured.median(f"limit {name}") for name, (_, amount) in limits.items()
    }
    copy_rate = rates.pop("copy")
    peak = max(rates.values())
    theirs = [name for name, label in labels.items() if label[0] != OURS and name != _CONTEXT]
    best = min(theirs, key=measured.median)
    torchs = min((name for name in theirs if name in _EAGER), key=measured.median)
    rows = []
    for name, (candidate, pattern, sparsity) in labels.items():
        flops, moved = works[name]
        ratio, iqr = measured.ratio(best, to=name)
        share = flops / measured.median(name) / peak
        rows.append(
            Row(
                candidate=candidate,
                pattern=pattern,
                sparsity=sparsity,
                median_ms=measured.median(name) * 1e3,
                spread=measured.spread(name),
                times_best=ratio,
                times_best_iqr=iqr,
                best=best,
                times_torch=measured.ratio(torchs, to=name)[0],
                times_compile=measured.ratio(_COMPILED, to=name)[0] if _COMPILED in runs else 0.0,
                gflop=flops / 1e9,
                mbytes=moved / 1e6,
                share_of_peak=0.0 if name == _CONTEXT else share,
                peak_gflops=peak / 1e9,
                copy_gbs=copy_rate / 1e9,
                error=errors[name],
                rounds=rounds,
            )
        )
    return rows


def work(network: nn.Module, inputs: Inputs) -> tuple[int, int]:
    """Flops and bytes of one call: what the weights that are not zero ask for.

    A weight meets every output pixel, in a transposed convolution every input pixel. Bytes are
    those of these weights, and of each layer's input and output once; norms and activations, which
    a good runtime does on the way, count nothing.

    Example:
        >>> work(nn.Conv2d(1, 1, 1, bias=False), (torch.ones(1, 1, 3, 3),))
        (18, 76)
    """
    flops, moved, hooks = 0, 0, []
    for layer in find_layers(network):

        def count(_: nn.Module, given: Any, made: Tensor, layer: Layer = layer) -> None:
            nonlocal flops, moved
            left = int((layer.weight != 0).sum())
            grid = given[0] if layer.transposed else made
            flops += 2 * left * grid.shape[0] * math.prod(grid.shape[2:])
            moved += 4 * (left + given[0].numel() + made.numel())

        hooks.append(layer.module.register_forward_hook(count))
    try:
        with torch.no_grad():
            network(*inputs)
    finally:
        for each in hooks:
            each.remove()
    return flops, moved


def break_even(rows: Iterable[Row], pattern: str) -> str:
    """From which sparsity on ours is as fast as the best peer, between the measured ones.

    Args:
        rows: of one line-up.
        pattern: ours; sparsity 0 counts for each.

    Returns:
        ``38%``; ``0%`` where it is so without any zeros; ``below 25%`` where it is so at the
        first one measured, and less was not; ``not up to 90%``, the last one, where nowhere.
    """
    ours = sorted(
        {
            (row.sparsity, row.times_best)
            for row in rows
            if row.candidate == OURS and (row.pattern == pattern or row.sparsity == 0)
        }
    )
    before: tuple[float, float] | None = None
    for sparsity, times in ours:
        if times >= 1 and before is None:
            return f"below {sparsity:.0%}" if sparsity else "0%"
        if times >= 1 and before is not None:
            share = (1 - before[1]) / (times - before[1])
            return f"{before[0] + share * (sparsity - before[0]):.0%}"
        before = (sparsity, times)
    return "not measured" if before is None else f"not up to {before[0]:.0%}"


def slower_than_torch(rows: Iterable[Row]) -> list[str]:
    """Where ours is slower than the dense network in torch: eager in either layout, or compiled.

    Args:
        rows: of one line-up.

    Returns:
        A sentence for each row of ours that is; a row counts if its median is below 1.
    """
    return [
        f"{row.pattern} {row.sparsity:.0%}: {times:.2f}x {name}"
        for row in rows
        if row.candidate == OURS
        for name, times in (("torch", row.times_torch), ("torch.compile", row.times_compile))
        if 0 < times < 1
    ]
