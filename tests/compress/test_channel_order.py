# SPDX-License-Identifier: Apache-2.0
"""At granularity 2:4 the generator can start with its channels in the order that keeps most."""

import copy
from types import SimpleNamespace

import pytest
import torch
from tiny import in_two_parts_as_in_one
from torch import nn

from gansparse.compress import TrainConfig, Trainer, start
from gansparse.compress.start import first_batch, reorder_channels
from gansparse.errors import InputError


def config(**changes):
    settings = {"steps": 4, "sparsity": 0.5, "save_every": 0, "recalibration": 2}
    settings["order"] = "searched"
    return TrainConfig(granularity="2:4", **{**settings, **changes})


def weight(generator):
    return generator.main[3].weight


def outputs(generator, task):
    with torch.no_grad():
        return copy.deepcopy(generator).eval()(task.batch(0)["z"])


def kept(pruner):
    """Share of each layer's scores that 2:4 keeps."""
    before = [pruner._magnitude(x).double().sum() for x in pruner.layers]
    pruner.prune_to(0.5)
    after = [pruner._magnitude(x).double().clamp(min=0).sum() for x in pruner.layers]
    names = [x.name for x in pruner.layers]
    return {n: float(a / b) for n, a, b in zip(names, after, before, strict=True)}


@pytest.mark.parametrize("criterion", ["effect", "magnitude"])
def test_the_compressed_generator_starts_as_the_original(task, criterion):
    trainer = Trainer(task, config(criterion=criterion))
    assert not trainer.pruner.notes
    assert not torch.equal(weight(trainer.g_c), weight(task.generator))
    assert torch.equal(weight(trainer.g_c), weight(trainer.ema))
    # sums of 128 numbers in another order, through 3 layers
    error = 3 * 128 * torch.finfo(torch.float32).eps
    expected = outputs(task.generator, task)
    torch.testing.assert_close(outputs(trainer.g_c, task), expected, rtol=0, atol=error)
    plain = Trainer(task, config(criterion=criterion, order="given"))
    ours, theirs = kept(trainer.pruner), kept(plain.pruner)
    # It reads z, whose channels stay where they are.
    assert ours["main.0"] == pytest.approx(theirs["main.0"], rel=1e-12)
    assert all(ours[name] > theirs[name] for name in ("main.3", "main.6"))


@pytest.mark.parametrize(
    "changes",
    [{}, {"order": "searched", "recipe": "l"}, {"order": "searched", "granularity": "element"}],
)
def test_without_a_search_weights_stay_where_they_are(task, changes):
    given = {"steps": 4, "granularity": "2:4", "sparsity": 0.5, **changes}
    trainer = Trainer(task, TrainConfig(**given))
    assert torch.equal(weight(trainer.g_c), weight(task.generator))
    with pytest.raises(InputError, match="order must be one of given, searched, got 'odd'"):
        config(order="odd")


def test_a_run_in_two_parts_ends_as_one_in_one(tmp_path):
    whole = in_two_parts_as_in_one(config(), 2, tmp_path)
    fours = weight(whole.generator).unflatten(0, (-1, 4))  # transposed: inputs first
    assert ((fours != 0).sum(1) == 2).all()


def test_a_search_that_is_cut_short_says_so(task):
    settings = config().with_settings(["order_seconds=0"])
    trainer = Trainer(task, settings)
    assert torch.equal(weight(trainer.g_c), weight(task.generator))
    (note,) = trainer.pruner.notes
    assert "order_seconds=0 ended the search" in note
    assert "the same seed may give another run" in note
    with pytest.raises(InputError, match="0 <= order_seconds <= inf, got -1"):
        config().with_settings(["order_seconds=-1"])


def test_all_searches_share_the_time(task, monkeypatch):
    clock, limits = iter([100.0, 130.0, 170.0]), []

    def search(module, *inputs, time_limit, **rest):
        limits.append(time_limit)
        return SimpleNamespace(rows=())

    monkeypatch.setattr(start, "permute_channels", search)
    monkeypatch.setattr(start, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    both = nn.ModuleDict({name: nn.Sequential(nn.Conv2d(3, 3, 1)) for name in ("one", "other")})
    x = torch.randn(2, 3, 4, 4)
    task.generate = lambda g, batch: [part(x) for part in g.values()]
    assert reorder_channels(both, config(criterion="magnitude"), task, {}) == ""
    assert limits == [30.0, 0.0]


def test_a_run_in_two_parts_keeps_the_order_of_its_first(tmp_path, monkeypatch):
    """And what was measured of it, where the search is cut short in the first one only."""
    searches, notes = [], []
    permute, beginning = start.permute_channels, start.Beginning.load_state_dict

    def search(*args, time_limit, **rest):
        searches.append(args)
        return permute(*args, time_limit=0.0 if len(searches) < 3 else time_limit, **rest)

    def load(self, state):
        notes.append(list(self.pruner.notes))
        beginning(self, state)
        notes.append(list(self.pruner.notes))

    monkeypatch.setattr(start, "permute_channels", search)
    monkeypatch.setattr(start.Beginning, "load_state_dict", load)
    in_two_parts_as_in_one(config(lr=1e-2), 2, tmp_path)
    assert len(searches) == 3
    assert not notes[0]
    assert "ended the search" in notes[1][0]


def test_a_generator_that_cannot_be_traced_keeps_its_order_and_says_so(task):
    class Branches(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, z):
            return self.inner(z if z.sum() > -1e9 else -z)

    before = weight(task.generator).detach().clone()
    task.generator = Branches(copy.deepcopy(task.generator))
    trainer = Trainer(task, config())
    assert any("Branches can't be traced" in note for note in trainer.pruner.notes)
    assert torch.equal(weight(trainer.g_c.inner), before)


def test_each_of_two_generators_has_an_order_of_its_own():
    """As CycleGAN's; and only layers that are pruned count."""

    def net():
        return nn.Sequential(nn.Conv2d(3, 16, 1), nn.Tanh(), nn.Conv2d(16, 3, 1))

    torch.manual_seed(0)
    both = nn.ModuleDict({"one": net(), "other": net(), "third": net()})
    start = copy.deepcopy(both.state_dict())
    x = torch.randn(2, 3, 4, 4)
    task = SimpleNamespace(
        batch=lambda step: {"x": x}, generate=lambda g, b: [part(b["x"]) for part in g.values()]
    )
    before = task.generate(both, {"x": x})
    batch = first_batch(both, task)
    assert reorder_channels(both, config(exclude=("third.2",)), task, batch) == ""
    torch.testing.assert_close(task.generate(both, {"x": x}), before, rtol=0, atol=1e-5)
    moved = {k for k, value in both.state_dict().items() if not torch.equal(value, start[k])}
    assert moved == {
        f"{n}.{key}" for n in ("one", "other") for key in ("0.weight", "0.bias", "2.weight")
    }
    assert not torch.equal(both["one"][0].bias, both["other"][0].bias)
