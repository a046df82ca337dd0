"""The ledger against a simple model of what may be spent, counted by dp-accounting, in random sequences."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant
from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from recsys_budget.errors import BudgetExceededError, ReservationError
from recsys_budget.privacy import (
    GaussianMechanism,
    PrivacyBudget,
    PrivacyLedger,
    SampledGaussianMechanism,
    _account,
    filter_order,
)

CAPS = [PrivacyBudget(epsilon, 1e-5) for epsilon in (3.0, 3.2, 1.0, 8.0)] + [PrivacyBudget(3.0, 1e-7)]
COUNTS, TRAINING = GaussianMechanism(4.0), SampledGaussianMechanism(1.5, 0.05, 30)
# Fit under an epsilon of 3 by their privacy loss distribution alone; the filter refuses the first.
ALONE = [(SampledGaussianMechanism(1.0, 0.05, 68),), (GaussianMechanism(1.7),)]
REQUESTS = [
    (COUNTS,),
    (TRAINING,),
    (GaussianMechanism(12.0), SampledGaussianMechanism(4.0, 0.02, 50)),
    (TRAINING, COUNTS, TRAINING),
    *ALONE,
]


def releases(mechanism):
    return mechanism.steps if isinstance(mechanism, SampledGaussianMechanism) else 1


@lru_cache
def divergence(mechanism, order):
    """Renyi divergence of one release, by dp-accounting."""
    event = dp_event.GaussianDpEvent(mechanism.noise_multiplier)
    if isinstance(mechanism, SampledGaussianMechanism):
        event = dp_event.PoissonSampledDpEvent(mechanism.sample_rate, event)
    return float(RdpAccountant([order]).compose(event).rdp[0])


@lru_cache
def epsilon_alone(request, delta):
    """Epsilon by a finer privacy loss distribution than the package's, so that it is no larger."""
    total = None
    for mechanism in request:
        one = privacy_loss_distribution.from_gaussian_mechanism(
            mechanism.noise_multiplier,
            sampling_prob=getattr(mechanism, "sample_rate", 1.0),
            value_discretization_interval=2e-4,
        ).self_compose(releases(mechanism))
        total = one if total is None else total.compose(one)
    return total.get_epsilon_for_delta(delta)


@dataclass
class Granted:
    """A reservation as the model knows it: by the filter, or for being alone, where that is certain."""

    request: tuple
    filtered: bool
    alone: bool
    released: list[int]
    holders: list = field(default_factory=list)
    settled_by: object = None

    def counted(self, order, *, at_least):
        """Divergence that must count (what was released, or still can be), or at most may."""
        if self.settled_by is None or (self.alone and any(self.released)):
            whole = True
        elif at_least:
            whole = False
        else:  # when another holder settles, what this one had claimed stays spent, used or not
            whole = len(self.holders) > 1 or (not self.filtered and any(self.released))
        counts = [releases(m) for m in self.request] if whole else self.released
        return math.fsum(n * divergence(m, order) for n, m in zip(counts, self.request, strict=True))


class LedgerMachine(RuleBasedStateMachine):
    """Two ledger objects on one file, any number of holders of each reservation."""

    @initialize(cap=st.sampled_from(CAPS), on_file=st.booleans())
    def open(self, cap, on_file):
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "b.db" if on_file else None
        first = PrivacyLedger(cap, path)
        self.ledgers = [first, PrivacyLedger(path=path) if on_file else first]
        self.cap, self.caps, self.order = cap, [cap], filter_order(cap)
        self.granted = {}
        # What would have fitted is worked out for the message alone, and takes most of the time.
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(_account, "largest", lambda *_: None)

    def teardown(self):
        if hasattr(self, "folder"):
            self.patch.undo()
            self.folder.cleanup()

    def total(self, *, at_least, released=False):
        parts = [
            math.fsum(n * divergence(m, self.order) for n, m in zip(g.released, g.request, strict=True))
            if released
            else g.counted(self.order, at_least=at_least)
            for g in self.granted.values()
        ]
        return math.fsum(parts)

    def epsilon(self, total, delta):
        return compute_epsilon([self.order], [total], delta)[0] if total else 0.0

    @rule(request=st.sampled_from(REQUESTS), which=st.integers(0, 1), times=st.integers(1, 12))
    def reserve(self, request, which, times):
        while times and self.reserve_once(request, which):
            times -= 1

    def reserve_once(self, request, which):
        cost = math.fsum(releases(m) * divergence(m, self.order) for m in request)
        # Something was or may still be released, for sure; or perhaps.
        live = any(g.settled_by is None or any(g.released) for g in self.granted.values())
        perhaps = any(
            g.settled_by is None or any(g.released) or len(g.holders) > 1 for g in self.granted.values()
        )
        least, most = self.total(at_least=True) + cost, self.total(at_least=False) + cost
        try:
            reservation = self.ledgers[which].reserve(request, purpose="model")
        except BudgetExceededError:
            # Nothing was refused that fits.
            assert self.epsilon(most * (1 + 1e-6), self.cap.delta) > self.cap.epsilon * (1 - 1e-6)
            assert perhaps or epsilon_alone(request, self.cap.delta) > self.cap.epsilon * 0.98
            return False
        filtered = self.epsilon(least, self.cap.delta) <= self.cap.epsilon
        assert filtered or (not live and epsilon_alone(request, self.cap.delta) <= self.cap.epsilon)
        covered = self.epsilon(most, self.cap.delta) <= self.cap.epsilon
        self.granted[reservation.id] = Granted(
            request, covered, not filtered, [0] * len(request), [reservation]
        )
        return True

    @precondition(lambda self: self.granted)
    @rule(data=st.data(), times=st.integers(1, 60))
    def use(self, data, times):
        granted = self.granted[data.draw(st.sampled_from(sorted(self.granted)))]
        holder = data.draw(st.sampled_from(granted.holders))
        mechanism = data.draw(st.sampled_from(granted.request))
        places = [i for i, m in enumerate(granted.request) if m == mechanism]
        for _ in range(times):
            try:
                holder.use(mechanism)
            except ReservationError:
                break
            # Equal mechanisms share their releases: counted at the first place with room.
            room = [i for i in places if granted.released[i] < releases(mechanism)]
            assert room, "more releases than were reserved"
            assert holder is not granted.settled_by
            granted.released[room[0]] += 1

    @precondition(lambda self: self.granted)
    @rule(data=st.data(), which=st.integers(0, 1))
    def resume(self, data, which):
        number = data.draw(st.sampled_from(sorted(self.granted)))
        granted = self.granted[number]
        if granted.settled_by is not None:
            with pytest.raises(ReservationError):
                self.ledgers[which].resume(number)
            return
        holder = self.ledgers[which].resume(number)
        granted.holders.append(holder)

    @precondition(lambda self: self.granted)
    @rule(data=st.data())
    def commit(self, data):
        granted = self.granted[data.draw(st.sampled_from(sorted(self.granted)))]
        holder = data.draw(st.sampled_from(granted.holders))
        holder.commit()
        granted.settled_by = granted.settled_by or holder
        assert all(h.settled for h in granted.holders)

    @rule(cap=st.sampled_from(CAPS), which=st.integers(0, 1))
    def set_cap(self, cap, which):
        self.ledgers[which].set_cap(cap, reason="model")
        self.cap = cap
        self.caps.append(cap)

    @invariant()
    def what_was_released_is_within_a_cap_that_held(self):
        if not getattr(self, "granted", None) or not all(g.filtered for g in self.granted.values()):
            return
        released = self.total(at_least=True, released=True)
        assert any(self.epsilon(released, cap.delta) <= cap.epsilon for cap in self.caps)

    @invariant()
    def both_ledgers_state_no_less_than_the_truth(self):
        if not getattr(self, "granted", None):
            return
        one, two = self.ledgers
        assert one.spent == two.spent
        assert one.head == two.head
        for number, granted in self.granted.items():
            used = sum(one._entry(number).claimed)
            assert used >= sum(granted.released)
        live = [g for g in self.granted.values() if g.settled_by is None or any(g.released)]
        least = self.epsilon(self.total(at_least=True), self.cap.delta)
        if len(live) == 1:
            least = min(least, epsilon_alone(live[0].request, self.cap.delta))
        assert one.spent >= least * (1 - 1e-9)
        if len(live) > 1:
            assert one.guaranteed_epsilon >= one.cap.epsilon


LedgerMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLedgerMachine = LedgerMachine.TestCase
