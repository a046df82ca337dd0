"""Private steps against a backward pass per user, neighbouring batches, and the cap."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

from recsys_budget.errors import NumericalError, ReservationError, SpecificationError
from recsys_budget.privacy import PrivacyBudget, PrivacyLedger, SampledGaussianMechanism, SystemNoise
from recsys_budget.training import UnitRows, train_private
from recsys_budget.training._opacus import PrivateStep

ITEMS, CLIP = 12, 0.3


class NoNoise(SystemNoise):
    """Adds nothing, so that a step shows the clipped sum itself."""

    private = False

    def normal(self, size):
        return np.zeros(size)


def linear():
    return nn.Sequential(nn.Linear(ITEMS, 4, bias=False), nn.Linear(4, ITEMS))


def unit():
    return nn.Sequential(UnitRows(), nn.Linear(ITEMS, 4), nn.Identity(), nn.Linear(4, ITEMS))


def deep():
    return nn.Sequential(nn.Linear(ITEMS, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, ITEMS))


def cross_entropy(outputs, row):
    return -(row * torch.log_softmax(outputs, 0)).sum()


def squared(outputs, row):
    return ((outputs - row) ** 2).sum()


def fixed(make):
    torch.manual_seed(0)
    module = make()
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(3)  # so that clipping binds for some rows and not for others
    return module


def rows_of(n, rng=0):
    return torch.from_numpy((np.random.default_rng(rng).random((n, ITEMS)) < 0.3).astype(np.float32))


def clipped_sum(make, loss, rows, clip=CLIP, noise=None, noise_multiplier=1.0, expected=1.0):
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
    step(rows, loss)
    return torch.cat([(b - p).flatten() for b, p in zip(before, module.parameters(), strict=True)]).detach()


def brute_force(make, loss, rows, clip=CLIP):
    """One backward pass a user."""
    module = fixed(make)
    total = 0
    for row in rows:
        module.zero_grad()
        loss(module(row[None])[0], row).backward()
        gradient = torch.cat([p.grad.flatten() for p in module.parameters()])
        total = total + gradient * min(1.0, clip / max(float(gradient.norm()), 1e-30))
    return total


CASES = pytest.mark.parametrize(
    ("make", "loss"), [(make, loss) for make in (linear, unit, deep) for loss in (cross_entropy, squared)]
)


@CASES
@pytest.mark.parametrize("clip", [0.05, 2.0, 1e3])
def test_clipped_sum_equals_one_backward_pass_a_user(make, loss, clip):
    rows = rows_of(30)
    ours, reference = clipped_sum(make, loss, rows, clip), brute_force(make, loss, rows, clip * 0.999)
    assert float((ours - reference).norm()) <= 1e-4 * float(reference.norm())


@CASES
def test_removing_one_user_moves_the_sum_by_at_most_the_clip_bound(make, loss):
    rows = rows_of(20)
    whole = clipped_sum(make, loss, rows)
    moves = [
        float((whole - clipped_sum(make, loss, torch.cat([rows[:i], rows[i + 1 :]]))).norm())
        for i in range(20)
    ]
    assert max(moves) <= CLIP
    assert max(moves) > CLIP * 0.99  # the bound is reached, so the test has power


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e5, 1e7, 1e20, 1e38])
def test_a_poisonous_row_is_bounded_like_any_other(value):
    rows = rows_of(10)
    poisoned = torch.cat([rows, torch.full((1, ITEMS), value)])
    for make, loss in [(linear, cross_entropy), (linear, squared), (unit, squared)]:
        with_it, without = clipped_sum(make, loss, poisoned), clipped_sum(make, loss, rows)
        assert torch.isfinite(with_it).all()
        assert float((with_it - without).norm()) <= CLIP


def test_a_row_that_overflows_inside_the_module_is_bounded_like_any_other():
    """A weight of zero would not do: zero times an infinite activation is NaN, and one user would be seen."""

    def steep():
        module = linear()
        with torch.no_grad():
            module[0].weight[:, 0] = 1e38
        return module

    rows = rows_of(10)
    rows[:, 0] = 0
    poisoned = torch.cat([rows, torch.eye(ITEMS)[:1] * 100])
    with_it, without = clipped_sum(steep, squared, poisoned), clipped_sum(steep, squared, rows)
    assert torch.isfinite(with_it).all()
    assert float((with_it - without).norm()) == 0
    assert float(without.norm()) > 0


@pytest.mark.parametrize(("where", "steepness"), [(0, 1e19), (1, 1e19), (1, 1e25)])
def test_a_gradient_whose_square_vanishes_is_bounded_like_any_other(where, steepness):
    """Opacus multiplies two squares: one vanishes, though the gradient itself is far above the bound."""
    clip = 1e-5

    def steep():
        module = nn.Sequential(nn.Linear(ITEMS, 1, bias=False), nn.Linear(1, 1, bias=False))
        with torch.no_grad():
            for p in module.parameters():
                p.fill_(1 / 3)  # clipped_sum takes three times these
            if where == 1:
                module[0].weight.mul_(steepness)
        return module

    def faint(outputs, row):
        return 1e-23 * outputs.sum()

    rows = torch.zeros(1, ITEMS)
    rows[0, 0] = steepness if where == 0 else 1.0
    moved = clipped_sum(steep, faint, rows, clip) - clipped_sum(steep, faint, rows[:0], clip)
    assert float(moved.norm()) <= clip
    # What is tested for is there: the last layer's gradient is above the bound, and its square vanishes.
    assert 1e-23 * steepness > clip
    assert float(torch.tensor(1e-23) ** 2) == 0


def test_only_poisonous_rows():
    assert clipped_sum(linear, squared, torch.full((3, ITEMS), float("nan"))).abs().max() == 0


def test_unclipped_sum_would_be_caught():
    """The neighbouring test has power: without clipping, one user moves the sum further than the bound."""
    rows = rows_of(20)
    moved = brute_force(linear, squared, rows, np.inf) - brute_force(linear, squared, rows[1:], np.inf)
    assert float(moved.norm()) > CLIP * 1.0001


def test_noise_has_the_promised_scale_and_the_denominator_is_the_constant():
    def wide():
        return nn.Sequential(nn.Linear(ITEMS, 20_000, bias=False))

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


class Looped(nn.Linear):
    """Mixes the users of a batch."""

    def forward(self, rows):
        return super().forward(rows).cumsum(0)


class Tied(nn.Module):
    """Uses one weight twice, once outside its layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(ITEMS, ITEMS)

    def forward(self, rows):
        return self.layer(rows) @ self.layer.weight


def hooked():
    module = nn.Sequential(nn.Linear(ITEMS, ITEMS))
    module[0].register_forward_hook(lambda layer, inputs, outputs: outputs * 100)
    return module


def twice():
    layer = nn.Linear(ITEMS, ITEMS)
    return nn.Sequential(layer, layer)


def shared():
    one, two = nn.Linear(ITEMS, ITEMS), nn.Linear(ITEMS, ITEMS)
    two.weight = one.weight
    return nn.Sequential(one, two)


REFUSED = {
    "batch norm": lambda: nn.Sequential(nn.Linear(ITEMS, 4), nn.BatchNorm1d(4)),
    "embedding": lambda: nn.Sequential(nn.Embedding(ITEMS, 3)),
    "embedding bag": lambda: nn.Sequential(nn.EmbeddingBag(ITEMS, 3)),
    "dropout": lambda: nn.Sequential(nn.Dropout(), nn.Linear(ITEMS, 4)),
    "unflatten": lambda: nn.Sequential(nn.Unflatten(1, (ITEMS, 1)), nn.Linear(1, 1), nn.Flatten()),
    "subclass": lambda: nn.Sequential(Looped(ITEMS, ITEMS)),
    "own module": Tied,
    "bare layer": lambda: nn.Linear(ITEMS, ITEMS),
    "hook": hooked,
    "layer twice": twice,
    "shared weight": shared,
    "half precision": lambda: nn.Sequential(nn.Linear(ITEMS, ITEMS)).half(),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_modules_not_known_to_be_right_are_refused_before_any_read(make):
    mechanism = SampledGaussianMechanism(2.0, 0.25, 6)
    reservation = reserve(mechanism)
    with pytest.raises(SpecificationError):
        run(reservation, mechanism, module=make())
    assert reservation.used(mechanism) == 0


def test_a_loss_sees_one_user_only():
    """Centring over the batch, penalties on parameters: what a loss does cannot reach beyond its user."""
    module = fixed(linear)
    shapes = set()

    def centred(outputs, row):
        shapes.add((tuple(outputs.shape), tuple(row.shape)))
        penalty = sum((p**2).sum() for p in module.parameters())
        return ((outputs - outputs.mean() - row) ** 2).sum() + 1e3 * penalty

    rows = rows_of(12)
    moved = clipped_sum(linear, centred, rows) - clipped_sum(linear, centred, rows[1:])
    assert shapes == {((ITEMS,), (ITEMS,))}
    assert float(moved.norm()) <= CLIP


def test_the_bound_holds_with_many_parameters_in_float32():
    items = 30_000

    def wide():
        return nn.Sequential(UnitRows(), nn.Linear(items, 16, bias=False), nn.Linear(16, items))

    rows = torch.from_numpy((np.random.default_rng(0).random((60, items)) < 0.01).astype(np.float32))
    moved = clipped_sum(wide, cross_entropy, rows, 0.02) - clipped_sum(wide, cross_entropy, rows[1:], 0.02)
    assert 0.9 * 0.02 < float(moved.double().norm()) <= 0.02


def left_on(module):
    """Whatever hangs on a module beside its layers and the values of its parameters."""
    for part in module.modules():
        for name, value in vars(part).items():
            if "hooks" in name or isinstance(value, torch.Tensor | list):
                yield from value.values() if isinstance(value, dict) else value or ()
        yield from part.buffers(recurse=False)
    for p in module.parameters():
        yield from vars(p).values()
        if p.grad is not None:
            yield p.grad


def test_nothing_un_noised_is_left_on_the_module():
    mechanism = SampledGaussianMechanism(5.0, 0.5, 3)
    module = fixed(linear)
    result = run(reserve(mechanism), mechanism, module=module, snapshot_at=(1, 3))
    assert list(left_on(module)) == []
    for snapshot in result.snapshots.values():
        assert all(vars(value) == {} and value.grad is None for value in snapshot.values())
    # The check has power: what Opacus trains on holds the exact sum of the last batch.
    exposed = fixed(linear)
    PrivateStep(
        exposed,
        torch.optim.SGD(exposed.parameters(), lr=1.0),
        noise_multiplier=1.0,
        max_grad_norm=CLIP,
        expected_batch_size=1.0,
        noise=NoNoise(),
    )(rows_of(5), squared)
    assert len(list(left_on(exposed))) > 0


@pytest.mark.parametrize("where", ["uniform", "normal"])
@pytest.mark.parametrize("after", [0, 1, 7])
def test_an_interrupt_keeps_the_parameters_after_the_last_complete_step(where, after):
    class Interrupted(SystemNoise):
        draws = 0

        def count(self, name):
            self.draws += name == where
            if self.draws > after:
                raise KeyboardInterrupt

        def uniform(self, size):
            self.count("uniform")
            return super().uniform(size)

        def normal(self, size):
            self.count("normal")
            return super().normal(size)

    mechanism = SampledGaussianMechanism(5.0, 0.9, 50)
    reservation = reserve(mechanism)
    module = fixed(linear)
    before = [p.detach().clone() for p in module.parameters()]
    result = run(reservation, mechanism, module=module, noise=Interrupted(), snapshot_at=range(1, 51))
    assert (result.steps, result.stop_reason) == (after, "interrupted")
    assert reservation.used(mechanism) == after + 1  # the step that was broken off is paid for
    assert list(left_on(module)) == []
    assert list(result.snapshots) == list(range(1, after + 1))
    kept = result.snapshots[after].values() if after else before
    assert all(torch.equal(k, p) for k, p in zip(kept, module.parameters(), strict=True))
    assert not module.training


def test_divergence_leaves_the_last_finite_parameters():
    mechanism = SampledGaussianMechanism(5.0, 0.5, 400)
    module = fixed(linear)
    with pytest.raises(NumericalError, match="learning rate"):
        run(reserve(mechanism), mechanism, module=module, learning_rate=1e37)
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_a_module_may_be_trained_again():
    mechanism = SampledGaussianMechanism(5.0, 0.5, 2)
    module = fixed(linear)
    for _ in range(2):
        run(reserve(mechanism), mechanism, module=module)


def test_training_leaves_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        mechanism = SampledGaussianMechanism(5.0, 0.5, 2)
        seen = []
        run(
            reserve(mechanism),
            mechanism,
            loss=lambda o, r: seen.append(torch.get_num_threads()) or squared(o, r),
        )
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def run(reservation, mechanism, *, rows=None, loss=squared, module=None, **changes):
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
    return train_private(module or fixed(linear), table, loss, **arguments)


def reserve(mechanism):
    return PrivacyLedger(PrivacyBudget(50.0, 1e-6)).reserve([mechanism], purpose="test")


def test_every_step_is_paid_for_and_none_is_run_beyond():
    mechanism = SampledGaussianMechanism(2.0, 0.25, 6)
    reservation = reserve(mechanism)
    seen = []
    result = run(
        reservation, mechanism, loss=lambda o, r: seen.append(reservation.used(mechanism)) or squared(o, r)
    )
    assert result.steps == reservation.used(mechanism) == 6
    assert seen == sorted(seen)
    assert seen[0] == 1  # the first read came after the first payment
    assert result.stop_reason == "all steps ran"
    module = fixed(linear)
    before = [p.clone() for p in module.parameters()]
    again = run(reservation, mechanism, module=module)
    assert (again.steps, again.stop_reason) == (0, "the next step would pass what was reserved")
    assert all(torch.equal(b, p) for b, p in zip(before, module.parameters(), strict=True))


def test_another_schedule_than_the_reserved_one_is_refused():
    reservation = reserve(SampledGaussianMechanism(2.0, 0.25, 6))
    for other in (SampledGaussianMechanism(1.0, 0.25, 6), SampledGaussianMechanism(2.0, 0.5, 6)):
        with pytest.raises(ReservationError, match="not reserved"):
            run(reservation, other)


def test_batches_are_poisson_samples(monkeypatch):
    batches = []
    monkeypatch.setattr(PrivateStep, "__call__", lambda self, rows, loss: batches.append(rows.indices))
    n, steps, rate = 1000, 600, 0.3
    mechanism = SampledGaussianMechanism(5.0, rate, steps)
    # User i holds item i alone, so the rows of a batch tell who is in it.
    module = nn.Sequential(nn.Linear(n, 1))
    run(reserve(mechanism), mechanism, rows=torch.eye(n), module=module)
    sizes = np.array([len(batch) for batch in batches])
    variance = rate * (1 - rate)
    assert abs(sizes.sum() - rate * n * steps) < 5 * np.sqrt(variance * n * steps)  # within 0.6%
    each = np.bincount(np.concatenate(batches), minlength=n)
    assert (abs(each - rate * steps) < 6 * np.sqrt(variance * steps)).all()
    # A fixed batch size would have no variance, and a mask kept over the steps none either.
    assert 0.7 < sizes.var() / (variance * n) < 1.4
    overlap = np.mean([len(np.intersect1d(a, b)) for a, b in pairwise(batches)])
    assert abs(overlap / n - rate**2) < 0.005


def test_the_loop_passes_its_constants_on(monkeypatch):
    seen = {}

    def spy(self, module, optimizer, **constants):
        seen.update(constants, learning_rate=optimizer.defaults["lr"], adam=type(optimizer))

    monkeypatch.setattr(PrivateStep, "__init__", spy)
    monkeypatch.setattr(PrivateStep, "__call__", lambda self, rows, loss: None)
    mechanism, noise = SampledGaussianMechanism(2.5, 0.3, 2), SystemNoise()
    run(reserve(mechanism), mechanism, noise=noise)
    assert seen == {
        "noise_multiplier": 2.5,
        "max_grad_norm": CLIP,
        "expected_batch_size": 10.0,
        "noise": noise,
        "sample_rate": 0.3,
        "distributed": False,
        "learning_rate": 0.01,
        "adam": torch.optim.Adam,
    }


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


@pytest.mark.parametrize(
    "rows", [torch.eye(ITEMS), np.eye(ITEMS), [torch.eye(ITEMS)], sparse.eye_array(ITEMS)]
)
def test_only_a_table_of_all_users_is_trained_on(rows):
    """A loader brings its own batches, which need not be Poisson samples."""
    mechanism = SampledGaussianMechanism(5.0, 0.5, 4)
    reservation = reserve(mechanism)
    with pytest.raises(SpecificationError, match="Poisson"):
        train_private(
            fixed(linear),
            rows,
            squared,
            mechanism=mechanism,
            reservation=reservation,
            max_grad_norm=CLIP,
            expected_batch_size=10.0,
            learning_rate=0.01,
            noise=SystemNoise(),
        )
    assert reservation.used(mechanism) == 0


@pytest.mark.parametrize("name", ["learning_rate", "max_grad_norm", "expected_batch_size", "keep_every"])
@pytest.mark.parametrize("value", [0.0, -1.0, np.inf, np.nan])
def test_constants_are_checked_before_anything_is_used(name, value):
    mechanism = SampledGaussianMechanism(5.0, 0.5, 4)
    reservation = reserve(mechanism)
    with pytest.raises(SpecificationError):
        run(reservation, mechanism, **{name: value})
    assert reservation.used(mechanism) == 0


@pytest.fixture
def everyone(monkeypatch):
    """Everybody is in every batch and no noise is added, so that a run is its number of steps."""
    monkeypatch.setattr(NoNoise, "uniform", lambda self, size: np.zeros(size))
    return NoNoise()


def test_going_on_from_a_state_gives_what_an_uninterrupted_run_gives(everyone):
    mechanism = SampledGaussianMechanism(5.0, 1.0, 9)
    whole = fixed(linear)
    uninterrupted = run(reserve(mechanism), mechanism, module=whole, noise=everyone, snapshot_at=(2, 6))
    reservation, states, first = reserve(mechanism), [], fixed(linear)

    def crash(state):
        states.append(state)
        if state.steps == 4:
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError):
        run(
            reservation,
            mechanism,
            module=first,
            noise=everyone,
            keep=crash,
            keep_every=2,
            snapshot_at=(2, 6),
        )
    assert [state.steps for state in states] == [0, 2, 4]
    second = nn.Sequential(nn.Linear(ITEMS, 4, bias=False), nn.Linear(4, ITEMS))  # starts elsewhere
    result = run(reservation, mechanism, module=second, noise=everyone, start=states[-1], snapshot_at=(2, 6))
    assert (result.steps, result.stop_reason) == (9, "all steps ran")
    assert reservation.used(mechanism) == 9
    for ours, theirs in [(second.state_dict(), whole.state_dict())] + [
        (result.snapshots[mark], uninterrupted.snapshots[mark]) for mark in (2, 6)
    ]:
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_older_state_gives_no_step_more(everyone):
    mechanism = SampledGaussianMechanism(5.0, 1.0, 9)
    reservation, states = reserve(mechanism), []
    run(reservation, mechanism, noise=everyone, keep=states.append, keep_every=3)
    assert [state.steps for state in states] == [0, 3, 6, 9]
    for state in states:
        module = fixed(linear)
        result = run(reservation, mechanism, module=module, noise=everyone, start=state)
        assert result.steps == state.steps
        assert result.stop_reason == (
            "all steps ran" if state.steps == 9 else "the next step would pass what was reserved"
        )
        assert all(torch.equal(p, state.parameters[name]) for name, p in module.state_dict().items())
    assert reservation.used(mechanism) == 9


def test_steps_lost_in_a_crash_stay_lost_and_marks_among_them_are_given_as_of_before(everyone):
    mechanism = SampledGaussianMechanism(5.0, 1.0, 9)
    reservation, states = reserve(mechanism), []
    run(reservation, SampledGaussianMechanism(5.0, 1.0, 9), noise=everyone, keep=states.append, keep_every=3)
    reservation = reserve(mechanism)
    for _ in range(5):
        reservation.use(mechanism)  # taken before the crash; the state is of step 3
    result = run(reservation, mechanism, noise=everyone, start=states[1], snapshot_at=(3, 4, 6, 9))
    assert (result.steps, result.stop_reason) == (7, "the next step would pass what was reserved")
    assert sorted(result.snapshots) == [3, 4, 6, 9]
    same = [
        all(torch.equal(v, states[1].parameters[name]) for name, v in result.snapshots[mark].items())
        for mark in (3, 4, 6, 9)
    ]
    assert same == [True, True, False, False]


def test_a_state_of_another_module_is_refused():
    mechanism = SampledGaussianMechanism(5.0, 0.5, 4)
    reservation, states = reserve(mechanism), []
    run(reservation, mechanism, keep=states.append)
    other = reserve(mechanism)
    with pytest.raises(SpecificationError, match="other parameters"):
        run(other, mechanism, module=fixed(deep), start=states[0])
    assert other.used(mechanism) == 0


def test_a_state_holds_released_values_alone():
    """Whatever a state is kept for, no sum without noise is in it: it holds values, and Adam's averages."""
    states = []
    mechanism = SampledGaussianMechanism(5.0, 0.5, 3)
    run(reserve(mechanism), mechanism, keep=states.append, keep_every=1)
    for state in states[1:]:
        assert {key.partition(".")[2] for key in state.moments} == {"step", "exp_avg", "exp_avg_sq"}
        for value in (*state.parameters.values(), *state.moments.values()):
            assert type(value) is torch.Tensor
            assert vars(value) == {}
            assert value.grad is None
