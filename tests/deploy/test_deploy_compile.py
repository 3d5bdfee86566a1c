# SPDX-License-Identifier: Apache-2.0
"""`gansparse.deploy.compile`: same outputs whatever runs, and never slower."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import threading

import networks
import pytest
import torch
from networks import TOLERANCE, assert_same, conv, convolutions, picture, seeded
from small_generators import GENERATORS, generator, without_dropout
from torch import nn

from gansparse import deploy
from gansparse.deploy import measure, memory
from gansparse.errors import InputError
from gansparse.sparsity import Pruner, shrink

real_interleaved = measure.interleaved


def pruned(name, granularity="element", sparsity=0.6):
    network = without_dropout(generator(name))
    Pruner(network, sparsity, granularity, vector_size=4).prune_to(sparsity)
    return network


@pytest.mark.parametrize("name", GENERATORS)
def test_families_on_sparse_kernels(name):
    network, (_, example, other) = pruned(name), GENERATORS[name]
    compiled = deploy.compile(network, example())
    chosen = set(convolutions(compiled).values())
    if name == "dcgan-28":  # the last crops by more than its kernel's size, and can't be packed
        chosen.remove("torch")
    assert chosen == {"sparse"}
    assert_same(compiled, network, *example())
    assert_same(compiled, network, *other())


@pytest.mark.parametrize(
    "fast", ["torch", "torch channels_last", "onednn", "sparse vector", "winograd"]
)
@pytest.mark.parametrize("name", ["stargan", "srgan", "unet-not-live"])
def test_families_on_every_kernel(timer, name, fast):
    timer.fast = fast
    network, (_, example, other) = pruned(name, "vector"), GENERATORS[name]
    compiled = deploy.compile(network, example())
    assert any(kernel.startswith(fast) for kernel in convolutions(compiled).values())
    assert_same(compiled, network, *example())
    assert_same(compiled, network, *other())


@pytest.mark.parametrize("name", ["dcgan", "stargan", "srgan", "cyclegan-batch", "unet-not-live"])
def test_families_are_shrunk_first(name):
    network, (_, example, other) = pruned(name, "filter", 0.5), GENERATORS[name]
    compiled = deploy.compile(network, example())
    assert compiled.shrunk is not None
    assert "shrunk" in str(compiled.explain())
    assert_same(compiled, network, *example())
    assert_same(compiled, network, *other())
    assert deploy.compile(network, example(), shrink=False).shrunk is None


def test_where_the_shrunk_one_is_not_faster_the_whole_one_is_tried(timer):
    timer.before = 0.5
    network, x = pruned("srgan", "filter", 0.5), GENERATORS["srgan"][1]()
    compiled = deploy.compile(network, x)
    assert compiled.shrunk is None
    assert "not shrunk: the plan is not faster" in str(compiled.explain())
    assert sum("before" in names for names in timer.asked) == 4  # both, in two layouts
    assert torch.equal(compiled(*x), network(*x))


def test_a_shrunk_generator_is_compiled():
    network, x = pruned("srgan", "filter", 0.5), GENERATORS["srgan"][1]()
    small = shrink(network, *x)
    assert_same(deploy.compile(small, x), small, *x)


def test_live_dropout_draws_the_same_numbers():
    network, x = generator("unet"), GENERATORS["unet"][1]()
    compiled = deploy.compile(network, x)
    assert compiled.explain().verdict == "runs as planned"
    assert_same(compiled, network.eval(), *x)
    assert not torch.equal(compiled(*x), compiled(*x))


@pytest.mark.parametrize(
    "kind", ["TwoReaders", "TwoReadersOfASum", "InPlace", "WrittenBetween", "Shared", "Functional"]
)
def test_networks_of_a_users_own(kind):
    network = seeded(getattr(networks, kind)())
    compiled = deploy.compile(network, picture())
    assert compiled.explain().verdict == "runs as planned"
    for shape in ((2, 3, 8, 10), (1, 3, 8, 10), (3, 3, 12, 6)):
        assert_same(compiled, network, picture(*shape))


def test_never_slower(timer):
    timer.before = 0.5
    network = seeded(nn.Sequential(conv(), nn.ReLU()))
    compiled = deploy.compile(network, picture())
    assert compiled.explain().verdict == "runs as it was: the plan is not faster"
    assert torch.equal(compiled(picture()), network(picture()))
    assert torch.equal(compiled(picture(1, 3, 5, 5)), network(picture(1, 3, 5, 5)))


@pytest.mark.parametrize("given", ["NCHW", "channels_last"])
@pytest.mark.parametrize("won", ["NCHW", "channels_last"])
def test_never_slower_in_either_layout(timer, monkeypatch, given, won):
    """Where the plan loses on pictures in one of torch's layouts, those run as they were."""
    ran = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = conv()

        def forward(self, x):
            ran.append("NCHW" if x.is_contiguous() else "channels_last")
            return self.layer(x)

    def wins_in_one(runs, *args, **options):
        if "before" not in runs:
            return timer(runs, *args, **options)
        ran.clear()
        runs["before"]()
        runs["after"]()
        return {"before": 2.0 if ran == [won] else 0.5, "after": 1.0}

    last = picture().contiguous(memory_format=torch.channels_last)
    pictures, network = {"NCHW": picture(), "channels_last": last}, seeded(Watched())
    compiled = deploy.compile(network, pictures[given])
    assert compiled.explain().verdict == "runs as planned"
    monkeypatch.setattr(measure, "interleaved", wins_in_one)
    compiled = deploy.compile(network, pictures[given])
    explained = compiled.explain()
    assert explained.verdict == f"runs as it was, but as planned on pictures in {won}"
    assert explained.before == (2.0 if won == given else 0.5)
    for each in (compiled, copy.deepcopy(compiled)):
        each(picture())  # the copy makes its plan now
        for layout, x in pictures.items():
            ran.clear()
            assert_same(each, network, x)
            assert ran == [layout] * (1 if layout == won else 2)


def test_what_wants_channels_last_gets_it():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = conv()

        def forward(self, x):
            return self.layer(x), x.permute(0, 2, 3, 1).view(-1, 3)

    network, x = seeded(Rows()), picture().contiguous(memory_format=torch.channels_last)
    compiled = deploy.compile(network, x)
    for got, want in zip(compiled(x), network(x), strict=True):
        assert torch.equal(got, want)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        compiled(picture())  # as the network itself


def test_a_kernel_that_deviates_is_refused(monkeypatch):
    from gansparse.deploy.steps import Sparse

    right = Sparse.forward
    monkeypatch.setattr(Sparse, "forward", lambda *args: right(*args) + 0.01)
    network = seeded(nn.Sequential(conv(), nn.ReLU()))
    compiled = deploy.compile(network, picture())
    (row,) = compiled.explain().rows
    assert row.kernel != "sparse"
    assert "not sparse: differs from torch by 0.01" in row.why
    assert_same(compiled, network, picture())


def test_a_plan_that_deviates_is_refused(monkeypatch):
    from gansparse.deploy.steps import Norm

    right = Norm.forward
    monkeypatch.setattr(Norm, "forward", lambda *args: right(*args) * 1.01)
    network = seeded(nn.Sequential(conv(), nn.InstanceNorm2d(3)))
    compiled = deploy.compile(network, picture())
    assert "the plan's output differs by" in compiled.explain().verdict
    assert torch.equal(compiled(picture()), network(picture()))


def test_the_kernel_for_few_zeros_is_one_candidate(timer):
    timer.fast = "sparse vector-16"
    for zeros, expected in ((0.5, "sparse vector-16"), (0.75, "torch")):
        network = seeded(nn.Sequential(conv(16, 32)), zeros=zeros)
        compiled = deploy.compile(network, picture(1, 16, 4, 4))
        assert convolutions(compiled) == {"0": expected}
        assert_same(compiled, network, picture(1, 16, 4, 4))


def test_compiled_then_made_float64_still_runs():
    network = seeded(nn.Sequential(conv()))
    compiled = deploy.compile(network, picture()).double()
    assert torch.equal(compiled(picture().double()), network.double()(picture().double()))


def test_keywords_and_inputs_that_are_no_tensors():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = conv()

        def forward(self, x, scale=2.0, add=None):
            y = self.layer(x) * scale
            return {"picture": y, "sizes": (y.shape, y if add is None else y + add)}

    network, x = seeded(Scaled()), picture()
    compiled = deploy.compile(network, x)
    for given in ({}, {"scale": 3.0}, {"scale": 1.0, "add": x}):
        with torch.no_grad():
            want, got = network(x, **given), compiled(x, **given)
        assert got["sizes"][0] == want["sizes"][0]
        assert torch.allclose(got["picture"], want["picture"], atol=TOLERANCE)
        assert torch.allclose(got["sizes"][1], want["sizes"][1], atol=TOLERANCE)


def test_new_shapes_keep_the_choice_or_measure_again(timer):
    network = seeded(nn.Sequential(conv(), nn.ReLU(), conv()))
    kept = deploy.compile(network, picture())
    count, layers = len(timer.asked), timer.layers
    assert_same(kept, network, picture(1, 3, 20, 4))
    assert timer.layers == layers
    assert timer.asked[count:] == [{"before", "after"}] * 2  # in both layouts
    again = deploy.compile(network, picture(), replan=True)
    count = timer.layers
    assert_same(again, network, picture(1, 3, 20, 4))
    assert timer.layers > count


def test_a_new_shape_runs_as_it_was_where_the_plan_is_slower_there(timer):
    network = seeded(nn.Sequential(conv(), nn.ReLU(), conv()))
    compiled = deploy.compile(network, picture())
    timer.before = 0.5
    x = picture(1, 3, 4, 4)
    assert torch.equal(compiled(x), network(x))
    timer.before = 3.0
    torch.set_num_threads(2)
    assert_same(compiled, network, picture())
    told = str(compiled.explain())
    assert "input 1×3×4×4, 1 thread: runs as it was: the plan is not faster" in told
    assert (
        "input 2×3×8×10, 2 threads: runs as planned, before 3.00 ms, after 1.00 ms: 3.00x" in told
    )


def test_a_plan_that_is_really_slower_for_a_new_shape_is_not_used(monkeypatch):
    """By the clock: what is fastest for 32 x 32 pixels takes twice the time for 4 x 4."""
    monkeypatch.setattr(measure, "interleaved", real_interleaved)
    network = seeded(nn.Sequential(*(conv(128, 128) for _ in range(3))), zeros=0.75)
    compiled = deploy.compile(network, picture(1, 128, 32, 32))
    x = picture(1, 128, 4, 4)
    compiled(x)
    runs = {"before": lambda: network(x), "after": lambda: compiled(x)}
    with torch.no_grad():
        times = real_interleaved(runs, rounds=15)
    assert times["after"] <= 1.4 * times["before"]


def test_the_oldest_shapes_are_forgotten(monkeypatch):
    monkeypatch.setattr("gansparse.deploy.compiled._MOST_SHAPES", 3)
    network = seeded(nn.Sequential(conv(), nn.ReLU(), conv()))
    compiled = deploy.compile(network, picture())
    for size in (4, 5, 6, 7, 8, 9):
        assert_same(compiled, network, picture(1, 3, size, size))
    assert len(compiled._plans) == 3
    assert list(compiled._told)[1:] == list(compiled._plans)
    assert compiled.explain().rows  # of the first
    assert_same(compiled, network, picture())


def test_runs_as_it_was_under_autocast():
    network = nn.Sequential(
        conv(8, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), conv(8, 3)
    )
    network, x = seeded(network), picture(1, 8, 9, 9)
    compiled = deploy.compile(network, x)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(compiled(x), network(x))
        assert compiled(x).dtype == torch.bfloat16
        made_inside = deploy.compile(network, x)
    assert compiled(x).dtype == torch.float32
    assert made_inside.explain().verdict == "runs as planned"


def test_keyword_only_arguments_reach_the_generator():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = conv()

        def forward(self, x, *, scale=1.0, **more):
            return self.layer(x) * scale + len(more)

    network, x = seeded(Scaled()), picture()
    compiled = deploy.compile(network, x)
    with torch.no_grad():
        assert torch.equal(compiled(x, scale=2.0), network(x, scale=2.0))
        assert torch.equal(compiled(x, other=1), network(x, other=1))
    assert_same(compiled, network, x)


def test_a_spectral_norm_that_has_been_trained():
    network = seeded(nn.Sequential(nn.utils.spectral_norm(conv()), nn.ReLU(), conv()))
    x = picture()
    network.train()(x).sum().backward()
    compiled = deploy.compile(network, x)
    network.eval()
    assert_same(compiled, network, x)


def test_other_strides_of_the_same_shape():
    network = seeded(networks.Functional())
    compiled = deploy.compile(network, picture())
    last = picture().contiguous(memory_format=torch.channels_last)
    assert_same(compiled, network, last)
    assert_same(compiled, network, picture(2, 3, 8, 20)[..., ::2])


def test_inference_mode_and_no_gradients():
    network, x = seeded(nn.Sequential(conv(), nn.PReLU())), picture()
    with torch.inference_mode():
        compiled = deploy.compile(network, picture())
        inside = compiled(x)
        assert compiled.explain().verdict == "runs as planned"
        assert_same(compiled, network, picture(1, 3, 5, 5))
    outside = compiled(x.requires_grad_())
    assert torch.equal(inside, outside)
    assert not outside.requires_grad


@pytest.mark.parametrize("each", [1, 2])
def test_threads_share_one_and_run_two(each):
    torch.set_num_threads(each)
    networks_ = [pruned(name) for name in ("stargan", "srgan")]
    inputs = [GENERATORS[name][1]() for name in ("stargan", "srgan")]
    compiled = [deploy.compile(n, x) for n, x in zip(networks_, inputs, strict=True)]
    want = [c(*x) for c, x in zip(compiled, inputs, strict=True)]
    others = [GENERATORS[name][2]() for name in ("stargan", "srgan")]
    wrong = []

    def work(i):
        for _ in range(20):
            if not torch.equal(compiled[i](*inputs[i]), want[i]):
                wrong.append(i)
        if not torch.isfinite(compiled[i](*others[i])).all():
            wrong.append(i)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("threads", [1, 2])
def test_after_fork(threads):
    """Also where torch and our kernels have run on threads that the child has not."""
    torch.set_num_threads(threads)
    network = seeded(nn.Sequential(conv(), nn.InstanceNorm2d(3), nn.ReLU(), nn.Softmax(1)))
    x = picture(1, 3, 160, 160)
    compiled = deploy.compile(network, x)
    want = compiled(x)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest-timeout has its own
        signal.alarm(20)
        same = torch.equal(compiled(x), want)
        new = compiled(picture(1, 3, 6, 6)).shape == (1, 3, 6, 6)
        os._exit(0 if same and new else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_copies_and_pickles(timer):
    network = pruned("stargan", "filter", 0.5)
    x = GENERATORS["stargan"][1]()
    compiled = deploy.compile(network, x)
    count = timer.layers
    for other in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        assert torch.equal(other(*x), compiled(*x))
        assert convolutions(other) == convolutions(compiled)
    assert timer.layers == count


def test_a_new_state_makes_a_new_plan():
    network = seeded(nn.Sequential(conv(), nn.ReLU()))
    compiled = deploy.compile(network, picture())
    state = {key: value + 1 for key, value in compiled.state_dict().items()}
    compiled.load_state_dict(state)
    network.load_state_dict({k.partition(".")[2]: v for k, v in state.items()})
    assert_same(compiled, network, picture())


def test_the_generator_is_left_alone():
    network = seeded(nn.Sequential(conv(), nn.BatchNorm2d(3), nn.ReLU(True))).train()
    before = copy.deepcopy(network.state_dict())
    compiled = deploy.compile(network, picture())
    assert network.training
    assert not compiled.train().training
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


def test_refuses_what_the_generator_refuses():
    with pytest.raises(InputError, match="can't be called so: .*missing 1 required"):
        deploy.compile(pruned("stargan"), picture())
    network = pruned("stargan")
    compiled = deploy.compile(network, GENERATORS["stargan"][1]())
    with pytest.raises(InputError, match="labels must have shape"):
        compiled(picture(2, 3, 16, 16), torch.zeros(1, 5))


def test_empty_batches_run_as_they_were():
    network = seeded(nn.Sequential(conv()))
    compiled = deploy.compile(network, picture())
    assert compiled(torch.zeros(0, 3, 8, 8)).shape == (0, 3, 8, 8)


def test_large_tensors_are_written_into_kept_memory(monkeypatch):
    monkeypatch.setattr(memory, "LARGE", 4096)
    network, x = pruned("srgan"), GENERATORS["srgan"][1]()
    compiled = deploy.compile(network, x)
    (plan,) = next(iter(compiled._plans.values()))
    given = [n.args[0] for n in plan.graph.nodes if n.target == memory.MEMORY]
    assert len(given) > len(set(given)) > 1  # what is not alive together shares a slot
    first = compiled(*x)
    kept = first.clone()
    second = compiled(x[0] + 1)
    assert torch.equal(first, kept)  # what leaves the plan is never written over
    assert not torch.equal(first, second)
    assert_same(compiled, network, *x)


def test_plans_of_all_shapes_share_their_memory(monkeypatch):
    monkeypatch.setattr(memory, "LARGE", 1024)
    network = seeded(nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU(), conv()))
    compiled = deploy.compile(network, picture(1, 3, 20, 20))
    (kept,) = compiled._memory
    slots = kept._own.__dict__
    before = slots[0].data_ptr()
    for size in (19, 18, 20, 24, 21):
        assert_same(compiled, network, picture(1, 3, size, size))
    assert before != slots[0].data_ptr()  # it grew, once
    assert sum(t.numel() for t in slots.values()) <= len(slots) * 3 * 24 * 24


def test_what_leaves_the_graph_is_not_kept_memory(monkeypatch):
    monkeypatch.setattr(memory, "LARGE", 0)
    for network in (
        seeded(nn.Sequential(conv(), nn.ReLU(), nn.Flatten())),
        seeded(networks.TwoReadersOfASum()),
        seeded(networks.Around(networks.Branch())),
    ):
        compiled = deploy.compile(network, picture())
        first = compiled(picture())
        kept = first.clone()
        compiled(picture() + 1)
        assert torch.equal(first, kept)
        assert_same(compiled, network, picture())


def test_a_whole_submodule_may_change_its_shape():
    class Crop(nn.Module):
        def forward(self, x):
            return x[:, :, : int(4 + (x[0, 0, 3, 3] > x[0, 0, 4, 4]))]

    network = seeded(networks.Around(Crop()))
    compiled = deploy.compile(network, picture())
    assert list(compiled.explain().whole) == ["inner"]
    sizes = set()
    for seed in range(20):
        x = torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(seed))
        sizes.add(compiled(x).shape[2])
        assert_same(compiled, network, x)
    assert sizes == {4, 5}
