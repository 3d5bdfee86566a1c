# SPDX-License-Identifier: Apache-2.0
"""What every metric object can do, and how ranks of torch.distributed become one number.

A metric holds a few *states*, each of which can be merged with its like. All the rest follows from
that: a checkpoint is the states' tensors, and `compute` in torch.distributed is what one object
gives that took in every rank's states, in the order of the ranks. So every rank gets the number of
all pictures, however they were split, also where a rank had none.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
import torch.distributed as dist

from gansparse.errors import InputError
from gansparse.metrics.features import Extractor, Pictures, as_extractor
from gansparse.metrics.moments import FeatureMoments, checked_rows

M = TypeVar("M", bound="Metric")
S = TypeVar("S", "Rows", FeatureMoments)


class State(Protocol):
    """What a metric has seen: tensors that can be merged with those of its like."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All of it, as tensors."""

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes the place of the state whose tensors these are."""

    def merge(self, other: Any) -> None:
        """Takes in all that another of its kind has seen."""


class Rows:
    """Vectors kept as they came: 4 F bytes a picture in float32.

    Args:
        name: begins the message about a batch that is refused.
        width: F; None: that of the first batch.
    """

    def __init__(self, name: str, width: int | None = None) -> None:
        self.name = name
        self.width = width
        self._parts: list[torch.Tensor] = []  # each [N, F]

    def update(
        self,
        rows: torch.Tensor,  # [N, F], floating point
    ) -> None:
        """Takes a batch in.

        Raises:
            InputError: wrong shape or dtype, or a NaN or infinity; nothing has been taken in.
        """
        width = rows.shape[-1] if self.width is None and rows.dim() == 2 else self.width or 0
        rows = checked_rows(rows, width, f"{self.name}: the batch after row {self.count}")
        self.width = width
        if len(rows):
            self._parts.append(rows.clone())

    @property
    def count(self) -> int:
        """Rows seen."""
        return sum(map(len, self._parts))

    @property
    def all(self) -> torch.Tensor:
        """[N, F], in the order they came."""
        if not self._parts:
            return torch.empty(0, self.width or 0)
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts)]
        return self._parts[0]

    def merge(self, other: Rows) -> None:
        """Puts the other's rows behind these."""
        if other.count:
            self.update(other.all)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The rows as "rows" [N, F]."""
        return {"rows": self.all}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes the place of the rows whose `state_dict` this is."""
        self._parts = []
        if len(state["rows"]):
            self.update(state["rows"])


class Mean:
    """The mean of a number a picture, in float64."""

    def __init__(self) -> None:
        self.total = torch.zeros((), dtype=torch.float64)
        self.count = 0

    def update(
        self,
        values: torch.Tensor,  # [N], floating point
    ) -> None:
        """Takes a batch in."""
        self.total = self.total + values.detach().to(self.total.device, torch.float64).sum()
        self.count += len(values)

    @property
    def value(self) -> float:
        """The mean; needs one picture."""
        return float(self.total) / self.count

    def merge(self, other: Mean) -> None:
        """Takes in all that `other` has seen."""
        self.total = self.total + other.total.to(self.total.device)
        self.count += other.count

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Sum and number as "total" and "count"."""
        return {"total": self.total, "count": torch.tensor(self.count)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes the place of the mean whose `state_dict` this is."""
        self.total, self.count = state["total"].to(torch.float64), int(state["count"])


class Metric(ABC):
    """A number over pictures that arrive batch by batch, in torchmetrics' manner.

    A subclass names its states in `states`, makes them empty in `_clear`, takes pictures in by
    `update`, and says in `_compute` what they come to. It sets its own settings before it calls
    this constructor.

    Args:
        process_group: of torch.distributed, over which `compute` merges; None: all ranks.
        sync_on_compute: False: `compute` gives this rank's own number.

    Attributes:
        device: where the states are; None: that of the first features, which is then kept.
    """

    states: ClassVar[tuple[str, ...]]

    def __init__(
        self, *, process_group: dist.ProcessGroup | None = None, sync_on_compute: bool = True
    ) -> None:
        self.process_group = process_group
        self.sync_on_compute = sync_on_compute
        self.device: torch.device | None = None
        self._clear()

    @abstractmethod
    def _clear(self) -> None:
        """Makes every state empty."""

    @abstractmethod
    def _compute(self) -> Any:
        """The number of what is in the states."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the number depends on besides the pictures, as JSON values."""

    @abstractmethod
    def _counts(self) -> dict[str, int]:
        """How many pictures there were."""

    def compute(self) -> Any:
        """The number of all pictures so far: of all ranks, where torch.distributed runs.

        Every rank must call it. The states stay as they are.

        Raises:
            InputError: too few pictures for it, or the ranks' settings differ.
        """
        return self._synced()._compute()

    def result(self) -> dict[str, Any]:
        """The number with all that it depends on, as JSON values; like `compute`."""
        synced = self._synced()
        value = synced._compute()
        values = {"value": value} if isinstance(value, float) else value._asdict()
        return {"metric": type(self).__name__, **values, **synced._counts(), **self.settings()}

    def reset(self) -> None:
        """Forgets every picture."""
        self._clear()

    def merge_state(self, other: Metric | Mapping[str, torch.Tensor]) -> None:
        """Takes in what another metric of the same settings has seen, or its `state_dict`.

        Raises:
            InputError: it is of another kind, or has other settings.
        """
        if isinstance(other, Metric):
            if (type(other), other.settings()) != (type(self), self.settings()):
                raise InputError(
                    f"{type(self).__name__}: can't be merged with {type(other).__name__} of other "
                    f"settings: {self.settings()} here, {other.settings()} there"
                )
            other = other.state_dict()
        read = self._empty()
        read.load_state_dict(other)
        for name in self.states:
            getattr(self, name).merge(getattr(read, name))

    def to(self: M, device: str | torch.device) -> M:
        """Moves the states; features that come later are brought there, too."""
        self.device = torch.device(device)
        self.load_state_dict(self.state_dict())
        return self

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What was seen, as tensors; a later update may change them in place."""
        return {
            f"{name}.{key}": value
            for name in self.states
            for key, value in getattr(self, name).state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes the place of the metric whose `state_dict` this is.

        Raises:
            InputError: other keys or shapes; this metric is then as before.
        """
        read = self._empty()
        wanted = list(read.state_dict())
        if sorted(state) != sorted(wanted):
            raise InputError(
                f"{type(self).__name__}: its state has the keys {wanted}, got {list(state)}"
            )
        for name in self.states:
            length = len(name) + 1
            getattr(read, name).load_state_dict(
                {
                    key[length:]: value if self.device is None else value.to(self.device)
                    for key, value in state.items()
                    if key.startswith(f"{name}.")
                }
            )
        for name in self.states:
            setattr(self, name, getattr(read, name))

    def _empty(self: M) -> M:
        """Another with the same settings that has seen nothing."""
        other = copy.copy(self)
        other._clear()
        return other

    def _bring(self, features: torch.Tensor) -> torch.Tensor:
        """The features where the states are, which are where the first features were."""
        if self.device is None:
            self.to(features.device)
        return features.to(self.device)

    def _synced(self: M) -> M:
        """This metric, or in torch.distributed another with the states of all ranks."""
        if not (self.sync_on_compute and dist.is_available() and dist.is_initialized()):
            return self
        group = self.process_group
        if dist.get_world_size(group) < 2:
            return self
        told: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(told, (type(self).__name__, self.settings()), group=group)
        if any(one != told[0] for one in told):
            each = (
                f"{kind} {settings} on rank {rank}" for rank, (kind, settings) in enumerate(told)
            )
            raise InputError(
                f"{type(self).__name__}: every rank needs the same settings, got " + "; ".join(each)
            )
        # One rank after the other sends its states, so that a rank holds one set beside the merged
        # one, however many ranks there are.
        mine = {name: tensor.cpu() for name, tensor in self.state_dict().items()}
        merged = self._empty()
        for rank in range(len(told)):
            sent: list[Any] = [mine if rank == dist.get_rank(group) else None]
            source = rank if group is None else dist.get_global_rank(group, rank)
            dist.broadcast_object_list(sent, source, group=group)
            merged.merge_state(sent[0])
        return merged


class FeatureMetric(Metric, Generic[S]):
    """A metric of two sets of features: those of real pictures and those of generated ones.

    Args:
        extractor: pictures to features, its name, or a module: see `features.as_extractor`.
        reset_real_features: False: `reset` keeps what was seen of the real pictures.
        process_group: see `Metric`.
        sync_on_compute: see `Metric`.

    Attributes:
        real: what was seen of the real pictures.
        fake: what was seen of the generated ones.
    """

    states: ClassVar[tuple[str, ...]] = ("real", "fake")
    real: S
    fake: S

    def __init__(
        self,
        extractor: Extractor | str | Pictures,
        *,
        reset_real_features: bool = True,
        process_group: dist.ProcessGroup | None = None,
        sync_on_compute: bool = True,
    ) -> None:
        self.extractor = as_extractor(extractor)
        self.reset_real_features = reset_real_features
        super().__init__(process_group=process_group, sync_on_compute=sync_on_compute)

    def update(
        self,
        images: torch.Tensor,  # [N, C, H, W], uint8, or float in [-1, 1]
        real: bool,
    ) -> None:
        """Takes a batch of pictures in.

        Raises:
            InputError: the extractor can't take them, or gives NaN or infinity.
        """
        self.update_features(self.extractor(images), real)

    def update_features(
        self,
        features: torch.Tensor,  # [N, F]
        real: bool,
    ) -> None:
        """Takes features in, so that metrics over one extractor can share its forward pass.

        Raises:
            InputError: wrong shape or dtype, or a NaN or infinity; nothing has been taken in.
        """
        features = self._bring(features)
        (self.real if real else self.fake).update(features)

    def reset(self) -> None:
        """Forgets every picture, or only the generated ones: see `reset_real_features`."""
        real = self.real
        self._clear()
        if not self.reset_real_features:
            self.real = real

    def settings(self) -> dict[str, Any]:
        """The extractor's; a subclass adds its own."""
        return {"extractor": self.extractor.describe()}

    def _counts(self) -> dict[str, int]:
        return {"num_real": self.real.count, "num_fake": self.fake.count}

    def _require(self, count: int) -> None:
        """Refuses fewer pictures than that on either side."""
        for kind, seen in (("real", self.real.count), ("generated", self.fake.count)):
            if seen < count:
                raise InputError(
                    f"{type(self).__name__}: needs at least {count} {kind} pictures, got {seen}"
                )


class RowsMetric(FeatureMetric[Rows]):
    """A metric that keeps the features of both sets: 4 F bytes a picture."""

    def _clear(self) -> None:
        self.real, self.fake = (
            Rows(type(self).__name__, self.extractor.num_features) for _ in range(2)
        )
