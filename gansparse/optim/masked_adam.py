# SPDX-License-Identifier: Apache-2.0
"""Adam that prunes: the mask is applied inside the step, so the model stays an ordinary one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, cast, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from gansparse import _C
from gansparse.errors import InputError
from gansparse.ops._library import current_stream, tell_written

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class MaskedAdam(torch.optim.Optimizer):
    """`torch.optim.Adam` with a mask for some of the parameters, in one native pass.

    After every step of a parameter, so where it has a gradient, a weight outside its mask is
    exactly 0, and so are its moments. A parameter without a mask is stepped as `torch.optim.Adam`
    steps it. The state has torch's names (``step``, ``exp_avg``, ``exp_avg_sq``,
    ``max_exp_avg_sq``), so either loads the other's; here the moments of 16-bit parameters are
    float32. Parameters are dense, in any order of dimensions; of 16 bits on CUDA alone.

    Masks are kept by reference: one that is changed in place holds from the parameter's next step
    on.

    Args:
        params: parameters or parameter groups, as torch takes them.
        lr: learning rate; a tensor may be changed between replays of a captured CUDA graph.
        betas: decay of the first and second moment.
        eps: added to the denominator.
        weight_decay: decay of the weights, L2 unless ``decoupled_weight_decay``.
        amsgrad: divide by the running maximum of the second moment.
        foreach: taken so that torch's arguments fit, without effect: the step is always fused.
        maximize: ascend.
        capturable: keep the step counts on the device, so that a CUDA graph can capture the step,
            which is refused otherwise.
        differentiable: refused if True.
        fused: as ``foreach``.
        decoupled_weight_decay: AdamW.
        masks: ``{parameter: bool or uint8 tensor of its shape and strides}``, 0 = pruned. Weights
            outside are set to 0 at once.

    Raises:
        InputError: an argument breaks a rule.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2, 2))
        >>> optimizer = MaskedAdam([w], lr=0.5, masks={w: torch.eye(2, dtype=torch.bool)})
        >>> w.sum().backward()
        >>> optimizer.step()
        >>> w.detach()
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        masks: Mapping[Any, Tensor] | None = None,
    ) -> None:
        if differentiable:
            raise InputError("MaskedAdam: differentiable must be False: no gradient flows through")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "capturable": capturable,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        self._masks: dict[Tensor, Tensor] = {}
        super().__init__(params, defaults)
        for group in self.param_groups:
            _check_group(group)
        self.set_masks(masks or {})

    @property
    def masks(self) -> dict[Tensor, Tensor]:
        """The masks in force, ``{parameter: mask}`` (a copy of the table, not of the masks)."""
        return dict(self._masks)

    @torch.no_grad()
    def set_masks(self, masks: Mapping[Any, Tensor]) -> None:
        """Replace all masks. Weights and moments outside the new ones become 0 at once.

        Args:
            masks: ``{parameter: mask}``; a parameter that is not named is no longer masked.

        Raises:
            InputError: a mask does not fit its parameter, or belongs to none of ours; the masks
                are as they were before.
        """
        ours = {p for group in self.param_groups for p in group["params"]}
        for parameter, mask in masks.items():
            if parameter not in ours:
                shape = getattr(parameter, "shape", None)
                got = repr(parameter) if shape is None else f"another tensor of shape {list(shape)}"
                raise InputError(
                    "MaskedAdam: masks must belong to parameters of this optimizer, "
                    f"got one for {got}"
                )
            _check_mask(parameter, mask)
        self._masks = dict(masks)
        for parameter, mask in masks.items():
            pruned = mask == 0
            parameter.masked_fill_(pruned, 0)
            for name, value in self.state.get(parameter, {}).items():
                if name in _MOMENTS:
                    value.masked_fill_(pruned, 0)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of every parameter that has a gradient.

        Args:
            closure: computes the loss anew, with gradients.

        Returns:
            The closure's loss.

        Raises:
            InputError: a rule of the core is broken, or a CUDA graph that captures the step would
                repeat a step count or learning rate of the CPU; then no parameter was stepped.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        together = []
        for group in self.param_groups:
            with_grad = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    with_grad[parameter.device, parameter.dtype].append(parameter)
            together += [(group, parameters) for parameters in with_grad.values()]
        on_cuda = [(group, own) for group, own in together if own[0].device.type == "cuda"]
        if on_cuda and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            for group, parameters in on_cuda:
                _check_capture(group, [self.state[p] for p in parameters if p in self.state])
        for group, parameters in together:
            self._step_together(group, parameters)
        return loss

    def _step_together(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """One call of the core: parameters of one group, device and dtype."""
        states = [self.state[p] or self._new_state(group, p) for p in parameters]
        steps = [state["step"] for state in states]
        grads = [_grad_like(p) for p in parameters]
        torch._foreach_add_(steps, 1)
        beta1, beta2 = group["betas"]
        lr = group["lr"]
        names = _MOMENTS if group["amsgrad"] else _MOMENTS[:2]
        for state, parameter in zip(states, parameters, strict=True):
            if state["exp_avg"].stride() != parameter.stride():
                _lay_out_as(parameter, state)
        moments = [[state[name] for state in states] for name in names]
        try:
            _C.masked_adam(
                parameters,
                grads,
                moments[0],
                moments[1],
                steps,
                masks=[self._masks.get(p) for p in parameters],
                max_exp_avg_sqs=moments[2] if group["amsgrad"] else None,
                lr=lr if isinstance(lr, Tensor) else float(lr),
                beta1=beta1,
                beta2=beta2,
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                decoupled_weight_decay=group["decoupled_weight_decay"],
                maximize=group["maximize"],
                stream=current_stream(parameters[0]),
            )
        except InputError:
            torch._foreach_sub_(steps, 1)  # a refused step was not taken
            raise
        tell_written([tensor for written in (parameters, *moments) for tensor in written])

    def _new_state(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Tensor]:
        names = _MOMENTS if group["amsgrad"] else _MOMENTS[:2]
        dtype = _state_dtype(parameter)
        state = self.state[parameter]
        device = parameter.device if group["capturable"] else torch.device("cpu")
        state["step"] = torch.zeros((), dtype=torch.float32, device=device)
        for name in names:
            state[name] = torch.zeros_like(parameter, dtype=dtype)
        return cast("dict[str, Tensor]", state)

    def state_dict(self) -> dict[str, Any]:
        """As torch's, and under ``"masks"`` the masks by the parameter's number."""
        document = super().state_dict()
        parameters = [p for group in self.param_groups for p in group["params"]]
        document["masks"] = {
            i: self._masks[p] for i, p in enumerate(parameters) if p in self._masks
        }
        return document

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore everything: the next steps give the bits that the saved run would have given.

        Masks go into the tensors this optimizer was given for them, so who shares those sees the
        restored ones. A state of `torch.optim.Adam` is taken as well; it leaves the masks as they
        are.

        Args:
            state_dict: from `state_dict` of this class or of `torch.optim.Adam`.
        """
        given: list[dict[str, Any]] = []
        last = self.register_load_state_dict_pre_hook(lambda _, found: given.append(found))
        try:
            super().load_state_dict(state_dict)
        finally:
            last.remove()
        (state_dict,) = given  # as the user's own hooks have left it
        parameters = [p for group in self.param_groups for p in group["params"]]
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        for parameter, number in zip(parameters, saved, strict=True):
            # torch casts a loaded state to the parameter's dtype; ours may be wider.
            for name, value in state_dict["state"].get(number, {}).items():
                if name in _MOMENTS:
                    self.state[parameter][name] = torch.empty_like(
                        parameter, dtype=_state_dtype(parameter)
                    ).copy_(value)
                elif name == "step":  # a number, or of torch's default dtype
                    step = torch.as_tensor(self.state[parameter][name])
                    self.state[parameter][name] = step.to(torch.float32)
        if "masks" not in state_dict:
            return
        masks = {}
        for i, mask in state_dict["masks"].items():
            parameter = parameters[int(i)]
            if parameter in self._masks:
                masks[parameter] = self._masks[parameter].copy_(mask)
            else:
                masks[parameter] = torch.empty_like(parameter, dtype=mask.dtype).copy_(mask)
        self._masks = masks

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_masks": self._masks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name in ("amsgrad", "maximize", "capturable", "decoupled_weight_decay"):
                group.setdefault(name, self.defaults[name])


class MaskedAdamW(MaskedAdam):
    """`torch.optim.AdamW` with masks: `MaskedAdam` with decoupled decay, 0.01 unless told.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> MaskedAdamW([w]).param_groups[0]["decoupled_weight_decay"]
        True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        masks: Mapping[Any, Tensor] | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
            masks=masks,
        )


def _state_dtype(parameter: Tensor) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def _lay_out_as(parameter: Tensor, state: dict[str, Tensor]) -> None:
    """Moments in their parameter's strides, which may have changed: `.to(memory_format=...)`."""
    for name in _MOMENTS:
        if name in state and not _same_layout(state[name], parameter):
            state[name] = torch.empty_like(parameter, dtype=state[name].dtype).copy_(state[name])


def _grad_like(parameter: Tensor) -> Tensor:
    """The gradient in its parameter's strides; autograd may choose others (after an expand)."""
    grad = cast(Tensor, parameter.grad)
    if grad.is_sparse:
        raise InputError("MaskedAdam: gradients must be dense, got a sparse one")
    if _same_layout(grad, parameter):
        return grad
    return torch.empty_like(parameter).copy_(grad)


def _same_layout(one: Tensor, other: Tensor) -> bool:
    """Same strides, but for dimensions of size 1, which have none that matter."""
    return one.stride() == other.stride() or all(
        size == 1 or a == b
        for size, a, b in zip(one.shape, one.stride(), other.stride(), strict=True)
    )


def _check_mask(parameter: Tensor, mask: Tensor) -> None:
    fits = (
        mask.dtype in (torch.bool, torch.uint8)
        and mask.shape == parameter.shape
        and mask.device == parameter.device
    )
    if not fits:
        raise InputError(
            f"MaskedAdam: a mask must be bool or uint8 {list(parameter.shape)} on "
            f"{parameter.device}, got {str(mask.dtype).removeprefix('torch.')} "
            f"{list(mask.shape)} on {mask.device}"
        )
    if not _same_layout(mask, parameter):
        raise InputError(
            f"MaskedAdam: a mask must have its parameter's strides {list(parameter.stride())}, got "
            f"{list(mask.stride())}; make it with torch.ones_like(parameter, dtype=torch.bool)"
        )


def _check_capture(group: dict[str, Any], states: list[dict[str, Tensor]]) -> None:
    """A CUDA graph takes numbers of the CPU as they are when it is captured, for all replays."""
    if not group["capturable"] or any(state["step"].device.type == "cpu" for state in states):
        raise InputError(
            "MaskedAdam: a CUDA graph would repeat one step count, which is on the CPU: give "
            "MaskedAdam(..., capturable=True), and the same to a state that it loads"
        )
    if isinstance(group["lr"], Tensor) and group["lr"].device.type == "cpu":
        raise InputError(
            "MaskedAdam: a CUDA graph would not see lr change, a tensor on cpu: "
            "put it on the parameters' device"
        )


def _check_group(group: dict[str, Any]) -> None:
    """The rules of the core, at construction instead of at the first step."""
    beta1, beta2 = group["betas"]
    lr = group["lr"]
    rules = (
        ("lr", isinstance(lr, Tensor) or lr >= 0, "at least 0", lr),
        ("betas[0]", 0 <= beta1 < 1, "at least 0 and less than 1", beta1),
        ("betas[1]", 0 <= beta2 < 1, "at least 0 and less than 1", beta2),
        ("eps", group["eps"] >= 0, "at least 0", group["eps"]),
        ("weight_decay", group["weight_decay"] >= 0, "at least 0", group["weight_decay"]),
    )
    for name, holds, rule, got in rules:
        if not holds:
            raise InputError(f"MaskedAdam: {name} must be {rule}, got {got}")
