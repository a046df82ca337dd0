"""Models from statistics along epsilon: each prefix paid for, releases pooled as one, questions that fit."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from dp_accounting.pld import privacy_loss_distribution
from invented import payments, recall, some
from scipy import sparse, stats
from sklearn.exceptions import NotFittedError

from recsys_budget.data import Interactions
from recsys_budget.errors import BudgetExceededError, SpecificationError
from recsys_budget.frontiers import frontier
from recsys_budget.models import PrivateItemModel, PrivatePopularity, _pool, head_size
from recsys_budget.models._pool import (
    Answer,
    Question,
    believed,
    combined,
    outgrown,
    pool_counts,
    pool_grams,
    sizes_asked,
)
from recsys_budget.privacy import (
    GaussianMechanism,
    NoisyGram,
    NoisyValues,
    PrivacyBudget,
    PrivacyLedger,
    PrivateQueries,
    SystemNoise,
    epsilon,
)
from recsys_budget.privacy._unit_gram import unit_gram_sum

DELTA = 1e-5
EPSILONS = (0.5, 1.0, 2.0, 4.0)
MODELS = {
    "popularity": lambda **changes: PrivatePopularity(**{"declared_users": 700} | changes),
    "item model": lambda **changes: PrivateItemModel(**{"declared_users": 700} | changes),
}
EACH_MODEL = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def ledger_of(cap):
    return PrivacyLedger(PrivacyBudget(cap, DELTA))


@pytest.fixture(scope="module")
def split():
    return some()


def delta_of(noise, eps):
    """Of one Gaussian release: Balle and Wang (2018), arXiv:1805.06530, theorem 8."""
    return stats.norm.cdf(0.5 / noise - eps * noise) - math.exp(eps) * stats.norm.cdf(
        -0.5 / noise - eps * noise
    )


def together(stages):
    """Noise of the one release that is as informative as all of these."""
    return math.fsum(m.noise_multiplier**-2 for stage in stages for m in stage) ** -0.5


# --- what a prefix costs


@EACH_MODEL
@pytest.mark.parametrize(
    "epsilons", [EPSILONS, (4.0, 0.3), (1.0, 1.1, 1.2, 1.3), (3.9, 3.99, 3.999), (2.0, 2.0)]
)
def test_a_prefix_costs_at_most_what_was_asked_by_other_accountants(make, epsilons):
    ledger, asked = ledger_of(4.0), sorted(set(epsilons))
    model = make(epsilons=epsilons)
    model.catalogue_ = range(120)
    stages = model._plan(ledger)
    assert len(stages) == len(asked) + (asked[-1] < 3.9995)
    for count, most in enumerate(asked, start=1):
        prefix = stages[:count]
        assert delta_of(together(prefix), most) <= DELTA
        # Not by much less: within half a percent in epsilon.
        assert delta_of(together(prefix), 0.995 * most) > DELTA
    composed = None
    for m in (m for stage in stages for m in stage):
        one = privacy_loss_distribution.from_gaussian_mechanism(
            m.noise_multiplier, value_discretization_interval=1e-3
        )
        composed = one if composed is None else composed.compose(one)
    assert composed.get_epsilon_for_delta(DELTA) <= 1.002 * 4.0
    assert ledger.fits([m for stage in stages for m in stage])


@EACH_MODEL
def test_points_say_what_their_releases_cost_and_all_together_cost_the_last(split, make):
    ledger = ledger_of(4.0)
    model = make(epsilons=(*EPSILONS, 8.0, 1e-4)).fit(split.train, ledger=ledger)
    spent, head = ledger.spent, ledger.head
    path = model.epsilon_path()
    # 4 and 8 are both the last model; 1e-4 is below the least that can be released.
    assert len(path) == 4
    mechanisms = [GaussianMechanism(m["noise_multiplier"]) for m in model.receipt_.mechanisms]
    each = len(mechanisms) // 4
    for place, (point, most) in enumerate(zip(path, EPSILONS, strict=True), start=1):
        assert 0.995 * most < point.epsilon <= most
        assert point.epsilon == epsilon(mechanisms[: place * each], DELTA)
        assert point.steps == 0
    assert path[-1].epsilon == spent == ledger.spent <= 4.0
    assert ledger.head == head
    assert model.receipt_.epsilon >= path[-1].epsilon
    model.receipt_.verify(ledger)
    assert model.receipt_.constants["epsilons"] == [*EPSILONS, 8.0, 1e-4]
    assert type(model.receipt_).from_json(model.receipt_.to_json()) == model.receipt_


@EACH_MODEL
def test_in_a_partly_spent_ledger_the_filter_rules_and_the_last_point_is_all_that_was_left(split, make):
    ledger = ledger_of(4.0)
    ledger.reserve([GaussianMechanism(3.0)], purpose="something else")
    model = make(epsilons=(1.0, 2.0, 4.0)).fit(split.train, ledger=ledger)
    assert 3.99 < ledger.spent <= 4.0
    assert model.receipt_.ledger_epsilon == 4.0
    path = model.epsilon_path()
    assert [p.epsilon <= e for p, e in zip(path, (1.0, 2.0, 4.0), strict=True)] == [True] * 3
    assert path[-1].epsilon < 3.9
    np.testing.assert_array_equal(path[-1].model.counts_.values, model.counts_.values)


@EACH_MODEL
def test_what_is_left_above_the_last_epsilon_goes_to_the_model_itself(split, make):
    model = make(epsilons=(1.0,)).fit(split.train, ledger=ledger_of(4.0))
    (point,) = model.epsilon_path()
    assert 0.995 < point.epsilon <= 1.0
    own, of_point = (m.counts_.mechanism.noise_multiplier for m in (model, point.model))
    assert own < 0.5 * of_point
    each = len(model.receipt_.mechanisms) // 2
    assert of_point == model.receipt_.mechanisms[0]["noise_multiplier"]
    assert own == pytest.approx(
        (of_point**-2 + model.receipt_.mechanisms[each]["noise_multiplier"] ** -2) ** -0.5
    )


@EACH_MODEL
def test_huge_budgets_end_at_the_least_noise(split, make):
    model = make(epsilons=(300.0, 3_000.0, 9_000.0)).fit(split.train, ledger=ledger_of(1e4))
    costs = [point.epsilon for point in model.epsilon_path()]
    assert costs == sorted(costs)
    assert costs[0] <= 300
    assert min(m["noise_multiplier"] for m in model.receipt_.mechanisms) >= 0.05


@EACH_MODEL
def test_shares_of_a_prefix_are_those_of_a_fit_of_its_own(make):
    def so_far(stages):
        return [combined(parts).noise_multiplier for parts in zip(*stages, strict=True)]

    model = make(epsilons=EPSILONS)
    stages = model._plan(ledger_of(4.0))
    for count, cap in enumerate(EPSILONS, start=1):
        (alone,) = make()._plan(ledger_of(cap))
        np.testing.assert_allclose(so_far(stages[:count]), [m.noise_multiplier for m in alone], rtol=1e-3)


# --- paying


@EACH_MODEL
def test_each_read_of_each_stage_follows_its_own_payment(split, monkeypatch, make):
    events = payments(monkeypatch)
    model = make(epsilons=EPSILONS).fit(split.train, ledger=ledger_of(4.0))
    model.epsilon_path()
    (mechanisms,) = (arguments[0] for label, arguments in events if label == "reserve")
    assert [arguments[0] for label, arguments in events if label == "use"] == list(mechanisms)
    stage = ["use", "noise"] + (["use", "read", "noise"] if "gram_" in vars(model) else [])
    assert [label for label, _ in events if label != "commit"] == ["reserve", *stage * 4]


@EACH_MODEL
def test_a_crash_between_stages_leaves_all_of_it_spent(split, monkeypatch, make):
    drawn = []
    normal = SystemNoise.normal

    def crash(self, size):
        drawn.append(size)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return normal(self, size)

    monkeypatch.setattr(SystemNoise, "normal", crash)
    ledger = ledger_of(4.0)
    model = make(epsilons=EPSILONS)
    with pytest.raises(KeyboardInterrupt):
        model.fit(split.train, ledger=ledger)
    assert ledger.spent > 3.99
    with pytest.raises(NotFittedError):
        model.epsilon_path()
    history = ledger.history()
    assert history.loc[history["event"] == "reservation", "settled"].tolist() == [True]


@EACH_MODEL
def test_a_spent_ledger_refuses_a_path_before_any_read(split, monkeypatch, make):
    ledger = ledger_of(4.0)
    make().fit(split.train, ledger=ledger)
    before = ledger.spent
    monkeypatch.setattr(PrivateQueries, "item_counts", lambda *a, **k: pytest.fail("private data was read"))
    with pytest.raises(BudgetExceededError, match="Nothing was spent"):
        make(epsilons=EPSILONS).fit(split.train, ledger=ledger)
    assert ledger.spent == before


@EACH_MODEL
@pytest.mark.parametrize("epsilons", [2.0, None, ("2",), (np.nan,), (0.0,), (1.0, -1.0)])
def test_epsilons_that_are_none_cost_nothing(split, make, epsilons):
    ledger = ledger_of(4.0)
    with pytest.raises(SpecificationError, match="epsilons"):
        make(epsilons=epsilons).fit(split.train, ledger=ledger)
    assert ledger.spent == 0


# --- what a path is


@EACH_MODEL
def test_a_path_of_models(split, make):
    model = make(epsilons=EPSILONS)
    with pytest.raises(NotFittedError):
        model.epsilon_path()
    model.fit(split.train, ledger=ledger_of(4.0))
    path = model.epsilon_path()
    assert model.epsilon_path() is path
    noise = [point.model.counts_.mechanism.noise_multiplier for point in path]
    assert noise == sorted(noise, reverse=True)
    np.testing.assert_array_equal(path[-1].model.score(split.fold_in), model.score(split.fold_in))
    assert not np.array_equal(path[0].model.score(split.fold_in), model.score(split.fold_in))
    for point in path:
        assert point.model.receipt_ is model.receipt_
        assert point.model.epsilon_path() == ()
        assert len(point.model._released) == path.index(point) + 1
    again = pickle.loads(pickle.dumps(model))  # noqa: S301
    for point, other in zip(path, again.epsilon_path(), strict=True):
        np.testing.assert_array_equal(point.model.score(split.fold_in), other.model.score(split.fold_in))
    assert "in 4 parts" in model.receipt_.stop_reason
    model.fit(split.train, ledger=ledger_of(4.0))
    assert model.epsilon_path() is not path


@EACH_MODEL
def test_without_stages_it_is_the_fit_without_a_path_bit_for_bit(split, make):
    plain = make(insecure_seed=2).fit(split.train, ledger=ledger_of(4.0))
    assert plain.epsilon_path() == ()
    one = make(insecure_seed=2, epsilons=(4.0, 9.0)).fit(split.train, ledger=ledger_of(4.0))
    (point,) = one.epsilon_path()
    for fitted in (one, point.model):
        np.testing.assert_array_equal(fitted.score(split.fold_in), plain.score(split.fold_in))
        np.testing.assert_array_equal(fitted.counts_.values, plain.counts_.values)
    assert one.receipt_.mechanisms == plain.receipt_.mechanisms
    assert one.receipt_.stop_reason == plain.receipt_.stop_reason


@EACH_MODEL
def test_noise_of_a_path_is_fresh_unless_asked_otherwise(split, make):
    def scores(**changes):
        model = make(epsilons=(1.0, 4.0), **changes).fit(split.train, ledger=ledger_of(4.0))
        return model, model.epsilon_path()[0].model.score(split.fold_in)

    assert not np.array_equal(scores()[1], scores()[1])
    (model, first), (_, second) = scores(insecure_seed=1), scores(insecure_seed=1)
    np.testing.assert_array_equal(first, second)
    assert not model.receipt_.private
    assert not model.counts_.private
    a, b = (
        released if isinstance(released, NoisyValues) else released.counts for released in model._released
    )
    exact = exact_counts(split.train)
    noise = [(part.values - exact) / part.standard_errors for part in (a, b)]
    assert abs(np.corrcoef(*noise)[0, 1]) < 0.4


def test_a_path_is_a_function_of_what_was_released(split, monkeypatch):
    """With every release replaced by a fixed answer, the training table changes nothing, at any point."""
    model = MODELS["item model"](epsilons=EPSILONS).fit(split.train, ledger=ledger_of(4.0))
    counts = [answer.counts for answer in model._released]
    grams = [answer.gram for answer in model._released]
    asked = []

    def unit_gram(self, mechanism, *, items, weights, centre):
        asked.append((mechanism, items, weights, centre))
        return grams[len(asked) - 1]

    answers = iter(counts)
    monkeypatch.setattr(PrivateQueries, "item_counts", lambda self, *a, **k: next(answers))
    monkeypatch.setattr(PrivateQueries, "unit_gram", unit_gram)
    other = split.train.take_users(np.arange(3))
    again = MODELS["item model"](epsilons=EPSILONS).fit(other, ledger=ledger_of(4.0))
    for point, same in zip(model.epsilon_path(), again.epsilon_path(), strict=True):
        np.testing.assert_array_equal(point.model.score(split.fold_in), same.model.score(split.fold_in))
    for (mechanism, items, weights, centre), answer in zip(asked, model._released, strict=True):
        assert mechanism == answer.gram.mechanism
        assert items == list(answer.gram.items)
        np.testing.assert_array_equal(weights, answer.question.weights[answer.question.head])
        np.testing.assert_array_equal(centre, answer.question.centre)


def test_an_early_point_does_not_know_what_came_later(split, monkeypatch):
    model = MODELS["item model"](epsilons=EPSILONS).fit(split.train, ledger=ledger_of(4.0))
    before = [p.model.score(split.fold_in) for p in model.epsilon_path()]
    later = model._released[2]
    changed = replace(later, counts=replace(later.counts, values=later.counts.values[::-1].copy()))
    model._released, model._path = (*model._released[:2], changed, model._released[3]), None
    after = [p.model.score(split.fold_in) for p in model.epsilon_path()]
    assert [np.array_equal(a, b) for a, b in zip(before, after, strict=True)][:3] == [True, True, False]


# --- neighbours


@pytest.mark.parametrize("history", [[3], [0, 119], range(0, 120, 2), range(120)], ids=len)
def test_one_user_moves_each_prefix_by_no_more_than_was_paid_for(split, history):
    """In units of their noise, and given the same questions, as adaptive composition has it."""
    model = MODELS["item model"](epsilons=EPSILONS).fit(split.train, ledger=ledger_of(4.0))
    row = np.zeros((1, 120))
    row[0, list(history)] = 1
    table = sparse.csr_array(np.vstack([split.train.matrix().toarray(), row]))
    without = sparse.csr_array(table[:-1])
    moved, paid = 0.0, 0.0
    for answer, point in zip(model._released, model.epsilon_path(), strict=True):
        question = answer.question
        head, weights = question.head, question.weights[question.head]
        grams = [unit_gram_sum(rows[:, head], weights, question.centre) for rows in (table, without)]
        moved += np.sum((grams[0] - grams[1]) ** 2) / answer.gram.mechanism.noise_multiplier**2
        moved += np.sum((row / np.sqrt(row.sum())) ** 2) / answer.counts.mechanism.noise_multiplier**2
        paid += answer.gram.mechanism.noise_multiplier**-2 + answer.counts.mechanism.noise_multiplier**-2
        assert moved <= paid * (1 + 1e-12)
        assert delta_of(moved**-0.5, point.epsilon) <= DELTA
    assert moved > 0.3 * paid


# --- several releases as one


def exact_counts(table):
    lengths = np.diff(table.indptr)
    weights = np.repeat(np.floor(2.0**20 / np.sqrt(np.maximum(lengths, 1))) / 2.0**20, lengths)
    return np.bincount(table.indices, weights, minlength=table.n_items)


def test_pooled_counts_are_distributed_as_one_release_of_that_budget(split):
    exact = exact_counts(split.train)
    (alone,) = MODELS["popularity"]()._plan(ledger_of(2.0))
    first, last = [], []
    for _ in range(40):
        model = MODELS["popularity"](epsilons=(0.5, 1.0, 2.0)).fit(split.train, ledger=ledger_of(2.0))
        assert model.counts_.mechanism.noise_multiplier == pytest.approx(alone[0].noise_multiplier, rel=1e-3)
        np.testing.assert_array_equal(model.counts_.standard_errors, model.counts_.mechanism.noise_multiplier)
        path = model.epsilon_path()
        for found, counts in ((first, path[0].model.counts_), (last, path[-1].model.counts_)):
            found.append((counts.values - exact) / counts.mechanism.noise_multiplier)
    early, late = np.ravel(first), np.ravel(last)
    for noise in (early, late):
        assert abs(noise.mean()) < 5 / math.sqrt(len(noise))
        assert abs(noise.var() - 1) < 5 * math.sqrt(2 / len(noise))
        assert stats.kstest(noise, "norm").pvalue > 1e-5
    # An early model is the late one and more noise: what it adds is independent of what is left.
    ratio = model.counts_.mechanism.noise_multiplier / path[0].model.counts_.mechanism.noise_multiplier
    assert np.mean(early * late) == pytest.approx(ratio, abs=5 / math.sqrt(len(late)))


def test_answers_to_one_question_are_distributed_as_one_release(split):
    """Close epsilons: one question for all."""
    matrices = []
    for _ in range(5):
        model = PrivateItemModel(declared_users=700, head_items=90, epsilons=(1.0, 1.2, 1.4))
        model.fit(split.train, ledger=ledger_of(1.4))
        assert len({id(answer.question) for answer in model._released}) == 1
        question = model._released[0].question
        head = question.head
        exact = unit_gram_sum(
            sparse.csr_array(split.train.matrix()[:, head]), question.weights[head], question.centre
        )
        matrices.append((model.gram_.matrix - exact) / model.gram_.standard_error)
        noise = together([[answer.gram.mechanism] for answer in model._released])
        assert model.gram_.mechanism.noise_multiplier == pytest.approx(noise)
        assert model.gram_.standard_error == pytest.approx(noise / math.sqrt(2))
        assert model.gram_.sensitivity == pytest.approx(1.0)
        np.testing.assert_array_equal(model.gram_.matrix, model.gram_.matrix.T)
    upper = np.concatenate([m[np.triu_indices(90, 1)] for m in matrices])
    diagonal = np.concatenate([np.diag(m) for m in matrices]) / math.sqrt(2)
    for noise in (upper, diagonal):
        assert abs(noise.mean()) < 5 / math.sqrt(len(noise))
        assert abs(noise.var() - 1) < 5 * math.sqrt(2 / len(noise))
        assert stats.kstest(noise, "norm").pvalue > 1e-5


def counts_of(values, noise):
    values = np.asarray(values, np.float64)
    names = pd.Index([f"i{k:02d}" for k in range(len(values))], name="item")
    return NoisyValues(
        "item counts", names, values, np.full(len(values), noise), GaussianMechanism(noise), 1.0, True
    )


def gram_of(question, matrix, noise):
    return NoisyGram(
        question.counts.names[question.head],
        np.array(matrix),
        noise / math.sqrt(2),
        GaussianMechanism(noise),
        1.0,
        True,
    )


def questions(rng):
    values = np.sort(rng.uniform(5, 200, 12))[::-1]
    small = Question(counts_of(values + rng.normal(0, 8, 12), 8.0), 5, 0.25)
    large = Question(counts_of(values, 2.0), 9, 0.25)
    return small, large, np.sqrt(values)


def lengths(question, spread):
    """Of each item in a unit row of independent items, root mean square up to a factor."""
    weights = question.weights[question.head] * spread[question.head]
    return question.weights[question.head] / math.sqrt(float(weights @ weights))


@pytest.mark.parametrize("seed", range(5))
def test_answers_to_different_questions_on_one_scale(seed):
    """Where all answers say the same of the catalogue, so does what is made of them, entry by entry."""
    rng = np.random.default_rng(seed)
    small, large, spread = questions(rng)
    covariance = np.cov(rng.standard_normal((12, 30)))
    noise = {small: 3.0, large: 1.5}

    def answer(question):
        unit = lengths(question, spread)
        matrix = np.outer(unit, unit) * covariance[np.ix_(question.head, question.head)]
        return Answer(question.counts, question, gram_of(question, matrix, noise[question]))

    answers = [answer(small), answer(large)]
    for target in (small, large):
        pooled = pool_grams(target, answers, spread)
        np.testing.assert_allclose(pooled.matrix, answer(target).gram.matrix, rtol=1e-9)
        assert list(pooled.items) == list(target.counts.names[target.head])
        # The noise, entry by entry, and its mean.
        own = dict(zip(target.head, lengths(target, spread), strict=True))
        variances = []
        for i in target.head:
            for j in target.head:
                precision = 0.0
                for asked in (small, large):
                    theirs = dict(zip(asked.head, lengths(asked, spread), strict=True))
                    if i in theirs and j in theirs:
                        scale = own[i] / theirs[i] * own[j] / theirs[j]
                        precision += 1 / (noise[asked] * scale) ** 2
                variances.append(1 / precision)
        assert pooled.standard_error == pytest.approx(math.sqrt(np.mean(variances) / 2))
        assert pooled.mechanism.noise_multiplier == pytest.approx((3.0**-2 + 1.5**-2) ** -0.5)
    # Pooling leaves less noise than the newest answer alone.
    assert pool_grams(large, answers, spread).standard_error < answers[1].gram.standard_error


def test_pooled_noise_is_as_large_as_it_says_and_a_user_moves_it_no_further():
    rng = np.random.default_rng(7)
    small, large, spread = questions(rng)

    def pooled(parts):
        answers = [
            Answer(question.counts, question, gram_of(question, matrix, noise))
            for question, matrix, noise in parts
        ]
        return pool_grams(large, answers, spread)

    def draw(noise, n):
        z = noise * rng.standard_normal((n, n))
        return (z + z.T) / 2

    noises = []
    for _ in range(2_000):
        result = pooled([(small, draw(3.0, 5), 3.0), (large, draw(1.5, 9), 1.5)])
        noises.append(result.matrix[np.triu_indices(9, 1)])
    # The root mean square, over entries off the diagonal here: all of them, without the factor of sqrt(2).
    everywhere = pooled([(small, np.zeros((5, 5)), 3.0), (large, np.zeros((9, 9)), 1.5)])
    assert np.sqrt(np.mean(np.square(noises))) == pytest.approx(everywhere.standard_error, rel=0.03)

    def bump(n):
        user = rng.standard_normal(n) * rng.choice([0.05, 1.0], n)
        return np.outer(user, user) / (user @ user)

    moves = [
        np.linalg.norm(pooled([(small, bump(5), 3.0), (large, bump(9), 1.5)]).matrix) for _ in range(500)
    ]
    assert max(moves) <= everywhere.sensitivity
    assert max(moves) > 0.3 * everywhere.sensitivity


def test_pooled_counts_by_hand():
    parts = [counts_of([4.0, 0.0], 2.0), counts_of([1.0, 3.0], 1.0)]
    pooled = pool_counts(parts)
    np.testing.assert_allclose(pooled.values, [1.6, 2.4])
    np.testing.assert_allclose(pooled.standard_errors, math.sqrt(0.8))
    assert pooled.mechanism.noise_multiplier == pytest.approx(math.sqrt(0.8))
    assert pool_counts(parts[:1]) is parts[0]
    assert not pool_counts([parts[0], replace(parts[1], private=False)]).private
    one = GaussianMechanism(3.7)
    assert combined([one]) is one


# --- which questions are asked


def test_near_heads_share_a_question_and_distant_ones_do_not():
    assert sizes_asked([68, 104, 149, 208, 282]) == (68, 104, 149, 208, 282)
    assert sizes_asked([104, 149, 182, 208, 230, 249, 266, 282]) == (104, 182, 182, 182, 282, 282, 282, 282)
    assert sizes_asked([100, 110, 120]) == (120, 120, 120)
    assert sizes_asked([50]) == (50,)
    rng = np.random.default_rng(0)
    for _ in range(100):
        wanted = np.sort(rng.integers(1, 500, rng.integers(1, 9))).tolist()
        asked = sizes_asked(wanted)
        assert list(asked) == sorted(asked)
        assert all(max(a / w, w / a) <= 1.25 for a, w in zip(asked, wanted, strict=True))


def test_a_question_is_asked_anew_for_a_larger_head_or_much_clearer_counts():
    question = Question(counts_of([3.0, 2.0, 1.0], 4.0), 2, 0.25)
    assert not outgrown(question, counts_of([3.0, 2.0, 1.0], 2.1), 2)
    assert outgrown(question, counts_of([3.0, 2.0, 1.0], 1.9), 2)
    assert outgrown(question, counts_of([3.0, 2.0, 1.0], 4.0), 3)


def test_a_new_question_is_believed_once_enough_was_spent_on_it():
    old, new = (Question(counts_of([3.0, 2.0, 1.0], 4.0), size, 0.25) for size in (1, 2))

    def answers(*parts):
        return [Answer(q.counts, q, gram_of(q, np.eye(q.size), precision**-0.5)) for q, precision in parts]

    assert believed(answers((old, 1.0))) is old
    assert believed(answers((old, 0.7), (new, 0.3))) is old
    assert believed(answers((old, 0.7), (new, 0.3), (new, 0.2))) is new
    assert believed(answers((old, 0.5), (new, 0.5))) is new


def test_heads_follow_public_numbers_and_not_the_data(split):
    for table in (split.train, split.train.take_users(np.arange(40))):
        model = PrivateItemModel(declared_users=64, epsilons=EPSILONS).fit(table, ledger=ledger_of(4.0))
        sizes = [len(answer.gram) for answer in model._released]
        assert sizes == list(model._heads(model._stages))
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[-1] < 120
        assert [len(point.model.gram_) for point in model.epsilon_path()] == sizes


def test_close_epsilons_share_a_head_sized_for_the_path(split):
    model = PrivateItemModel(declared_users=64, epsilons=(2.0, 2.3, 2.6, 4.0))
    model.fit(split.train, ledger=ledger_of(4.0))
    mixing = [combined([gram for _, gram in model._stages[: k + 1]]) for k in range(4)]
    wanted = [head_size(64, 120, m.noise_multiplier) for m in mixing]
    asked = [len(answer.gram) for answer in model._released]
    assert asked == list(sizes_asked(wanted)) != wanted
    assert model._released[0].question is model._released[1].question


# --- what it is good for


def test_each_point_is_about_as_good_as_a_fit_of_its_own(split):
    budgets = (1.0, 2.0, 4.0)
    alone, path = np.zeros((2, 6, 3))
    for seed in range(6):
        for place, cap in enumerate(budgets):
            model = MODELS["item model"](insecure_seed=seed).fit(split.train, ledger=ledger_of(cap))
            alone[seed, place] = recall(model, split)
        model = MODELS["item model"](insecure_seed=50 + seed, epsilons=budgets)
        model.fit(split.train, ledger=ledger_of(4.0))
        path[seed] = [recall(point.model, split) for point in model.epsilon_path()]
    assert (path.mean(0) > alone.mean(0) - 0.015).all()
    popular = recall(MODELS["popularity"]().fit(split.train, ledger=ledger_of(4.0)), split)
    assert path.mean(0)[-1] > 1.1 * popular


@EACH_MODEL
def test_a_frontier_over_epsilon_from_one_run(split, make):
    ledger = ledger_of(4.0)
    model = make(epsilons=EPSILONS).fit(split.train, ledger=ledger)
    spent = ledger.spent
    swept = frontier(
        model, split.fold_in, "epsilon", held_out=split.held_out, metric="recall@20", progress=False
    )
    assert ledger.spent == spent
    frame = swept.to_frame()
    assert (frame["epsilon"] >= [p.epsilon for p in model.epsilon_path()]).all()
    assert frame["recall@20"].iloc[-1] == pytest.approx(recall(model, split))
    assert swept.points[0].model is model.epsilon_path()[0].model


def test_users_with_nothing_and_everything_leave_finite_scores(split):
    n = split.train.n_items
    hostile = Interactions(
        users=pd.Index(["a", "b", "c"], dtype="str"),
        catalogue=split.train.catalogue,
        indptr=np.array([0, n, n + 1, n + 1]),
        indices=np.append(np.arange(n), 5).astype(np.int32),
    )
    for table in (hostile, hostile.take_users([])):
        model = MODELS["item model"](epsilons=EPSILONS).fit(table, ledger=ledger_of(4.0))
        for point in model.epsilon_path():
            assert np.isfinite(point.model.score(split.fold_in)).all()


def test_constants_are_those_of_the_page():
    """docs/choosing_a_model.md states them."""
    from pathlib import Path

    page = (Path(__file__).parents[1] / "docs" / "choosing_a_model.md").read_text(encoding="utf-8")
    assert "within a factor of 1.25" in page
    assert _pool._SAME_HEAD == 1.25
    assert "less than half the noise" in page
    assert _pool._CLEARER == 0.5
    assert "two fifths" in page
    assert _pool._BELIEVED == 0.4
