# SPDX-License-Identifier: Apache-2.0
"""Mean and covariance of a set of pictures' features: taken, kept in pytorch-fid's .npz, compared.

A file holds `mu` [F] and `sigma` [F, F] as pytorch-fid, clean-fid and TTUR write them, so either
side reads the other's; ours holds `gansparse` beside them: JSON that tells what made the numbers.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from gansparse.errors import CheckpointError, InputError
from gansparse.files import atomic_file, load_tensors, save_tensors
from gansparse.metrics.features import Extractor
from gansparse.metrics.frechet import frechet_distance
from gansparse.metrics.moments import FeatureMoments

# What numpy and json raise on files that are not what they seem.
_UNREADABLE = (
    *(AttributeError, ValueError, TypeError, OSError),
    *(EOFError, zlib.error, zipfile.BadZipFile),
)


class PictureSet(Protocol):
    """Pictures in a fixed order: `data.folder.PictureFolder`, `metrics.generated`, or your own."""

    name: str

    def __len__(self) -> int: ...

    def fingerprint(self, count: int) -> str:
        """Changes when one of the first `count` pictures does; a resumed run asks."""

    def batches(
        self,
        batch_size: int,
        first: int = 0,
        prepare: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> Iterator[torch.Tensor]:  # each [N, C, H, W], or what `prepare` returns
        """The pictures from number `first` on."""


@dataclass(frozen=True)
class Statistics:
    """A Gaussian of features, and where it is from.

    Attributes:
        mean: [F] float64.
        cov: [F, F] float64.
        source: the folder, generator or file.
        extractor: `Extractor.describe()` of the network; None where a file doesn't say.
        count: pictures; None likewise.
    """

    mean: torch.Tensor
    cov: torch.Tensor
    source: str
    extractor: dict[str, Any] | None = None
    count: int | None = None

    def distance(self, other: Statistics) -> float:
        """Fréchet distance between the two.

        Raises:
            InputError: they were made with different extractors, modes, weights or sizes.
        """
        self.check_against(other.source, other.mean.shape[0], other.extractor)
        return frechet_distance(self.mean, self.cov, other.mean, other.cov)

    def check_against(
        self, other: str, num_features: int, extractor: Mapping[str, Any] | None
    ) -> None:
        """Whether a distance to such statistics would mean anything; asked before a long run.

        Args:
            other: what they are called in the message.
            num_features: their F.
            extractor: `Extractor.describe()` of theirs; None where it is not known.

        Raises:
            InputError: it would not.
        """
        pair = f"{self.source} and {other} can't be compared"
        if self.extractor is not None and extractor is not None:
            for key, value in self.extractor.items():
                if value != extractor.get(key):
                    raise InputError(
                        f"{pair}: extractor's {key} is {value!r} in the first, "
                        f"{extractor.get(key)!r} in the second"
                    )
        if self.mean.shape[0] != num_features:
            raise InputError(f"{pair}: {self.mean.shape[0]} features against {num_features}")

    def save(self, path: str | Path) -> None:
        """Write an .npz that pytorch-fid reads, whole or not at all.

        Raises:
            OutputError: it could not be written.
        """
        made = {"source": self.source, "extractor": self.extractor, "count": self.count}
        with atomic_file(Path(path)) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                mu=self.mean.cpu().numpy(),
                sigma=self.cov.cpu().numpy(),
                gansparse=np.array(json.dumps(made)),
            )


def load_statistics(path: str | Path) -> Statistics:
    """Statistics that `Statistics.save`, pytorch-fid, clean-fid or TTUR wrote. No pickle is read.

    Args:
        path: an .npz with float arrays mu [F] and sigma [F, F].

    Raises:
        InputError: missing, damaged, other arrays, other shapes, or values that are not finite.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "cats.npz"
        >>> Statistics(torch.zeros(2), torch.eye(2), "cats", count=9).save(path)
        >>> load_statistics(path).count
        9
    """
    mu, sigma, made = _read_npz(Path(path))
    if mu.ndim != 1 or sigma.shape != (mu.size, mu.size):
        raise InputError(
            f"{path}: mu must be [F] and sigma [F, F], got {list(mu.shape)} and {list(sigma.shape)}"
        )
    for name, array in (("mu", mu), ("sigma", sigma)):
        if array.dtype.kind != "f":
            raise InputError(f"{path}: {name} must be floating point, got {array.dtype}")
        if not np.isfinite(array).all():
            raise InputError(f"{path}: {name} holds NaN or infinity; take the statistics again")
    return Statistics(
        torch.from_numpy(mu.astype(np.float64)),
        torch.from_numpy(sigma.astype(np.float64)),
        str(path),
        made.get("extractor"),
        made.get("count"),
    )


def _read_npz(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Arrays mu and sigma, and the JSON beside them where there is one."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            made = json.loads(archive["gansparse"].item()) if "gansparse" in archive else {}
            extractor, count = made.get("extractor"), made.get("count")
            if not isinstance(extractor, dict | None) or not isinstance(count, int | None):
                raise ValueError("its entry gansparse is not one of ours")
            return archive["mu"], archive["sigma"], made
    except KeyError as error:
        raise InputError(f"{path}: needs arrays mu and sigma ({error.args[0]})") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except _UNREADABLE as error:
        raise InputError(f"{path}: not a whole .npz of statistics ({error})") from None


def check_enough(pictures: PictureSet) -> None:
    """Whether a covariance can be taken of them; asked before a long run.

    Raises:
        InputError: fewer than 2 pictures.
    """
    if len(pictures) < 2:
        raise InputError(
            f"{pictures.name}: a covariance needs at least 2 pictures, got {len(pictures)}"
        )


def statistics_of(
    pictures: PictureSet,
    extractor: Extractor,
    *,
    batch_size: int = 50,
    partial: Path | None = None,
    save_every: int = 5000,
    device: str | torch.device = "cpu",
    on_batch: Callable[[int], None] | None = None,
) -> Statistics:
    """Mean and covariance of the pictures' features, taken batch by batch in O(F²) memory.

    Args:
        pictures: at least 2 of them.
        extractor: the feature network.
        batch_size: pictures at a time.
        partial: file that keeps what is known so far; where it is there, the run goes on from it
            and ends with the bits of a run that nobody stopped.
        save_every: pictures between two writings of it, rounded up to whole batches. The sums are
            folded there with or without a file, so results depend on it by their rounding alone.
        device: of the extractor.
        on_batch: gets the number of pictures taken so far, first before any work.

    Raises:
        InputError: one picture only, unreadable pictures, features that are not finite, or a
            partial file of another run.
        CheckpointError: a damaged partial file.
        OutputError: the partial file could not be written.

    Example:
        >>> from gansparse.metrics.features import get_extractor
        >>> from gansparse.metrics.generated import GeneratedPictures
        >>> from gansparse.models import shipped
        >>> pictures = GeneratedPictures(shipped("dcgan_mnist_g.safetensors"), num=20)
        >>> statistics_of(pictures, get_extractor("lenet-mnist")).mean.shape
        torch.Size([120])
    """
    if batch_size < 1 or save_every < 1:
        raise InputError(
            f"batch_size and save_every must be at least 1, got {batch_size} and {save_every}"
        )
    check_enough(pictures)
    save_every = -(-save_every // batch_size) * batch_size
    run = {
        "extractor": extractor.describe(),
        "batch_size": batch_size,
        "save_every": save_every,
    }
    moments = FeatureMoments(extractor.num_features)
    if partial is not None and partial.exists():
        moments.load_state_dict(_resumed(partial, pictures, run, device))
    if on_batch is not None:
        on_batch(moments.count)
    for inputs in pictures.batches(batch_size, moments.count, extractor.prepare):
        try:
            moments.update(extractor.of_prepared(inputs))
        except InputError as error:
            last = moments.count + len(inputs)
            where = f"pictures {moments.count + 1} to {last} of {pictures.name}"
            raise InputError(f"{where}: {error}") from None
        if moments.count % save_every == 0 or moments.count == len(pictures):
            state = moments.state_dict()
            if partial is not None:
                run["fingerprint"] = pictures.fingerprint(moments.count)
                save_tensors(partial, state, {"run": json.dumps(run)})
        if on_batch is not None:
            on_batch(moments.count)
    return Statistics(
        moments.mean.cpu(),
        moments.cov.cpu(),
        pictures.name,
        extractor.describe(),
        moments.count,
    )


def _resumed(
    partial: Path, pictures: PictureSet, run: dict[str, Any], device: str | torch.device
) -> dict[str, torch.Tensor]:
    """The state that a partial file holds, if it is of this very run."""
    state, header = load_tensors(partial)
    try:
        before, count = json.loads(header["run"]), int(state["count"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{partial}: not partial statistics ({error}); remove it") from None
    now = run | {"fingerprint": pictures.fingerprint(count)}
    changed = [key for key in now if now[key] != before.get(key)]
    if count > len(pictures):
        changed = ["number of pictures"]
    if changed:
        raise InputError(
            f"{partial}: is of another run ({', '.join(changed)} differ); remove it to begin anew"
        )
    return {name: value.to(device) for name, value in state.items()}
