# SPDX-License-Identifier: Apache-2.0
"""The fifteen ways to compress a GAN: Yu & Pool 2020, Table 1 (and its author response for o).

Lay this file beside the table: one row each, same columns. `trainer.py` reads the row; there is no
subclass per technique. What the paper leaves open of b is in `Reading`; the other rows are read so:

- *distillation* (g, h, i, k, n, m): the distance of the two generators' outputs, and where the row
  has a D the GAN's own generator loss beside it (the joint loss of Aguinaldo et al. 2019). D learns
  on G_C's pictures; in k, which has L-Do and no L-Dc, on G_O's.
- *imitation* (j): D learns to tell G_C's pictures from G_O's, which it takes for the real ones.
- *layers* (l): the outputs of all inner layers of G_C and G_O, layer by layer, and nothing else.
- *e-m* (m): weights of 2^bits levels in G_C and in D, fitted at every step (`quantize`).
- "sparse" D (n): pruned as G is, by the same schedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gansparse.errors import InputError

GObjective = Literal["adversarial", "self-supervised", "distillation", "imitation", "layers"]


@dataclass(frozen=True)
class Recipe:
    """One row of Table 1.

    Attributes:
        key: the paper's letter.
        technique: the paper's name.
        generators: which generators are used: ``dense``, ``sparse`` or ``dense + sparse``.
        g_init: where the generator to be deployed starts: ``dense`` (from G_O) or ``random``.
        d: the discriminator: ``dense`` or ``sparse``, ``pretrained`` or ``random``, and ``fixed``
            where it does not learn; or ``none``.
        losses: which of L-Gc, L-Dc (compressed path), L-Go, L-Do (original path) are used.
        schedule: ``none``, ``one-shot``, ``agp`` (Zhu & Gupta 2018), or ``e-m``, which is not
            pruning but quantization (Wang et al. 2019).
        objective: what the generator minimises. ``self-supervised`` is eq. 9, ``adversarial`` the
            GAN's own loss, ``distillation`` the distance of the two generators' outputs,
            ``imitation`` the GAN's own loss where D takes G_O's pictures for the real ones,
            ``layers`` the distance of the two generators' inner layers.
        published_fid: StarGAN, CelebA, 50 % element sparsity (Table 1).
        seen: what the paper saw in the pictures.
    """

    key: str
    technique: str
    generators: str
    g_init: str
    d: str
    losses: str
    schedule: str
    objective: GObjective
    published_fid: float | None
    seen: str

    @property
    def has_d(self) -> bool:
        """Whether there is a discriminator."""
        return self.d != "none"

    @property
    def d_learns(self) -> bool:
        """Whether the discriminator goes on learning."""
        return self.has_d and "fixed" not in self.d

    @property
    def prunes(self) -> bool:
        """Whether the deployed generator is pruned."""
        return self.schedule in ("one-shot", "agp")

    @property
    def smaller(self) -> bool:
        """Whether the deployed generator is a small dense network, of as many weights as are left."""
        return self.technique.startswith("small dense network")

    @property
    def quantizes(self) -> bool:
        """Whether the deployed generator's weights take few levels."""
        return self.schedule == "e-m"

    @property
    def compresses_d(self) -> bool:
        """Whether the discriminator is compressed as the generator is."""
        return "sparse" in self.d


# fmt: off
_ROWS = (
    #       technique                                generators        G init    D                             losses         schedule    objective          FID      seen
    Recipe("a", "no compression",                         "dense",          "random", "dense, random",              "Go Do",       "none",     "adversarial",     6.113,   "good"),
    Recipe("b", "self-supervised",                        "dense + sparse", "dense",  "dense, pretrained",          "Gc Dc Go Do", "agp",      "self-supervised", 6.929,   "good"),
    Recipe("c", "small dense network",                    "dense",          "random", "dense, random",              "Go Do",       "none",     "adversarial",     72.821,  "mode collapse"),
    Recipe("d", "one-shot pruning, fine-tuning",          "sparse",         "dense",  "dense, pretrained",          "Gc Dc",       "one-shot", "adversarial",     24.404,  "artifacts"),
    Recipe("e", "gradual pruning, fine-tuning",           "sparse",         "dense",  "dense, random",              "Gc Dc",       "agp",      "adversarial",     35.677,  "artifacts"),
    Recipe("f", "gradual pruning in first training",      "sparse",         "random", "dense, random",              "Gc Dc",       "agp",      "adversarial",     84.941,  "no faces"),
    Recipe("g", "one-shot pruning, distillation",         "dense + sparse", "dense",  "none",                       "Gc Go",       "one-shot", "distillation",    45.461,  "mode collapse"),
    Recipe("h", "gradual pruning with distillation",      "dense + sparse", "dense",  "dense, pretrained",          "Gc Dc Go",    "agp",      "distillation",    38.985,  "color artifacts"),
    Recipe("i", "gradual pruning, distillation, D fixed", "dense + sparse", "dense",  "dense, pretrained, fixed",   "Gc Dc",       "agp",      "distillation",    15.182,  "artifacts"),
    Recipe("j", "adversarial learning",                   "dense + sparse", "random", "dense, random",              "Gc Dc Go Do", "agp",      "imitation",       92.721,  "mode collapse"),
    Recipe("k", "knowledge distillation",                 "dense + sparse", "random", "dense, random",              "Gc Go Do",    "agp",      "distillation",    103.094, "mode collapse"),
    Recipe("l", "distillation of intermediate layers",    "dense + sparse", "dense",  "dense, pretrained, fixed",   "",            "agp",      "layers",          194.026, "no faces"),
    Recipe("m", "E-M quantization",                       "dense + sparse", "dense",  "sparse, pretrained",         "Gc Dc Go",    "e-m",      "distillation",    159.767, "color artifacts"),
    Recipe("n", "prune both G and D",                     "dense + sparse", "dense",  "sparse, pretrained",         "Gc Dc Go",    "agp",      "distillation",    46.453,  "mode collapse"),
    Recipe("o", "small dense network, trained D",         "dense",          "random", "dense, pretrained",          "Go Do",       "none",     "adversarial",     None,    "not published"),
)
# fmt: on

RECIPES: dict[str, Recipe] = {row.key: row for row in _ROWS}


def get_recipe(key: str) -> Recipe:
    """The row of a technique.

    Raises:
        InputError: no such letter.

    Example:
        >>> get_recipe("b").technique
        'self-supervised'
    """
    recipe = RECIPES.get(key)
    if recipe is None:
        raise InputError(f"recipe must be a letter of Table 1, a to o, got {key!r}")
    return recipe
