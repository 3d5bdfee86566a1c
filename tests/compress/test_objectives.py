# SPDX-License-Identifier: Apache-2.0
"""What technique b minimises, against eq. 3 to 9 written out by hand."""

import pytest
import torch
import torch.nn.functional as F

from gansparse.compress import RECIPES, Reading, TrainConfig
from gansparse.compress.objectives import Made, Objective


@pytest.mark.parametrize("reduction", ["batch", "sample"])
@pytest.mark.parametrize("lambda_", [0.5, 2.0])
def test_the_losses_of_b_are_the_papers_equations(task, reduction, lambda_):
    reading = Reading(reduction=reduction, output_weight=7.0, normaliser_floor=1e-6)
    config = TrainConfig(lambda_=lambda_, reading=reading)
    batch, d = task.batch(0), task.discriminator.eval()
    generator = task.generator.eval()
    with torch.no_grad():
        fake_o = generator(batch["z"])
        fake_c = generator(batch["z"]) * 0.5 - 0.1
        real, judged_o, judged_c = d(batch["real"]), d(fake_o), d(fake_c)
        found = Objective(task, RECIPES["b"], config, "fixed").g_losses(
            d, batch, Made(fake_o, fake_c)
        )

    def gap(of_o, of_c):
        if reduction == "batch":
            return abs(of_o.mean() - of_c.mean()) / abs(of_o.mean())
        return (of_o - of_c).abs().mean() / abs(of_o.mean())

    def l_dis(judged):
        return F.softplus(-real) + F.softplus(judged)

    l_gc = gap(F.softplus(-judged_o), F.softplus(-judged_c))
    l_dc = gap(l_dis(judged_o), l_dis(judged_c))
    assert float(l_gc) > 0 < float(l_dc)
    wanted = {
        "output": 7.0 * F.mse_loss(fake_c, fake_o),
        "L_GC": l_gc,
        "L_DC": lambda_ * l_dc,
        "gen": F.softplus(-judged_c).mean(),
    }
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, msg=name)
