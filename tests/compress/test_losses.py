# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from gansparse.compress.losses import (
    References,
    consistency,
    feature_distance,
    output_distance,
    relative_gap,
)
from gansparse.errors import InputError
from gansparse.tasks.gan import GANTask


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_batch_gap_is_equation_3():
    loss_o, loss_c = double(1.0, 2.0, 6.0), double(2.0, 4.0, 9.0)
    expected = abs(loss_o.mean() - loss_c.mean()) / abs(loss_o.mean())
    assert relative_gap(loss_o, loss_c, "batch") == expected


def test_sample_gap_sees_what_the_batch_mean_hides():
    loss_o, loss_c = double(1.0, 3.0), double(3.0, 1.0)
    assert relative_gap(loss_o, loss_c, "batch") == 0
    assert relative_gap(loss_o, loss_c, "sample") == 1


@pytest.mark.parametrize("reduction", ["batch", "sample"])
def test_negative_losses_are_normalised_by_magnitude(reduction):
    assert relative_gap(double(-2.0), double(-3.0), reduction) == 0.5


@pytest.mark.parametrize("value", [0.0, 1e-30, -1e-30])
def test_guard_bounds_the_ratio_where_the_normaliser_vanishes(value):
    gap = relative_gap(double(value), double(0.01), floor=0.5)
    assert gap <= 0.02 * (1 + 1e-12)
    assert torch.isfinite(relative_gap(double(value), double(0.01)))


def test_guard_does_nothing_above_its_floor():
    assert relative_gap(double(0.5), double(0.0), "batch", 0.5) == 1


def test_a_guard_is_a_share_of_the_terms_size_at_the_first_step():
    references = References()
    first = {"gen": double(-300.0, 100.0), "rec": double(0.04)}
    assert references.floors(first, 0.25) == {"gen": 50.0, "rec": pytest.approx(0.01)}
    later = {"gen": double(1.0), "rec": double(8.0), "cla": double(0.0)}
    floors = references.floors(later, 0.25)
    assert (floors["gen"], floors["rec"]) == (50.0, pytest.approx(0.01))
    assert 0 < floors["cla"] < 1e-6  # a term that was zero: no division by it
    resumed = References()
    resumed.load_state_dict(references.state_dict())
    assert resumed.floors(later, 0.25) == floors


def test_no_gradient_flows_through_the_normaliser():
    loss_o = double(2.0).requires_grad_()
    relative_gap(loss_o, double(3.0), "batch").backward()
    # d/dl_O of |l_O - l_C| / const; a gradient through the normaliser would add -|gap| / l_O^2.
    assert loss_o.grad == -0.5


def test_gradient_of_the_gap_against_finite_differences():
    loss_o, loss_c = double(1.0, 2.0), double(1.5, 1.0).requires_grad_()
    for reduction in ("batch", "sample"):
        assert torch.autograd.gradcheck(lambda c, r=reduction: relative_gap(loss_o, c, r), loss_c)


def weighted_task(**weights) -> GANTask:
    nothing = torch.nn.Identity()
    return GANTask(
        name="test",
        generator=nothing,
        discriminator=nothing,
        batch=lambda step: {},
        evaluation=lambda index: {},
        pictures=torch.zeros(1),
        generate=lambda module, batch: batch["z"],
        generator_terms=lambda judged, fake, batch: {},
        discriminator_terms=lambda real, fake, batch: {},
        weights=weights,
    )


def test_consistency_weighs_each_term_as_the_gan_does():
    task = weighted_task(cla=2.0, rec=10.0)
    terms_o = {"gen": double(1.0), "cla": double(2.0), "rec": double(4.0)}
    terms_c = {"gen": double(1.5), "cla": double(3.0), "rec": double(5.0)}
    expected = 0.5 + 2.0 * 0.5 + 10.0 * 0.25
    assert consistency(task, terms_o, terms_c, "batch", dict.fromkeys(terms_o, 1e-8)) == expected


def test_a_weight_for_an_unknown_term_is_refused():
    with pytest.raises(InputError, match="unknown term 'recon'"):
        weighted_task(recon=1.0)


def test_output_distances():
    fake_o, fake_c = torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 3.0)
    assert output_distance(fake_o, fake_c, "mse") == 9
    assert output_distance(fake_o, fake_c, "l1") == 3
    pair_o, pair_c = {"fake_a": fake_o, "fake_b": fake_o}, {"fake_a": fake_c, "fake_b": fake_o}
    assert output_distance(pair_o | {"rec_a": fake_o}, pair_c | {"rec_a": fake_c}, "mse") == 4.5


def test_feature_distance_is_relative_to_each_layer():
    features_o = [torch.full((2, 3), 10.0), torch.full((2, 5), 0.1)]
    features_c = [torch.full((2, 3), 15.0), torch.full((2, 5), 0.1)]
    torch.testing.assert_close(feature_distance(features_o, features_c), torch.tensor(0.25))
