# SPDX-License-Identifier: Apache-2.0
"""A generator for other runtimes: ONNX, and torch.export's own file.

Both come of one capture by ``torch.export``, with any batch and any picture size that the network
takes. An exported network is a function of its input: it computes what the generator computes in
eval mode without its dropout, that of a live U-Net included. Of zeros these formats know nothing;
the small file is that of `gansparse.sparsity.save_packed`.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from gansparse.errors import InputError
from gansparse.files import atomic_file

Example = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        path: of the file.
        size: of the file, in bytes.
        inputs: by name their shapes; a word stands for any size.
        difference: largest absolute difference to the generator's own output, of the example and of
            one of another batch and size where it takes any; None where nothing could run the file.
    """

    path: Path
    size: int
    inputs: dict[str, tuple[int | str, ...]]
    difference: float | None

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} {'×'.join(map(str, s))}" for name, s in self.inputs.items())
        checked = "not checked" if self.difference is None else f"differs by {self.difference:.1e}"
        return f"{self.path}  {self.size:,} bytes  {shapes}  {checked}"


def to_torch_export(generator: nn.Module, example: Example, path: str | Path) -> Exported:
    """Writes the generator as a ``.pt2`` file, which ``torch.export.load`` reads without its class.

    Args:
        generator: any that ``torch.export`` can follow; it is left as it is.
        example: what it is called with.
        path: target; its folder is made.

    Raises:
        InputError: the generator is a compiled one, or can't be called with the example, or not be
            captured.
        OutputError: it could not be written; an older file of that name is untouched.

    Example:
        >>> import tempfile
        >>> net, path = nn.Sequential(nn.Conv2d(3, 4, 3)), Path(tempfile.mkdtemp(), "net.pt2")
        >>> to_torch_export(net, torch.randn(1, 3, 8, 8), path).inputs
        {'input': ('batch', 3, 'height', 'width')}
        >>> torch.export.load(path).module()(torch.randn(2, 3, 9, 7)).shape
        torch.Size([2, 4, 7, 5])
    """
    network, given = still(generator, example)
    _check_picture(network, given)
    for program, taken in _captures(network, given):
        buffer = io.BytesIO()
        with quietly():
            torch.export.save(program, buffer)
            buffer.seek(0)
            again = torch.export.load(buffer).module()
        # A U-Net captured at twice the width takes no picture that has one pixel at its bottom, and
        # torch 2.6 captures widths that the network itself refuses.
        with contextlib.suppress(AssertionError, RuntimeError):
            difference = _difference(network, again, [given, taken])
            return _written(Path(path), buffer.getvalue(), _shapes(program), difference)
    raise InputError(f"{type(generator).__name__} can't be exported for the example's own sizes")


def to_onnx(
    generator: nn.Module, example: Example, path: str | Path, *, dynamic: bool = True
) -> Exported:
    """Writes the generator as an ONNX file, and compares it where ONNX Runtime is installed.

    Args:
        generator: any that ``torch.export`` can follow; it is left as it is.
        example: what it is called with.
        path: target; its folder is made.
        dynamic: any batch and size that the network takes; otherwise the example's alone, which
            some runtimes run faster.

    Raises:
        InputError: the exporter is not installed; the generator is a compiled one, or can't be
            called with the example or not be captured; or ONNX Runtime's output is another.
        OutputError: it could not be written; an older file of that name is untouched.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError(
            "to_onnx needs torch's exporter: pip install 'gansparse[export]'"
        ) from None
    network, given = still(generator, example)
    _check_picture(network, given)
    failure: Exception | None = None
    for program, taken in _captures(network, given, dynamic):
        data = _onnx_of(generator, program)
        try:
            run = _onnx_runtime(data)
            tried = [given, taken, *_cropped(network, program, given)]
            difference = _difference(network, run, tried)
        except ImportError:  # no ONNX Runtime: not compared
            return _written(Path(path), data, _shapes(program), None)
        except Exception as error:  # other numbers, or whatever the runtime says to those sizes
            failure = error
        else:
            return _written(Path(path), data, _shapes(program), difference)
    assert failure is not None
    raise failure if isinstance(failure, InputError) else _unexportable(network, failure) from None


def _onnx_of(generator: nn.Module, program: torch.export.ExportedProgram) -> bytes:
    with quietly():
        try:
            made = torch.onnx.export(program, dynamo=True, verbose=False)
        except Exception as error:  # an op that ONNX lacks, whatever the exporter makes of it
            raise _unexportable(generator, error) from None
        assert made is not None
        data: bytes = _named(made.model_proto, program).SerializeToString()
    return data


@torch.no_grad()
def _cropped(
    network: nn.Module, program: torch.export.ExportedProgram, given: tuple[Tensor, ...]
) -> Iterator[tuple[Tensor, ...]]:
    """The example in other sizes that the program says it takes, as far as the network does.

    A branch on the size is frozen in the program; here it shows.
    """
    free = [
        node.meta["val"].dim() == 4
        and not any(isinstance(size, int) for size in node.meta["val"].shape[2:])
        for node in _inputs(program)
    ]
    for less_high, less_wide in ((1, 3), (2, 2)):
        smaller = tuple(
            x[..., less_high:, less_wide:] if crop and min(x.shape[2:]) > 4 else x
            for x, crop in zip(given, free, strict=True)
        )
        if any(free):
            with contextlib.suppress(Exception):  # the network doesn't take it: nor need the file
                network(*smaller)
                yield smaller


def still(generator: nn.Module, example: Example) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A copy on the CPU, in eval mode, without dropout; and the example as a tuple.

    Raises:
        InputError: it is one that `deploy.compile` made.

    Example:
        >>> network, (x,) = still(nn.Dropout(0.5), torch.ones(2))
        >>> network(x)
        tensor([1., 1.])
    """
    from gansparse.deploy import CompiledGenerator

    if isinstance(generator, CompiledGenerator):
        raise InputError(
            "a compiled generator is kernels for this machine, which no other runtime has: give "
            "the generator that it was made of, its .original"
        )
    network = copy.deepcopy(generator).cpu().eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
    given = (example,) if isinstance(example, Tensor) else tuple(example)
    return network, tuple(tensor.detach().cpu() for tensor in given)


@torch.no_grad()
def _check_picture(network: nn.Module, given: tuple[Tensor, ...]) -> None:
    """Refuses what gives no picture: files of several outputs could not be compared."""
    try:
        made = network(*given)
    except Exception as error:
        raise _unexportable(network, error) from None
    if not (isinstance(made, Tensor) and made.is_floating_point()):
        got = made.dtype if isinstance(made, Tensor) else type(made).__name__
        raise InputError(
            f"{type(network).__name__} gives {got}: export a module that gives one picture, "
            "a tensor of floating-point numbers"
        )


def _captures(
    network: nn.Module, example: tuple[Tensor, ...], dynamic: bool = True
) -> Iterator[tuple[torch.export.ExportedProgram, tuple[Tensor, ...]]]:
    """Programs and the examples they were captured with; the one of most free dimensions first.

    What has size 1, or two equal sizes, torch takes for a rule; so the batch and the width are
    doubled, where the network takes that. If not, the size is fixed, then the batch.
    """
    auto, error = torch.export.Dim.AUTO, None
    for sizes, batch in ((True, True), (False, True), (False, False))[0 if dynamic else 2 :]:
        given = tuple(_doubled(x, sizes, batch) for x in example)
        free = tuple(
            dict.fromkeys(_free(x) if sizes else [0] if batch else [], auto) for x in example
        )
        try:
            with quietly():
                program = torch.export.export(network, given, dynamic_shapes=free, strict=False)
        except Exception as failure:  # whatever the network's own code says to other sizes
            error = failure
        else:
            yield program, given
    if error is not None:
        raise _unexportable(network, error)


def _free(x: Tensor) -> list[int]:
    return [0, *(d for d in range(2, x.dim()) if x.shape[d] > 1)]


def _doubled(x: Tensor, sizes: bool, batch: bool) -> Tensor:
    dims = ([0] if batch else []) + (_free(x)[1:][-1:] if sizes else [])
    for dim in dims:
        x = torch.cat([x, x], dim)
    return x


def _shapes(program: torch.export.ExportedProgram) -> dict[str, tuple[int | str, ...]]:
    words = ("batch", "channels", "height", "width")
    return {
        node.name: tuple(
            size if isinstance(size, int) else words[d] if d < len(words) else f"size {d}"
            for d, size in enumerate(node.meta["val"].shape)
        )
        for node in _inputs(program)
    }


def _inputs(program: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    names = set(program.graph_signature.user_inputs)
    return [n for n in program.graph.nodes if n.op == "placeholder" and n.name in names]


def _named(model: Any, program: torch.export.ExportedProgram) -> Any:
    """The ONNX model with words for torch's symbols: batch for s34, height * 4 for s14 * 4."""
    words: dict[str, str] = {}
    for node, shape in zip(_inputs(program), _shapes(program).values(), strict=True):
        for size, word in zip(node.meta["val"].shape, shape, strict=True):
            if isinstance(size, int) or str(size) in words:
                continue
            taken = str(word) in words.values()  # by another size, which this one need not equal
            words[str(size)] = f"{node.name}_{word}" if taken else str(word)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda m: words.get(m[0], m[0]), dim.dim_param)
    return model


def _onnx_runtime(data: bytes) -> Callable[..., Tensor]:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*given: Tensor) -> Tensor:
        feed = {name: x.numpy() for name, x in zip(names, given, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


@torch.no_grad()
def _difference(
    network: nn.Module,
    run: Callable[..., Tensor],
    examples: Sequence[tuple[Tensor, ...]],
) -> float:
    """The largest difference; refused where it is no rounding (half of the digits)."""
    largest = 0.0
    for given in examples:
        expected, got = network(*given), run(*given)
        gap = float((expected - got).abs().max()) if expected.shape == got.shape else math.inf
        scale = max(1.0, float(expected.abs().max()))
        if not gap <= scale * torch.finfo(expected.dtype).eps ** 0.5:
            raise InputError(f"{type(network).__name__}: exported, its output differs by {gap:g}")
        largest = max(largest, gap)
    return largest


def _written(
    path: Path,
    data: bytes,
    shapes: dict[str, tuple[int | str, ...]],
    difference: float | None,
) -> Exported:
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)
    return Exported(path, len(data), shapes, difference)


def _unexportable(network: nn.Module, error: Exception) -> InputError:
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return InputError(f"{type(network).__name__} can't be exported: {line}")


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the remarks and warnings of other projects' code."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
