# SPDX-License-Identifier: Apache-2.0
"""Inception Score: how sure a classifier is of each picture, and how different the pictures are."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from gansparse.errors import InputError
from gansparse.metrics.features import Extractor, as_extractor
from gansparse.metrics.metric import Metric, Rows


class Scores(NamedTuple):
    """Over the splits.

    Attributes:
        mean: between 1 and the number of classes.
        std: population standard deviation.
    """

    mean: float
    std: float


class InceptionScore(Metric):
    """exp of the mean divergence KL(p(class | picture) ‖ p(class)), a mean over splits.

    Salimans et al., NeurIPS 2016. The pictures are put into an order drawn from NumPy's legacy
    generator, whose stream is frozen, as torch-fidelity does: given the same logits in the same
    order the numbers are the same; over ranks the order is that of the ranks. Logits are kept;
    probabilities are float64. With fewer pictures a split than classes the score can't reach the
    number of classes: quote N.

    Args:
        extractor: one whose network can tell classes, or its name.
        splits: parts of equal size, each scored by itself.
        seed: of the order; None: as they came.
        process_group: of torch.distributed; None: all ranks.
        sync_on_compute: False: this rank's own number.

    Example:
        >>> score = InceptionScore("lenet-mnist", splits=1)
        >>> score.update_logits(100 * torch.eye(10))
        >>> round(score.compute().mean, 6)
        10.0
    """

    states = ("logits",)

    def __init__(
        self,
        extractor: Extractor | str,
        *,
        splits: int = 10,
        seed: int | None = 2020,
        process_group: dist.ProcessGroup | None = None,
        sync_on_compute: bool = True,
    ) -> None:
        self.extractor = as_extractor(extractor)
        if splits < 1:
            raise InputError(f"InceptionScore: splits must be at least 1, got {splits}")
        self.splits, self.seed = splits, seed
        super().__init__(process_group=process_group, sync_on_compute=sync_on_compute)

    def _clear(self) -> None:
        self.logits = Rows(type(self).__name__)

    def update(
        self,
        images: torch.Tensor,  # [N, C, H, W], uint8, or float in [-1, 1]
    ) -> None:
        """Takes a batch of generated pictures in.

        Raises:
            InputError: the extractor tells no classes, or gives NaN or infinity.
        """
        if self.extractor.classify is None:
            raise InputError(f"InceptionScore: extractor {self.extractor.name} tells no classes")
        with torch.no_grad():
            self.update_logits(self.extractor.classify(images))

    def update_logits(
        self,
        logits: torch.Tensor,  # [N, K]
    ) -> None:
        """Takes class logits in.

        Raises:
            InputError: wrong shape or dtype, or a NaN or infinity; nothing has been taken in.
        """
        logits = self._bring(logits)
        self.logits.update(logits)

    def settings(self) -> dict[str, Any]:
        """The extractor's, and the splits."""
        return {"extractor": self.extractor.describe(), "splits": self.splits, "seed": self.seed}

    def _counts(self) -> dict[str, int]:
        return {"num_fake": self.logits.count}

    def _compute(self) -> Scores:
        total = self.logits.count
        if total < self.splits:
            raise InputError(
                f"InceptionScore: needs a picture for each of {self.splits} splits, got {total}"
            )
        logits = self.logits.all
        if self.seed is not None:
            logits = logits[np.random.RandomState(self.seed).permutation(total)]
        log_p = logits.double().log_softmax(1)  # [N, K]
        scores = []
        for i in range(self.splits):
            part = log_p[i * total // self.splits : (i + 1) * total // self.splits]
            log_q = part.logsumexp(0) - np.log(len(part))  # of the mean of p
            divergence = (part.exp() * (part - log_q)).sum(1).mean()
            scores.append(float(divergence.exp()))
        return Scores(float(np.mean(scores)), float(np.std(scores)))
