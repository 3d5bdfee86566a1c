# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from gansparse.tasks.pool import ImagePool


def pictures(*values):
    """One-pixel pictures that show which they are."""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)


def numbers(tensor):
    return tensor.flatten().tolist()


def test_an_empty_pool_keeps_and_shows_what_comes():
    pool = ImagePool(4, seed=0)
    assert numbers(pool.exchange(pictures(1, 2, 3), 0)) == [1, 2, 3]
    assert numbers(pool.kept["fake"]) == [1, 2, 3]
    pool.exchange(pictures(4), 1)
    assert numbers(pool.kept["fake"]) == [1, 2, 3, 4]


def test_a_full_pool_swaps_half_of_them_and_loses_none_of_the_others():
    """Each picture is shown as it is, or kept in place of the older one that is shown."""
    pool, steps = ImagePool(5, seed=0), 2000
    pool.exchange(pictures(*range(5)), 0)
    swapped, places = 0, set()
    for step in range(1, steps + 1):
        new, before = 100.0 + step, numbers(pool.kept["fake"])
        (shown,) = numbers(pool.exchange(pictures(new), step))
        after = numbers(pool.kept["fake"])
        if shown == new:
            assert after == before
            continue
        swapped += 1
        place = before.index(shown)
        places.add(place)
        assert after == [*before[:place], new, *before[place + 1 :]]
    assert abs(swapped - steps / 2) < 5 * math.sqrt(steps) / 2, "five standard deviations"
    assert places == set(range(5))


def test_size_0_passes_everything_through():
    fake = pictures(1, 2)
    pool = ImagePool(0, seed=0)
    assert all(pool.exchange(fake, step) is fake for step in range(3))
    assert pool.state_dict() == {}


def test_of_a_dict_only_fakes_are_exchanged_each_kind_by_itself():
    pool = ImagePool(1, seed=0)
    pool.exchange({"fake_a": pictures(1), "fake_b": pictures(-1), "rec_a": pictures(9)}, 0)
    seen = {"fake_a": set(), "fake_b": set(), "rec_a": set()}
    for step in range(1, 30):
        fake = {"fake_a": pictures(step), "fake_b": pictures(-step), "rec_a": pictures(9)}
        for name, value in pool.exchange(fake, step).items():
            seen[name].update(numbers(value))
    assert set(pool.kept) == {"fake_a", "fake_b"}
    assert all(value > 0 for value in seen["fake_a"])
    assert all(value < 0 for value in seen["fake_b"])
    assert seen["rec_a"] == {9.0}


def test_choices_are_a_function_of_seed_and_step():
    def run(seed, steps, pool=None):
        pool = pool or ImagePool(3, seed)
        return [numbers(pool.exchange(pictures(2 * s, 2 * s + 1), s)) for s in steps], pool

    whole, _ = run(1, range(20))
    torch.manual_seed(99)
    begun, pool = run(1, range(9))
    later = ImagePool(3, 1)
    later.load_state_dict(pool.state_dict())
    rest, _ = run(1, range(9, 20), later)
    assert begun + rest == whole
    assert run(2, range(20))[0] != whole


def test_what_came_in_is_not_changed():
    pool, first = ImagePool(1, seed=0), pictures(1)
    state = None
    for step in range(20):
        new = first if step == 0 else pictures(10 + step)
        copy = new.clone()
        pool.exchange(new, step)
        assert torch.equal(new, copy)
        state = state or pool.state_dict()
    assert numbers(first) == [1]
    assert numbers(state["fake"]) == [1], "a state taken stays what it was"


@pytest.mark.cuda
def test_a_half_full_pool_resumes_on_the_device():
    """Checkpoints are read into the CPU's memory."""
    pool = ImagePool(4, seed=0)
    pool.load_state_dict({"fake": pictures(1, 2)})
    assert numbers(pool.exchange(pictures(3).cuda(), 1)) == [3]
    assert numbers(pool.kept["fake"]) == [1, 2, 3]
