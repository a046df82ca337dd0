"""Linear item-item models from two private releases: counts, and a Gram matrix of the most popular items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import SpecificationError
from recsys_budget.models._constants import require_whole
from recsys_budget.models._denoise import least_squares, leave_one_out, prior_weights, shrink
from recsys_budget.models._pool import (
    Answer,
    Question,
    believed,
    combined,
    known,
    outgrown,
    pool_counts,
    pool_grams,
    shares,
    sizes_asked,
)
from recsys_budget.models._relations import centred, relations
from recsys_budget.models._statistics import StatisticsModel
from recsys_budget.privacy import GaussianMechanism, NoisyGram, NoisyValues, PrivateQueries

# Of the published rule, docs/choosing_a_model.md: derived by benchmarks/rule.py.
_HEAD_FACTOR = 8.0
_COUNTS_FACTOR, _MOST_FOR_COUNTS = 8.0, 0.75
# Time grows with the cube of the head: this many take about half a minute.
_MOST_ITEMS = 3000
# Items are divided by their count to this power: rarer items then move the matrix nearly as popular ones do.
_EXPONENT = 0.25
# What is predicted from shrunken estimates is too small beside popularity, by about this factor.
_GAIN = 1.5


def head_size(declared_users: int, n_items: int, noise_multiplier: float) -> int:
    """How many of the most popular items a noisy Gram matrix should cover, by the published rule.

    Noise hides associations below ``2 * noise * sqrt(head / 2)``, while what users say grows with their
    number and hardly with the head: a larger head covers more of what they want, and blurs all of it. The
    rule is ``8 * sqrt(declared_users / noise_multiplier)``.

    Args:
        declared_users: About how many users there are.
        n_items: Items of the catalogue: the most there can be.
        noise_multiplier: Of the Gram matrix.

    Returns:
        At least 1, and at most 3,000, which bounds the time that ``fit`` takes.
    """
    wanted = round(_HEAD_FACTOR * math.sqrt(declared_users / noise_multiplier))
    return max(1, min(wanted, n_items, _MOST_ITEMS))


def counts_share(users_per_noise: float) -> float:
    """Share of 1 / noise**2 that counts should get beside a Gram matrix, by the published rule.

    Counts matter most where there is little else to learn. The rule is ``8 / sqrt(users_per_noise)``, and at
    most 3/4.

    Args:
        users_per_noise: Declared users over the noise multiplier that a single release would have.
    """
    return min(_COUNTS_FACTOR / math.sqrt(users_per_noise), _MOST_FOR_COUNTS)


class PrivateItemModel(StatisticsModel[Answer]):
    """Linear item-item model, differentially private for users, in closed form from two noisy statistics.

    Two mechanisms spend from the ledger in one reservation, made before any data is read:

    1. Counts of all items (:meth:`~recsys_budget.privacy.PrivateQueries.item_counts`). They choose the head,
       weight its items by ``count ** -1/4``, and say what a user is expected to use.
    2. The Gram matrix of the head (:meth:`~recsys_budget.privacy.PrivateQueries.unit_gram`): each user's
       weighted row, less what popularity explains, divided by its norm.

    What the second asks depends on what the first answered. Their noise multipliers do not, so they compose
    as if it did not (Zhu, Dong and Wang 2022, arXiv:2106.08567). All else is computed from these two and the
    public catalogue, and costs nothing:

    * *Relations.* Items of one provider (author, brand), items that share categories, and items near in a
      numeric attribute (year, length) may go together. How much they do is estimated from the matrix, a
      number a relation, and is the prior mean of the matrix (``models/_relations.py``). Items of one provider
      are recommended for each other outside the head too.
    * *Denoising.* What remains is shrunk eigenvalue by eigenvalue, by the known size of the noise: that of
      the release, and that of other users having been there instead. Where nothing stands out the model is
      the popularity of the counts, exactly, and says so.
    * *Prediction.* The best linear prediction of each item from the others (``"ease"``), or of the row
      without its noise (``"pca"``). The ridge penalty is no constant either: what of an item's variance is
      its own, plus half the largest eigenvalue of the noise.

    A score is popularity plus prediction, in expected interactions; items outside the head get popularity and
    what their provider says. A served user's own history is read when scoring, which costs nothing.

    With ``epsilons`` the budget is spent in stages, and :meth:`epsilon_path` has a model for each. Every
    stage releases both statistics anew, each with noise of its own, and a model uses all releases so far by
    the inverse of their variance. Counts of k stages so are what one release of that budget would have been.
    What is asked of the matrix may change on the way: a larger budget wants a larger head. Answers to
    different questions are put on one scale by what counts say of each item's variance (``models/_pool.py``);
    so the models are about as good as if each had been fitted alone, and together they cost what the last
    does. Where the epsilons stand close, some lag behind (``docs/choosing_a_model.md``).

    All constructor arguments are public constants; the defaults follow
    :func:`~recsys_budget.models.recommend_model`.

    Args:
        declared_users: About how many users there are, as publicly known. It sets the size of the head and is
            never checked against the data, since that would reveal the true number.
        method: How to predict: ``"ease"`` or ``"pca"``.
        head_items: How many of the most popular items the matrix covers; None follows :func:`head_size`.
        counts_share: Share of 1 / noise**2 that the counts get, strictly between 0 and 1; None follows
            :func:`counts_share`.
        use_catalogue: Whether relations of the public catalogue are used, where it has any.
        epsilons: At which to keep a model: see :meth:`epsilon_path`.
        insecure_seed: **Not private.** Repeatable noise instead of the operating system's, for tests only;
            the receipt says so.

    Attributes:
        counts_: Released: :class:`~recsys_budget.privacy.NoisyValues`, one an item.
        gram_: Released: :class:`~recsys_budget.privacy.NoisyGram` of the head. With ``epsilons`` both are the
            means of all releases.
        rank_: How many eigenvalues stood out from the noise.
        correlations_: How much of two items' variance each relation of the catalogue makes them share, by its
            name; 0 where noise hides it.
        personalised_: False where noise left nothing but popularity.
        catalogue_: The item catalogue.
        receipt_: What it cost.

    References:
        Steck (2019), arXiv:1905.03375 (EASE). McSherry and Mironov (2009), doi:10.1145/1557019.1557090
        (recommendations from a noisy covariance matrix). Dwork, Talwar, Thakurta and Zhang (2014),
        doi:10.1145/2591796.2591883 (its principal components). Krichene et al. (2023), arXiv:2302.07975
        (weights by how often items occur). For the rest see ``models/_denoise.py``.

    Examples:
        >>> from recsys_budget import PrivacyBudget, PrivacyLedger, load_dataset
        >>> table = load_dataset("bundled").positives(4)
        >>> ledger = PrivacyLedger(PrivacyBudget(epsilon=4.0, delta=1e-6))
        >>> model = PrivateItemModel(declared_users=4000, epsilons=(1, 2, 4)).fit(table, ledger=ledger)
        >>> [f"{point.epsilon:.2f}" for point in model.epsilon_path()]
        ['1.00', '2.00', '4.00']
        >>> round(ledger.spent, 2)
        4.0
    """

    def __init__(
        self,
        *,
        declared_users: int,
        method: Literal["ease", "pca"] = "ease",
        head_items: int | None = None,
        counts_share: float | None = None,
        use_catalogue: bool = True,
        epsilons: Sequence[float] = (),
        insecure_seed: int | None = None,
    ) -> None:
        self.declared_users = declared_users
        self.method = method
        self.head_items = head_items
        self.counts_share = counts_share
        self.use_catalogue = use_catalogue
        self.epsilons = epsilons
        self.insecure_seed = insecure_seed

    counts_: NoisyValues
    gram_: NoisyGram
    rank_: int
    correlations_: dict[str, float]
    personalised_: bool

    def _check(self, n_items: int) -> None:
        super()._check(n_items)
        if self.head_items is not None:
            require_whole("head_items", self.head_items)
        if self.method not in ("ease", "pca"):
            raise SpecificationError(f"method is {self.method!r}; use 'ease' or 'pca'")
        if self.head_items is not None and self.head_items > n_items:
            raise SpecificationError(
                f"head_items is {self.head_items}, but the catalogue has {n_items} items"
            )
        share = self.counts_share
        if share is not None and not (isinstance(share, int | float) and 0 < share < 1):
            raise SpecificationError(
                f"counts_share is {share!r}; it must lie strictly between 0 and 1, or None"
            )

    def _shares(self, users_per_noise: float) -> tuple[float, ...]:
        share = counts_share(users_per_noise) if self.counts_share is None else self.counts_share
        return share, 1 - share

    def _release(
        self,
        queries: PrivateQueries,
        stages: Sequence[tuple[GaussianMechanism, ...]],
        released: Sequence[Answer],
    ) -> Answer:
        counting, mixing = stages[len(released)]
        counts = queries.item_counts(counting, max_items=1)
        clearest = pool_counts([*(answer.counts for answer in released), counts])
        size = self._heads(stages)[len(released)]
        question = released[-1].question if released else None
        if question is None or outgrown(question, clearest, size):
            question = Question(clearest, size, _EXPONENT)
        gram = queries.unit_gram(
            mixing,
            items=self.catalogue_.ids[question.head].tolist(),
            weights=question.weights[question.head],
            centre=question.centre,
        )
        return Answer(counts, question, gram)

    def _heads(self, stages: Sequence[tuple[GaussianMechanism, ...]]) -> tuple[int, ...]:
        """How many items each stage asks about: planned for the whole path, since its noise is public."""
        if self.head_items is not None:
            return (self.head_items,) * len(stages)
        mixing = [combined([gram for _, gram in stages[: k + 1]]) for k in range(len(stages))]
        n = len(self.catalogue_)
        return sizes_asked([head_size(self.declared_users, n, m.noise_multiplier) for m in mixing])

    def _learn(self, released: Sequence[Answer]) -> str:
        question = believed(released)
        self.counts_ = pool_counts([answer.counts for answer in released])
        counted, weighed = known(self.counts_), known(question.counts)
        self._head, spread = question.head, np.sqrt(counted)
        self._shares_of_all = shares(self.counts_, self._head).astype(np.float32)
        self.gram_ = pool_grams(question, released, spread)
        # Standard deviations under the question's weights. For a question from these counts the last is 1.
        scale = counted ** (0.5 - _EXPONENT) * (counted / weighed) ** _EXPONENT
        # Released with the smallest weight as the unit; scale and weights enter below by their ratios alone.
        self._predict(self.catalogue_, question.weights, scale, spread, question.centre.astype(np.float32))
        if not self.personalised_:
            return "noise hides every association, so scores are popularity alone"
        times = "once" if len(released) == 1 else f"in {len(released)} parts"
        return f"counts and the Gram matrix of {len(self._head)} items released {times}"

    def _predict(
        self,
        catalogue: ItemCatalogue,
        weights: NDArray[np.float64],
        scale: NDArray[np.float64],
        spread: NDArray[np.float64],
        expected: NDArray[Any],
    ) -> None:
        """From the released matrix to weights between items of the head, and between kin elsewhere."""
        head, gram, noise = self._head, self.gram_.matrix, self.gram_.standard_error
        inner = scale[head]
        known = relations(catalogue, head) if self.use_catalogue else {}
        known = {name: centred(relation, expected) for name, relation in known.items()}
        coefficients = dict(zip(known, prior_weights(gram, [*known.values()], inner, noise), strict=True))
        prior = np.outer(inner, inner) * sum(
            (coefficients[name] * relation for name, relation in known.items()), np.zeros_like(gram)
        )
        # A matrix of N other users would differ too: each adds one of norm 1, so by N / n**2 in an entry's
        # variance, and the trace is about N.
        chance = max(np.trace(gram), 0.0) / len(head) ** 2
        unsure = math.sqrt(noise**2 + chance)
        found, self.rank_ = shrink(gram - prior, unsure)
        signal = found + prior
        self.personalised_ = self.rank_ > 0 or any(coefficients.values())
        variance = max(np.trace(gram), noise) / (inner @ inner)
        self.correlations_ = {name: float(b / variance) for name, b in coefficients.items()}
        own = max(np.trace(gram) - np.trace(signal), 0.0) / (inner @ inner)
        rest = np.maximum(own * scale**2 + unsure * math.sqrt(len(head)), 1e-12)
        solve = leave_one_out if self.method == "ease" else least_squares
        linear = _GAIN * solve(signal, rest[head]) * (weights[head][:, None] / weights[head])
        self._weights = linear.astype(np.float32)
        self._of_centre = (expected @ linear).astype(np.float32)
        # Where one of two items of a provider is outside the head: the regression of one on the other.
        giving = _GAIN * coefficients.get("provider", 0.0) * weights * scale / rest
        self._giving, self._receiving = giving.astype(np.float32), spread.astype(np.float32)
        made = np.flatnonzero(catalogue.provider_codes >= 0)
        self._providers = sparse.csr_array(
            (np.ones(len(made), np.float32), (made, catalogue.provider_codes[made])),
            shape=(len(catalogue), len(catalogue.provider_names)),
        )

    def _scores(self, batch: Interactions) -> NDArray[np.float32]:
        history, head = batch.matrix(), self._head
        inside = sparse.csr_array(history[:, head])
        length = np.diff(inside.indptr).astype(np.float32)[:, None]
        # Whoever used nothing of the head gets the list of popular items.
        scores = np.maximum(length, 1.0) * self._shares_of_all
        within = inside @ self._weights - length * self._of_centre
        if self._giving.any():
            tail = np.ones(len(self._giving), np.float32)
            tail[head] = 0.0
            everything = sparse.csr_array(history.multiply(self._giving)) @ self._providers
            of_tail = sparse.csr_array(history.multiply(self._giving * tail)) @ self._providers
            scores += (everything @ self._providers.T).toarray() * (self._receiving * tail)
            within += (of_tail @ self._providers[head].T).toarray() * self._receiving[head]
        scores[:, head] += within
        return np.asarray(scores, np.float32)
