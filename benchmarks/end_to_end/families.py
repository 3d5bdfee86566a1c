# SPDX-License-Identifier: Apache-2.0
"""Each GAN of the paper on real pictures: train it, compress it, compare all techniques.

    python benchmarks/end_to_end/families.py prepare stargan --data DATA --out runs/families
    python benchmarks/end_to_end/families.py baseline stargan --data DATA --out runs/families
    python benchmarks/end_to_end/families.py compress stargan --data DATA --out runs/families
    python benchmarks/end_to_end/families.py techniques stargan --data DATA --out runs/families
    python benchmarks/end_to_end/families.py warning stargan --data DATA --out runs/families
    python benchmarks/end_to_end/families.py report --out runs/families --to docs/families

DATA holds mnist, fashion_mnist, cifar10/cifar10_jpeg.zip, sr/{BSD68,Set5,Set14} and
weights/srgan_x4_netG.pth. What the families learn from them:

    dcgan     MNIST; the pair that comes with the package, unless a baseline was trained here
    pix2pix   grey to colour, all of CIFAR-10's classes
    cyclegan  horse and deer of CIFAR-10
    stargan   five garments of Fashion-MNIST
    srgan     BSD68, x4; G is the public one, so that the baseline is its discriminator

`compress` is technique b at 50 and 75 % element and 50 % filter, `techniques` all fifteen at 50 %
element, `warning` h, and m with 4, 2 and 1 bits, beside a. --techniques d h --patterns element:0.75
chooses others, and --name NAME gives them a folder of their own. `report` makes a Markdown page
with its figures of each of those that there are, and one of all their tables. A stopped command
goes on where it was. A baseline takes half an hour or so on two cores; with --device cuda it is a
larger network with more steps. A baseline of another seed (--seeds 1), where there is one, is the
yardstick of all comparisons.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from gansparse.cli.compare import entries_of, finish, run_entries
from gansparse.cli.options import choose_device, run_with_bar
from gansparse.compress import RECIPES, TrainConfig, Trainer, default_steps, load_task
from gansparse.compress.compare import Comparison, Entry, MakeExtractor, TaskSource
from gansparse.data import load_digits
from gansparse.errors import GansparseError, InputError
from gansparse.files import atomic_file, atomic_folder, read_json, save_tensors
from gansparse.metrics.features import lenet_extractor
from gansparse.metrics.train_lenet import accuracy, train_lenet
from gansparse.progress import ProgressBars
from gansparse.report import headline, metric_text, to_markdown, write_markdown

BITS = (4, 2, 1)
OURS = (("element", 0.5), ("element", 0.75), ("filter", 0.5))
KINDS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
GARMENTS = ("0", "2", "3", "4", "6")  # T-shirt, pullover, dress, coat, shirt
LENET_EPOCHS = 12


@dataclass(frozen=True)
class Profile:
    """A baseline on some machine: steps, options of new networks, pictures a step."""

    steps: int
    new: dict[str, Any]
    batch_size: int = 16


@dataclass(frozen=True)
class Family:
    """A GAN, and how it is trained, compressed and scored.

    Attributes:
        cpu: the baseline on two cores.
        gpu: the baseline on a GPU.
        options: of `load_task`, for the baseline and all that follows.
        settings: of every compression, as `TrainConfig.with_settings` takes them.
        extractor: of FID; "garments" is the LeNet-5 that `prepare` trains.
        num_samples: pictures that a generator is scored with, in each domain or direction.
        ema: decay of the average of the baseline's weights; 0: the trained weights are deployed.
        compress_steps: where a tenth of the original training is not known.
    """

    cpu: Profile
    gpu: Profile
    options: dict[str, Any]
    settings: tuple[str, ...] = ()
    extractor: str = "efficientnet-lite0"
    num_samples: int = 10_000
    ema: float = 0.0
    compress_steps: int | None = None


# G never has its turn. D's loss has no gradient where D is at chance or quite sure: at 1e-3, the
# original's rate, D never leaves chance, and at 1e-4 without decay it went back there at step 285.
ONLY_D = {"g_every": 2**62, "perceptual": "none", "lr": 1e-4, "lr_decay": "linear"}

FAMILIES = {
    "dcgan": Family(
        cpu=Profile(3_752, {"scratch": True, "lr_decay": "half", "r1": 0.05}, 64),
        gpu=Profile(18_740, {"scratch": True, "lr_decay": "half", "r1": 0.05}, 64),
        options={},
        extractor="lenet-mnist",
        ema=0.999,
    ),
    "pix2pix": Family(
        cpu=Profile(10_000, {"ngf": 64, "ndf": 64, "num_downs": 5}),
        gpu=Profile(20_000, {"ngf": 64, "ndf": 64, "num_downs": 5}),
        options={"load_size": 36, "crop_size": 32},
    ),
    "cyclegan": Family(
        cpu=Profile(6_000, {"ngf": 32, "ndf": 32, "num_blocks": 6}, 8),
        gpu=Profile(20_000, {"ngf": 64, "ndf": 64, "num_blocks": 6}, 8),
        options={"load_size": 36, "crop_size": 32},
    ),
    "stargan": Family(
        cpu=Profile(20_000, {"conv_dim": 32, "g_repeat_num": 4}),
        gpu=Profile(40_000, {"conv_dim": 64, "g_repeat_num": 6}),
        options={"image_size": 32, "attributes": GARMENTS},
        extractor="garments",
        num_samples=2_000,
    ),
    "srgan": Family(
        cpu=Profile(150, ONLY_D),
        gpu=Profile(150, ONLY_D),
        options={},
        settings=("g_norm=running", "scope=global", "lr_decay=cosine", "d_lr=1e-4"),
        compress_steps=150,
    ),
}


@dataclass(frozen=True)
class Workshop:
    """One family, where its pictures and results are, and how it is run."""

    name: str
    data: Path
    out: Path
    device: torch.device
    seed: int = 0
    precision: str = "bf16"
    steps: int | None = None

    @property
    def family(self) -> Family:
        return FAMILIES[self.name]

    @property
    def profile(self) -> Profile:
        return self.family.gpu if self.device.type == "cuda" else self.family.cpu

    @property
    def pictures(self) -> Path:
        """What `load_task` reads."""
        as_they_are = {"dcgan": "mnist", "stargan": "fashion_mnist"}
        if self.name in as_they_are:
            return needed(self.data / as_they_are[self.name])
        return self.out / "data" / self.name

    @property
    def trained(self) -> Path:
        """The baseline's folder."""
        return self.out / self.name / "baseline"

    @property
    def second(self) -> Path | None:
        """That of a baseline of another seed, if there is one whose G was trained here."""
        found = sorted(self.trained.parent.glob("baseline-seed*"))
        return None if self.public_generator else next(iter(found), None)

    @property
    def lenet(self) -> Path:
        return self.out / "data" / "lenet-fashion.safetensors"

    @property
    def public_generator(self) -> Path | None:
        """Weights of G that are not trained here."""
        if self.name != "srgan":
            return None
        return needed(self.data / "weights" / "srgan_x4_netG.pth")

    def extractor(self) -> MakeExtractor | str:
        """What scores the family's pictures.

        Digits' or photographs' features would say little of grey garments; those of a network that
        tells Fashion-MNIST's ten kinds apart fit.
        """
        if self.family.extractor == "garments":
            return functools.partial(lenet_extractor, needed(self.lenet))
        return self.family.extractor

    def source(self, **options: Any) -> TaskSource:
        """Makes the task of a seed, around the trained pair."""
        own = self.family.options | {"batch_size": self.profile.batch_size} | options
        if self.public_generator:
            own["generator"] = self.public_generator
            own["discriminator"] = self._files("discriminator")
        elif self.trained.exists() or self.name != "dcgan":  # dcgan's pair comes with the package
            own["generator"] = self._files("generator")
            own["discriminator"] = self._files("discriminator")
            own["trained_steps"] = read_json(self.trained / "config.json")["steps"]
        return functools.partial(load_task, self.name, needed(self.pictures), **own)

    def _files(self, network: str) -> list[Path]:
        """Weights of the baseline: for cyclegan a2b before b2a, a before b."""
        needed(self.trained / "config.json")
        return sorted(self.trained.glob(f"{network}*.safetensors"))


def needed(path: Path) -> Path:
    """The path, if there is something.

    Raises:
        InputError: there is nothing.
    """
    if not path.exists():
        raise InputError(
            f"{path} is not there: --help tells what --data holds and what comes first"
        )
    return path


def prepare(shop: Workshop, few: int | None) -> None:
    """Lays the pictures out as the loaders want them, unless they are there; trains the LeNet-5.

    Args:
        shop: of the family.
        few: most pictures of each class or set; None: as many as the family takes.
    """
    if shop.name == "stargan" and not shop.lenet.exists():
        train_extractor(shop, few)
    if shop.name in LAYOUTS and not shop.pictures.exists():
        with atomic_folder(shop.pictures) as folder:
            LAYOUTS[shop.name](shop.data, folder, few)
    print(f"{shop.name}: pictures in {shop.pictures}")


def grey_to_colour(data: Path, folder: Path, few: int | None) -> None:
    """Pix2Pix: {train,test}/*.png, A in grey and B in colour side by side."""
    for phase, count in (("train", 2_000), ("test", 200)):
        (folder / phase).mkdir()
        for number, picture in enumerate(cifar(data, phase, KINDS, few or count)):
            colour = Image.open(io.BytesIO(picture))
            pair = Image.new("RGB", (2 * colour.width, colour.height))
            pair.paste(colour.convert("L"), (0, 0))
            pair.paste(colour, (colour.width, 0))
            pair.save(folder / phase / f"{number:05}.png")


def horse_and_deer(data: Path, folder: Path, few: int | None) -> None:
    """CycleGAN: {train,test}{A,B}/*.jpg."""
    for phase in ("train", "test"):
        for side, kind in (("A", "horse"), ("B", "deer")):
            (folder / f"{phase}{side}").mkdir()
            for number, picture in enumerate(cifar(data, phase, [kind], few)):
                (folder / f"{phase}{side}" / f"{number:05}.jpg").write_bytes(picture)


def super_resolution(data: Path, folder: Path, few: int | None) -> None:
    """SRGAN: DIV2K's folders, with BSD68 to train on, Set5 and Set14 for FID."""
    for phase, sets in (("train", ["BSD68"]), ("valid", ["Set5", "Set14"])):
        place = folder / f"DIV2K_{phase}_HR"
        place.mkdir()
        for name in sets:
            for file in sorted(needed(data / "sr" / name).glob("*.png"))[:few]:
                shutil.copyfile(file, place / f"{name}-{file.name}")


LAYOUTS: dict[str, Callable[[Path, Path, int | None], None]] = {
    "pix2pix": grey_to_colour,
    "cyclegan": horse_and_deer,
    "srgan": super_resolution,
}


def cifar(data: Path, phase: str, kinds: Sequence[str], count: int | None) -> Iterator[bytes]:
    """The first JPEG files of each class."""
    with zipfile.ZipFile(needed(data / "cifar10" / "cifar10_jpeg.zip")) as archive:
        names = sorted(archive.namelist())
        for kind in kinds:
            chosen = [name for name in names if name.startswith(f"{phase}/{kind}/")]
            yield from map(archive.read, chosen[:count])


def train_extractor(shop: Workshop, few: int | None) -> None:
    """The LeNet-5 of Fashion-MNIST's ten kinds."""
    train, test = (load_digits(shop.pictures, split) for split in ("train", "test"))
    count = few and few * 10  # kinds
    train = replace(train, images=train.images[:count], labels=train.labels[:count])
    with ProgressBars() as bars:
        bars.start("LeNet-5 on Fashion-MNIST", LENET_EPOCHS)
        net = train_lenet(
            train, epochs=LENET_EPOCHS, on_epoch=lambda epoch, _: bars.advance(epoch + 1)
        )
    score = accuracy(net, test)
    save_tensors(shop.lenet, net.state_dict(), {"test_accuracy": f"{score:.4f}"})
    print(f"LeNet-5: {score:.2%} of Fashion-MNIST's test pictures named right")


def baseline(shop: Workshop) -> None:
    """The GAN's own training; for srgan that of a D for the public G."""
    profile, family = shop.profile, shop.family
    task = load_task(
        shop.name,
        needed(shop.pictures),
        generator=shop.public_generator,
        scoring=shop.public_generator is not None,  # and so needs no D
        seed=shop.seed,
        batch_size=profile.batch_size,
        **family.options | profile.new,
    )
    if shop.public_generator:
        task.train_further()
    config = TrainConfig(
        recipe="a",
        steps=shop.steps or profile.steps,
        sparsity=0.0,
        seed=shop.seed,
        precision=shop.precision,
        ema=family.ema,
        recalibration=200 if family.ema else 0,
    )
    out = shop.trained if shop.seed == 0 else shop.trained.with_name(f"baseline-seed{shop.seed}")
    trainer = Trainer(task, config, out=out, device=shop.device, resume=True)
    run_with_bar(trainer, f"{shop.name} on {task.data_name}", tensorboard=False)
    print(f"{shop.name}: baseline in {out}")


def as_trained(shop: Workshop, folder: Path, base: TrainConfig) -> Entry:
    """Technique a: the baseline's own run, curves and all, put where the comparison finds it.

    The pair that comes with the package has left no curves: then as many steps as the others have.

    Raises:
        InputError: G was trained by others.
    """
    if shop.public_generator:
        raise InputError(f"{shop.name}: technique a is not known of a generator made elsewhere")
    if not shop.trained.exists():
        return Entry(replace(base, recipe="a", sparsity=0.0), label="same steps")
    entry = Entry(TrainConfig.from_dict(read_json(shop.trained / "config.json")))
    if not (folder / entry.name).exists():
        with atomic_folder(folder / entry.name) as copy:
            shutil.copytree(shop.trained, copy, dirs_exist_ok=True)
    return entry


def comparison_of(
    shop: Workshop, name: str, bars: ProgressBars, num_samples: int | None = None
) -> Comparison:
    """A comparison around the family's trained pair, in a folder of that name."""
    options: dict[str, Any] = {}
    if shop.public_generator:
        sets = [needed(shop.data / "sr" / each) for each in ("Set5", "Set14")]
        options = {"test_sets": sets, "perceptual": "discriminator"}
    yardstick = None
    if shop.second is not None:
        files = sorted(shop.second.glob("generator*.safetensors"))
        own = shop.family.options
        second = load_task(shop.name, shop.pictures, generator=files, scoring=True, **own)
        yardstick = second.generator
    return Comparison(
        shop.source(**options),
        shop.extractor(),
        shop.out / shop.name / name,
        title=f"{shop.name} on real pictures: {name}",
        num_samples=num_samples or shop.family.num_samples,
        yardstick=yardstick,
        device=shop.device,
        watcher=bars.lane(0),
    )


def compare(shop: Workshop, given: argparse.Namespace) -> int:
    """Runs `compress`, `techniques` or `warning` and writes the report; the exit status."""
    family = shop.family
    with ProgressBars() as bars:
        comparison = comparison_of(shop, given.name or given.command, bars, given.num_samples)
        steps = shop.steps or family.compress_steps or default_steps(comparison.task(shop.seed))
        base = TrainConfig(steps=steps, precision=shop.precision)
        base = base.with_settings([*family.settings, *given.set])
        keys, patterns, bits = ["b"], OURS, ()
        if given.command != "compress":
            keys, patterns = list(RECIPES), OURS[:1]
        if given.command == "warning":
            keys, bits = ["a", "h", "m"], BITS
        keys, patterns = given.techniques or keys, given.patterns or patterns
        entries = [as_trained(shop, comparison.out, base)] if "a" in keys else []
        entries += entries_of(base, [k for k in keys if k != "a"], patterns, given.seeds, bits)
        run_entries(comparison, entries, bars, processes=given.processes, threads=given.threads)
    return finish(comparison.out)


def pattern(word: str) -> tuple[str, float]:
    """Of "filter:0.5"."""
    granularity, sparsity = word.split(":")
    return granularity, float(sparsity)


def report(out: Path, to: Path, sections: Sequence[str]) -> None:
    """A page of each comparison that there is, and one with all tables.

    Raises:
        InputError: there is none.
    """
    runs = [
        file.parent for family in FAMILIES for file in sorted(out.glob(f"{family}/*/report.json"))
    ]
    if not runs:
        raise InputError(f"{out} holds no comparison yet: --help tells what comes first")
    parts = ["# Every family on real pictures"]
    for run in runs:
        page = to / f"{run.parent.name}-{run.name}.md"
        found = write_markdown(run, page, sections)
        parts += [f"## [{found.title}]({page.name})", headline(found), to_markdown(found)]
        parts += [f"{metric_text(found)}. `{found.facts.get('command', '')}`"]
        print(page)
    with atomic_file(to / "README.md") as file:
        file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(to / "README.md")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = ("prepare", "baseline", "compress", "techniques", "warning", "report")
    parser.add_argument("command", choices=commands)
    parser.add_argument("family", choices=FAMILIES, nargs="?", help="not of report")
    parser.add_argument("--data", default=os.environ.get("GANSPARSE_DATA"), type=Path)
    parser.add_argument("--out", default=Path("runs/families"), type=Path)
    parser.add_argument("--to", default=Path("docs/families"), type=Path, help="report: folder")
    parser.add_argument("--sections", nargs="*", default=[], help="report: these; default: all")
    parser.add_argument("--few", type=int, help="prepare: most pictures of a class, for a try")
    parser.add_argument("--steps", type=int, help="default: the table's, or a tenth of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="baseline: the first")
    parser.add_argument("--set", nargs="*", default=[], help="NAME=VALUE of TrainConfig or Reading")
    parser.add_argument("--techniques", nargs="+", choices=RECIPES, help="default: the command's")
    parser.add_argument("--patterns", nargs="+", type=pattern, metavar="GRANULARITY:SPARSITY")
    parser.add_argument("--name", help="of the comparison's folder and page; default: the command")
    parser.add_argument("--num-samples", type=int, help="default: the family's")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="of each process; 0: all, shared")
    parser.add_argument("--processes", type=int, default=0, help="runs at a time")
    given = parser.parse_args()
    if given.command != "report" and (given.family is None or given.data is None):
        parser.error(f"{given.command} needs a family and --data (or GANSPARSE_DATA)")
    try:
        if given.command == "report":
            return report(given.out, given.to, given.sections)
        shop = Workshop(
            given.family,
            given.data,
            given.out,
            choose_device(given.device, given.threads),
            seed=given.seeds[0],
            precision=given.precision,
            steps=given.steps,
        )
        if given.command == "prepare":
            prepare(shop, given.few)
        elif given.command == "baseline":
            baseline(shop)
        else:
            sys.exit(compare(shop, given))
    except GansparseError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
