# SPDX-License-Identifier: Apache-2.0
"""The table in code against the table in the paper (Yu & Pool 2020, Table 1)."""

import pytest

from gansparse.compress.recipes import RECIPES, get_recipe
from gansparse.errors import InputError

# key: generators, G init, D, D fixed, (L-Gc, L-Dc, L-Go, L-Do), FID; copied from the paper's table.
TABLE_1 = """
a dense        random dense,random      no  --yy 6.113
b dense+sparse dense  dense,pretrained  no  yyyy 6.929
c dense        random dense,random      no  --yy 72.821
d sparse       dense  dense,pretrained  no  yy-- 24.404
e sparse       dense  dense,random      no  yy-- 35.677
f sparse       random dense,random      no  yy-- 84.941
g dense+sparse dense  none              -   y-y- 45.461
h dense+sparse dense  dense,pretrained  no  yyy- 38.985
i dense+sparse dense  dense,pretrained  yes yy-- 15.182
j dense+sparse random dense,random      no  yyyy 92.721
k dense+sparse random dense,random      no  y-yy 103.094
l dense+sparse dense  dense,pretrained  yes ---- 194.026
m dense+sparse dense  sparse,pretrained no  yyy- 159.767
n dense+sparse dense  sparse,pretrained no  yyy- 46.453
o dense        random dense,pretrained  no  --yy -
"""


def as_line(recipe):
    kind, init, *fixed = [*recipe.d.split(", "), ""][:3] if recipe.has_d else ("none", "", "")
    d = f"{kind},{init}" if recipe.has_d else "none"
    learns = "-" if not recipe.has_d else "yes" if fixed == ["fixed"] else "no"
    losses = "".join("y" if name in recipe.losses else "-" for name in ("Gc", "Dc", "Go", "Do"))
    fid = "-" if recipe.published_fid is None else f"{recipe.published_fid:g}"
    generators = recipe.generators.replace(" ", "")
    return [recipe.key, generators, recipe.g_init, d, learns, losses, fid]


@pytest.mark.parametrize("line", TABLE_1.strip().splitlines())
def test_row_agrees_with_the_paper(line):
    expected = line.split()
    if expected[-1] != "-":
        expected[-1] = f"{float(expected[-1]):g}"
    assert as_line(RECIPES[expected[0]]) == expected


def test_the_table_is_complete():
    assert "".join(RECIPES) == "abcdefghijklmno"


def test_unknown_letter():
    with pytest.raises(InputError, match="a to o, got 'z'"):
        get_recipe("z")
