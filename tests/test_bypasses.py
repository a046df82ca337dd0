"""Ways past a target epsilon, each really tried against the loop: none yields a release not reserved.

Releases are counted where they happen, by a source of noise that counts the vectors it was asked for, and by
a spy on the step; the package's own counters are compared with that count and never stand in for it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer
from scipy import sparse
from torch import nn

from recsys_budget.data import SyntheticSpec, make_interactions
from recsys_budget.errors import (
    BudgetExceededError,
    LedgerCorruptError,
    ReservationError,
    SpecificationError,
)
from recsys_budget.models import PrivateAutoencoder
from recsys_budget.models import autoencoder as autoencoder_module
from recsys_budget.privacy import (
    GaussianMechanism,
    PrivacyBudget,
    PrivacyLedger,
    SampledGaussianMechanism,
    SystemNoise,
    epsilon,
)
from recsys_budget.training import _opacus as opacus_module
from recsys_budget.training import train_private
from recsys_budget.training._opacus import PrivateStep
from recsys_budget.training.allowed import RowGraph

ITEMS, USERS, STEPS = 10, 50, 6
BUDGET = PrivacyBudget(3.0, 1e-5)
SCHEDULE = SampledGaussianMechanism(2.0, 0.2, STEPS)


class Counting(SystemNoise):
    """Counts releases: one vector of normal numbers each, and one mask before it."""

    def __init__(self):
        self.releases = self.masks = 0

    def normal(self, size):
        self.releases += 1
        return super().normal(size)

    def uniform(self, size):
        self.masks += 1
        return super().uniform(size)


@pytest.fixture
def noise():
    return Counting()


@pytest.fixture
def fits(monkeypatch, noise):
    """The same source, for everything that a model draws."""
    monkeypatch.setattr(autoencoder_module, "SystemNoise", lambda: noise)
    return noise


def linear():
    return nn.Sequential(nn.Linear(ITEMS, 3), nn.Linear(3, ITEMS))


def squared(outputs, row):
    return ((outputs - row) ** 2).sum()


def rows(n=USERS):
    return sparse.csr_array((np.random.default_rng(0).random((n, ITEMS)) < 0.3).astype(np.float32))


def train(reservation, noise, *, mechanism=SCHEDULE, module=None, table=None, loss=squared, **changes):
    constants = {
        "max_grad_norm": 0.3,
        "expected_batch_size": 10.0,
        "learning_rate": 0.01,
        "progress": False,
    }
    return train_private(
        linear() if module is None else module,
        rows() if table is None else table,
        loss,
        mechanism=mechanism,
        reservation=reservation,
        noise=noise,
        **constants | changes,
    )


@pytest.fixture
def ledger():
    return PrivacyLedger(BUDGET)


@pytest.fixture
def reservation(ledger):
    return ledger.reserve([SCHEDULE], purpose="train")


def values(module):
    return [p.detach().clone() for p in module.parameters()]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_as_many_steps_run_as_were_planned_and_their_epsilon_is_below_the_cap(fits, ledger):
    """Opacus plans `int(1 / (1 / 75) * 3)` steps and its loader runs more: target 3 ends at 3.0018."""
    table = make_interactions(SyntheticSpec(n_users=75, n_items=60, n_categories=4), rng=0).interactions
    model = PrivateAutoencoder(
        declared_users=75, n_factors=3, steps=75 * 3, sample_rate=1 / 75, progress=False
    ).fit(table, ledger=ledger)
    assert fits.releases == 1 + 225  # the counts, and as many steps as were asked for
    assert fits.masks == 225
    counts, training = (dict(m) for m in model.receipt_.mechanisms)
    assert training["steps"] == model.receipt_.steps == 225
    ran = (
        GaussianMechanism(counts["noise_multiplier"]),
        SampledGaussianMechanism(training["noise_multiplier"], 1 / 75, fits.masks),
    )
    assert epsilon(ran, BUDGET.delta) <= BUDGET.epsilon


def test_extra_epochs(noise, reservation):
    """Opacus goes on without a word: 8 becomes 10.13 after three more epochs."""
    module = linear()
    train(reservation, noise, module=module)
    assert noise.releases == STEPS
    trained = values(module)
    for _ in range(3):
        more = train(reservation, noise, module=module)
        assert (more.steps, more.stop_reason) == (0, "the next step would pass what was reserved")
        assert same(values(module), trained)
    assert noise.releases == noise.masks == STEPS


def test_fitting_again_and_again(fits, ledger):
    """Every fit is charged: at some point nothing more runs, and what ran costs no more than the cap."""
    table = make_interactions(SyntheticSpec(n_users=60, n_items=60, n_categories=4), rng=0).interactions
    ran = []
    for _ in range(20):
        model = PrivateAutoencoder(
            declared_users=60, n_factors=2, steps=20, sample_rate=0.5, noise_multiplier=8.0, progress=False
        )
        before = fits.releases
        try:
            model.fit(table, ledger=ledger)
        except BudgetExceededError:
            assert fits.releases == before
            continue
        counts, training = (dict(m) for m in model.receipt_.mechanisms)
        ran += [
            GaussianMechanism(counts["noise_multiplier"]),
            SampledGaussianMechanism(8.0, 0.5, fits.releases - before - 1),
        ]
        assert fits.releases - before - 1 == training["steps"]
    assert 1 < len(ran) / 2 < 20
    assert epsilon(ran, BUDGET.delta) <= ledger.spent <= BUDGET.epsilon


@pytest.mark.parametrize("how", ["a longer one", "less noise", "a higher rate", "an equal one"])
def test_a_second_schedule_under_the_first_reservation(noise, reservation, how):
    """A second engine on the same permission: nothing beyond what was reserved, whoever asks."""
    other = {
        "a longer one": SampledGaussianMechanism(2.0, 0.2, 10 * STEPS),
        "less noise": SampledGaussianMechanism(0.5, 0.2, STEPS),
        "a higher rate": SampledGaussianMechanism(2.0, 0.9, STEPS),
        "an equal one": SampledGaussianMechanism(2.0, 0.2, STEPS),
    }[how]
    train(reservation, noise)
    with contextlib.nullcontext() if how == "an equal one" else pytest.raises(ReservationError):
        train(reservation, noise, mechanism=other)
    assert noise.releases == STEPS


# Python's warning filters, which each step sets aside for torch's hooks, are shared by threads.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_two_engines_at_the_same_time(reservation):
    """Two trainings side by side, on one module and one reservation, share its releases."""
    sources, module, runs = [Counting(), Counting()], linear(), []

    def engine(source):
        runs.append(train(reservation, source, module=module))

    threads = [threading.Thread(target=engine, args=(source,)) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(run.steps for run in runs) == sum(source.releases for source in sources) == STEPS


def test_a_module_is_traced_while_another_is_trained(reservation, noise):
    """Tracing changes what calling a module means, for every thread: the other training must not notice."""
    over, faults = threading.Event(), []

    def trace():
        while not over.is_set():
            try:
                RowGraph(linear())
            except Exception as error:
                faults.append(error)

    tracing = threading.Thread(target=trace)
    tracing.start()
    try:
        run = train(reservation, noise)
    finally:
        over.set()
        tracing.join()
    assert run.steps == STEPS
    assert not faults


def test_two_engines_one_inside_the_other(noise, reservation):
    """Another training on the same permission, started between two steps of the first."""
    inner = Counting()

    def nested(state):
        if state.steps == 2:
            train(reservation, inner)

    run = train(reservation, noise, keep=nested, keep_every=1)
    assert (noise.releases, inner.releases) == (2, STEPS - 2)
    assert run.steps == noise.releases
    assert run.stop_reason == "the next step would pass what was reserved"


def test_a_second_ledger_of_one_file_is_the_same_ledger(tmp_path):
    path, sources = tmp_path / "budget.db", []
    granted = 0
    for _ in range(40):  # each as if in another kernel
        ledger, source = PrivacyLedger(BUDGET, path), Counting()
        sources.append(source)
        try:
            reservation = ledger.reserve([SCHEDULE], purpose="train")
        except BudgetExceededError:
            continue
        granted += 1
        train(reservation, source)
    assert 1 < granted < 40
    assert sum(source.releases for source in sources) == granted * STEPS
    ran = [SampledGaussianMechanism(2.0, 0.2, STEPS)] * granted
    assert epsilon(ran, BUDGET.delta) <= BUDGET.epsilon


def test_history_set_to_nothing(noise, ledger, reservation):
    """`accountant.history = []` takes Opacus's spend back to 0."""
    train(reservation, noise)
    before = ledger.spent
    for attempt in (
        lambda: setattr(ledger, "history", []),
        lambda: ledger.history().__delitem__("epsilon"),
    ):
        with contextlib.suppress(AttributeError, TypeError):
            attempt()
        vars(ledger).pop("history", None)
        assert ledger.spent == before > 0
    for name, nothing in [("spent", 0.0), ("remaining", 3.0), ("cap", PrivacyBudget(99.0, 1e-5))]:
        with pytest.raises(AttributeError):
            setattr(ledger, name, nothing)
    with pytest.raises(AttributeError):
        reservation.mechanisms = (SampledGaussianMechanism(2.0, 0.2, 99),)
    train(reservation, noise)
    assert noise.releases == STEPS


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_history_edited_in_the_file(tmp_path, noise):
    """Past its triggers, with another program: the chain of hashes tells, and nothing is granted."""
    import sqlite3

    path = tmp_path / "budget.db"
    ledger = PrivacyLedger(BUDGET, path)
    reservation = ledger.reserve([SCHEDULE], purpose="train")
    train(reservation, noise)
    spent = ledger.spent
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER no_delete")
    connection.execute("DELETE FROM record WHERE kind IN ('reserve', 'claim')")
    connection.commit()
    connection.close()
    with pytest.raises(LedgerCorruptError):
        PrivacyLedger(BUDGET, path)
    # Who had it open still knows what was spent, and a run under it stays used up.
    assert ledger.spent == spent
    train(reservation, noise)
    assert noise.releases == STEPS


def test_an_old_state_loaded_into_the_loop(noise, reservation):
    """An old checkpoint takes Opacus's spend from 6.33 back to 3.44; here it takes back parameters alone."""
    states = []
    train(reservation, noise, keep=states.append, keep_every=2)
    assert [state.steps for state in states] == [0, 2, 4, 6]
    for state in states:
        assert train(reservation, noise, start=state).steps == state.steps
    assert noise.releases == STEPS
    assert not any("used" in name or "spent" in name for name in vars(states[0]))


@pytest.fixture
def inner(monkeypatch):
    """The optimizers that the loop makes, laid hold of by replacing the class."""
    made = []
    adam = torch.optim.Adam

    class Caught(adam):
        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            made.append(self)

    monkeypatch.setattr(torch.optim, "Adam", Caught)
    return made


def test_the_inner_optimizer_stepped_from_outside(noise, reservation, inner):
    """`optimizer.original_optimizer.step()` trains unclipped and un-noised on what Opacus holds."""
    module = linear()
    result = train(reservation, noise, module=module)
    trained = values(module)
    (adam,) = inner
    for _ in range(50):
        adam.step()
    assert same(values(module), trained)  # it moves a copy that nobody is given
    assert not {id(p) for p in module.parameters()} & {id(p) for g in adam.param_groups for p in g["params"]}
    assert noise.releases == reservation.used(SCHEDULE) == result.steps == STEPS
    # and without the trick there is no handle to be had: nothing reachable from the module is an optimizer
    assert not any(isinstance(found, torch.optim.Optimizer | DPOptimizer) for found in reachable(module))


def reachable(thing):
    """Everything that instances lead to, through their attributes and containers."""
    seen, waiting = {}, [thing]
    while waiting:
        found = waiting.pop()
        if (
            id(found) in seen
            or isinstance(found, type)
            or (callable(found) and not hasattr(found, "__dict__"))
        ):
            continue
        seen[id(found)] = found
        if isinstance(found, dict):
            waiting += found.values()
        elif isinstance(found, list | tuple | set | frozenset):
            waiting += found
        elif type(found).__module__.startswith(("torch", "opacus", "recsys_budget")):
            waiting += list(getattr(found, "__dict__", {}).values())
    return seen.values()


def test_the_inner_optimizer_stepped_in_the_middle_of_a_step(noise, reservation, inner):
    """From within the loss: gradients are zero there, and torch refuses to go on with changed parameters."""
    gradients = []

    def loss(outputs, row):
        (adam,) = inner
        gradients.extend(float(p.grad.abs().max()) for g in adam.param_groups for p in g["params"])
        adam.step()
        return squared(outputs, row)

    module = linear()
    before = values(module)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        train(reservation, noise, loss=loss, module=module)
    assert gradients
    assert max(gradients) == 0
    assert same(values(module), before)
    assert noise.releases == 0


def test_the_step_hook_replaced(noise, reservation, monkeypatch):
    """Opacus's accountant is a hook of its optimizer: with one's own, 50 steps cost epsilon 0."""
    hooked = []
    attach = opacus_module._Optimizer.attach_step_hook
    monkeypatch.setattr(
        opacus_module._Optimizer,
        "attach_step_hook",
        lambda self, hook: attach(self, lambda optimizer: hooked.append(1)),
    )
    module = linear()
    before = values(module)
    with pytest.raises(ReservationError, match="accountant saw 0"):
        train(reservation, noise, module=module)
    # The step that nobody saw was paid for all the same, and the module is as it was before it.
    assert len(hooked) == noise.releases == reservation.used(SCHEDULE) == 1
    assert same(values(module), before)


def test_a_step_that_opacus_saw_twice(noise, reservation, monkeypatch):
    """The same sum released twice: the mean of the two has less noise than was paid for."""
    release = opacus_module._Optimizer.pre_step

    def twice(self, closure=None):
        release(self)
        return release(self)

    monkeypatch.setattr(opacus_module._Optimizer, "pre_step", twice)
    with pytest.raises(ReservationError, match="accountant saw 2"):
        train(reservation, noise)
    assert reservation.used(SCHEDULE) == 1


def test_opacus_accountants_decide_nothing(noise, reservation, monkeypatch):
    """They see every step, but nobody asks what it cost, and a fresh one brings no step back."""
    from opacus.accountants import PRVAccountant, RDPAccountant

    for accountant in (PRVAccountant, RDPAccountant):
        monkeypatch.setattr(accountant, "get_epsilon", lambda *a, **k: pytest.fail("was asked"))
    train(reservation, noise)
    assert train(reservation, noise).steps == 0
    assert noise.releases == STEPS


def test_what_is_counted_is_releases(noise, ledger):
    """`len(accountant)` counts entries of its history, not steps."""
    reservation = ledger.reserve([SampledGaussianMechanism(9.0, 0.1, 40)], purpose="train")
    train(reservation, noise, mechanism=SampledGaussianMechanism(9.0, 0.1, 40))
    assert noise.releases == reservation.used(SampledGaussianMechanism(9.0, 0.1, 40)) == 40
    assert ledger.history()["used"].iloc[-1] == "40 of 40"


@pytest.mark.parametrize(
    "batches",
    [
        lambda: [torch.ones(8, ITEMS)] * 5,
        lambda: torch.utils.data.DataLoader(torch.ones(USERS, ITEMS), batch_size=8, shuffle=True),
        lambda: iter([rows(8)] * 5),
    ],
)
def test_batches_that_are_not_poisson_samples(noise, reservation, batches):
    """Shuffled batches of a fixed size, charged as if they were Poisson samples: 3.44 said, 19.05 true."""
    with pytest.raises(SpecificationError, match="Poisson"):
        train(reservation, noise, table=batches())
    assert noise.releases == reservation.used(SCHEDULE) == 0


def test_every_step_draws_its_own_mask_for_all_users(noise, ledger, monkeypatch):
    """One mask a step, right after the payment, over all users, at the reserved rate."""
    mechanism = SampledGaussianMechanism(9.0, 0.3, 200)
    reservation = ledger.reserve([mechanism], purpose="train")
    sizes, batches = [], []
    uniform = noise.uniform
    monkeypatch.setattr(
        noise, "uniform", lambda size: (sizes.append((size, reservation.used(mechanism))), uniform(size))[1]
    )
    monkeypatch.setattr(PrivateStep, "__call__", lambda self, rows, loss: batches.append(rows.indices))
    identity = sparse.csr_array(np.eye(USERS, dtype=np.float32))
    train(reservation, noise, mechanism=mechanism, module=nn.Sequential(nn.Linear(USERS, 2)), table=identity)
    assert sizes == [(USERS, step + 1) for step in range(200)]
    assert len({tuple(batch.tolist()) for batch in batches}) == 200
    share = np.mean([len(batch) / USERS for batch in batches])
    assert abs(share - 0.3) < 6 * np.sqrt(0.21 / USERS / 200)


def test_empty_poisson_batches_are_paid_for_and_noised(noise, ledger):
    """Opacus crashes on some, and one that is skipped would tell that nobody was sampled."""
    mechanism = SampledGaussianMechanism(2.0, 1e-9, 30)
    reservation = ledger.reserve([mechanism], purpose="train")
    module = linear()
    before = values(module)
    result = train(reservation, noise, mechanism=mechanism, module=module)
    assert result.steps == reservation.used(mechanism) == noise.releases == noise.masks == 30
    assert not any(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize("user", [np.nan, np.inf, 1e20, 0.0])
def test_nothing_scales_with_the_number_of_users(noise, ledger, monkeypatch, user):
    """`int(n * sample_rate)` as denominator leaks n: with n and n + 1 users all constants are the same."""
    seen = []
    make = PrivateStep.__init__

    def spy(self, module, optimizer, **constants):
        seen.append({name: value for name, value in constants.items() if name != "noise"})
        make(self, module, optimizer, **constants)

    class Still(Counting):
        """The same numbers each time, and nobody but perhaps the added user is left out."""

        def normal(self, size):
            super().normal(size)
            return np.linspace(-1, 1, size)

        def uniform(self, size):
            super().uniform(size)
            return np.zeros(size)

    monkeypatch.setattr(PrivateStep, "__init__", spy)
    schedule = SampledGaussianMechanism(2.0, 1.0, 1)
    start = linear().state_dict()
    results = []
    table = rows()
    neighbour = sparse.csr_array(np.vstack([table.toarray(), np.full((1, ITEMS), user, np.float32)]))
    for people in (table, neighbour):
        module = linear()
        module.load_state_dict(start)
        still = Still()
        train(
            PrivacyLedger(PrivacyBudget(50.0, 1e-5)).reserve([schedule], purpose="train"),
            still,
            mechanism=schedule,
            table=people,
            module=module,
        )
        assert still.releases == 1
        results.append(values(module))
    assert (
        seen[0]
        == seen[1]
        == {
            "noise_multiplier": 2.0,
            "max_grad_norm": 0.3,
            "expected_batch_size": 10.0,
            "sample_rate": 1.0,
            "distributed": False,
        }
    )
    # A user who is left out changes nothing at all; one of zeros adds a gradient like anybody.
    assert same(*results) == (user != 0.0)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forking beside threads is the test
def test_permission_carried_into_forks(reservation, noise):
    """Children that inherit a half-used reservation: none of them may take a step."""
    reservation.use(SCHEDULE)
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                train(reservation, noise)
            except ReservationError:
                code = 0 if noise.releases == noise.masks == 0 else 2
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert train(reservation, noise).steps == STEPS - 1


def test_an_interrupt_in_every_step_gives_no_step_for_nothing(noise, reservation, monkeypatch):
    """Stop, look, go on: a step that was broken off after its payment is not given back to be run again."""
    step = PrivateStep.__call__
    done = []

    def broken(self, rows, loss):
        done.append(1)
        if len(done) % 2:
            raise KeyboardInterrupt
        step(self, rows, loss)

    monkeypatch.setattr(PrivateStep, "__call__", broken)
    runs = [train(reservation, noise) for _ in range(10)]
    assert len(done) == reservation.used(SCHEDULE) == STEPS
    assert noise.releases == sum(run.steps for run in runs) < STEPS
    assert {run.stop_reason for run in runs} == {"interrupted", "the next step would pass what was reserved"}


def test_a_settled_reservation(noise, ledger, reservation):
    train(reservation, noise)
    reservation.commit()
    with pytest.raises(ReservationError, match="settled"):
        train(reservation, noise)
    with pytest.raises(ReservationError, match="settled"):
        ledger.resume(reservation.id)
    assert noise.releases == STEPS


def test_the_spies_have_power(noise):
    """A loop that does not pay is seen by the count that all of the above rests on."""
    module = linear()
    step = PrivateStep(
        module,
        torch.optim.SGD(module.parameters(), lr=0.1),
        noise_multiplier=2.0,
        max_grad_norm=0.3,
        expected_batch_size=10.0,
        noise=noise,
    )
    for _ in range(STEPS + 3):
        step(torch.ones(2, ITEMS), squared)
    assert noise.releases == STEPS + 3
    assert any(isinstance(found, DPOptimizer) for found in reachable(step))
    gc.collect()
