"""Clipped sums of the linear autoencoder in closed form, against one backward pass a user."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

from recsys_budget.errors import ReservationError, SpecificationError
from recsys_budget.privacy import (
    PrivacyBudget,
    PrivacyLedger,
    SampledGaussianMechanism,
    SeededNoise,
    SystemNoise,
    drawn_ahead,
)
from recsys_budget.training import MultinomialLoss, UnitRows, train_private
from recsys_budget.training import _opacus as opacus_module
from recsys_budget.training import linear as linear_module
from recsys_budget.training._opacus import PrivateStep

ITEMS, WIDTH, CLIP = 40, 5, 0.3


class NoNoise(SystemNoise):
    """Adds nothing, so that a step shows the clipped sum itself; chooses the same negatives each time."""

    private = False

    def normal(self, size):
        return np.zeros(size)

    def uniform(self, size):
        return np.random.default_rng(7).random(size)


def module(unit=True, encode_bias=False, decode_bias=True, scale=2.0, items=ITEMS, width=WIDTH):
    torch.manual_seed(0)
    layers = [nn.Linear(items, width, bias=encode_bias), nn.Linear(width, items, bias=decode_bias)]
    made = nn.Sequential(*([UnitRows()] if unit else []), *layers)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(scale)  # so that clipping binds for some rows and not for others
    return made


SHAPES = [
    {"unit": unit, "encode_bias": a, "decode_bias": b}
    for unit in (True, False)
    for a in (True, False)
    for b in (True, False)
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
losses = pytest.mark.parametrize(
    "loss", [MultinomialLoss(), MultinomialLoss(8), MultinomialLoss(31)], ids=str
)


def rows_of(n=30, items=ITEMS, rng=0, density=0.2):
    generator = np.random.default_rng(rng)
    table = (generator.random((n, items)) < density) * generator.choice([1.0, 1.0, 0.5, 2.0], (n, items))
    table[n // 2] = 0  # somebody without items
    return sparse.csr_array(table.astype(np.float32))


def moved(before, after):
    return torch.cat([(b - a).flatten() for b, a in zip(before, after, strict=True)]).detach()


def values(made):
    return torch.cat([p.detach().flatten() for p in made.parameters()])


def step_of(made, *, clip=CLIP, noise=None, expected=1.0, rate=1.0, noise_multiplier=1.0):
    return PrivateStep(
        made,
        torch.optim.SGD(made.parameters(), lr=1.0),
        noise_multiplier=noise_multiplier,
        max_grad_norm=clip,
        expected_batch_size=expected,
        noise=noise or NoNoise(),
        sample_rate=rate,
    )


def clipped_sum(rows, loss=None, clip=CLIP, noise=None, make=module, **shape):
    """What one step subtracts from the parameters: plain SGD with learning rate 1."""
    made = make(**shape)
    before = [p.detach().clone() for p in made.parameters()]
    step_of(made, clip=clip, noise=noise)(rows, loss or MultinomialLoss())
    return moved(before, made.parameters())


def negatives_of(made, loss):
    """The items of the softmax, by the published rule, from the same uniform numbers."""
    decode = made[-1]
    n = decode.out_features
    order = NoNoise().uniform(n)
    if loss.negatives is None or loss.negatives >= n:
        return np.arange(n), n
    popular = np.array([], int)
    if decode.bias is not None:
        popular = np.argsort(-decode.bias.detach().numpy())[: loss.negatives // 2]
    rest = np.setdiff1d(np.arange(n), popular)
    rest = rest[np.argsort(-order[rest])][: loss.negatives - len(popular)]
    return np.concatenate([popular, rest]), len(popular)


def loss_of(made, row, loss):
    """One user's loss, spelled out."""
    logits = made(row[None])[0]
    own = np.flatnonzero(row.numpy())
    columns, n_popular = negatives_of(made, loss)
    parts = [logits[own].exp().sum(), logits[np.setdiff1d(columns[:n_popular], own)].exp().sum()]
    drawn = np.setdiff1d(columns[n_popular:], own)
    others = np.setdiff1d(np.arange(len(logits)), np.concatenate([columns[:n_popular], own]))
    if len(drawn):
        parts.append(logits[drawn].exp().sum() * len(others) / len(drawn))
    share = row / max(float(row.sum()), 1.0)
    return (share[own] * (sum(parts).log() - logits[own])).sum()


def brute_force(rows, loss=None, clip=CLIP, made=None, **shape):
    """One backward pass a user."""
    made = made or module(**shape)
    total = 0
    for row in torch.from_numpy(rows.toarray()):
        made.zero_grad()
        loss_of(made, row, loss or MultinomialLoss()).backward()
        gradient = torch.cat([p.grad.flatten() for p in made.parameters()])
        total = total + gradient * min(1.0, clip / max(float(gradient.norm()), 1e-30))
    return total


@shapes
@losses
@pytest.mark.parametrize("clip", [0.01, 0.3, 1e3])
def test_clipped_sum_equals_one_backward_pass_a_user(shape, loss, clip):
    rows = rows_of()
    ours, reference = clipped_sum(rows, loss, clip, **shape), brute_force(rows, loss, clip * 0.999, **shape)
    assert float((ours - reference).norm()) <= 1e-4 * float(reference.norm())


@shapes
@losses
def test_removing_one_user_moves_the_sum_by_at_most_the_clip_bound(shape, loss):
    rows = rows_of(20)
    whole = clipped_sum(rows, loss, **shape)
    keep = np.ones(20, bool)
    moves = []
    for user in range(20):
        keep[user] = False
        moves.append(float((whole - clipped_sum(rows[keep], loss, **shape)).norm()))
        keep[user] = True
    assert max(moves) <= CLIP
    assert max(moves) > CLIP * 0.99  # the bound is reached, so the test has power


@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[4]], ids=str)
@pytest.mark.parametrize("loss", [MultinomialLoss(), MultinomialLoss(8)], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e5, 1e7, 1e20, 1e38, -1.0, 1e-30])
def test_a_poisonous_row_is_bounded_like_any_other(shape, loss, value):
    rows = rows_of(10)
    one, mixed = np.zeros((2, 1, ITEMS), np.float32)
    one[0, 3], mixed[0, ::2], mixed[0, 1] = value, value, 1.0
    without = clipped_sum(rows, loss, **shape)
    for row in (np.full((1, ITEMS), value, np.float32), one, mixed):
        poisoned = sparse.csr_array(np.vstack([rows.toarray(), row]))
        with_it = clipped_sum(poisoned, loss, **shape)
        assert torch.isfinite(with_it).all()
        assert float((with_it - without).norm()) <= CLIP


@losses
def test_a_user_who_overflows_inside_counts_as_zero(loss):
    """A weight of zero would not do: zero times an infinite value is NaN, and one user would be seen."""

    def steep(where, value, **shape):
        made = module(unit=False, **shape)
        with torch.no_grad():
            made[where].weight.view(-1)[0] = value
        return made

    rows = sparse.csr_array(np.delete(rows_of(10, density=0.3).toarray(), 4, axis=0) * (np.arange(ITEMS) > 0))
    poisoned = sparse.csr_array(np.vstack([rows.toarray(), 100 * np.eye(ITEMS)[:1]]).astype(np.float32))
    for where, value in ((0, 1e38), (0, -3e38), (1, 1e38), (1, -3e38)):
        result = [clipped_sum(r, loss, make=lambda: steep(where, value)) for r in (poisoned, rows)]  # noqa: B023
        assert torch.isfinite(result[0]).all()
        assert float((result[0] - result[1]).norm()) <= CLIP
        if where == 0:  # the item is nobody else's
            assert float((result[0] - result[1]).norm()) == 0
            assert float(result[1].norm()) > 0


def test_only_users_who_count_as_zero():
    assert clipped_sum(sparse.csr_array(np.full((3, ITEMS), np.nan, np.float32))).abs().max() == 0
    assert clipped_sum(sparse.csr_array((0, ITEMS), dtype=np.float32)).abs().max() == 0


@losses
def test_an_item_that_stands_twice_in_a_row_is_one_value(loss):
    """Entry by entry, two halves would be shorter than they are together, and the norm too small."""
    twice = sparse.csr_array(
        (np.full(8, 0.5, np.float32), np.array([1, 1, 2, 2, 3, 3, 4, 4]), np.array([0, 8])), shape=(1, ITEMS)
    )
    twice.has_canonical_format = True  # a flag that lies
    once = sparse.csr_array(np.isin(np.arange(ITEMS), [1, 2, 3, 4])[None].astype(np.float32))
    for clip in (CLIP, 1e3):
        sums = [clipped_sum(rows, loss, clip, unit=False) for rows in (twice, once)]
        assert float((sums[0] - sums[1]).norm()) <= 1e-5 * float(sums[1].norm())
    assert float(clipped_sum(twice, loss, 0.01, unit=False).norm()) <= 0.01


@losses
def test_blocks_of_users_change_nothing(loss, monkeypatch):
    rows = rows_of(33)
    whole = clipped_sum(rows, loss)
    for size in (1, 40, 5 * ITEMS):
        monkeypatch.setattr(linear_module, "_BLOCK", size)
        assert float((clipped_sum(rows, loss) - whole).norm()) <= 1e-5 * float(whole.norm())


def test_the_bound_holds_with_many_parameters_in_float32():
    rows = rows_of(60, 30_000, density=0.01)
    for loss in (MultinomialLoss(), MultinomialLoss(1000)):
        sums = [clipped_sum(r, loss, 0.02, items=30_000, width=16, scale=1.0) for r in (rows, rows[1:])]
        assert 0.9 * 0.02 < float((sums[0] - sums[1]).double().norm()) <= 0.02


def test_lower_precision_of_products_is_set_aside():
    """bfloat16 inputs would make sums up to 0.4% longer than their norms say."""
    rows = rows_of()
    exact = clipped_sum(rows)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(clipped_sum(rows), exact)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_each_step_starts_from_nothing():
    """Opacus adds to the sum of the step before unless it is told not to."""
    rows = rows_of()
    made = module()
    step = step_of(made)
    for _ in range(3):
        before = [p.detach().clone() for p in made.parameters()]
        twin = module()
        twin.load_state_dict(made.state_dict())
        reference = brute_force(rows, clip=CLIP * 0.999, made=twin)
        step(rows, MultinomialLoss())
        ours = moved(before, made.parameters())
        assert float((ours - reference).norm()) <= 1e-4 * float(reference.norm())


def test_dense_and_sparse_rows_and_both_ways_of_summing_agree():
    rows = rows_of()
    whole = clipped_sum(rows)
    assert torch.equal(whole, clipped_sum(torch.from_numpy(rows.toarray())))

    def ghost(outputs, row):
        return MultinomialLoss()(outputs, row)

    assert float((clipped_sum(rows, ghost) - whole).norm()) <= 1e-4 * float(whole.norm())


@pytest.mark.parametrize(
    ("make", "closed"),
    [
        (lambda: module(), True),
        (lambda: nn.Sequential(UnitRows(), nn.Linear(ITEMS, 4), nn.Identity(), nn.Linear(4, ITEMS)), True),
        (lambda: nn.Sequential(nn.Linear(ITEMS, 4), nn.Tanh(), nn.Linear(4, ITEMS)), False),
        (lambda: nn.Sequential(nn.Linear(ITEMS, 4), UnitRows(), nn.Linear(4, ITEMS)), False),
        (lambda: nn.Sequential(UnitRows(), UnitRows(), nn.Linear(ITEMS, 4), nn.Linear(4, ITEMS)), False),
        (lambda: nn.Sequential(nn.Linear(ITEMS, ITEMS)), False),
        (lambda: nn.Sequential(*(nn.Linear(ITEMS, ITEMS) for _ in range(3))), False),
    ],
)
def test_only_what_has_the_closed_form_takes_it(make, closed, monkeypatch):
    torch.manual_seed(0)
    made, rows, calls = make(), rows_of(), []
    call = linear_module.LinearSum.__call__
    monkeypatch.setattr(
        linear_module.LinearSum, "__call__", lambda self, *a: calls.append(1) or call(self, *a)
    )
    step_of(made)(rows, MultinomialLoss())
    assert (len(calls) == 1) == closed
    if not closed:
        with pytest.raises(SpecificationError, match="linear autoencoder"):
            step_of(make())(rows, MultinomialLoss(5))


def test_negatives_are_checked():
    for n in (0, 1, -3, 2.0, True, "4"):
        with pytest.raises(SpecificationError, match="at least 2"):
            MultinomialLoss(n)
    assert torch.equal(clipped_sum(rows_of(), MultinomialLoss(ITEMS)), clipped_sum(rows_of()))


def test_negatives_give_the_sum_over_all_items_in_expectation():
    """The softmax's denominator, which is what is sampled, over many choices of negatives."""
    row = rows_of(5)[:1]

    def gradient(loss, seed):
        class Noise(NoNoise):
            def uniform(self, size):
                return np.random.default_rng(seed).random(size)

        return clipped_sum(row, loss, 1e3, noise=Noise())

    exact = gradient(MultinomialLoss(), 0)
    few = torch.stack([gradient(MultinomialLoss(24), seed) for seed in range(400)])
    assert float((few.mean(0) - exact).norm()) < 0.1 * float(exact.norm())
    assert float((few[0] - exact).norm()) > 0.1 * float(exact.norm())  # a single choice is not the whole


def test_negatives_do_not_depend_on_the_users():
    seen = []
    choose = linear_module.LinearSum.choose

    def spy(self):
        columns = choose(self)
        seen.append(columns.items)
        return columns

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_module.LinearSum, "choose", spy)
        for rows in (rows_of(30), rows_of(7, rng=3), rows_of(2)[:0]):
            clipped_sum(rows, MultinomialLoss(9))
    assert all(torch.equal(items, seen[0]) for items in seen)
    assert len(torch.unique(seen[0])) == 9


MUTANTS = {
    "a bias of the output layer is forgotten": ("(decode.bias is not None)", "0"),
    "the other bias is forgotten": ("(encode.bias is not None)", "0"),
    "the norm of the input is forgotten": ("(part.squares + ", "(1 + "),
    "the output layer is forgotten": ("square * ((h**2)", "0 * ((h**2)"),
    "the first layer is forgotten": ("(g**2).sum(1)", "0 * (g**2).sum(1)"),
    "the hidden norm is not squared": ("(h**2).sum(1)", "h.norm(dim=1)"),
    "own items are forgotten in the norm": ("square.index_add_(0, part.users, at**2)", "pass"),
    "weights above 1": (".clamp(max=1.0)", ""),
    "the first layer is not clipped": ("g * weight[:, None]", "g"),
    "the bias is not clipped": ("level += weight @ r", "level += r.sum(0)"),
    "own items are not clipped": ("table.product(own, hidden)", "table.product(own, 2 * hidden)"),
}


@pytest.mark.parametrize(("right", "wrong"), MUTANTS.values(), ids=MUTANTS)
def test_mistakes_are_caught(right, wrong):
    """Each mutant moves the sum by more than the bound, or away from the brute-force reference."""
    from importlib.util import module_from_spec

    source = linear_module.__loader__.get_source(linear_module.__name__)
    assert source.count(right) >= 1
    mutant = module_from_spec(linear_module.__spec__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, mutant.__name__, mutant)
        exec(compile(source.replace(right, wrong), "mutant", "exec"), mutant.__dict__)
    off = 0.0
    for loss in (MultinomialLoss(), MultinomialLoss(8)):
        for shape in (
            {"unit": False, "encode_bias": True},
            {"unit": False, "scale": 0.3, "encode_bias": True},
        ):
            rows, clip = rows_of(), 0.3 if shape.get("scale") is None else 2.0
            reference = brute_force(rows, loss, clip * 0.999, **shape)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(opacus_module, "LinearSum", mutant.LinearSum)
                ours = clipped_sum(rows, loss, clip, **shape)
            off = max(off, float((ours - reference).norm() / reference.norm()))
    assert off > 1e-3


def test_a_margin_that_is_dropped_is_caught(monkeypatch):
    rows = rows_of()
    monkeypatch.setattr(opacus_module, "_MARGIN", 1.0)
    reference = brute_force(rows, clip=0.01 * 0.999)
    assert float((clipped_sum(rows, clip=0.01) - reference).norm()) > 1e-4 * float(reference.norm())


@pytest.mark.parametrize("loss", [MultinomialLoss(), MultinomialLoss(100)], ids=str)
def test_noise_has_the_promised_scale_whatever_the_batch(loss):
    """As large for an empty batch as for one of 40 users; noise / sqrt(batch) would be caught."""
    for n in (0, 40):
        rows = rows_of(40, 2000)[:n]
        made = module(items=2000, width=16)
        before = [p.detach().clone() for p in made.parameters()]
        step_of(made, noise=SystemNoise(), noise_multiplier=2.5, expected=7.0)(rows, loss)
        noisy = moved(before, made.parameters())
        exact = clipped_sum(rows, loss, items=2000, width=16) / 7.0 if loss.negatives is None else 0.0
        deviation = float((noisy - exact).double().std()) / (2.5 * CLIP / 7.0)
        # 66,000 draws: a standard error of 0.0028. Which negatives are chosen differs, which adds a little.
        assert abs(deviation - 1) < (0.014 if loss.negatives is None else 0.05)


def train(made, rows, loss, noise, steps=4, **changes):
    mechanism = SampledGaussianMechanism(2.0, 0.5, steps)
    reservation = PrivacyLedger(PrivacyBudget(50.0, 1e-6)).reserve([mechanism], purpose="test")
    return train_private(
        made,
        rows,
        loss,
        mechanism=mechanism,
        reservation=reservation,
        max_grad_norm=CLIP,
        expected_batch_size=10.0,
        learning_rate=0.01,
        noise=noise,
        progress=False,
        **changes,
    )


@losses
def test_seeded_runs_repeat_and_differ_from_others(loss):
    ends = []
    for seed in (1, 1, 2):
        made = module()
        train(made, rows_of(), loss, SeededNoise(seed))
        ends.append(values(made))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_closed_form_and_ghost_clipping_train_the_same_model():
    ends = []
    for loss in (MultinomialLoss(), lambda outputs, row: MultinomialLoss()(outputs, row)):
        made = module()
        train(made, rows_of(), loss, SeededNoise(1), steps=10)
        ends.append(values(made))
    # Adam divides by the size of what it has seen, so rounding shows a little.
    assert float((ends[0] - ends[1]).abs().max()) < 1e-3
    assert float((ends[0] - values(module())).abs().max()) > 0.01


def test_a_device_is_chosen_by_name():
    ends = []
    for device in ("cpu", torch.device("cpu"), None):
        if device is None and torch.cuda.is_available():
            continue
        made = module()
        train(made, rows_of(), MultinomialLoss(), SeededNoise(1), device=device)
        ends.append(values(made))
    assert all(torch.equal(end, ends[0]) for end in ends)
    for device in ("nowhere", "cuda:99", 3.5):
        with pytest.raises(SpecificationError, match="device"):
            train(module(), rows_of(), MultinomialLoss(), SeededNoise(1), device=device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@losses
def test_a_gpu_gives_the_same_model(loss):
    ends = []
    for device in ("cpu", "cuda"):
        made = module()
        result = train(made, rows_of(), loss, SeededNoise(1), device=device, snapshot_at=(2,))
        assert all(p.device.type == "cpu" for p in made.parameters())
        assert all(value.device.type == "cpu" for value in result.snapshots[2].values())
        ends.append(values(made))
    assert float((ends[0] - ends[1]).abs().max()) < 1e-3


def test_numbers_drawn_ahead_are_those_of_the_source_handed_out_once():
    expected = SeededNoise(3).normal(10)
    with drawn_ahead(SeededNoise(3), 10) as noise:
        assert not noise.private
        np.testing.assert_array_equal(noise.normal(10), expected)
        with pytest.raises(SpecificationError, match="once"):
            noise.normal(10)
    with drawn_ahead(SystemNoise(), 10) as noise:
        assert noise.private
        assert noise.uniform(3).shape == (3,)
        with pytest.raises(SpecificationError, match="10 numbers"):
            noise.normal(11)


def test_no_thread_is_left_and_what_goes_wrong_in_it_comes_out():
    class Broken(SystemNoise):
        def normal(self, size):
            raise KeyboardInterrupt

    threads = threading.active_count()
    with drawn_ahead(Broken(), 10) as noise, pytest.raises(KeyboardInterrupt):
        noise.normal(10)
    with pytest.raises(ZeroDivisionError), drawn_ahead(SystemNoise(), 10):
        1 / 0  # noqa: B018
    assert threading.active_count() == threads


@pytest.mark.parametrize("loss", [MultinomialLoss(), MultinomialLoss(8)], ids=str)
def test_payment_comes_before_the_mask_and_all_uniform_numbers_before_the_noise(loss):
    """Noise is drawn on another thread: what is drawn beside it would make seeded runs differ."""
    events, mechanism = [], SampledGaussianMechanism(2.0, 0.5, 3)

    class Watched(SystemNoise):
        def uniform(self, size):
            events.append(("mask", reservation.used(mechanism)))
            return super().uniform(size)

        def normal(self, size):
            events.append(("noise", reservation.used(mechanism)))
            return super().normal(size)

    reservation = PrivacyLedger(PrivacyBudget(50.0, 1e-6)).reserve([mechanism], purpose="test")
    train_private(
        module(),
        rows_of(),
        loss,
        mechanism=mechanism,
        reservation=reservation,
        max_grad_norm=CLIP,
        expected_batch_size=10.0,
        learning_rate=0.01,
        noise=Watched(),
        progress=False,
    )
    wanted = ("mask", "mask", "noise") if loss.negatives else ("mask", "noise")
    assert events == [(what, step) for step in (1, 2, 3) for what in wanted]
    with pytest.raises(ReservationError):
        reservation.use(SampledGaussianMechanism(2.0, 0.5, 4))
