"""Budgeted statistics: right without noise, bounded for every user, paid for before anything is read."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from recsys_budget.data import Interactions, ItemCatalogue, hold_out_users, k_core, load_dataset
from recsys_budget.errors import (
    BudgetExceededError,
    DataError,
    PopulationError,
    ReservationError,
    SpecificationError,
    UnsupportedMechanismError,
)
from recsys_budget.frontiers import Frontier
from recsys_budget.metrics import calibration_kl, ranking_metrics
from recsys_budget.models import Popularity
from recsys_budget.privacy import (
    GaussianMechanism,
    PrivacyBudget,
    PrivacyLedger,
    PrivateQueries,
    Reservation,
    SampledGaussianMechanism,
    SystemNoise,
)
from recsys_budget.privacy import queries as queries_module

BUDGET = PrivacyBudget(4.0, 1e-5)
MECHANISM = GaussianMechanism(3.0)
GRID = 2**20
CATEGORIES = [
    ["a"],
    ["a", "b"],
    [],
    ["c"],
    ["a", "b", "c"],
    ["b"],
    ["c", "a"],
    [],
    ["b"],
    ["a"],
    ["c"],
    ["b"],
]
CATALOGUE = ItemCatalogue.from_frame(
    pd.DataFrame({"item": [f"i{n}" for n in range(12)], "categories": CATEGORIES})
)
METRICS = ("recall@3", "ndcg@5", "mrr@4")


def table_of(histories, catalogue=CATALOGUE, **columns):
    histories = [sorted(h) for h in histories]
    return Interactions(
        users=pd.Index([f"u{n:04d}" for n in range(len(histories))], dtype="str"),
        catalogue=catalogue,
        indptr=np.cumsum([0, *map(len, histories)]).astype(np.int64),
        indices=np.array([i for h in histories for i in h], np.int32),
        **columns,
    )


@pytest.fixture(scope="module")
def table():
    """Nobody's history, one item, two uncategorised items, everything, and forty at random."""
    rng = np.random.default_rng(5)
    some = [rng.choice(12, rng.integers(1, 13), replace=False) for _ in range(40)]
    return table_of([[], [4], [3], [2, 7], range(12), *some])


@pytest.fixture(scope="module")
def ranking(table):
    """Five items for everyone, so that scores are spread; one user gets none, and a stranger some."""
    rng = np.random.default_rng(6)
    rows = [
        {"user": user, "item": f"i{item}", "rank": rank}
        for user in [*table.users[:-1], "stranger"]
        for rank, item in enumerate(rng.choice(12, 5, replace=False), start=1)
    ]
    rows += [{"user": "u0001", "item": "i4", "rank": 6}]
    # The user of item 4 alone gets it first: a perfect score.
    rows = [r for r in rows if r["user"] != "u0001"] + [{"user": "u0001", "item": "i4", "rank": 1}]
    return pd.DataFrame(rows)


class Seen:
    """Stands where the noise is added, and keeps the exact sums that came there."""

    def __init__(self):
        self.total = self.sensitivity = None

    def __call__(self, total, *, sensitivity, mechanism, noise):
        self.total, self.sensitivity, self.mechanism = total, sensitivity, mechanism
        return total.copy()


@pytest.fixture
def seen(monkeypatch):
    spy = Seen()
    monkeypatch.setattr(queries_module, "release_sum", spy)
    return spy


QUERIES = {
    "item_counts 1": lambda q, ranking: q.item_counts(MECHANISM, max_items=1),
    "item_counts 5": lambda q, ranking: q.item_counts(MECHANISM, max_items=5),
    "item_counts 99": lambda q, ranking: q.item_counts(MECHANISM, max_items=99),
    "category_counts": lambda q, ranking: q.category_counts(MECHANISM),
    "gram 1": lambda q, ranking: q.gram(MECHANISM, max_items=1),
    "gram 5": lambda q, ranking: q.gram(MECHANISM, max_items=5),
    "gram 99": lambda q, ranking: q.gram(MECHANISM, max_items=99),
    "gram of four": lambda q, ranking: q.gram(MECHANISM, max_items=2, items=["i4", "i0", "i11", "i3"]),
    "unit_gram": lambda q, ranking: q.unit_gram(MECHANISM),
    "unit_gram weighted and centred": lambda q, ranking: q.unit_gram(
        MECHANISM, weights=np.geomspace(1, 30, 12), centre=np.linspace(0, 0.15, 12)
    ),
    "unit_gram of four": lambda q, ranking: q.unit_gram(
        MECHANISM, items=["i4", "i0", "i11", "i3"], centre=np.full(4, 0.25)
    ),
    "ranking_metrics": lambda q, ranking: q.ranking_metrics(ranking, MECHANISM, metrics=METRICS),
    "one metric": lambda q, ranking: q.ranking_metrics(ranking, MECHANISM, metrics=METRICS[:1]),
}
# Its sum is one fixed function of whole numbers, and a margin in place of the last bit: test_unit_gram.py.
WITH_MARGIN = [ask for name, ask in QUERIES.items() if name.startswith("unit_gram")]
EACH_QUERY = pytest.mark.parametrize("ask", QUERIES.values(), ids=QUERIES)


def ask_on_a_full_ledger(table):
    return PrivateQueries(table, PrivacyLedger(BUDGET))


# --- what is released, without the noise


@pytest.mark.parametrize("bound", [1, 3, 12, 1000])
def test_item_counts_by_hand(table, seen, bound):
    expected = np.zeros(12)
    for row in table.matrix().toarray():
        expected += row * min(1, math.sqrt(min(bound, 12) / max(row.sum(), 1)))
    counts = ask_on_a_full_ledger(table).item_counts(MECHANISM, max_items=bound)
    np.testing.assert_allclose(counts.values, expected, atol=2.0**-20 * table.n_users)
    assert (counts.values <= expected + 1e-9).all()
    assert seen.sensitivity == counts.sensitivity == math.sqrt(min(bound, 12))
    np.testing.assert_allclose(counts.standard_errors, 3.0 * counts.sensitivity)
    assert counts.to_frame().columns.tolist() == ["item", "value", "standard_error"]
    assert counts.names.tolist() == CATALOGUE.ids.tolist()
    if bound >= 12:
        np.testing.assert_array_equal(counts.values, table.matrix().sum(axis=0))


def test_category_counts_by_hand(table, seen):
    expected = dict.fromkeys("abc", 0.0)
    categorised = 0
    for row in table.matrix().toarray():
        used = [CATEGORIES[i] for i in np.flatnonzero(row) if CATEGORIES[i]]
        categorised += bool(used)
        for names in used:
            for name in names:
                expected[name] += 1 / len(names) / len(used)
    counts = ask_on_a_full_ledger(table).category_counts(MECHANISM)
    assert counts.names.tolist() == list(expected)
    np.testing.assert_allclose(counts.values, list(expected.values()), atol=2.0**-20 * table.n_users)
    assert (counts.values <= np.array(list(expected.values())) + 1e-9).all()  # rounded down
    assert counts.values.sum() == pytest.approx(categorised, abs=1e-3)
    assert categorised < table.n_users - 1
    assert seen.sensitivity == counts.sensitivity == 1
    assert counts.to_frame().columns.tolist() == ["category", "value", "standard_error"]


@pytest.mark.parametrize("bound", [1, 3, 12, 1000])
@pytest.mark.parametrize("items", [None, ["i4", "i0", "i11", "i3"]])
def test_gram_by_hand(table, seen, bound, items):
    chosen = np.arange(12) if items is None else np.array([4, 0, 11, 3])
    n = len(chosen)
    expected = np.zeros((n, n))
    for row in table.matrix().toarray()[:, chosen]:
        expected += np.outer(row, row) * min(1, min(bound, n) / max(row.sum(), 1))
    gram = ask_on_a_full_ledger(table).gram(MECHANISM, max_items=bound, items=items)
    np.testing.assert_allclose(gram.matrix, expected, atol=2.0**-20 * table.n_users)
    np.testing.assert_array_equal(gram.matrix, gram.matrix.T)
    assert seen.sensitivity == gram.sensitivity == min(bound, n)
    assert gram.standard_error == pytest.approx(3.0 * gram.sensitivity / math.sqrt(2))
    frame = gram.to_frame()
    assert frame.index.tolist() == frame.columns.tolist() == CATALOGUE.ids[chosen].tolist()
    if bound >= 12:
        rows = table.matrix()[:, chosen].toarray()
        np.testing.assert_array_equal(gram.matrix, rows.T @ rows)


def test_metrics_by_hand(table, ranking, seen):
    exact = ranking_metrics(ranking, table, METRICS)
    released = ask_on_a_full_ledger(table).ranking_metrics(ranking, MECHANISM, metrics=METRICS)
    assert released.names.tolist() == [*METRICS, "users"]
    np.testing.assert_allclose(released.values[:3], exact.mean(), atol=1e-5)
    assert 0.05 < released.values[:3].min() < released.values[:3].max() < 0.9
    assert released.values[3] == len(exact) == 44
    weight = 3**0.25 / 2
    assert seen.sensitivity == released.sensitivity == pytest.approx(math.sqrt(3 / 4 + weight**2))
    np.testing.assert_allclose(seen.total, [*(exact - 0.5).sum(), 44 * weight], atol=2.0**-20 * table.n_users)


def test_the_weight_of_being_there_is_the_best_for_the_worst_mean():
    def worst_variance(k, weight):  # of the error of a mean of 0 or 1, in units of (noise multiplier / N)**2
        return (k / 4 + weight**2) * (1 + 0.25 / weight**2)

    for k in (1, 2, 5):
        ours = worst_variance(k, k**0.25 / 2)
        assert ours <= min(worst_variance(k, w) for w in np.linspace(0.05, 3, 400)) + 1e-9
        # Sums of the metrics themselves: variance (k + 1)(1 + M**2), at least k + 1.
        assert ours < (k + 1) / 1.5


def test_strangers_get_zero_and_no_error(table, seen):
    """An error would tell whether anybody of the ranking is in the table."""
    foreign = pd.DataFrame({"user": ["x"], "item": ["i0"], "rank": [1]})
    with pytest.raises(DataError, match="no user of the ranking"):
        ranking_metrics(foreign, table)
    ledger = PrivacyLedger(BUDGET)
    released = PrivateQueries(table, ledger).ranking_metrics(foreign, MECHANISM, metrics=METRICS)
    np.testing.assert_array_equal(released.values, [0, 0, 0, 44])
    assert ledger.spent > 0


@EACH_QUERY
def test_a_table_of_nobody_gives_noise(table, ranking, ask):
    nobody = table.take_users(np.array([], np.intp))
    released = ask(PrivateQueries(nobody, PrivacyLedger(BUDGET)), ranking)
    values = getattr(released, "values", getattr(released, "matrix", None))
    assert np.isfinite(values).all()
    assert values.std() > 0


# --- sensitivity


@EACH_QUERY
def test_no_user_moves_a_sum_by_more_than_the_sensitivity(table, ranking, seen, ask):
    def exact(of):
        ask(ask_on_a_full_ledger(of), ranking)
        units = seen.total * GRID
        assert ask in WITH_MARGIN or (units == np.round(units)).all()
        return [float(u) if ask in WITH_MARGIN else int(u) for u in units.reshape(-1)], seen.sensitivity

    whole, bound = exact(table)
    moves = []
    for user in range(table.n_users):
        rest, same = exact(table.take_users(np.delete(np.arange(table.n_users), user)))
        assert same == bound
        # Whole numbers, so nothing hides in rounding.
        moves.append(math.sqrt(sum((a - b) ** 2 for a, b in zip(whole, rest, strict=True))) / GRID)
    assert max(moves) <= bound * (1 + 1e-12)
    if ask not in (QUERIES["ranking_metrics"], QUERIES["one metric"]):
        assert max(moves) >= 0.999 * bound  # and the bound is not too large: less noise would not do


def test_metrics_reach_their_sensitivity(table, ranking, seen):
    user = table.take_users(np.array([1]))  # all scores 1
    ask_on_a_full_ledger(user).ranking_metrics(ranking, MECHANISM, metrics=METRICS)
    assert 0.9999 * seen.sensitivity < np.linalg.norm(seen.total) <= seen.sensitivity


@pytest.mark.parametrize("length", [1, 2, 3, 5, 6, 7, 10, 997, 1000, 1023, 1024, 1025, 4999, 5000])
@pytest.mark.parametrize("bound", [1, 2, 7, 1000, 5000])
def test_a_lone_user_of_any_length_is_within_the_bound_exactly(seen, length, bound):
    catalogue = ItemCatalogue.from_frame(pd.DataFrame({"item": [f"i{n}" for n in range(5000)]}))
    queries = ask_on_a_full_ledger(table_of([range(length)], catalogue))
    queries.item_counts(MECHANISM, max_items=bound)
    assert seen.sensitivity == math.sqrt(bound)
    units = [int(u) for u in seen.total[seen.total > 0] * GRID]
    assert sum(u * u for u in units) <= bound * GRID**2
    assert seen.total.max() >= min(1, math.sqrt(bound / length)) - 2.0**-20
    if length <= 1025:
        few = catalogue.ids[:1025].tolist()
        queries = ask_on_a_full_ledger(table_of([range(length)], catalogue))
        queries.gram(MECHANISM, max_items=min(bound, 1025), items=few)
        entry = int(seen.total.max() * GRID)
        assert (seen.total > 0).sum() == length**2
        assert entry * length <= seen.sensitivity * GRID
        assert entry / GRID >= min(1, seen.sensitivity / length) - 2.0**-20


def test_a_bound_beyond_what_32_bits_hold_on_the_grid(seen):
    n = 2100
    catalogue = ItemCatalogue.from_frame(pd.DataFrame({"item": [f"i{k}" for k in range(n)]}))
    ask_on_a_full_ledger(table_of([range(n)], catalogue)).gram(MECHANISM, max_items=n)
    assert n * GRID > 2**31
    assert (seen.total == 1).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e20, -1e20])
@EACH_QUERY
def test_ratings_and_times_are_never_read(table, ranking, seen, ask, value):
    """The constructor takes any ratings; readers refuse those that are not finite."""
    hostile = table_of(
        [table.indices[a:b] for a, b in zip(table.indptr, table.indptr[1:], strict=False)],
        ratings=np.full(len(table), value, np.float32),
        timestamps=np.full(len(table), -(2**62)),
    )
    ask(ask_on_a_full_ledger(table), ranking)
    expected = seen.total
    ask(ask_on_a_full_ledger(hostile), ranking)
    np.testing.assert_array_equal(seen.total, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e20, -1e20, 1 + 1e-12])
def test_scores_that_are_none_stay_within_the_bound(table, ranking, seen, monkeypatch, value):
    def broken(ranking, held_out, metrics):
        return pd.DataFrame({name: np.full(min(held_out.n_users, 1), value) for name in metrics})

    monkeypatch.setattr(queries_module, "ranking_metrics", broken)
    ask_on_a_full_ledger(table).ranking_metrics(ranking, MECHANISM, metrics=METRICS)
    assert np.linalg.norm(seen.total) <= seen.sensitivity
    assert seen.total[-1] > 0.6


def test_readers_refuse_hostile_ratings(tmp_path):
    from recsys_budget.data import read_interactions

    for text in ("nan", "inf", "-inf", "1e60"):
        file = tmp_path / "rows.csv"
        file.write_text(f"user,item,rating\nu,i0,{text}\n", encoding="utf-8")
        with pytest.raises(DataError, match="finite"):
            read_interactions(file, catalogue=CATALOGUE)
        with pytest.raises(DataError, match="finite"):
            Interactions.from_frame(
                pd.DataFrame({"user": ["u"], "item": ["i0"], "rating": [float(text)]}), catalogue=CATALOGUE
            )


def test_arrays_with_a_pair_twice_are_no_table():
    with pytest.raises(SpecificationError, match="ascending"):
        table_of([[1, 1, 1]])
    with pytest.raises(SpecificationError):
        table_of([[1, 12]])


# --- paying


class Sealed(Interactions):
    """Notes every read of private data, and refuses it while sealed."""

    PRIVATE = frozenset(
        {"users", "indptr", "indices", "ratings", "timestamps", "n_users", "rows"}
        | {"matrix", "to_frame", "where", "take_users", "positives", "__len__"}
    )

    def __getattribute__(self, name):
        events = object.__getattribute__(self, "__dict__").get("events")
        if events is not None and name in Sealed.PRIVATE:
            events.append("read users" if name == "users" else "read")
        return object.__getattribute__(self, name)

    def __len__(self):
        return len(self.indices)


@pytest.fixture
def watched(table, monkeypatch):
    sealed = Sealed(**{f.name: getattr(table, f.name) for f in fields(Interactions)})
    events = []
    object.__setattr__(sealed, "events", events)

    def log(name, function):
        def logged(*arguments, **keywords):
            result = function(*arguments, **keywords)
            events.append(name)
            return result

        return logged

    monkeypatch.setattr(PrivacyLedger, "reserve", log("reserve", PrivacyLedger.reserve))
    monkeypatch.setattr(Reservation, "use", log("use", Reservation.use))
    monkeypatch.setattr(Reservation, "commit", log("commit", Reservation.commit))
    return sealed


def queries_on(watched, ledger):
    """Telling the ledger who is there is the one read that nothing pays for."""
    watched.events.clear()
    queries = PrivateQueries(watched, ledger)
    assert watched.events == ["read users"]
    watched.events.clear()
    return queries


@EACH_QUERY
def test_reserve_then_use_then_read_then_commit(watched, ranking, ask):
    ledger = PrivacyLedger(BUDGET)
    ask(queries_on(watched, ledger), ranking)
    assert watched.events[:2] == ["reserve", "use"]
    assert set(watched.events[2:-1]) <= {"read", "read users"}
    assert "read" in watched.events
    assert watched.events[-1] == "commit"
    assert ledger.history()["settled"].dropna().tolist() == [True]


@EACH_QUERY
def test_nothing_is_read_where_the_ledger_refuses(watched, ranking, ask):
    ledger = PrivacyLedger(PrivacyBudget(0.5, 1e-5))
    with pytest.raises(BudgetExceededError, match="Nothing was spent"):
        ask(queries_on(watched, ledger), ranking)
    assert watched.events == []
    assert ledger.spent == 0


@EACH_QUERY
def test_nothing_is_read_where_the_reservation_does_not_grant_it(watched, ranking, ask):
    ledger = PrivacyLedger(PrivacyBudget(8.0, 1e-5))
    other = ledger.reserve([GaussianMechanism(3.1)], purpose="another noise")
    settled = ledger.reserve([MECHANISM], purpose="settled")
    settled.commit()
    used = ledger.reserve([MECHANISM], purpose="used")
    used.use(MECHANISM)
    for reservation in (other, settled, used):
        queries = queries_on(watched, reservation)
        with pytest.raises(ReservationError):
            ask(queries, ranking)
        assert watched.events == []


@EACH_QUERY
def test_every_release_is_taken_once(table, ranking, ask):
    ledger = PrivacyLedger(BUDGET)
    reservation = ledger.reserve([MECHANISM], purpose="one look")
    queries = PrivateQueries(table, reservation)
    ask(queries, ranking)
    assert reservation.used(MECHANISM) == 1
    assert not reservation.settled
    with pytest.raises(ReservationError, match="were used"):
        ask(queries, ranking)


def test_one_reservation_pays_for_a_plan_over_two_tables(table, ranking):
    ledger = PrivacyLedger(BUDGET)
    mechanisms = [GaussianMechanism(s) for s in (4.0, 5.0, 6.0, 7.0)]
    plan = ledger.reserve(mechanisms, purpose="survey")
    PrivateQueries(table, plan).item_counts(mechanisms[0], max_items=3)
    PrivateQueries(table, plan).gram(mechanisms[1], max_items=3)
    PrivateQueries(table, plan).category_counts(mechanisms[2])
    PrivateQueries(table, plan).ranking_metrics(ranking, mechanisms[3], metrics=METRICS)
    plan.commit()
    assert ledger.history().dropna(subset="settled")["purpose"].tolist() == ["survey"]
    joint = 1 / math.sqrt(sum(m.noise_multiplier**-2 for m in mechanisms))
    alone = PrivacyLedger(BUDGET)
    alone.reserve([GaussianMechanism(joint)], purpose="the same at once")
    assert ledger.spent == pytest.approx(alone.spent, rel=0.01)


def test_nobody_spends_from_two_budgets(table, tmp_path):
    file = tmp_path / "budget.db"
    PrivateQueries(table, PrivacyLedger(BUDGET, file, population="viewers"))
    again = PrivacyLedger(BUDGET, file, population="the same people")
    paid = again.reserve([MECHANISM], purpose="survey")
    for ledger in (again, paid):
        with pytest.raises(PopulationError, match="viewers"):
            PrivateQueries(table, ledger)
    assert not paid.settled
    again.declare_disjoint("viewers", reason="another country, with ids of its own")
    PrivateQueries(table, paid).item_counts(MECHANISM, max_items=1)
    assert paid.ledger is again


def test_a_query_that_fails_after_its_release_stays_paid_for(table, monkeypatch):
    def crash(*arguments, **keywords):
        raise MemoryError

    monkeypatch.setattr(queries_module, "release_sum", crash)
    ledger = PrivacyLedger(BUDGET)
    with pytest.raises(MemoryError):
        PrivateQueries(table, ledger).item_counts(MECHANISM, max_items=1)
    assert ledger.spent > 1
    assert ledger.history()["settled"].dropna().tolist() == [True]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda q, r: q.item_counts(MECHANISM, max_items=0), SpecificationError),
        (lambda q, r: q.item_counts(MECHANISM, max_items=True), SpecificationError),
        (lambda q, r: q.item_counts(MECHANISM, max_items=1.5), SpecificationError),
        (lambda q, r: q.gram(MECHANISM, max_items=-1), SpecificationError),
        (lambda q, r: q.gram(MECHANISM, max_items=1, items=[]), SpecificationError),
        (lambda q, r: q.gram(MECHANISM, max_items=1, items=["i1", "i1"]), SpecificationError),
        (lambda q, r: q.gram(MECHANISM, max_items=1, items=["nothing"]), SpecificationError),
        (lambda q, r: q.ranking_metrics(r, MECHANISM, metrics=[]), SpecificationError),
        (lambda q, r: q.ranking_metrics(r, MECHANISM, metrics=["recall"]), SpecificationError),
        (lambda q, r: q.ranking_metrics(r, MECHANISM, metrics=["mrr@1", "mrr@1"]), SpecificationError),
        (lambda q, r: q.ranking_metrics(r.assign(rank=1), MECHANISM), DataError),
        (lambda q, r: q.ranking_metrics(r.assign(item="nothing"), MECHANISM), DataError),
        (lambda q, r: q.ranking_metrics(r.drop(columns="rank"), MECHANISM), DataError),
        (lambda q, r: q.item_counts(3.0, max_items=1), UnsupportedMechanismError),
        (
            lambda q, r: q.category_counts(SampledGaussianMechanism(3.0, 0.1, 5)),
            UnsupportedMechanismError,
        ),
    ],
)
def test_what_is_asked_wrongly_reads_and_costs_nothing(watched, ranking, wrong, error):
    ledger = PrivacyLedger(BUDGET)
    queries = queries_on(watched, ledger)
    with pytest.raises(error):
        wrong(queries, ranking)
    assert watched.events == []
    assert ledger.spent == 0


def test_tables_and_seeds_that_are_refused(table):
    ledger = PrivacyLedger(BUDGET)
    undeclared = Interactions.from_frame(table.to_frame())
    with pytest.raises(SpecificationError, match="vocabulary was read"):
        PrivateQueries(undeclared, ledger)
    popular = k_core(table, per_item=2)
    with pytest.raises(SpecificationError, match="no budget paid for"):
        PrivateQueries(popular, ledger)
    for seed in (-1, 1.5, "3"):
        with pytest.raises(SpecificationError, match="insecure_seed"):
            PrivateQueries(table, ledger, insecure_seed=seed)
    bare = ItemCatalogue.from_frame(pd.DataFrame({"item": ["i0"]}))
    with pytest.raises(SpecificationError, match="no categories"):
        PrivateQueries(table_of([[0]], bare), ledger).category_counts(MECHANISM)
    assert ledger.spent == 0


# --- the noise


def noise_is_right(errors, standard_error):
    """Two-sided chi-square test of independent errors, and a test of their mean, both at one in 100,000."""
    z = np.asarray(errors).ravel() / standard_error
    p = stats.chi2.cdf((z**2).sum(), len(z))
    return 5e-6 < p < 1 - 5e-6 and abs(z.mean()) * math.sqrt(len(z)) < 4.5


def scale_is_right_and_two_percent_are_noticed(errors, standard_error):
    return (
        noise_is_right(errors, standard_error)
        and not noise_is_right(errors, standard_error * 1.02)
        and not noise_is_right(errors, standard_error / 1.02)
    )


def test_counts_have_the_noise_that_was_paid_for():
    catalogue = ItemCatalogue.from_frame(pd.DataFrame({"item": [f"i{n}" for n in range(200_000)]}))
    table = table_of([[0, 1, 2, 3], [1]], catalogue)
    queries = PrivateQueries(table, PrivacyLedger(BUDGET), insecure_seed=1)
    counts = queries.item_counts(MECHANISM, max_items=4)
    exact = np.bincount(table.indices, minlength=200_000)
    assert scale_is_right_and_two_percent_are_noticed(counts.values - exact, counts.standard_errors)
    assert counts.standard_errors[0] == 3.0 * 2.0


def test_gram_has_the_noise_that_was_paid_for():
    catalogue = ItemCatalogue.from_frame(pd.DataFrame({"item": [f"i{n}" for n in range(700)]}))
    table = table_of([[0, 1, 2, 3], [1]], catalogue)
    off, on = [], []
    queries = PrivateQueries(table, PrivacyLedger(PrivacyBudget(4.0, 1e-5)), insecure_seed=2)
    gram = queries.gram(MECHANISM, max_items=4)
    rows = table.matrix().toarray()
    error = gram.matrix - rows.T @ rows
    off, on = error[np.triu_indices(700, 1)], np.diag(error)
    assert scale_is_right_and_two_percent_are_noticed(off, gram.standard_error)
    assert noise_is_right(on, gram.standard_error * math.sqrt(2))
    assert not noise_is_right(on, gram.standard_error)


@pytest.fixture
def many_metrics(monkeypatch):
    """Metrics of 3,000 releases over the same scores, the price waived: too many for any ledger."""
    monkeypatch.setattr(Reservation, "use", lambda self, mechanism: None)

    def release(n_users, noise_multiplier, count=3000):
        rng = np.random.default_rng(n_users)
        scores = pd.DataFrame(rng.beta([0.5, 1, 2, 1], [4, 2, 1, 1], (n_users, 4)), columns=list("abcd"))
        monkeypatch.setattr(
            queries_module,
            "ranking_metrics",
            lambda ranking, held_out, metrics: scores.iloc[: held_out.n_users and n_users],
        )
        mechanism = GaussianMechanism(noise_multiplier)
        reservation = PrivacyLedger(PrivacyBudget(50.0, 1e-5)).reserve([mechanism], purpose="many")
        queries = PrivateQueries(table_of([[0]]), reservation, insecure_seed=n_users)
        releases = [queries.ranking_metrics(None, mechanism, metrics=list("abcd")) for _ in range(count)]
        return scores.mean().to_numpy(), releases

    return release


def test_metrics_have_the_noise_that_was_paid_for(many_metrics):
    exact, releases = many_metrics(2000, 1.0, 12_000)
    values = np.array([r.values for r in releases])
    users = values[:, 4]
    scale = releases[0].sensitivity
    assert scale == pytest.approx(math.sqrt(4 / 4 + 1 / 2))
    # Undo the ratio: what is left are the noisy sums.
    sums = (values[:, :4] - 0.5) * users[:, None] - 2000 * (exact - 0.5)
    assert scale_is_right_and_two_percent_are_noticed(sums, scale)
    assert noise_is_right(users - 2000, scale / (4**0.25 / 2))
    assert releases[0].standard_errors[4] == pytest.approx(scale / (4**0.25 / 2))


@pytest.mark.parametrize("n_users", [12, 40, 1000])
def test_standard_errors_of_metrics_are_honest(many_metrics, n_users):
    exact, releases = many_metrics(n_users, 1.0)
    values = np.array([r.values[:4] for r in releases])
    errors = np.array([r.standard_errors[:4] for r in releases])
    assert ((values >= 0) & (values <= 1)).all()
    told = np.isfinite(errors)
    assert told.mean() > 0.9
    within = (np.abs(values - exact) <= 1.96 * errors)[told]
    assert within.mean() > 0.94
    if n_users == 1000:
        assert within.mean() == pytest.approx(0.95, abs=0.01)
        assert np.abs(values.mean(axis=0) - exact).max() < 4.5 * errors.mean() / math.sqrt(3000)


def test_metrics_of_too_few_users_say_that_they_are_worthless(many_metrics):
    _, releases = many_metrics(3, 5.0, 300)
    errors = np.array([r.standard_errors for r in releases])
    assert np.isinf(errors[:, :4]).mean() > 0.95
    assert np.isfinite(errors[:, 4]).all()
    assert all(((r.values[:4] >= 0) & (r.values[:4] <= 1)).all() for r in releases)


def test_noise_is_the_systems_unless_asked_otherwise_and_then_it_is_said(table, ranking, monkeypatch):
    drawn = []
    normal = SystemNoise.normal
    monkeypatch.setattr(SystemNoise, "normal", lambda self, size: drawn.append(size) or normal(self, size))

    def twice(**how):
        return [
            PrivateQueries(table, PrivacyLedger(BUDGET), **how).item_counts(MECHANISM, max_items=1)
            for _ in range(2)
        ]

    first, second = twice()
    assert drawn == [12, 12]
    assert not (first.values == second.values).any()
    assert first.private
    assert repr(first) == "NoisyValues(item counts: 12, standard error 3, private)"
    first, second = twice(insecure_seed=1)
    np.testing.assert_array_equal(first.values, second.values)
    assert drawn == [12, 12]
    assert not first.private
    assert "not private" in repr(first)
    gram = PrivateQueries(table, PrivacyLedger(BUDGET), insecure_seed=1).gram(MECHANISM, max_items=1)
    assert repr(gram).startswith("NoisyGram(12 x 12, standard error 2.12, not private")
    metrics = PrivateQueries(table, PrivacyLedger(BUDGET), insecure_seed=1).ranking_metrics(
        ranking, MECHANISM, metrics=METRICS
    )
    assert "not private" in repr(metrics)


def test_what_is_handed_out_is_read_only(table):
    queries = PrivateQueries(table, PrivacyLedger(BUDGET))
    counts = queries.item_counts(GaussianMechanism(5.0), max_items=1)
    gram = queries.gram(GaussianMechanism(5.0), max_items=1)
    for array in (counts.values, counts.standard_errors, gram.matrix):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert len(counts) == len(gram) == 12


def test_what_spends_nothing_says_so_wherever_it_is_shown(table, ranking):
    scores = ranking_metrics(ranking, table, METRICS)
    drift = calibration_kl(ranking, table)
    for shown in (scores, scores.mean(), drift, pd.DataFrame({"model": scores.mean()}).T):
        assert "not private" in repr(shown)
    note = "accuracy measured on held-out users (not private)"
    frontier = Frontier(pd.DataFrame({"x": [1.0], "y": [1.0]}), "x", "y", "less", note=note)
    assert note in repr(frontier)


@pytest.mark.real_data
def test_on_published_data(data_home):
    table = k_core(load_dataset("ml-1m", data_home=data_home).positives(4), per_user=5)
    train, fold_in, held_out = hold_out_users(table, table.n_users // 5, rng=0)
    ledger = PrivacyLedger(PrivacyBudget(2.0, 1e-6))
    mechanism = GaussianMechanism(9.0)
    counts = PrivateQueries(train, ledger).item_counts(mechanism, max_items=5000)
    exact = np.bincount(train.indices, minlength=train.n_items)
    error = counts.values - exact
    assert noise_is_right(error, counts.standard_errors)
    recommended = Popularity().fit(train).recommend(fold_in, 20)
    released = PrivateQueries(held_out, ledger).ranking_metrics(recommended, mechanism, metrics=["recall@20"])
    true = ranking_metrics(recommended, held_out, ["recall@20"])["recall@20"].mean()
    assert abs(released.values[0] - true) < 5 * released.standard_errors[0] < 0.05
    assert released.values[1] == pytest.approx(held_out.n_users, abs=5 * released.standard_errors[1])
