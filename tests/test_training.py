"""Private steps against a backward pass per user, neighbouring batches, and the cap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

from recsys_budget.errors import BudgetExceededError, NumericalError, SpecificationError
from recsys_budget.privacy import PrivacyBudget, PrivacyLedger, SampledGaussianMechanism, SystemNoise
from recsys_budget.training import train_private
from recsys_budget.training._opacus import PrivateStep

ITEMS, CLIP = 12, 0.3


class NoNoise(SystemNoise):
    """Adds nothing, so that a step shows the clipped sum itself."""

    private = False

    def normal(self, size):
        return np.zeros(size)


def linear():
    return nn.Sequential(nn.Linear(ITEMS, 4, bias=False), nn.Linear(4, ITEMS))


def deep():
    return nn.Sequential(nn.Linear(ITEMS, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, ITEMS))


def cross_entropy(outputs, rows):
    return -(rows * torch.log_softmax(outputs, 1)).sum(1)


def squared(outputs, rows):
    return ((outputs - rows) ** 2).sum(1)


def fixed(make):
    torch.manual_seed(0)
    module = make()
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(3)  # so that clipping binds for some rows and not for others
    return module


def rows_of(n, rng=0):
    return torch.from_numpy((np.random.default_rng(rng).random((n, ITEMS)) < 0.3).astype(np.float32))


def clipped_sum(make, losses, rows, clip=CLIP, noise=None, noise_multiplier=1.0, expected=1.0):
    """What one step subtracts from the parameters: plain SGD with learning rate 1."""
    module = fixed(make)
    before = [p.detach().clone() for p in module.parameters()]
    step = PrivateStep(
        module,
        torch.optim.SGD(module.parameters(), lr=1.0),
        noise_multiplier=noise_multiplier,
        max_grad_norm=clip,
        expected_batch_size=expected,
        noise=noise or NoNoise(),
    )
    step(rows, losses)
    return torch.cat([(b - p).flatten() for b, p in zip(before, module.parameters(), strict=True)]).detach()


def brute_force(make, losses, rows, clip=CLIP):
    """One backward pass a user."""
    module = fixed(make)
    total = 0
    for row in rows:
        module.zero_grad()
        losses(module(row[None]), row[None]).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in module.parameters()])
        total = total + gradient * min(1.0, clip / max(float(gradient.norm()), 1e-30))
    return total


CASES = pytest.mark.parametrize(
    ("make", "losses"), [(linear, cross_entropy), (linear, squared), (deep, cross_entropy), (deep, squared)]
)


@CASES
@pytest.mark.parametrize("clip", [0.05, 2.0, 1e3])
def test_clipped_sum_equals_one_backward_pass_a_user(make, losses, clip):
    rows = rows_of(30)
    ours, reference = clipped_sum(make, losses, rows, clip), brute_force(make, losses, rows, clip)
    assert float((ours - reference).norm()) <= 1e-4 * float(reference.norm())


@CASES
def test_removing_one_user_moves_the_sum_by_at_most_the_clip_bound(make, losses):
    rows = rows_of(20)
    whole = clipped_sum(make, losses, rows)
    moves = [
        float((whole - clipped_sum(make, losses, torch.cat([rows[:i], rows[i + 1 :]]))).norm())
        for i in range(20)
    ]
    assert max(moves) <= CLIP * 1.0001
    assert max(moves) > CLIP * 0.99  # the bound is reached, so the test has power


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e20, 1e38])
def test_a_poisonous_row_is_bounded_like_any_other(value):
    rows = rows_of(10)
    poisoned = torch.cat([rows, torch.full((1, ITEMS), value)])
    for losses in (cross_entropy, squared):
        with_it, without = clipped_sum(linear, losses, poisoned), clipped_sum(linear, losses, rows)
        assert torch.isfinite(with_it).all()
        assert float((with_it - without).norm()) <= CLIP * 1.0001


def test_only_poisonous_rows():
    assert clipped_sum(linear, squared, torch.full((3, ITEMS), float("nan"))).abs().max() == 0


def test_unclipped_sum_would_be_caught():
    """The neighbouring test has power: without clipping, one user moves the sum further than the bound."""
    rows = rows_of(20)
    moved = brute_force(linear, squared, rows, np.inf) - brute_force(linear, squared, rows[1:], np.inf)
    assert float(moved.norm()) > CLIP * 1.0001


def test_noise_has_the_promised_scale_and_the_denominator_is_the_constant():
    def wide():
        return nn.Linear(ITEMS, 20_000, bias=False)

    empty = torch.empty((0, ITEMS))
    noise = clipped_sum(wide, cross_entropy, empty, noise=SystemNoise(), noise_multiplier=2.5, expected=7.0)
    scale = 2.5 * CLIP / 7.0
    deviation = float(noise.double().std()) / scale
    assert abs(deviation - 1) < 0.01  # 240,000 draws: a standard error of 0.0014, so 2% too little is caught
    rows = rows_of(5)
    np.testing.assert_allclose(
        clipped_sum(linear, squared, rows, expected=7.0),
        clipped_sum(linear, squared, rows) / 7,
        rtol=1e-4,
        atol=1e-6,
    )


def test_noise_ignores_torch_seeds():
    draws = []
    for _ in range(2):
        torch.manual_seed(1)
        draws.append(clipped_sum(linear, squared, rows_of(3), noise=SystemNoise()))
    assert not torch.equal(*draws)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(ITEMS, 4), nn.BatchNorm1d(4)),
        lambda: nn.Embedding(ITEMS, 3),
        lambda: nn.EmbeddingBag(ITEMS, 3),
        lambda: nn.Sequential(nn.Linear(ITEMS, 4), nn.LayerNorm(4)),
    ],
)
def test_layers_not_known_to_be_right_are_refused(make):
    module = make()
    with pytest.raises(SpecificationError, match="per-user gradients"):
        PrivateStep(
            module,
            torch.optim.SGD(module.parameters(), lr=1.0),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            expected_batch_size=1.0,
            noise=NoNoise(),
        )


class Looped(nn.Linear):
    def forward(self, rows):
        return super().forward(rows).cumsum(0)


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(ITEMS, ITEMS), nn.Parameter(torch.ones(ITEMS))

    def forward(self, rows):
        return self.layer(rows) * self.scale


@pytest.mark.parametrize("make", [lambda: Looped(ITEMS, ITEMS), Bare])
def test_subclasses_and_bare_parameters_are_refused(make):
    with pytest.raises(SpecificationError, match="per-user gradients"):
        clipped_sum(make, squared, rows_of(3))


class Sidestep(nn.Module):
    """Uses the weights of a layer without calling it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(ITEMS, ITEMS)

    def forward(self, rows):
        return nn.functional.linear(rows, self.layer.weight)


class Flattened(nn.Module):
    """Turns a user into several rows of the layer's batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, rows):
        return self.layer(rows.reshape(-1, 1)).reshape(rows.shape)


@pytest.mark.parametrize("make", [Sidestep, Flattened])
def test_layers_that_do_not_see_one_row_a_user_are_refused(make):
    with pytest.raises(SpecificationError, match="one row a user"):
        clipped_sum(make, squared, rows_of(3))


def test_losses_must_be_one_a_user():
    with pytest.raises(SpecificationError, match=r"shape \(3,\), but have \(\)"):
        clipped_sum(linear, lambda outputs, rows: ((outputs - rows) ** 2).mean(), rows_of(3))


def test_training_leaves_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        mechanism = SampledGaussianMechanism(5.0, 0.5, 2)
        seen = []
        run(
            reserve(mechanism),
            mechanism,
            losses=lambda o, r: seen.append(torch.get_num_threads()) or squared(o, r),
        )
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_layer_used_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(ITEMS, ITEMS)

        def forward(self, rows):
            return self.layer(self.layer(rows))

    with pytest.raises(NotImplementedError, match="tying"):
        clipped_sum(Twice, squared, rows_of(3))


def run(reservation, mechanism, *, rows=None, losses=squared, module=None, **changes):
    arguments = {
        "mechanism": mechanism,
        "reservation": reservation,
        "max_grad_norm": CLIP,
        "expected_batch_size": 10.0,
        "learning_rate": 0.01,
        "noise": SystemNoise(),
        "progress": False,
    } | changes
    table = sparse.csr_array((rows_of(40) if rows is None else rows).numpy())
    return train_private(module or fixed(linear), table, losses, **arguments)


def reserve(mechanism):
    return PrivacyLedger(PrivacyBudget(50.0, 1e-6)).reserve([mechanism], purpose="test")


def test_every_step_is_paid_for_and_none_is_run_beyond():
    mechanism = SampledGaussianMechanism(2.0, 0.25, 6)
    reservation = reserve(mechanism)
    seen = []
    result = run(
        reservation, mechanism, losses=lambda o, r: seen.append(reservation.used(mechanism)) or squared(o, r)
    )
    assert result.steps == reservation.used(mechanism) == 6
    assert seen == sorted(seen)
    assert seen[0] == 1  # the first read came after the first payment
    module = fixed(linear)
    before = [p.clone() for p in module.parameters()]
    with pytest.raises(BudgetExceededError):
        run(reservation, mechanism, module=module)
    assert all(torch.equal(b, p) for b, p in zip(before, module.parameters(), strict=True))


def test_another_schedule_than_the_reserved_one_is_refused():
    reservation = reserve(SampledGaussianMechanism(2.0, 0.25, 6))
    for other in (SampledGaussianMechanism(1.0, 0.25, 6), SampledGaussianMechanism(2.0, 0.5, 6)):
        with pytest.raises(SpecificationError, match="not reserved"):
            run(reservation, other)


def test_batches_are_poisson_samples():
    mechanism = SampledGaussianMechanism(5.0, 0.3, 400)
    sizes, members = [], []

    def count(outputs, rows):
        sizes.append(len(rows))
        members.append(rows.argmax(1))
        return squared(outputs, rows)

    # User i holds item i alone, so the rows of a batch tell who is in it.
    run(reserve(mechanism), mechanism, rows=torch.eye(ITEMS), losses=count)
    n = 400 * ITEMS
    included = torch.cat(members)
    assert abs(len(included) - 0.3 * n) < 5 * np.sqrt(0.21 * n)
    each = torch.bincount(included, minlength=ITEMS).numpy()
    assert (abs(each - 120) < 5 * np.sqrt(0.21 * 400)).all()
    # A fixed batch size would have no variance; a Poisson sample has 12 * 0.21 = 2.5.
    assert 1.7 < np.var([*sizes, *[0] * (400 - len(sizes))]) < 3.4


def test_empty_batches_take_a_step_of_pure_noise():
    mechanism = SampledGaussianMechanism(5.0, 1e-6, 3)
    module = fixed(linear)
    before = [p.clone() for p in module.parameters()]
    assert run(reserve(mechanism), mechanism, module=module).steps == 3
    assert not any(torch.equal(b, p) for b, p in zip(before, module.parameters(), strict=True))


def test_snapshots():
    mechanism = SampledGaussianMechanism(5.0, 0.5, 4)
    module = fixed(linear)
    result = run(reserve(mechanism), mechanism, module=module, snapshot_at=(2, 4))
    assert sorted(result.snapshots) == [2, 4]
    final = module.state_dict()
    assert all(torch.equal(result.snapshots[4][name], final[name]) for name in final)
    assert not all(torch.equal(result.snapshots[2][name], final[name]) for name in final)


def test_divergence_is_an_error():
    mechanism = SampledGaussianMechanism(5.0, 0.5, 400)
    with pytest.raises(NumericalError, match="learning rate"):
        run(reserve(mechanism), mechanism, learning_rate=1e37)


@pytest.mark.parametrize(
    "change", [{"learning_rate": 0.0}, {"max_grad_norm": -1.0}, {"expected_batch_size": 0.0}]
)
def test_constants_are_checked_before_anything_is_used(change):
    mechanism = SampledGaussianMechanism(5.0, 0.5, 4)
    reservation = reserve(mechanism)
    with pytest.raises(SpecificationError):
        run(reservation, mechanism, **change)
    assert reservation.used(mechanism) == 0
