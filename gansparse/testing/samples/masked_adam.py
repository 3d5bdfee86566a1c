# SPDX-License-Identifier: Apache-2.0
"""Samples of masked_adam: what the tests step and what the benchmark times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Size = Literal["tiny", "edge", "model"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """A list of parameters and the options of one step.

    Args:
        name: for the test's name and the benchmark's table.
        shapes: one a parameter.
        sparsity: share pruned, for each parameter (or one for all); None: no mask.
        options: keyword arguments of `masked_adam` beside the tensors.
        channels_last: 4-dimensional parameters lie in memory as [N, H, W, C].
        mask_dtype: bool or uint8.
    """

    name: str
    shapes: tuple[Shape, ...]
    sparsity: float | tuple[float | None, ...] | None = 0.75
    options: dict[str, Any] = field(default_factory=dict)
    channels_last: bool = False
    mask_dtype: torch.dtype = torch.bool

    def arguments(
        self, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> dict[str, Any]:
        """Keyword arguments of `masked_adam`: a step in mid-training, the same for every call."""
        generator = torch.Generator().manual_seed(seed)
        state = torch.float64 if dtype == torch.float64 else torch.float32
        shares = self.sparsity if isinstance(self.sparsity, tuple) else None

        def normal(shape: Shape, to: torch.dtype) -> Tensor:
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            if self.channels_last and len(shape) == 4:
                value = value.contiguous(memory_format=torch.channels_last)
            return value.to(device=device, dtype=to)

        out: dict[str, Any] = {
            "params": [normal(shape, dtype) for shape in self.shapes],
            "grads": [normal(shape, dtype) for shape in self.shapes],
            "exp_avgs": [normal(shape, state) * 0.1 for shape in self.shapes],
            "exp_avg_sqs": [normal(shape, state).square() * 0.01 for shape in self.shapes],
            "steps": [torch.tensor(float(3 + i)) for i in range(len(self.shapes))],
            "lr": 1e-3,
            "masks": [],
            **self.options,
        }
        for i, param in enumerate(out["params"]):
            share = shares[i] if shares is not None else self.sparsity
            assert share is None or isinstance(share, float)
            mask = None
            if share is not None:
                keep = torch.rand(param.shape, generator=generator) >= share
                mask = torch.empty_like(param, dtype=self.mask_dtype).copy_(keep)
            out["masks"].append(mask)
        if out.pop("amsgrad", False):
            out["max_exp_avg_sqs"] = [normal(shape, state).square() * 0.01 for shape in self.shapes]
        return out


_LAYERS: tuple[Shape, ...] = ((6, 5, 3, 3), (6,), (4, 6, 1, 1))


def samples(size: Size) -> list[Sample]:
    """The table.

    Args:
        size: ``tiny``: each option once. ``edge``: sizes around every border of the kernels.
            ``model``: the parameter lists of our own generators.
    """
    if size == "tiny":
        return [
            Sample("plain", _LAYERS),
            Sample("no-mask", _LAYERS, None),
            Sample("some-masks", _LAYERS, (0.5, None, 0.9)),
            Sample("uint8-mask", _LAYERS, mask_dtype=torch.uint8),
            Sample("weight-decay", _LAYERS, options={"weight_decay": 0.1}),
            Sample(
                "adamw", _LAYERS, options={"weight_decay": 0.1, "decoupled_weight_decay": True}
            ),
            Sample("amsgrad", _LAYERS, options={"amsgrad": True}),
            Sample("amsgrad-no-mask", _LAYERS, None, {"amsgrad": True}),
            Sample("maximize", _LAYERS, options={"maximize": True, "weight_decay": 0.1}),
            Sample("no-momentum", _LAYERS, options={"betas": (0.0, 0.9)}),
            Sample("dcgan-betas", _LAYERS, options={"betas": (0.5, 0.999)}),
            Sample("all-options", _LAYERS, options={
                "amsgrad": True, "maximize": True, "weight_decay": 0.01,
                "decoupled_weight_decay": True, "eps": 1e-6,
            }),
        ]  # fmt: skip
    if size == "edge":
        # 16: a vector of AVX-512 and of bytes; 4096: a chunk of the CPU and of a CUDA block;
        # 32768: the least that is given to two threads.
        counts = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 127, 4095, 4096, 4097, 32769)
        return [
            Sample("counts", tuple((n,) for n in counts)),
            Sample("counts-amsgrad", tuple((n,) for n in counts), options={"amsgrad": True}),
            Sample("scalar", ((),)),
            Sample("empty", ((0,), (3, 0, 2))),
            Sample("all-pruned", ((129,), (5, 7)), 1.0),
            Sample("none-pruned", ((129,), (5, 7)), 0.0),
            Sample("channels-last", ((6, 5, 3, 3), (6,), (4, 6, 1, 1)), channels_last=True),
            # More tensors than one small batch of the CUDA kernel holds.
            Sample("many", tuple((5 + i % 7,) for i in range(90))),
            # More than one large batch holds, too.
            Sample("very-many", tuple((1 + i % 5,) for i in range(401))),
        ]
    return [
        Sample("dcgan64", _dcgan_shapes(), _weights_only(_dcgan_shapes())),
        # The inner layers of a 256-pixel Pix2Pix: 31.5 M weights.
        Sample("pix2pix-inner", (*[(512, 512, 4, 4)] * 7, (256, 512, 4, 4))),
        # All of it: 54.4 M, in 82 tensors.
        Sample("pix2pix-unet", unet_shapes()),
    ]


def _dcgan_shapes() -> tuple[Shape, ...]:
    from gansparse.models import DCGANGenerator

    return tuple(tuple(p.shape) for p in DCGANGenerator().parameters())


def unet_shapes() -> tuple[Shape, ...]:
    """The parameters of the generator for pictures of 256 pixels."""
    from gansparse.models import UNetGenerator

    with torch.device("meta"):
        return tuple(tuple(p.shape) for p in UNetGenerator().parameters())


def _weights_only(shapes: tuple[Shape, ...]) -> tuple[float | None, ...]:
    """Three quarters of convolutions' weights, nothing of biases and norms."""
    return tuple(0.75 if len(shape) == 4 else None for shape in shapes)


@dataclass(frozen=True)
class Refusal:
    """One bad argument, and the message it must give.

    Args:
        name: for the test's name.
        spoil: changes good arguments into bad ones.
        message: regular expression that the message matches.
        needs_values: only a real tensor can be refused for this; a fake one has no values.
    """

    name: str
    spoil: Callable[[dict[str, Any]], object]
    message: str
    needs_values: bool = False


def _put(argument: str, index: int, change: Callable[[Tensor], Any]) -> Callable[..., object]:
    """Changes one tensor of one list."""

    def spoil(arguments: dict[str, Any]) -> None:
        arguments[argument] = list(arguments[argument])
        arguments[argument][index] = change(arguments[argument][index])

    return spoil


def _set(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda arguments: arguments.update(values)


#: To be applied to the sample "plain" of the size tiny, on the CPU.
REFUSALS = (
    Refusal(
        "param-dtype",
        _put("params", 1, lambda x: x.int()),
        r"masked_adam: params\[1\] must be float32 or float64 .*, got int32 \[6\]",
    ),
    Refusal(
        "half-on-cpu",
        _put("params", 0, lambda x: x.half()),
        r"params\[0\] must be float32 or float64 \(on CUDA also float16 or bfloat16\), got float16",
    ),
    Refusal(
        "mixed-dtypes",
        _put("params", 1, lambda x: x.double()),
        r"params\[1\] must have the dtype and device of params\[0\], got float64 \[6\] beside",
    ),
    Refusal(
        "param-with-gaps",
        _put("params", 1, lambda x: torch.cat([x, x])[::2]),
        r"params\[1\] must be dense in memory, got float32 \[6\] with gaps",
    ),
    Refusal(
        "grad-shape",
        _put("grads", 0, lambda x: x[:5].contiguous()),
        r"grads\[0\] must be float32 \[6, 5, 3, 3\] on cpu, got float32 \[5, 5, 3, 3\]",
    ),
    Refusal(
        "grad-dtype",
        _put("grads", 0, lambda x: x.double()),
        r"grads\[0\] must be float32 \[6, 5, 3, 3\] on cpu, got float64",
    ),
    Refusal(
        "grad-strides",
        _put("grads", 0, lambda x: x.contiguous(memory_format=torch.channels_last)),
        r"grads\[0\] must have the strides of its parameter",
    ),
    Refusal(
        "first-moment-dtype",
        _put("exp_avgs", 2, lambda x: x.double()),
        r"exp_avgs\[2\] must be float32 \[4, 6, 1, 1\]",
    ),
    Refusal(
        "second-moment-shape",
        _put("exp_avg_sqs", 2, lambda x: x.flatten()),
        r"exp_avg_sqs\[2\] must be float32 \[4, 6, 1, 1\] on cpu, got float32 \[24\]",
    ),
    Refusal(
        "mask-dtype",
        _put("masks", 0, lambda x: x.float()),
        r"masks\[0\] must be bool or uint8, got float32 \[6, 5, 3, 3\]",
    ),
    Refusal(
        "mask-shape",
        _put("masks", 0, lambda x: x[:, :, :1, :1].contiguous()),
        r"masks\[0\] must be bool \[6, 5, 3, 3\] on cpu, got bool \[6, 5, 1, 1\]",
    ),
    Refusal(
        "too-few-grads",
        lambda a: a.update(grads=a["grads"][:2]),
        r"grads must have one item a parameter \(3\), got 2",
    ),
    Refusal(
        "too-few-masks",
        lambda a: a.update(masks=a["masks"][:2]),
        r"masks must have one item a parameter \(3\), got 2",
    ),
    Refusal(
        "too-few-maxima",
        lambda a: a.update(max_exp_avg_sqs=a["exp_avg_sqs"][:1]),
        r"max_exp_avg_sqs must have one item a parameter \(3\), got 1",
    ),
    Refusal(
        "step-dtype",
        _put("steps", 0, lambda x: x.long()),
        r"steps\[0\] must be one float32, got int64 \[\]",
    ),
    Refusal(
        "step-shape",
        _put("steps", 0, lambda x: x.expand(2).contiguous()),
        r"steps\[0\] must be one float32, got float32 \[2\]",
    ),
    Refusal(
        "step-zero",
        _put("steps", 1, torch.zeros_like),
        r"steps\[1\] must be at least 1: count the step before the call, got 0",
        needs_values=True,
    ),
    Refusal("lr-negative", _set(lr=-0.1), r"lr must be finite and at least 0, got -0.1"),
    Refusal("lr-nan", _set(lr=float("nan")), r"lr must be finite and at least 0, got nan"),
    Refusal(
        "lr-two", _set(lr=torch.ones(2)), r"lr must be a number or one float32, got float32 \[2\]"
    ),
    Refusal(
        "lr-tensor-negative",
        _set(lr=torch.tensor(-1.0)),
        r"lr must be finite and at least 0, got -1",
        needs_values=True,
    ),
    Refusal("beta1", _set(betas=(1.0, 0.9)), r"beta1 must be at least 0 and less than 1, got 1"),
    Refusal("beta2", _set(betas=(0.9, -0.1)), r"beta2 must be at least 0 and less than 1"),
    Refusal("eps", _set(eps=-1e-3), r"eps must be finite and at least 0, got -0.001"),
    Refusal("weight-decay", _set(weight_decay=float("inf")), r"weight_decay must be finite"),
)
