"""The ledger: what it grants, refuses, keeps and returns. Files and crashes: ``test_ledger_file.py``."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import pickle
import threading

import numpy as np
import pytest

from recsys_budget.errors import (
    BudgetError,
    BudgetExceededError,
    LedgerCorruptError,
    PopulationError,
    ReservationError,
    ReservationUsedUpError,
    SpecificationError,
)
from recsys_budget.privacy import (
    GaussianMechanism,
    LedgerHead,
    PrivacyBudget,
    PrivacyLedger,
    Reservation,
    SampledGaussianMechanism,
    _account,
    accounting,
    epsilon,
    filter_epsilon,
)

BUDGET = PrivacyBudget(3.0, 1e-5)


def test_ledger_refuses_and_records_nothing():
    ledger = PrivacyLedger(BUDGET)
    with pytest.raises(BudgetExceededError, match="Nothing was spent") as caught:
        ledger.reserve([GaussianMechanism(0.5)], purpose="too much")
    error = caught.value
    assert isinstance(error, BudgetError)
    assert error.cap == error.remaining == 3.0
    assert error.requested == pytest.approx(epsilon([GaussianMechanism(0.5)], 1e-5))
    assert ledger.history().empty
    with pytest.raises(SpecificationError, match="empty"):
        ledger.reserve([], purpose="nothing")


def test_ledger_never_passes_its_cap_however_it_is_asked():
    ledger = PrivacyLedger(BUDGET)
    rng = np.random.default_rng(0)
    granted = []
    for number in range(60):
        mechanism = (
            GaussianMechanism(float(rng.uniform(2, 12)))
            if rng.random() < 0.5
            else SampledGaussianMechanism(float(rng.uniform(1, 4)), 0.02, int(rng.integers(1, 50)))
        )
        fits = ledger.fits([mechanism])
        try:
            ledger.reserve([mechanism], purpose=str(number))
        except BudgetExceededError:
            assert not fits
        else:
            assert fits
            granted.append(mechanism)
        assert ledger.spent <= 3.0
    assert 1 < len(granted) < 60
    # The filter is conservative: by PLD the same mechanisms cost less still.
    assert epsilon(granted, 1e-5) <= ledger.spent
    assert ledger.history()["total"].iloc[-1] == pytest.approx(ledger.spent)


def test_a_schedule_alone_may_use_all_of_the_cap_by_pld_but_nothing_follows():
    steps = 68  # the largest number by PLD; the filter alone would grant fewer
    ledger = PrivacyLedger(BUDGET)
    ledger.reserve([SampledGaussianMechanism(1.0, 0.05, steps)], purpose="train")
    assert 2.9 < ledger.spent <= 3.0
    with pytest.raises(BudgetExceededError):
        ledger.reserve([GaussianMechanism(1000.0)], purpose="one more look")


def test_unsettled_stays_spent():
    ledger = PrivacyLedger(BUDGET)
    reservation = ledger.reserve([GaussianMechanism(2.0)], purpose="crashed")
    before = ledger.spent
    del reservation
    assert ledger.spent == before > 0
    assert ledger.history()["settled"].tolist() == [False]


def test_reservation_grants_each_release_once():
    ledger = PrivacyLedger(PrivacyBudget(8.0, 1e-5))
    counts, training = GaussianMechanism(5.0), SampledGaussianMechanism(2.0, 0.1, 3)
    reservation = ledger.reserve([counts, training], purpose="fit")
    reservation.use(counts)
    with pytest.raises(ReservationError, match="were used"):
        reservation.use(counts)
    for _ in range(3):
        reservation.use(training)
    with pytest.raises(ReservationError, match="were used"):
        reservation.use(training)
    with pytest.raises(ReservationError, match="was not reserved"):
        reservation.use(GaussianMechanism(4.0))
    assert reservation.used(training) == 3
    reservation.commit()
    with pytest.raises(ReservationError, match="settled"):
        reservation.use(training)


def test_permission_cannot_be_copied_or_widened():
    ledger = PrivacyLedger(BUDGET)
    reservation = ledger.reserve([GaussianMechanism(5.0)], purpose="once")
    for thing in (ledger, reservation):
        with pytest.raises(TypeError):
            copy.deepcopy(thing)
        with pytest.raises(TypeError):
            copy.copy(thing)
        with pytest.raises(TypeError):
            pickle.dumps(thing)
    with pytest.raises(AttributeError):
        reservation.mechanisms = (GaussianMechanism(1.0),)
    with pytest.raises(AttributeError):
        ledger.cap = PrivacyBudget(100.0, 1e-5)
    with pytest.raises(ReservationError, match="made by PrivacyLedger"):
        Reservation(ledger, 9, (GaussianMechanism(0.1),), "self-service", [1])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forking beside threads is the test
def test_a_forked_process_gets_nothing():
    ledger = PrivacyLedger(BUDGET)
    mechanism = SampledGaussianMechanism(2.0, 0.05, 5)
    reservation = ledger.reserve([mechanism], purpose="parent")
    child = os.fork()
    if child == 0:
        refused = 0
        for attempt in (
            lambda: ledger.reserve([mechanism], purpose="child"),
            lambda: ledger.fits([mechanism]),
            lambda: reservation.use(mechanism),
        ):
            try:
                attempt()
            except ReservationError:
                refused += 1
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    reservation.use(mechanism)


def test_threads_share_the_releases_of_a_reservation():
    mechanism = SampledGaussianMechanism(5.0, 0.01, 400)
    reservation = PrivacyLedger(BUDGET).reserve([mechanism], purpose="race")
    granted = []

    def take():
        for _ in range(100):
            with contextlib.suppress(ReservationError):
                reservation.use(mechanism)
                granted.append(1)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == reservation.used(mechanism) == 400


def test_what_cannot_be_computed_is_refused(monkeypatch):
    ledger = PrivacyLedger(PrivacyBudget(50.0, 1e-5))
    for _ in range(2):  # a large cap means a low order, where the divergence once failed to converge
        ledger.reserve([SampledGaussianMechanism(5.0, 0.5, 2)], purpose="low order")
    for cost in (math.nan, math.inf):
        monkeypatch.setattr(_account, "renyi", lambda *a, cost=cost: cost)
        assert not ledger.fits([GaussianMechanism(100.0)])
        with pytest.raises(BudgetExceededError):
            ledger.reserve([GaussianMechanism(100.0)], purpose="unknown cost")


def test_a_step_too_small_for_float64_is_not_free():
    assert accounting.renyi(SampledGaussianMechanism(1e4, 1e-9, 10**6), 8) >= 1e-6


def test_remaining_is_nothing_when_nothing_fits():
    ledger = PrivacyLedger(BUDGET)
    ledger.reserve([SampledGaussianMechanism(1.0, 0.05, 60)], purpose="train")
    assert ledger.spent < 2.9
    assert not ledger.fits([GaussianMechanism(1e6)])
    assert ledger.remaining == 0
    with pytest.raises(BudgetExceededError, match="Nothing more fits") as caught:
        ledger.reserve([GaussianMechanism(100.0)], purpose="one more look")
    assert caught.value.remaining == 0


def test_guaranteed_epsilon_is_the_cap_from_the_second_reservation_on():
    ledger = PrivacyLedger(BUDGET)
    assert ledger.guaranteed_epsilon == 0
    ledger.reserve([GaussianMechanism(10.0)], purpose="first")
    assert ledger.guaranteed_epsilon == ledger.spent
    ledger.reserve([GaussianMechanism(10.0)], purpose="second")
    assert ledger.guaranteed_epsilon == 3.0


def test_threads_cannot_overspend_together():
    ledger = PrivacyLedger(BUDGET)
    granted = []

    def spend():
        with contextlib.suppress(BudgetExceededError):
            granted.append(ledger.reserve([GaussianMechanism(3.0)], purpose="race"))

    threads = [threading.Thread(target=spend) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(granted) < 16
    assert filter_epsilon([GaussianMechanism(3.0)] * len(granted), BUDGET) <= 3.0


def used_up(ledger):
    """Reserve Gaussian noise 3 until the ledger refuses; how often it was granted."""
    for granted in range(100):
        if not ledger.fits([GaussianMechanism(3.0)]):
            return granted
        ledger.reserve([GaussianMechanism(3.0)], purpose="one more")
    raise AssertionError


def test_what_was_not_run_is_returned_and_what_was_run_is_not():
    training = SampledGaussianMechanism(2.0, 0.05, 200)
    ledger = PrivacyLedger(BUDGET)
    full = ledger.reserve([training, GaussianMechanism(10.0)], purpose="stops early")
    before = ledger.spent
    for _ in range(60):
        full.use(training)
    full.commit()
    run = [SampledGaussianMechanism(2.0, 0.05, 60)]
    assert ledger.spent == pytest.approx(
        min(filter_epsilon(run, BUDGET), epsilon([training, GaussianMechanism(10.0)], 1e-5))
    )
    assert ledger.spent < before
    assert ledger.history()["used"].tolist() == ["60 of 200; 0 of 1"]
    more = ledger.reserve([SampledGaussianMechanism(2.0, 0.05, 100)], purpose="in what was returned")
    assert ledger.spent == pytest.approx(filter_epsilon([*run, *more.mechanisms], BUDGET))


def test_nothing_is_returned_of_what_only_fits_by_being_alone():
    alone = SampledGaussianMechanism(1.0, 0.05, 68)
    assert filter_epsilon([alone], BUDGET) > 3.0
    ledger = PrivacyLedger(BUDGET)
    reservation = ledger.reserve([alone], purpose="by PLD")
    reservation.use(alone)
    spent = ledger.spent
    reservation.commit()
    # Stopping may have depended on the first release, which PLD of a fixed schedule does not cover.
    assert ledger.spent == spent
    assert ledger.guaranteed_epsilon == spent
    with pytest.raises(BudgetExceededError):
        ledger.reserve([GaussianMechanism(1000.0)], purpose="after it")


def test_a_reservation_that_released_nothing_leaves_no_trace_in_the_spend():
    alone = SampledGaussianMechanism(1.0, 0.05, 68)
    ledger = PrivacyLedger(BUDGET)
    for _ in range(3):
        with ledger.reserve([alone], purpose="called off"):
            pass
    assert ledger.spent == 0.0
    assert ledger.guaranteed_epsilon == 0.0
    assert len(ledger.history()) == 3
    ledger.reserve([alone], purpose="for good")


def test_settling_twice_returns_once():
    ledger = PrivacyLedger(BUDGET)
    first = ledger.reserve([GaussianMechanism(3.0)], purpose="unused")
    again = ledger.resume(first.id)
    first.commit()
    first.commit()
    again.commit()
    assert first.settled
    assert again.settled
    assert ledger.spent == 0.0
    with pytest.raises(ReservationError, match="settled"):
        ledger.resume(first.id)
    with pytest.raises(ReservationError, match="not one of"):
        ledger.resume(10_000)


def test_two_holders_of_a_reservation_never_release_more_than_was_reserved():
    training = SampledGaussianMechanism(5.0, 0.01, 100)
    ledger = PrivacyLedger(BUDGET)
    first = ledger.reserve([training], purpose="shared")
    second = ledger.resume(first.id)
    taken = 0
    for holder in [first, second] * 100:
        try:
            holder.use(training)
            taken += 1
        except ReservationUsedUpError:
            pass
    assert taken == 100
    assert first.left(training) == second.left(training) == 0


def test_a_lost_holder_costs_at_most_one_chunk():
    training = SampledGaussianMechanism(5.0, 0.01, 80)
    ledger = PrivacyLedger(BUDGET)
    lost = ledger.reserve([training], purpose="kernel died")
    for _ in range(11):
        lost.use(training)
    resumed = ledger.resume(lost.id)
    assert resumed.used(training) == 20  # two chunks of an eighth each
    while resumed.left(training):
        resumed.use(training)
    with pytest.raises(ReservationUsedUpError):
        resumed.use(training)
    assert lost.used(training) <= 80
    # What the lost holder had claimed is still its own, and was counted.
    for _ in range(9):
        lost.use(training)
    with pytest.raises(ReservationUsedUpError):
        lost.use(training)


def test_equal_mechanisms_in_one_reservation_are_separate_grants():
    twin = SampledGaussianMechanism(6.0, 0.02, 9)
    reservation = PrivacyLedger(BUDGET).reserve([twin, GaussianMechanism(9.0), twin], purpose="twins")
    for _ in range(18):
        reservation.use(twin)
    with pytest.raises(ReservationUsedUpError):
        reservation.use(twin)
    assert reservation.used(twin) == 18
    assert reservation.used(GaussianMechanism(9.0)) == 0


def test_settled_means_no_more_claims_elsewhere():
    training = SampledGaussianMechanism(5.0, 0.01, 80)
    ledger = PrivacyLedger(BUDGET)
    first = ledger.reserve([training], purpose="shared")
    second = ledger.resume(first.id)
    first.commit()
    with pytest.raises(ReservationError, match="settled"):
        second.use(training)


def test_the_error_says_what_would_fit():
    ledger = PrivacyLedger(BUDGET)
    with pytest.raises(BudgetExceededError) as caught:
        ledger.reserve([SampledGaussianMechanism(1.0, 0.05, 500)], purpose="too many steps")
    assert caught.value.largest == (SampledGaussianMechanism(1.0, 0.05, 68),)
    assert "68 steps" in str(caught.value)
    with pytest.raises(BudgetExceededError) as caught:
        ledger.reserve([GaussianMechanism(0.5)], purpose="too little noise")
    (fitting,) = caught.value.largest
    assert ledger.fits([fitting])
    assert not ledger.fits([GaussianMechanism(fitting.noise_multiplier * 0.999)])
    mixed = [GaussianMechanism(0.5), SampledGaussianMechanism(0.7, 0.5, 3)]
    with pytest.raises(BudgetExceededError) as caught:
        ledger.reserve(mixed, purpose="too little of both")
    assert [type(m) for m in caught.value.largest] == [type(m) for m in mixed]
    ledger.reserve(caught.value.largest, purpose="what would fit does")


def test_raising_the_cap_is_recorded_and_lowering_it_keeps_history():
    ledger = PrivacyLedger(BUDGET)
    granted = used_up(ledger)
    with pytest.raises(SpecificationError, match="say why"):
        ledger.set_cap(PrivacyBudget(6.0, 1e-5), reason="")
    ledger.set_cap(PrivacyBudget(6.0, 1e-5), reason="new consent form")
    assert ledger.cap.epsilon == 6.0
    assert used_up(ledger) > 0
    ledger.set_cap(PrivacyBudget(1.0, 1e-5), reason="too much after all")
    assert ledger.spent > 1.0
    assert ledger.remaining == 0.0
    with pytest.raises(BudgetExceededError):
        ledger.reserve([GaussianMechanism(5000.0)], purpose="nothing fits")
    history = ledger.history()
    assert history["event"].tolist().count("cap") == 2
    assert history["purpose"].str.contains("new consent form").any()
    assert history["event"].tolist()[:granted] == ["reservation"] * granted
    assert history["record"].is_monotonic_increasing


def test_sums_are_exact_whatever_the_order():
    noises = [3.7, 11.3, 5.9, 8.1, 101.0, 7.7]
    totals = set()
    for order in (noises, noises[::-1], sorted(noises)):
        ledger = PrivacyLedger(BUDGET)
        for noise in order:
            ledger.reserve([GaussianMechanism(noise)], purpose="sum")
        totals.add(ledger.spent)
    assert len(totals) == 1


def test_a_head_is_verified_and_another_ledger_is_not():
    ledger = PrivacyLedger(BUDGET)
    ledger.reserve([GaussianMechanism(9.0)], purpose="before")
    head = ledger.head
    ledger.reserve([GaussianMechanism(9.0)], purpose="after")
    ledger.verify(head)
    with pytest.raises(LedgerCorruptError, match="made anew or is another"):
        PrivacyLedger(BUDGET).verify(head)
    with pytest.raises(LedgerCorruptError, match="older copy"):
        ledger.verify(LedgerHead(head.ledger, head.population, head.seq + 5, head.hash))
    with pytest.raises(LedgerCorruptError, match="older copy"):
        ledger.verify(LedgerHead(head.ledger, head.population, head.seq, "00" * 32))


def test_wrong_openings_are_refused():
    with pytest.raises(SpecificationError, match="give a cap"):
        PrivacyLedger()
    with pytest.raises(SpecificationError, match="give the people a name"):
        PrivacyLedger(BUDGET, population="")


class TestPopulations:
    def test_growing_data_spends_the_same_budget_and_is_recorded_once(self, tmp_path):
        ledger = PrivacyLedger(BUDGET, tmp_path / "b.db")
        users = [f"u{i}" for i in range(500)]
        ledger.register(users)
        ledger.reserve([GaussianMechanism(3.0)], purpose="first")
        spent = ledger.spent
        ledger.register([*users, "one more"])
        ledger.register(users[::-1])
        assert ledger.spent == spent
        events = ledger.history().query("event == 'users'")["purpose"].tolist()
        assert events == ["users registered", "users changed"]

    @pytest.mark.parametrize("shared", [1, 500])
    def test_the_same_users_under_another_name_are_refused(self, tmp_path, shared):
        path = tmp_path / "b.db"
        PrivacyLedger(BUDGET, path).register([f"u{i}" for i in range(500)])
        other = PrivacyLedger(BUDGET, path, population="more")
        users = [f"u{i}" for i in range(shared)] + [f"v{i}" for i in range(700)]
        with pytest.raises(PopulationError, match="already known as 'users'"):
            other.register(users)
        assert other.history().empty
        other.register(users[shared:])
        with pytest.raises(PopulationError, match="already known as 'more'"):
            PrivacyLedger(path=path).register(["v3"])

    def test_users_who_left_are_still_known(self, tmp_path):
        path = tmp_path / "b.db"
        ledger = PrivacyLedger(BUDGET, path)
        ledger.register(["gone", "stays"])
        ledger.register(["stays"])
        with pytest.raises(PopulationError):
            PrivacyLedger(BUDGET, path, population="more").register(["gone"])

    def test_declared_disjoint_with_a_reason(self, tmp_path):
        path = tmp_path / "b.db"
        PrivacyLedger(BUDGET, path).register(["1", "2"])
        other = PrivacyLedger(BUDGET, path, population="another shop")
        with pytest.raises(SpecificationError, match="say why"):
            other.declare_disjoint("users", reason="")
        other.declare_disjoint("users", reason="ids are counters in both shops")
        other.register(["1", "2"])
        PrivacyLedger(path=path).register(["1", "2", "3"])
        assert "counters in both" in other.history()["purpose"].iloc[0]

    def test_large_populations_that_overlap_are_found(self, tmp_path, monkeypatch):
        monkeypatch.setattr("recsys_budget.privacy._sketch.SIZE", 256)
        path = tmp_path / "b.db"
        PrivacyLedger(BUDGET, path).register([f"u{i}" for i in range(5_000)])
        other = PrivacyLedger(BUDGET, path, population="more")
        # 1,000 shared users of 5,000 and 256 marks: missed with probability (1 - 0.05)^1000.
        with pytest.raises(PopulationError):
            other.register([f"u{i}" for i in range(4_000, 9_000)])

    def test_the_file_tells_nothing_without_the_key(self, tmp_path):
        sizes = []
        for number, count in enumerate((1, 40_000)):
            path = tmp_path / f"{number}.db"
            PrivacyLedger(BUDGET, path).register([f"somebody-{i}" for i in range(count)])
            content = path.read_bytes()
            assert b"somebody" not in content
            sizes.append(len(content))
            assert (path.with_name(f"{number}.db.key").stat().st_mode & 0o777) == 0o600
        assert sizes[0] == sizes[1]

    def test_the_same_users_look_different_under_another_key(self, tmp_path):
        from recsys_budget.privacy._sketch import Sketcher

        one, two = Sketcher(b"a" * 32), Sketcher(b"b" * 32)
        marks, digest = one.marks(["x", "y"])
        assert digest != two.marks(["x", "y"])[1]
        assert one.fingerprint != two.fingerprint
        assert set(one.decipher(one.encipher(marks))) == set(marks)
        assert one.encipher(marks) != one.encipher(marks)
        assert not np.isin(two.decipher(one.encipher(marks)), marks).any()

    def test_a_wrong_missing_or_damaged_key_is_refused(self, tmp_path):
        path = tmp_path / "b.db"
        PrivacyLedger(BUDGET, path).register(["x"])
        key = tmp_path / "b.db.key"
        kept = key.read_text()
        for content in (
            "",
            "garbage",
            kept[:40],
            kept.replace(kept[40:50], "0" * 10),
            f"{'0' * 32} {'1' * 64}\n",
        ):
            key.write_text(content)
            with pytest.raises(LedgerCorruptError, match="key"):
                PrivacyLedger(path=path).register(["x"])
        key.unlink()
        with pytest.raises(LedgerCorruptError, match="put the key back"):
            PrivacyLedger(path=path).register(["x"])
        assert not key.exists()
        PrivacyLedger(BUDGET, tmp_path / "other.db").register(["x"])
        identity = kept.split()[0]
        key.write_text(f"{identity} {(tmp_path / 'other.db.key').read_text().split()[1]}\n")
        with pytest.raises(LedgerCorruptError, match="another key"):
            PrivacyLedger(path=path).register(["x"])
        key.write_text(kept)
        PrivacyLedger(path=path).register(["x"])

    def test_a_lost_ledger_is_not_mistaken_for_a_new_one(self, tmp_path):
        path = tmp_path / "b.db"
        PrivacyLedger(BUDGET, path).register(["x"])
        path.unlink()
        with pytest.raises(LedgerCorruptError, match="missing, but its key"):
            PrivacyLedger(BUDGET, path)


class TestDisplay:
    def test_spent_remaining_and_purposes_are_shown_escaped(self, tmp_path, monkeypatch):
        ledger = PrivacyLedger(BUDGET, tmp_path / "b.db", population="<b>people</b>")
        assert "nothing is spent yet" in ledger._repr_html_()
        ledger.reserve([GaussianMechanism(9.0)], purpose="<script>alert(1)</script> & $x_{$")
        shown = ledger._repr_html_()
        assert "<script>" not in shown
        assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $x_{$" in shown
        assert "&lt;b&gt;people" in shown
        assert "remaining:" in shown
        assert str(tmp_path / "b.db") in shown
        monkeypatch.chdir(tmp_path)
        assert "Kept in b.db." in ledger._repr_html_()

    def test_long_records_are_cut_and_say_so(self):
        ledger = PrivacyLedger(PrivacyBudget(8.0, 1e-5))
        for number in range(20):
            ledger.reserve([GaussianMechanism(20.0)], purpose=f"number {number}")
        assert "8 earlier ones" in ledger._repr_html_()
        assert "number 3" not in ledger._repr_html_()
        assert "gone when it ends" in ledger._repr_html_()
