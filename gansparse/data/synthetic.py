# SPDX-License-Identifier: Apache-2.0
"""Drawn data sets, to try every task before one has data: a pure function of (kind, seed, number).

A town is drawn once as a plan (streets, blocks, houses, parks, a river) and shown in several
styles: as a street map, from the air in summer, from the air in winter. Faces and shapes carry the
labels of StarGAN's tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gansparse.data.labelled import CELEBA_ATTRIBUTES, CELEBA_LIST
from gansparse.errors import InputError
from gansparse.files import atomic_folder

Array = np.ndarray[Any, np.dtype[Any]]
Drawing = tuple[str, Array]  # path within the data set, uint8 [H, W, 3]
_FINER = 2  # drawn that much larger and averaged, so that edges are smooth
_LINES = 20  # streets in each direction, enough to cross the picture at any angle


# ---- A town --------------------------------------------------------------------------------------


def draw_town(
    size: int, *, seed: int, number: int, styles: tuple[str, ...] = ("summer", "map")
) -> list[Array]:  # each uint8 [size, size, 3]
    """One town in several styles, pixel on pixel.

    Args:
        size: pixels a side.
        seed: of the set.
        number: of the town within it.
        styles: of ``summer`` and ``winter`` (from the air) and ``map``.

    Example:
        >>> air, plan = draw_town(64, seed=0, number=3)
        >>> air.shape, bool((draw_town(64, seed=0, number=3)[1] == plan).all())
        ((64, 64, 3), True)
    """
    rng = np.random.default_rng((seed, number))
    plan = _plan(size * _FINER, rng)
    noise = np.random.default_rng((seed, number, 1))
    return [
        _reduced(_as_map(plan) if style == "map" else _from_the_air(plan, style, noise))
        for style in styles
    ]


def _plan(side: int, rng: np.random.Generator) -> dict[str, Array]:
    """What is where in a town: arrays [side, side] of distances, kinds and shades."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    angle, bend = rng.uniform(0, np.pi / 2), rng.uniform(0.01, 0.05)
    u = np.cos(angle) * x + np.sin(angle) * y + bend * np.sin(5 * y + rng.uniform(0, 6))
    v = -np.sin(angle) * x + np.cos(angle) * y + bend * np.sin(5 * x + rng.uniform(0, 6))
    # Streets are level lines of u and v; blocks lie between them.
    lines = [np.cumsum(rng.uniform(0.15, 0.27, _LINES)) - 1.4 for _ in "uv"]
    places = [
        np.searchsorted(line, w).clip(1, _LINES - 1) for line, w in zip(lines, (u, v), strict=True)
    ]
    low = [line[place - 1] for line, place in zip(lines, places, strict=True)]
    width = [line[place] for line, place in zip(lines, places, strict=True)]
    inside = [w - start for w, start in zip((u, v), low, strict=True)]  # from the block's corner
    width = [end - start for end, start in zip(width, low, strict=True)]
    edges = [np.minimum(a, w - a) for a, w in zip(inside, width, strict=True)]
    street = np.minimum(*edges)
    # An avenue and a river cross everything.
    bearing, offset = rng.uniform(0, np.pi), rng.uniform(-0.25, 0.25)
    across = np.cos(bearing) * (x - 0.5) + np.sin(bearing) * (y - 0.5) - offset
    along = -np.sin(bearing) * (x - 0.5) + np.cos(bearing) * (y - 0.5)
    avenue = np.abs(across + 0.05 * np.sin(3 * along + rng.uniform(0, 6)))
    river = np.abs(0.7 * along + 0.7 * across + 0.12 * np.sin(4 * across) - rng.uniform(-0.6, 0.6))
    # Each block is a park or is divided into lots with a house each.
    share = rng.uniform(size=(_LINES, _LINES))[places[0], places[1]]
    lots = rng.integers(2, 5, (2, _LINES, _LINES))[:, places[0], places[1]]
    lot, part = zip(
        *(np.divmod(a / w * n, 1.0) for a, w, n in zip(inside, width, lots, strict=True)),
        strict=True,
    )
    cell = tuple(i.astype(int).clip(0, 4) for i in lot)
    own = rng.uniform(size=(5, _LINES, _LINES, 5, 5))[:, places[0], places[1], cell[0], cell[1]]
    gaps = [0.12 + 0.2 * own[0], 0.12 + 0.2 * own[1]]
    walls = np.minimum(*(np.minimum(p - g, 1 - g - p) for p, g in zip(part, gaps, strict=True)))
    house = (walls > 0) & (street > 0.028) & (share > 0.22) & (own[2] > 0.12)
    return {
        "x": x,
        "y": y,
        "street": street < 0.014,
        "kerb": street < 0.02,
        "avenue": avenue,
        "water": river < 0.06,
        "bank": river < 0.075,
        "park": (share <= 0.22) & (street > 0.02),
        "house": house,
        "roof": own[3],
        "shade": 0.85 + 0.3 * own[4],
        "slope": 0.84 + 0.24 * (part[0] > 0.5),
    }


def _as_map(plan: dict[str, Array]) -> Array:
    picture = np.empty((*plan["x"].shape, 3))
    picture[:] = (240, 236, 228)
    for where, colour in (
        (plan["park"], (197, 230, 178)),
        (plan["house"], (216, 206, 198)),
        (plan["kerb"], (206, 204, 200)),
        (plan["street"], (255, 255, 255)),
        (plan["water"], (164, 206, 232)),
        (plan["avenue"] < 0.032, (214, 158, 74)),
        (plan["avenue"] < 0.026, (252, 214, 120)),
    ):
        picture[where] = colour
    return picture


_ROOFS = np.array([(158, 84, 66), (122, 72, 60), (128, 126, 124), (176, 170, 160), (96, 92, 94)])
_SEASONS = {  # ground, grass, trees, water
    "summer": ((150, 140, 112), (112, 138, 78), (52, 84, 44), (52, 84, 96)),
    "winter": ((216, 218, 224), (236, 238, 244), (122, 116, 112), (138, 158, 174)),
}


def _from_the_air(plan: dict[str, Array], season: str, rng: np.random.Generator) -> Array:
    ground, grass, leaves, water = (np.array(c, float) for c in _SEASONS[season])
    side = plan["x"].shape[0]
    coarse, fine = _noise(side, 12, rng), _noise(side, side // 6, rng)
    picture: Array = ground + (grass - ground) * (coarse > 0.4)[..., None]
    picture[plan["park"]] = grass
    picture += 26 * (fine - 0.5)[..., None]
    # Trees: many in parks, some between houses; lit from the upper left.
    crowns = _noise(side, side // 10, rng)
    trees = crowns > np.where(plan["park"], 0.48, 0.74)
    light = 90 * (crowns - np.roll(crowns, (3, 3), (0, 1)))
    picture[trees] = (leaves + 30 * (coarse - 0.5)[..., None] - light[..., None])[trees]
    # Houses throw a shadow to the lower right; a roof has a light and a dark side.
    picture[np.roll(plan["house"], (4, 4), (0, 1)) & ~plan["house"]] *= 0.5
    roofs = _ROOFS[(plan["roof"] * len(_ROOFS)).astype(int)] * plan["shade"][..., None]
    if season == "winter":
        roofs = 0.25 * roofs + 0.75 * np.array((232, 234, 240))
    picture[plan["house"]] = (roofs * plan["slope"][..., None])[plan["house"]]
    # Streets, water, the avenue with its middle line.
    picture[plan["kerb"]] = (150, 148, 144)
    picture[plan["street"]] = (98, 98, 102)
    picture[plan["bank"]] = 0.8 * ground
    waves = water + 14 * (coarse - 0.5)[..., None]
    picture[plan["water"]] = waves[plan["water"]]
    picture[plan["avenue"] < 0.03] = (112, 111, 112)
    picture[plan["avenue"] < 0.0025] = (214, 210, 196)
    return picture + rng.normal(0, 7, (side, side, 1))


def _noise(side: int, cells: int, rng: np.random.Generator) -> Array:  # [side, side], 0..1
    """Random values on a grid, smoothly in between."""
    grid = rng.uniform(size=(cells + 2, cells + 2))
    place = np.arange(side) * cells / side
    low = place.astype(int)
    t = place - low
    t = t * t * (3 - 2 * t)
    rows = grid[low] * (1 - t)[:, None] + grid[low + 1] * t[:, None]
    noise: Array = rows[:, low] * (1 - t) + rows[:, low + 1] * t
    return noise


def _reduced(picture: Array) -> Array:  # uint8 [H / 2, W / 2, 3]
    height, width = (n // _FINER for n in picture.shape[:2])
    means: Array = picture.reshape(height, _FINER, width, _FINER, 3).mean((1, 3))
    rounded: Array = means.clip(0, 255).round().astype(np.uint8)
    return rounded


# ---- Faces and shapes ----------------------------------------------------------------------------

_HAIR = {"Black_Hair": (34, 28, 30), "Blond_Hair": (226, 194, 116), "Brown_Hair": (112, 72, 44)}


def face_attributes(seed: int, number: int) -> tuple[bool, ...]:
    """Which of CELEBA_ATTRIBUTES a drawn face has: one colour of hair, and each of the others."""
    rng = np.random.default_rng((seed, number, 1))
    hair = list(_HAIR)[rng.integers(3)]
    return (*(hair == name for name in _HAIR), *(bool(x < 0.5) for x in rng.uniform(size=2)))


def draw_face(size: int, *, seed: int, number: int) -> Array:  # uint8 [1.22 size, size, 3]
    """A face with the attributes of `face_attributes`, in CelebA's proportions."""
    rng = np.random.default_rng((seed, number))
    *hair, male, young = face_attributes(seed, number)
    tint = np.array(list(_HAIR.values())[hair.index(True)])
    width, height = size * _FINER, round(size * 218 / 178) * _FINER
    x = (np.arange(width) + 0.5)[None] / width - 0.5 + rng.uniform(-0.04, 0.04)
    y = (np.arange(height) + 0.5)[:, None] / width - 0.62 + rng.uniform(-0.03, 0.03)
    skin = np.array((236, 196, 170)) * rng.uniform(0.62, 1.04)

    def oval(cx: float, cy: float, rx: float, ry: float) -> Array:
        return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1

    picture = np.empty((height, width, 3))
    picture[:] = rng.uniform(70, 230, 3)
    strands = 0.9 + 0.2 * _noise(height, 40, rng)[:, :width, None]
    colour = tint * strands
    mane = oval(0, -0.06, 0.27, 0.33) if male else oval(0, 0.04, 0.33, 0.46)
    mane = mane & (y < (0.02 if male else 0.36))
    face = oval(0, 0.02, 0.225 if male else 0.205, 0.29)
    fringe = face & (y < -0.17 + 0.3 * np.abs(x))
    for where, paint in (
        (oval(0, 0.7, 0.42, 0.32), rng.uniform(40, 220, 3)),  # shoulders
        (mane, colour),
        (oval(0, 0.3, 0.1, 0.2), 0.86 * skin),  # neck
        (face, skin),
        (fringe, colour),
        (oval(0, 0.08, 0.022, 0.07), 0.88 * skin),  # nose
        (oval(0, 0.18, 0.07, 0.02 if male else 0.03), (176, 84, 84)),
    ):
        picture[where] = np.broadcast_to(paint, picture.shape)[where]
    for side in (-0.09, 0.09):
        picture[oval(side, -0.03, 0.04, 0.02)] = (246, 246, 246)
        picture[oval(side, -0.03, 0.018, 0.018)] = (52, 44, 40)
        picture[oval(side, -0.09, 0.05, 0.014 if male else 0.008)] = 0.7 * tint
    if male:  # a beard's shadow
        beard = face & (y > 0.13) & ~oval(0, 0.18, 0.09, 0.035)
        picture[beard] = 0.6 * skin + 0.3 * tint
    if not young:  # wrinkles, and grey at the sides
        for line, start in ((-0.15, 0), (-0.125, 0), (0.0, 0.12), (0.02, 0.12)):
            lined = (np.abs(y - line) < 0.004) & (np.abs(x) > start)
            picture[lined & face & ~fringe] = 0.68 * skin
        grey = mane & ~face & (np.abs(x) > 0.17)
        picture[grey] = 0.5 * picture[grey] + 90
    return _reduced(picture + rng.normal(0, 5, (height, width, 1)))


SHAPE_CLASSES = {
    "blue": (52, 92, 196),
    "green": (64, 158, 78),
    "red": (204, 62, 54),
    "violet": (142, 74, 168),
    "yellow": (228, 196, 62),
}


def draw_shape(size: int, *, colour: str, seed: int, number: int) -> Array:  # uint8 [S, S, 3]
    """A disc, square or triangle of a class's colour on a grey, uneven ground."""
    rng = np.random.default_rng((seed, number))
    side = size * _FINER
    y, x = (np.mgrid[:side, :side] + 0.5) / side - 0.5 - rng.uniform(-0.15, 0.15, (2, 1, 1))
    angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.18, 0.32)
    corners = (0, 4, 3)[rng.integers(3)]
    turn = np.arctan2(y, x) - angle
    reach = np.hypot(x, y)
    if corners:  # distance to the nearest side of the polygon
        reach = reach * np.cos((turn % (2 * np.pi / corners)) - np.pi / corners)
    ground = rng.uniform(70, 200) + 60 * (_noise(side, 6, rng) - 0.5)
    shade = 0.8 + 0.35 * _noise(side, 4, rng)
    picture = np.repeat(ground[..., None], 3, -1)
    inside = reach < radius * (np.cos(np.pi / corners) if corners else 1)
    picture[inside] = (np.array(SHAPE_CLASSES[colour]) * shade[..., None])[inside]
    return _reduced(picture + rng.normal(0, 5, (side, side, 1)))


# ---- Sets in the folders of their tasks ----------------------------------------------------------


def _aligned(phase: str, numbers: range, size: int, seed: int) -> Iterator[Drawing]:
    for i in numbers:
        yield f"{phase}/{i:05}.png", np.hstack(draw_town(size, seed=seed, number=i))


def _unaligned(phase: str, numbers: range, size: int, seed: int) -> Iterator[Drawing]:
    for offset, (side, season) in enumerate((("A", "summer"), ("B", "winter"))):
        for i in numbers:  # other towns in A than in B
            (town,) = draw_town(size, seed=seed, number=2 * i + offset, styles=(season,))
            yield f"{phase}{side}/{i:05}.png", town


def _attributes(phase: str, numbers: range, size: int, seed: int) -> Iterator[Drawing]:
    for i in numbers:  # one list for both phases; see `write_synthetic`
        yield f"images/{i + 1:06}.png", draw_face(size, seed=seed, number=i)


def _classes(phase: str, numbers: range, size: int, seed: int) -> Iterator[Drawing]:
    for offset, colour in enumerate(SHAPE_CLASSES):
        for i in numbers:
            number = i * len(SHAPE_CLASSES) + offset
            shape = draw_shape(size, colour=colour, seed=seed, number=number)
            yield f"{phase}/{colour}/{i:05}.png", shape


def _high_resolution(phase: str, numbers: range, size: int, seed: int) -> Iterator[Drawing]:
    folder = "DIV2K_train_HR" if phase == "train" else "DIV2K_valid_HR"
    for i in numbers:
        yield f"{folder}/{i:04}.png", draw_town(size, seed=seed, number=i, styles=("summer",))[0]


# Kind of set -> what draws it: (phase, numbers, size, seed) -> pictures.
KINDS: dict[str, Callable[[str, range, int, int], Iterator[Drawing]]] = {
    "aligned": _aligned,
    "unaligned": _unaligned,
    "attributes": _attributes,
    "classes": _classes,
    "hr": _high_resolution,
}
_SIZES = {"attributes": 178, "classes": 128}
_DOMAINS = {"unaligned": 2, "classes": len(SHAPE_CLASSES)}  # pictures of each number


def write_synthetic(
    kind: str,
    out: str | Path,
    *,
    count: int = 100,
    size: int | None = None,
    seed: int = 0,
    on_picture: Callable[[int, int], None] | None = None,
) -> int:
    """Writes a drawn data set in the folder layout of its task; returns how many pictures.

    ========== ======== ========================================================================
    kind       task     what
    ========== ======== ========================================================================
    aligned    pix2pix  a town from the air (A) and its street map (B)
    unaligned  cyclegan towns from the air in summer (A), other ones in winter (B)
    attributes stargan  faces with CelebA's five attributes, and the list
    classes    stargan  shapes in five colours, a folder each
    hr         srgan    towns from the air, in DIV2K's folders
    ========== ======== ========================================================================

    Args:
        kind: one of KINDS.
        out: the folder to write; it must be empty or not there.
        count: pictures to train on, per domain or class; a fifth as many are for testing.
        size: pixels a side; default: 178 for faces, as CelebA's, 128 for shapes, 256 for towns.
        seed: picture i is a function of this and i.
        on_picture: called with the numbers of pictures done, and in all.

    Raises:
        InputError: an unknown kind, odd numbers, or a folder with something in it.
        OutputError: it could not be written; nothing half-written is left.
    """
    out = Path(out).resolve()
    if kind not in KINDS:
        raise InputError(f"no synthetic set {kind!r}; there are {', '.join(KINDS)}")
    size = _SIZES.get(kind, 256) if size is None else size
    if count < 1 or size < 16:
        raise InputError(f"count must be at least 1 and size 16, got {count} and {size}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already and not empty: choose another folder")
    phases = {"train": range(count), "test": range(count, count + max(1, count // 5))}
    total = sum(map(len, phases.values())) * _DOMAINS.get(kind, 1)
    done = 0
    with atomic_folder(out) as folder:
        for phase, numbers in phases.items():
            for path, pixels in KINDS[kind](phase, numbers, size, seed):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / path)
                done += 1
                if on_picture is not None:
                    on_picture(done, total)
        if kind == "attributes":
            lines = [str(done), " ".join(CELEBA_ATTRIBUTES)]
            for i in range(done):
                marks = ("1" if has else "-1" for has in face_attributes(seed, i))
                lines.append(f"{i + 1:06}.png {' '.join(marks)}")
            (folder / CELEBA_LIST).write_text("\n".join(lines) + "\n")
    return done
