# SPDX-License-Identifier: Apache-2.0
"""masked_adam: Adam over a list of parameters whose pruned weights stay exactly zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gansparse import _C
from gansparse.ops._arrays import takes_arrays
from gansparse.ops._library import current_stream, define, describe


@takes_arrays
def masked_adam(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Tensor,
    masks: Sequence[Tensor | None] | None = None,
    max_exp_avg_sqs: Sequence[Tensor] | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> None:
    r"""Step every parameter with Adam, in place, in one pass, and hold pruned weights at zero.

    .. math::
        g &\leftarrow \pm\nabla + \lambda w \qquad
        m \leftarrow \beta_1 m + (1 - \beta_1) g \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        w &\leftarrow w - \frac{\eta}{1 - \beta_1^t} \cdot
            \frac{m}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    and where the mask is 0, w, m and v become 0 whatever the gradient was, NaN included.
    (Kingma & Ba 2015; decoupled decay: Loshchilov & Hutter 2019; amsgrad: Reddi et al. 2018.)

    There is no gradient through this op. T is float32 or float64, on CUDA also float16 or bfloat16;
    S is T, or float32 where T has 16 bits. No two tensors may overlap in memory.

    Args:
        params: [P] each, T, dense in any order of dimensions (channels_last, say); written.
        grads: [P] each, T, strides of the parameter.
        exp_avgs: [P] each, S, strides of the parameter, the first moment m; written.
        exp_avg_sqs: [P] each, S, strides of the parameter, the second moment v; written.
        steps: one float32 each, on the CPU or beside the parameter: t, already counted, so 1 at the
            first call.
        lr: a number, or one float32 on the CPU or beside the parameters (then a captured CUDA graph
            follows its changes).
        masks: [P] each, bool or uint8, strides of the parameter, 0 = pruned; None = nothing pruned,
            for one parameter or for all.
        max_exp_avg_sqs: [P] each, S, strides of the parameter, running maximum of v; turns amsgrad
            on; written.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the denominator.
        weight_decay: λ.
        decoupled_weight_decay: shrink the weight by lr · λ instead of adding λw to g (AdamW).
        maximize: ascend.

    Raises:
        InputError: an argument breaks a rule; the message names it and what it was.

    Example:
        >>> w, g = torch.ones(4), torch.ones(4)
        >>> m, v, t = torch.zeros(4), torch.zeros(4), torch.ones(())
        >>> masked_adam([w], [g], [m], [v], [t], lr=0.1, masks=[torch.tensor([1, 1, 0, 1]) > 0])
        >>> w
        tensor([0.9000, 0.9000, 0.0000, 0.9000])
    """
    if len(params) == 0:
        return
    with torch.no_grad():
        torch.ops.gansparse.masked_adam(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            steps,
            [None] * len(params) if masks is None else masks,
            [] if max_exp_avg_sqs is None else max_exp_avg_sqs,
            0.0 if isinstance(lr, Tensor) else float(lr),
            lr if isinstance(lr, Tensor) else None,
            *betas,
            eps,
            weight_decay,
            decoupled_weight_decay,
            maximize,
        )


def masked_adam_reference(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Tensor,
    masks: Sequence[Tensor | None] | None = None,
    max_exp_avg_sqs: Sequence[Tensor] | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> None:
    """The same in plain torch, in the dtype of its arguments: to be read, not to be fast."""
    beta1, beta2 = betas
    rate, decay = float(lr), weight_decay
    for i, (w, m, v) in enumerate(zip(params, exp_avgs, exp_avg_sqs, strict=True)):
        t = steps[i].item()
        g = -grads[i] if maximize else grads[i]
        if decoupled_weight_decay:
            w.mul_(1 - rate * decay)
        elif decay:
            g = g + decay * w
        m.mul_(beta1).add_((1 - beta1) * g)
        v.mul_(beta2).add_((1 - beta2) * g * g)
        second = v
        if max_exp_avg_sqs is not None:
            second = max_exp_avg_sqs[i].copy_(torch.maximum(max_exp_avg_sqs[i], v))
        denominator = (second / (1 - beta2**t)).sqrt() + eps
        w.sub_(rate / (1 - beta1**t) * m / denominator)
        mask = None if masks is None else masks[i]
        if mask is not None:
            for written in (w, m, v) if second is v else (w, m, v, second):
                written.masked_fill_(mask == 0, 0)


# Torch has no type for "number or tensor", hence lr and lr_tensor; and no list that is optional,
# hence the empty list for no amsgrad. Everything is positional: keywords cost 5 µs a call.
_SCHEMA = """masked_adam(
    Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs,
    Tensor[] steps, Tensor?[] masks, Tensor(d!)[] max_exp_avg_sqs, float lr, Tensor? lr_tensor,
    float beta1, float beta2, float eps, float weight_decay, bool decoupled_weight_decay,
    bool maximize) -> ()"""
_LISTS = 7


def _run(*arguments: Any) -> None:
    lists, (lr, lr_tensor, *options) = arguments[:_LISTS], arguments[_LISTS:]
    rate = lr if lr_tensor is None else lr_tensor
    core_arguments = (*lists, rate, *options, current_stream(lists[0][0]))
    _C.masked_adam(*core_arguments)


def _fake(*arguments: Any) -> None:
    lists, (lr, lr_tensor, *options) = arguments[:_LISTS], arguments[_LISTS:]
    rate = lr if lr_tensor is None else describe(lr_tensor)
    core_arguments = (*map(describe, lists), rate, *options)
    _C.masked_adam(*core_arguments)


define(_SCHEMA, _run, _fake)
