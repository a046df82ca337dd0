"""Private prices: what one user can change, what is paid for, what is proven, and who may see what."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import stats

from recsys_budget.constraints import (
    Cap,
    CatalogueCoverage,
    CategoryMaximum,
    CategoryMinimum,
    EngagementFloor,
    GroupMaximum,
    GroupParity,
    Population,
    ProviderMaximum,
    ProviderMinimum,
    SlateSize,
    Soft,
    StockMaximum,
    TotalMaximum,
)
from recsys_budget.constraints.population import PopulationConstraint
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import (
    BudgetExceededError,
    DataError,
    PopulationError,
    SpecificationError,
    UnprovenBoundsError,
)
from recsys_budget.privacy import GaussianMechanism, PrivacyBudget, PrivacyLedger, Reservation, epsilon
from recsys_budget.rerank import (
    Diversity,
    Engagement,
    EngagementDiversity,
    Novelty,
    PrivateCertificate,
    PrivateReranker,
    Reranker,
    Scores,
)
from recsys_budget.rerank import prices as prices_module
from recsys_budget.rerank.loads import Loads, without_candidates
from recsys_budget.rerank.prices import Release
from recsys_budget.rerank.proof import Proof
from recsys_budget.rerank.routes.oracle import Oracle
from recsys_budget.rerank.structure import Quotas

K = 3
ITEMS = [f"i{n:02d}" for n in range(12)]
CATALOGUE = ItemCatalogue.from_frame(
    pd.DataFrame(
        {
            "item": ITEMS,
            "provider": ["A"] * 6 + ["B"] * 4 + ["C"] * 2,
            "categories": ["x", "y"] * 6,
            "cost": [0.1, 0.3, 0.7, 1.0, 2.0, 2.5, 0.0, 0.9, 1.1, 0.2, 5.0, 0.4],
            "drift": [-1.5, 2.0, 0.25, 0.0, -0.3, 1.0, 1.0, -2.0, 0.5, 0.1, -0.7, 3.0],
            "popularity": np.linspace(0.05, 0.9, 12),
            "of x": [1.0, 0.0] * 6,
        }
    ),
    attributes=("cost", "drift", "popularity", "of x"),
)
FLOOR = ProviderMinimum(share=0.15, provider="C")


def people(n, seed=0, per=9):
    """Candidates of n users, who like provider A best and C least."""
    rng = np.random.default_rng(seed)
    items = np.argsort(rng.random((n, len(ITEMS))), axis=1)[:, :per]
    relevance = rng.gamma(2.0, size=items.shape) * np.where(items < 6, 1.6, np.where(items < 10, 1.0, 0.7))
    return pd.DataFrame(
        {
            "user": np.repeat(np.arange(n), per).astype(str),
            "item": np.array(ITEMS)[items.ravel()],
            "relevance": relevance.ravel(),
        }
    )


def ledger(cap=200.0, delta=1e-6):
    return PrivacyLedger(PrivacyBudget(epsilon=cap, delta=delta))


def private(*rules, users=400, noise=1.0, **options):
    options = {"insecure_seed": 0} | options
    rules = rules or (FLOOR,)
    return PrivateReranker(
        constraints=[SlateSize(K), *rules], declared_users=users, noise_multiplier=noise, **options
    )


def quotas(*rules, k=K):
    nobody = without_candidates(CATALOGUE, k, 0)
    return Quotas.of([SlateSize(k), *rules], nobody).tree


def loads_of(*rules, own=(), k=K):
    return Loads.of([SlateSize(k), *own, *rules], CATALOGUE, quotas(*own, k=k))


def every_slate(own=(), k=K):
    """Item counts of each slate that own rules allow, by trying all."""
    everything = Population(
        CATALOGUE,
        pd.Index(["u"], dtype="str"),
        np.array([0, len(ITEMS)], np.int64),
        np.arange(len(ITEMS)),
        np.zeros(len(ITEMS)),
        k,
    )
    for slate in itertools.combinations(range(len(ITEMS)), k):
        if all(rule.measure_all(np.array([slate]), everything)[0] == 0.0 for rule in own):
            yield np.bincount(slate, minlength=len(ITEMS))


# What one user can change


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("own", [(), (GroupMaximum(2),), (CategoryMaximum("x", 1), CategoryMinimum("y", 1))])
@pytest.mark.parametrize(
    ("rules", "tight"),
    [
        ((ProviderMinimum(share=0.1),), True),
        ((ProviderMinimum(share=0.1), ProviderMaximum(exposure=50)), True),
        ((ProviderMaximum(exposure=50, provider="B"),), True),
        ((StockMaximum(40),), True),
        ((TotalMaximum("cost", 100.0),), True),
        ((TotalMaximum("drift", 100.0),), True),
        ((GroupParity("x", tolerance=0.2),), True),
        ((ProviderMinimum(exposure=30), StockMaximum(40), TotalMaximum("cost", 99.0)), False),
    ],
)
def test_no_slate_adds_more_than_the_sensitivity(k, own, rules, tight):
    if k == 5 and len(own) == 2:
        own = (CategoryMaximum("x", 2), CategoryMinimum("y", 1))
    found = loads_of(*rules, own=own, k=k)
    norms = [np.linalg.norm(found.of_counts(counts) * found.units) for counts in every_slate(own, k)]
    assert max(norms) <= found.sensitivity
    if tight and not own:  # so that no more noise is paid for than needed
        assert max(norms) == pytest.approx(found.sensitivity, rel=1e-9)
    each = np.array([found.of_counts(counts) for counts in every_slate(own, k)])
    assert (each <= found.most + 1e-12).all()
    assert (each >= found.least - 1e-12).all()


def test_quotas_on_providers_lower_the_sensitivity():
    free, one_each = (
        loads_of(ProviderMinimum(share=0.1)),
        loads_of(ProviderMinimum(share=0.1), own=(GroupMaximum(1),)),
    )
    assert free.sensitivity / free.units[0] == pytest.approx(3.0)
    assert one_each.sensitivity / one_each.units[0] == pytest.approx(math.sqrt(3.0))


def test_floor_and_ceiling_of_a_provider_share_a_row():
    found = loads_of(ProviderMinimum(share=0.1), ProviderMaximum(exposure=50))
    assert len(found) == 3
    assert len(found.bounds) == 6
    assert found.bounds.at(10.0) == pytest.approx([3.0] * 3 + [50.0] * 3)
    assert found.bounds.sign.tolist() == [-1.0] * 3 + [1.0] * 3


def test_loads_mean_what_the_rules_mean():
    """Loads beyond bounds, added up over a rule's bounds, are what the rule measures."""
    rules = (
        ProviderMinimum(share=0.2),
        ProviderMaximum(exposure=20.0),
        StockMaximum(7),
        TotalMaximum("cost", 31.0),
        GroupParity("x", tolerance=0.01),
    )
    rng = np.random.default_rng(3)
    n = 17
    crowd = Population(
        CATALOGUE,
        pd.Index([f"u{u:02d}" for u in range(n)], dtype="str"),
        np.arange(n + 1) * len(ITEMS),
        np.tile(np.arange(len(ITEMS)), n),
        np.zeros(n * len(ITEMS)),
        K,
    )
    liked = np.where(np.arange(12) % 2, 1.0, 0.4) * np.where(np.arange(12) < 6, 0.5, 1.0)  # x, and A
    chosen = np.argsort(rng.random((n, len(ITEMS))) * liked, axis=1)[:, :K]
    found = loads_of(*rules)
    total = found.of_counts(np.bincount(chosen.ravel(), minlength=len(ITEMS)))
    beyond = np.maximum(0.0, found.bounds.sign * (total[found.bounds.row] - found.bounds.at(n)))
    for owner, rule in enumerate(rules, start=1):
        measured = rule.measure(chosen, crowd)
        assert measured > 0.0
        assert beyond[found.bounds.owner == owner].sum() == pytest.approx(measured, abs=1e-4)


def test_rounded_coefficients_stay_within_what_margins_allow_for():
    found = loads_of(TotalMaximum("cost", 100.0), GroupParity("x"), StockMaximum(9))
    exact = CATALOGUE.attribute("cost")
    off = [abs(found.of_counts(counts)[0] - counts @ exact) for counts in every_slate()]
    assert 0.0 < max(off) <= found.rounding[0] < 1e-5
    assert (found.rounding[found.bounds.row[found.bounds.owner == 3]] == 0.0).all()
    scaled = found.rows.data / np.ldexp(1.0, -30)
    assert (scaled == np.rint(scaled)).all()


class Tape:
    """Stands for the noise: keeps the exact sums, and answers what it was told to whatever they are."""

    def __init__(self, monkeypatch, seed=0, *, within=400.0):
        self.exact, self.sensitivities, self.rng, self.within = [], [], np.random.default_rng(seed), within
        monkeypatch.setattr(prices_module, "release_sum", self)

    def __call__(self, total, *, sensitivity, mechanism, noise):
        self.exact.append(total)
        self.sensitivities.append(sensitivity)
        return self.rng.uniform(0.0, self.within, total.shape)


ADVERSARIES = {
    "one provider": (ITEMS[:6], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]),
    "scarce provider": (ITEMS[10:] + ITEMS[:2], [9.0, 8.0, 1e-9, 0.0]),
    "greatest numbers": (ITEMS, np.linspace(1.0, -1.0, 12) * 1e308),
    "all alike": (ITEMS, [0.0] * 12),
    "nothing but one place": (ITEMS[:4], [1.0, 0.0, 0.0, 0.0]),
    "too few": (ITEMS[:2], [2.0, 1.0]),
}


@pytest.mark.parametrize("kind", ADVERSARIES)
@pytest.mark.parametrize(
    "rules",
    [
        (ProviderMinimum(share=0.1), ProviderMaximum(share=0.6)),
        (TotalMaximum("cost", 2e4), StockMaximum(2500)),
        (Soft(GroupParity("x", tolerance=0.5), 5.0), Soft(FLOOR, 0.2)),
    ],
)
def test_one_user_moves_no_release_further_than_its_sensitivity(monkeypatch, kind, rules):
    """The same answers come back whatever was released, so both tables see the same prices."""
    items, relevance = ADVERSARIES[kind]
    extra = pd.DataFrame({"user": "zz-last", "item": items, "relevance": relevance})
    rest = people(60)
    tapes, frames = [], []
    for table in (rest, pd.concat([rest, extra])):
        tape = Tape(monkeypatch)
        # Whether bounds look proven is up to the tape; the certificate comes with the error.
        reranker = private(*rules, users=4000)
        try:
            frames.append(reranker.rerank(table, CATALOGUE, ledger=ledger()).frame)
        except UnprovenBoundsError:
            frames.append(None)
        tapes.append(tape)
    without, with_extra = tapes
    assert len(without.exact) == len(with_extra.exact) == 17
    moved = [np.linalg.norm(b - a) for a, b in zip(without.exact, with_extra.exact, strict=True)]
    assert all(m <= s for m, s in zip(moved, with_extra.sensitivities, strict=True))
    assert (max(moved) == 0.0) == (kind == "too few")
    if kind != "too few":
        assert min(moved) >= 0.1 * min(with_extra.sensitivities)  # the test looks at what it should
    if frames[1] is not None:  # what was measured last is what is handed out
        loads = loads_of(*rules)
        shown = np.bincount(CATALOGUE.positions(frames[1]["item"].tolist()), minlength=len(ITEMS))
        assert with_extra.exact[-1][: len(loads)] == pytest.approx(loads.of_counts(shown) * loads.units)
    assert (frames[0] is None) == (frames[1] is None)
    if frames[0] is not None:
        others = frames[1][frames[1]["user"] != "zz-last"].reset_index(drop=True)
        pd.testing.assert_frame_equal(frames[0], others)


def test_given_what_was_released_a_slate_depends_on_its_own_user_alone(monkeypatch):
    """The billboard: whoever the others are, a user's slate and everything in the certificate stay."""
    mine = people(1, seed=9)
    seen = []
    for seed in (1, 2):
        Tape(monkeypatch, within=1000.0)
        others = people(50, seed=seed)
        others["user"] = "z" + others["user"].astype(str)
        slates = private(Soft(FLOOR, 0.3), Soft(ProviderMaximum(exposure=60, provider="A"), 0.3)).rerank(
            pd.concat([others, mine]), CATALOGUE, ledger=ledger()
        )
        own = slates.frame[slates.frame["user"] == "0"]
        seen.append((own["item"].tolist(), slates.certificate.to_json(), slates.frame["item"].tolist()))
    assert seen[0][:2] == seen[1][:2]
    assert seen[0][2] != seen[1][2]


# What is paid for


def test_each_release_is_taken_before_candidates_are_looked_at(monkeypatch):
    taken, looks = [], []
    use, best, init = Reservation.use, Oracle.best, Oracle.__init__
    monkeypatch.setattr(Reservation, "use", lambda self, m: (taken.append(m), use(self, m))[1])
    monkeypatch.setattr(Oracle, "best", lambda *a, **o: (looks.append(len(taken)), best(*a, **o))[1])
    monkeypatch.setattr(Oracle, "__init__", lambda *a, **o: (looks.append(len(taken)), init(*a, **o))[1])
    reranker = private(rounds=6)
    book = ledger()
    reranker.rerank(people(400), CATALOGUE, ledger=book)
    assert looks[:7] == [1, 1, 2, 3, 4, 5, 6]
    assert set(looks[7:]) == {7}
    assert tuple(taken) == reranker.mechanisms(1.0)


def test_the_ledger_is_charged_for_every_number_that_was_drawn(monkeypatch):
    drawn = []
    real = prices_module.release_sum
    monkeypatch.setattr(
        prices_module, "release_sum", lambda t, **o: (drawn.append(o["mechanism"]), real(t, **o))[1]
    )
    book = ledger(cap=3.0)
    reranker = private(noise=2.5, users=4000)
    slates = reranker.rerank(people(4000), CATALOGUE, ledger=book)
    assert tuple(drawn) == reranker.mechanisms(2.5)
    assert len(drawn) == 17
    assert book.spent == pytest.approx(epsilon(drawn, 1e-6))
    certificate = slates.certificate
    assert certificate.epsilon == epsilon(drawn, 1e-6)
    assert certificate.delta == 1e-6
    # One Gaussian release with this noise reveals as much; the grid of the accountant is all that differs.
    assert certificate.epsilon == pytest.approx(epsilon([GaussianMechanism(2.5)], 1e-6), rel=1e-3)
    entry = book.history().iloc[-1]
    assert certificate.record == entry["record"]
    assert entry["settled"]


def test_without_a_noise_multiplier_all_that_is_left_is_spent():
    book = ledger(cap=2.0)
    book.reserve([GaussianMechanism(6.0)], purpose="before")
    slates = private(users=5000, noise=None).rerank(people(5000), CATALOGUE, ledger=book)
    assert not book.fits([GaussianMechanism(200.0)]) or book.remaining < 0.02
    assert 1.0 < slates.certificate.epsilon < 2.0


class OwnRule(PopulationConstraint):
    """A rule that reads candidates to make its bound."""

    def default_name(self):
        return "own rule"

    def rhs(self, candidates):
        return float(candidates.relevance.max())

    def lhs(self, x, candidates):
        return x.sum()

    def measure(self, chosen, candidates):
        return 0.0


@pytest.mark.parametrize(
    ("reranker", "words"),
    [
        (lambda: private(CatalogueCoverage(3)), "different items shown"),
        (lambda: private(ProviderMinimum(share=0.1, discount="log")), "order of slates"),
        (lambda: private(FLOOR, Soft(CatalogueCoverage(3), 0.1)), "different items shown"),
        (lambda: private(OwnRule()), "own rule"),
        (lambda: private(FLOOR, Cap("cost", 2.0)), "nested or disjoint"),
        (lambda: private(FLOOR, EngagementFloor(0.5)), "nested or disjoint"),
        (lambda: private(FLOOR, Soft(CategoryMinimum("x", 1), 0.1)), "hard quotas"),
        (lambda: private(FLOOR, objective=EngagementDiversity(0.2)), "engagement without a discount"),
        (lambda: private(FLOOR, objective=Engagement("log")), "engagement without a discount"),
        (lambda: private(FLOOR, objective=1e300 * Engagement()), "sum of weights"),
        (lambda: private(ProviderMinimum(share=0.1, provider="Z")), "'Z'"),
        (lambda: private(StockMaximum(10**6), ProviderMinimum(share=0.0)), None),
        (lambda: private(ProviderMaximum(share=1.0)), "whatever the slates are"),
        (lambda: private(CategoryMaximum("x", 0), TotalMaximum("of x", 50.0)), "keep all of these items out"),
        (lambda: private(CategoryMinimum("x", 2), CategoryMinimum("y", 2), FLOOR), "no slate can keep"),
        (lambda: private(ProviderMinimum(exposure=1190, provider="C")), "room for"),  # more than 2 a slate
        (lambda: private(ProviderMaximum(exposure=1, provider="A"), noise=9.0), "room for"),
        (lambda: private(ProviderMinimum(share=0.3), ProviderMaximum(share=0.31), noise=3.0), "room for"),
        (lambda: private(ProviderMinimum(share=0.329), noise=1.0), "room for"),  # floors add up to all places
        (lambda: private(FLOOR, users=10, noise=2.0), "room for"),
        (lambda: private(StockMaximum(101), noise=0.5), "together"),  # ceilings leave no place free
        (lambda: private(FLOOR, noise=0.06), None),
    ],
)
def test_what_cannot_be_done_is_refused_for_free_and_by_name(reranker, words, monkeypatch):
    """Even before the table is opened."""
    monkeypatch.setattr(
        "recsys_budget.rerank.private.CandidateTable.read", lambda *a: pytest.fail("candidates were read")
    )
    book = ledger()
    if words is None:  # nothing to refuse but the table above: the others did not fail for its sake
        with pytest.raises(pytest.fail.Exception):
            reranker().rerank(people(400), CATALOGUE, ledger=book)
    else:
        with pytest.raises(SpecificationError, match=words):
            reranker().rerank(people(400), CATALOGUE, ledger=book)
    assert book.spent == 0.0
    assert "reserve" not in set(book.history()["event"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"users": 0}, "declared_users"),
        ({"users": 1.5}, "declared_users"),
        ({"beta": 0.0}, "beta"),
        ({"beta": 0.9}, "beta"),
        ({"beta": math.nan}, "beta"),
        ({"rounds": 1}, "rounds"),
        ({"noise": 0.0}, "noise_multiplier"),
        ({"noise": math.nan}, "noise_multiplier"),
        ({"insecure_seed": -1}, "insecure_seed"),
        ({"objective": "engagement"}, "objective"),
    ],
)
def test_constants_out_of_range(options, words):
    with pytest.raises(SpecificationError, match=words):
        private(FLOOR, **options)


def test_rules_about_one_slate_alone_need_no_budget():
    with pytest.raises(SpecificationError, match="take Reranker"):
        private(CategoryMinimum("x", 1))
    with pytest.raises(SpecificationError, match="exactly one SlateSize"):
        PrivateReranker(constraints=[FLOOR], declared_users=9)
    with pytest.raises(SpecificationError, match="Take PrivateReranker"):
        Reranker(constraints=[SlateSize(K), FLOOR]).rerank(people(9), CATALOGUE, ledger=ledger())


def test_what_the_ledger_or_the_table_refuses_costs_nothing():
    book = ledger(cap=0.5)
    with pytest.raises(BudgetExceededError):
        private(noise=1.0).rerank(people(400), CATALOGUE, ledger=book)
    with pytest.raises(DataError):
        private().rerank(people(400).assign(relevance=np.nan), CATALOGUE, ledger=ledger())
    with pytest.raises(SpecificationError, match="PrivacyLedger"):
        private().rerank(people(400), CATALOGUE, ledger=None)
    assert book.spent == 0.0


def test_users_of_another_population_are_refused(tmp_path):
    cap = PrivacyBudget(epsilon=200.0, delta=1e-6)
    first = PrivacyLedger(cap, tmp_path / "budget.db", population="first")
    first.register([str(u) for u in range(400)])
    second = PrivacyLedger(cap, tmp_path / "budget.db", population="second")
    with pytest.raises(PopulationError):
        private().rerank(people(400), CATALOGUE, ledger=second)
    assert second.spent == 0.0


# What is proven


def proof_of(*rules, noise=1.0, beta=0.5):
    return Proof(Release(loads_of(*rules), 3, GaussianMechanism(noise)), 1.0, beta)


def share_proven(proof, users, loads, repeats, rng):
    """How often all hard bounds look proven where these are the true loads."""
    deviations = np.append(proof.release.load_errors, [proof.release.statistic_error] * 3)
    truth = np.concatenate([loads, [users, users / 2, users / 2]])
    names = [("rule", "")] * len(proof.release.loads.bounds)
    fields = dict.fromkeys(("epsilon", "delta", "noise_multiplier"), 1.0) | {
        "rounds": 2, "record": 1, "route": "", "solver_version": "", "private": False
    }  # fmt: skip
    zero = np.zeros(len(names))
    proven = 0
    for noisy in truth + deviations * rng.normal(size=(repeats, len(truth))):
        split = len(loads)
        proven += proof.certificate(zero, noisy[:split], noisy[split:], names, **fields).proven
    return proven / repeats


@pytest.mark.parametrize(
    ("rule", "users", "load"),
    [
        (ProviderMinimum(exposure=300, provider="A"), 400, 300.0),
        # The bound is noisy as well: it grows with the number of users.
        (ProviderMinimum(share=0.5, provider="A"), 400, 600.0),
        (ProviderMaximum(share=0.9, provider="A"), 400, 1080.0),
    ],
)
def test_a_bound_just_broken_looks_proven_exactly_as_often_as_allowed(rule, users, load):
    """One bound among four claims, beta 0.5: once in eight. A margin 10% too small makes it one in six."""
    proof = proof_of(rule)
    share = share_proven(proof, users, np.array([load]), 2200, np.random.default_rng(1))
    assert share == pytest.approx(0.125, abs=4 * math.sqrt(0.125 * 0.875 / 2200))


def test_margins_share_beta_among_all_claims():
    few, many = proof_of(FLOOR, beta=0.1), proof_of(StockMaximum(300), beta=0.1)
    assert stats.norm.sf(few.quantile) * 4 == pytest.approx(0.1)
    assert stats.norm.sf(many.quantile) * 15 == pytest.approx(0.1)


def test_rounding_of_coefficients_is_part_of_the_margin():
    proof = proof_of(TotalMaximum("cost", 300.0))
    assert proof.margins(1e6)[0] == pytest.approx(
        proof.quantile * proof.errors[0] + 1e6 * proof.release.loads.rounding[0], rel=1e-12
    )


TIGHT = (ProviderMinimum(share=0.2, provider="C"), ProviderMaximum(exposure=560, provider="A"))


def broken_share(repeats, **options):
    """Share of runs that hand out slates which break a hard bound, counted one by one."""
    table = people(400)
    broken = unproven = 0
    for seed in range(repeats):
        reranker = private(*TIGHT, insecure_seed=seed, noise=1.3, **options)
        try:
            frame = reranker.rerank(table, CATALOGUE, ledger=ledger()).frame
        except UnprovenBoundsError:
            unproven += 1
            continue
        shown = frame["item"].map(dict(zip(ITEMS, CATALOGUE.provider_codes, strict=True)))
        shows = np.bincount(shown, minlength=3)
        broken += bool(shows[2] < 0.2 * K * 400 or shows[0] > 560)
    return broken / repeats, unproven / repeats


def test_handed_out_slates_break_a_hard_bound_at_most_as_often_as_beta():
    broken, unproven = broken_share(120, beta=0.05)
    assert broken <= stats.binom.isf(0.001, 120, 0.05) / 120
    assert unproven <= 0.1


def test_without_margins_bounds_break_far_more_often_than_beta(monkeypatch):
    """The test above has power: the naive way fails it."""
    monkeypatch.setattr(Proof, "quantile", 0.0)
    monkeypatch.setattr(PrivateCertificate, "proven", True)
    broken, _ = broken_share(40, beta=0.05)
    assert broken > stats.binom.isf(0.001, 40, 0.05) / 40


@pytest.mark.parametrize("declared", [250, 400, 800])
def test_bounds_are_those_of_the_true_number_of_users_whatever_was_declared(declared):
    rule = ProviderMinimum(share=0.2, provider="C")
    slates = private(rule, users=declared, noise=0.5).rerank(people(400), CATALOGUE, ledger=ledger())
    shows = slates.frame["item"].isin(ITEMS[10:]).sum()
    assert shows >= 0.2 * K * 400
    assert slates.certificate.bounds["bound"][0] == pytest.approx(0.2 * K * 400, rel=0.1)


@pytest.mark.parametrize("objective", [Engagement(), 0.6 * Engagement() + 0.4 * Novelty()])
def test_no_more_is_given_up_than_the_certificate_says(objective):
    table = people(400)
    rules = [SlateSize(K), CategoryMinimum("x", 1), *TIGHT]
    best = Reranker(objective, rules).rerank(table, CATALOGUE).certificate
    for seed in range(8):
        reranker = PrivateReranker(
            objective, rules, declared_users=400, noise_multiplier=1.0, insecure_seed=seed
        )
        slates = reranker.rerank(table, CATALOGUE, ledger=ledger())
        held = Reranker(objective, rules).objective.value_all  # the objective of the slates themselves
        true = mean_objective(held, table, slates.frame)
        noisy = slates.certificate
        assert best.objective - true <= noisy.given_up
        assert noisy.objective == pytest.approx(true, abs=4.5 * noisy.standard_error)
        assert noisy.bound >= best.objective - 4.5 * noisy.standard_error
        assert noisy.given_up < 0.35
        assert abs(noisy.users - 400) <= 4.5 * noisy.users_error


def mean_objective(value_all, table, frame):
    from recsys_budget.rerank.frames import CandidateTable

    crowd = CandidateTable.read(table, CATALOGUE, K)
    positions = CATALOGUE.positions(frame["item"].tolist()).reshape(-1, K)
    chosen = np.full((len(crowd), K), -1)
    for u in range(len(crowd)):
        own = crowd.items[crowd.offsets[u] : crowd.offsets[u + 1]]
        chosen[u] = [int(np.flatnonzero(own == item)[0]) for item in positions[u]]
    return float(value_all(chosen, crowd).mean())


def test_an_unproven_bound_says_what_was_spent_and_what_would_help():
    # Nobody has candidates of C, which no public fact tells.
    table = people(400)
    table = table[~table["item"].isin(ITEMS[10:])]
    book = ledger()
    with pytest.raises(UnprovenBoundsError, match="'C': a noisy load") as caught:
        private().rerank(table, CATALOGUE, ledger=book)
    assert "is spent" in str(caught.value)
    assert book.spent > 0.0
    certificate = caught.value.certificate
    assert not certificate.proven
    assert abs(certificate.bounds["load"][0]) < 4.5 * certificate.bounds["margin"][0]


@pytest.mark.parametrize("seed", range(4))
def test_users_who_are_all_alike_are_sent_to_different_rounds(seed):
    """All of them choose the same slate at any prices, so no prices alone meet the bounds."""
    table = people(1)
    crowd = pd.concat([table.assign(user=str(u)) for u in range(400)])
    rules = (ProviderMinimum(share=0.2, provider="B"), ProviderMaximum(share=0.5, provider="A"))
    frame = private(*rules, noise=0.6, insecure_seed=seed).rerank(crowd, CATALOGUE, ledger=ledger()).frame
    assert frame.groupby("user")["item"].agg(tuple).nunique() > 1
    providers = CATALOGUE.provider_codes[CATALOGUE.positions(frame["item"].tolist())]
    assert (providers == 1).mean() >= 0.2
    assert (providers == 0).mean() <= 0.5


# Who gets what


def test_own_rules_hold_for_everybody_and_who_has_no_slate_gets_none():
    table = people(400)
    poor = pd.DataFrame({"user": "poor", "item": ITEMS[1:8:2], "relevance": 1.0})  # nothing of category x
    rules = (CategoryMinimum("x", 1), CategoryMaximum("y", 1), FLOOR)
    slates = private(*rules, noise=0.8).rerank(pd.concat([table, poor]), CATALOGUE, ledger=ledger())
    frame = slates.frame
    assert "poor" not in set(frame["user"])
    assert frame["user"].nunique() >= 390
    in_x = frame["item"].str[1:].astype(int) % 2 == 0
    by_user = in_x.groupby(frame["user"])
    assert (by_user.sum() >= 2).all()
    assert (by_user.size() == K).all()
    assert not frame.duplicated(["user", "item"]).any()
    assert (frame.groupby("user")["rank"].max() == K).all()


def test_nobody_has_a_slate():
    table = people(30)
    table = table[table["item"].str[1:].astype(int) % 2 == 1]
    with pytest.raises(UnprovenBoundsError):
        private(CategoryMinimum("x", 1), FLOOR, users=400).rerank(table, CATALOGUE, ledger=ledger())


def test_repeatable_noise_repeats_and_is_called_not_private():
    runs = [private(insecure_seed=4).rerank(people(400), CATALOGUE, ledger=ledger()) for _ in range(2)]
    pd.testing.assert_frame_equal(runs[0].frame, runs[1].frame)
    assert runs[0].certificate.to_json() == runs[1].certificate.to_json()
    assert runs[0].certificate.privacy == "population_not_private"
    assert "not private" in repr(runs[0])


def test_noise_of_the_system_does_not_repeat_and_is_private():
    runs = [private(insecure_seed=None).rerank(people(4000), CATALOGUE, ledger=ledger()) for _ in range(2)]
    assert runs[0].certificate.objective != runs[1].certificate.objective
    assert runs[0].certificate.privacy == "population_private"
    assert "not private" not in repr(runs[0])


def test_the_certificate_names_each_bound():
    rules = (
        ProviderMinimum(share=0.05),
        StockMaximum(300),
        TotalMaximum("cost", 4000.0),
        Soft(GroupParity("x"), 1.0),
    )
    certificate = private(*rules, noise=0.3).rerank(people(400), CATALOGUE, ledger=ledger()).certificate
    table = certificate.bounds
    assert table["part"].tolist() == ["A", "B", "C", *ITEMS, "", "", ""]
    assert table["side"].tolist() == ["at least"] * 3 + ["at most"] * 14 + ["at least"]
    assert table["hard"].tolist() == [True] * 16 + [False] * 2
    assert certificate.to_dict()["bounds"][0]["rule"] == rules[0].name
    assert set(certificate.shadow_prices) == {rule.name for rule in rules}
    assert (table["price"] >= 0.0).all()
    assert "epsilon" in certificate.to_json()
    card = certificate._repr_html_()
    assert "Certificate of about" in card
    assert "exposure of each provider at least 5%: B" in card


def test_a_wish_is_never_worth_more_than_its_weight():
    wish = ProviderMinimum(share=0.6, provider="C")  # out of reach
    for weight in (1e-4, 0.1):
        certificate = (
            private(Soft(wish, weight), noise=0.3).rerank(people(400), CATALOGUE, ledger=ledger()).certificate
        )
        assert 0.0 < certificate.bounds["price"][0] <= weight
        assert not certificate.bounds["proven"][0]
        assert certificate.proven  # of hard bounds there are none
        missing = certificate.bounds["bound"][0] - certificate.bounds["load"][0]
        penalty = weight * missing / 400
        assert certificate.objective < 1.0 - 0.9 * penalty + 4.5 * certificate.standard_error


@pytest.mark.parametrize("kind", ["polars", "scores", "shuffled"])
def test_candidates_in_other_forms(kind):
    table = people(400)
    expected = private().rerank(table, CATALOGUE, ledger=ledger())
    if kind == "polars":
        found = private().rerank(pl.from_pandas(table), CATALOGUE, ledger=ledger())
        assert isinstance(found.frame, pl.DataFrame)
        assert found.frame["item"].to_list() == expected.frame["item"].tolist()
    elif kind == "shuffled":
        found = private().rerank(table.sample(frac=1.0, random_state=0), CATALOGUE, ledger=ledger())
        pd.testing.assert_frame_equal(found.frame, expected.frame)
    else:
        matrix = np.full((400, len(ITEMS)), -np.inf)
        matrix[table["user"].astype(int), table["item"].str[1:].astype(int)] = table["relevance"]
        keep = np.random.default_rng(0).random((400, len(ITEMS)))
        found = private().rerank(Scores(keep, users=[str(u) for u in range(400)]), CATALOGUE, ledger=ledger())
        assert len(found.frame) == 1200


def test_the_interpreted_kernels_give_the_same_slates(monkeypatch):
    expected = private().rerank(people(400), CATALOGUE, ledger=ledger())
    monkeypatch.setattr("recsys_budget.rerank.routes.oracle.COMPILED", False)
    monkeypatch.setattr("recsys_budget.rerank.routes.laminar.COMPILED", False)
    found = private().rerank(people(400), CATALOGUE, ledger=ledger())
    pd.testing.assert_frame_equal(found.frame, expected.frame)


def test_diversity_is_refused_by_name():
    with pytest.raises(SpecificationError, match="Diversity"):
        private(FLOOR, objective=0.5 * Engagement() + 0.5 * Diversity()).rerank(
            people(9), CATALOGUE, ledger=ledger()
        )
