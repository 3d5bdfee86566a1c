# SPDX-License-Identifier: Apache-2.0
"""Networks and folders as users have them: frozen, trained before, used before."""

import copy

import pytest
import torch
from tiny import tiny_task
from torch import nn

from gansparse.compress import TrainConfig, Trainer
from gansparse.compress.checkpointing import latest_checkpoint
from gansparse.errors import InputError


def config(recipe="b", **changes):
    return TrainConfig(recipe, **{"steps": 4, "recalibration": 0, **changes})


@pytest.mark.parametrize("frozen", ["generator", "discriminator"])
def test_a_network_frozen_as_a_whole_learns(task, frozen):
    """Teachers are handed over so."""
    getattr(task, frozen).requires_grad_(False)
    result = Trainer(task, config(ema=0)).run()
    before, after = getattr(task, frozen), getattr(result, frozen)
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    assert all(not torch.equal(x, y) for x, y in pairs)
    assert not any(p.requires_grad for p in before.parameters())


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_what_is_frozen_of_a_network_stays(task, network):
    first = next(getattr(task, network).parameters())
    first.requires_grad_(False)
    result = Trainer(task, config(sparsity=0.0)).run()
    got = list(getattr(result, network).parameters())
    assert torch.equal(got[0], first)
    assert not torch.equal(got[1], list(getattr(task, network).parameters())[1])


def test_results_lie_as_they_came(task):
    """Outside the trainer torch's gradients of norms are wrong in channels_last."""
    result = Trainer(task, config()).run()
    for network in (result.generator, result.discriminator):
        assert all(p.is_contiguous() for p in network.parameters())


def test_a_folder_with_checkpoints_takes_no_other_run(task, tmp_path):
    Trainer(task, config(save_every=2), out=tmp_path).run()
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    with pytest.raises(InputError, match=r"of another run; go on with it \(resume=True\), or"):
        Trainer(task, config(save_every=1), out=tmp_path).run()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == kept
    assert latest_checkpoint(tmp_path / "checkpoints").name == "step-000004"


def test_the_result_is_pruned_even_if_g_never_had_a_turn(task):
    task.g_every = 9
    result = Trainer(task, config(sparsity=0.75, scope="layer")).run()
    weights = [m.weight for m in result.generator.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [round(float((w == 0).float().mean()), 2) for w in weights] == [0.75] * len(weights)


class Noisy(nn.Module):
    """A generator with dropout, which draws random numbers when statistics are taken anew, too."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.dropout = inner, nn.Dropout(0.2)

    def forward(self, z):
        return self.inner(self.dropout(z))


def test_a_run_stopped_after_its_last_step_ends_with_the_same_bits(tmp_path):
    def noisy_task():
        task = tiny_task()
        task.generator = Noisy(task.generator)
        return task

    settings = config(recalibration=3, save_every=4)
    whole = Trainer(noisy_task(), settings, out=tmp_path).run()
    torch.manual_seed(99)
    again = Trainer(noisy_task(), settings, out=tmp_path, resume=True)
    assert again.step == 4
    values = again.run().generator.state_dict()
    for name, value in whole.generator.state_dict().items():
        assert torch.equal(value, values[name]), name


def test_what_minimises_nothing_is_refused(task):
    from gansparse.compress import Reading

    for reading in (Reading(output_term="none"), Reading(output_weight=0.0)):
        with pytest.raises(
            InputError, match="recipe g has nothing but the distance of the outputs"
        ):
            Trainer(task, config("g", reading=reading))


def test_a_task_whose_fakes_are_a_dict_is_scored_by_its_picture(task):
    plain, made = task.generate, copy.copy(task)
    made.generate = lambda g, batch: {"fake_x": plain(g, batch), "rec_x": plain(g, batch)}
    made.views = ()
    made.__post_init__()
    batch = task.evaluation(0)
    pictures = made.views[0].make(task.generator.eval(), batch)
    assert torch.equal(pictures, plain(task.generator, batch))
    made.generate = lambda g, batch: {"fake_x": plain(g, batch), "fake_y": plain(g, batch)}
    with pytest.raises(InputError, match="makes fake_x, fake_y: give it views"):
        made.views[0].make(task.generator, batch)
