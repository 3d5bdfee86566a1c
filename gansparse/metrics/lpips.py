# SPDX-License-Identifier: Apache-2.0
"""LPIPS: distance of two pictures as a network trained on human judgement sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from gansparse.errors import InputError
from gansparse.metrics.metric import Mean, Metric
from gansparse.metrics.pictures import as_float, as_rgb

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class LearnedPerceptualImagePatchSimilarity(Metric):
    """Mean LPIPS of pictures and their targets, by the package `lpips` of its authors.

    Zhang et al., CVPR 2018. The package is the user's own (`pip install gansparse[lpips]`); it
    needs torchvision and, the first time, a network to fetch the trunk's weights.

    Args:
        net: "alex", "vgg" or "squeeze"; names the number where `distance` is given.
        distance: an `lpips.LPIPS` on its device, or any function of two batches [N, 3, H, W] in
            [-1, 1] that gives N distances; None: `lpips.LPIPS(net=net)` on the CPU.
        process_group: of torch.distributed; None: all ranks.
        sync_on_compute: False: this rank's own number.

    Raises:
        InputError: the package is missing, or can't load its network.

    Example:
        >>> def mean_gap(x, y):
        ...     return (x - y).abs().mean((1, 2, 3))
        >>> metric = LearnedPerceptualImagePatchSimilarity("mean gap", mean_gap)
        >>> metric.update(torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8))
        >>> metric.compute()
        1.0
    """

    states = ("mean",)

    def __init__(
        self,
        net: str = "alex",
        distance: Distance | None = None,
        *,
        process_group: dist.ProcessGroup | None = None,
        sync_on_compute: bool = True,
    ) -> None:
        self.net = net
        self.distance = _from_package(net) if distance is None else distance
        super().__init__(process_group=process_group, sync_on_compute=sync_on_compute)

    def _clear(self) -> None:
        self.mean = Mean()

    @torch.no_grad()
    def update(
        self,
        images: torch.Tensor,  # [N, 1 or 3, H, W], uint8, or float in [-1, 1]
        target: torch.Tensor,  # as `images`
    ) -> None:
        """Takes a batch in; floats are not rounded to 8 bits.

        Raises:
            InputError: shape or dtype breaks a rule, or the distance is NaN or infinite.
        """
        if images.shape != target.shape:
            raise InputError(
                f"lpips: target must have the pictures' shape {list(images.shape)}, "
                f"got {list(target.shape)}"
            )
        values = self.distance(as_rgb(as_float(images)), as_rgb(as_float(target))).flatten()
        if len(values) != len(images):
            raise InputError(
                f"lpips: the distance must give {len(images)} values, got {len(values)}"
            )
        if not bool(values.isfinite().all()):
            raise InputError("lpips: distances must be finite, got NaN or infinity: check pictures")
        values = self._bring(values)
        self.mean.update(values)

    def settings(self) -> dict[str, Any]:
        """The network's name."""
        return {"net": self.net}

    def _counts(self) -> dict[str, int]:
        return {"num_images": self.mean.count}

    def _compute(self) -> float:
        if self.mean.count == 0:
            raise InputError(f"{type(self).__name__}: needs at least 1 picture, got 0")
        return self.mean.value


def _from_package(net: str) -> Distance:
    try:
        import lpips
    except (ImportError, RuntimeError) as error:  # torchvision of another torch: RuntimeError
        raise InputError(
            f"lpips: the package can't be imported ({_line(error)}): pip install gansparse[lpips], "
            "or give a distance"
        ) from None
    try:
        network: Distance = lpips.LPIPS(net=net, verbose=False).requires_grad_(False)
    except Exception as error:
        raise InputError(
            f"lpips: the network {net!r} can't be loaded ({_line(error)}); it is alex, vgg or "
            "squeeze, and its weights are fetched the first time"
        ) from None
    return network


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
