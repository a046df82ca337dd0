"""Budgeted statistics: noisy counts, Gram matrices and metrics, each paid for before the table is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.data import Interactions
from recsys_budget.errors import DataError, SpecificationError, UnsupportedMechanismError
from recsys_budget.metrics import ranking_metrics
from recsys_budget.privacy._unit_gram import unit_gram_sum
from recsys_budget.privacy.ledger import PrivacyLedger
from recsys_budget.privacy.mechanism import GaussianMechanism
from recsys_budget.privacy.noise import NoiseSource, SeededNoise, SystemNoise, release_sum
from recsys_budget.privacy.noisy import NoisyGram, NoisyValues
from recsys_budget.privacy.reservation import Reservation

# Contributions are whole multiples of 1 / _GRID, rounded toward zero. float64 then adds them without error
# (below 2**53 / _GRID, 8.6e9 users), in any order, so a bound on each holds for the sum to the last bit.
_GRID = 2**20
# A ratio of noisy sums means nothing unless its denominator stands out from its own noise by this factor.
_CLEAR = 4.0


class PrivateQueries:
    """Statistics of one table, each released once with Gaussian noise and charged to a ledger.

    Every query checks its arguments, reserves, takes its release and only then reads. A query that the ledger
    refuses has read nothing, and one that fails after its release was taken stays paid for. What one user can
    change is bounded by the query itself, whatever is in the table; ratings and times are never read. No
    error of a query depends on what it read. Making this object tells the ledger who is in the table, so that
    nobody spends from two budgets.

    Several queries of one plan cost less in one reservation than one by one: reserve their mechanisms
    together, and hand the reservation over in place of the ledger.

    Not covered: how long a query takes, and how much memory.

    Args:
        interactions: The private table, over a declared catalogue.
        ledger: Of the population whose data this is; every query then reserves for itself. Or a reservation
            made there: queries then take their releases from it, and whoever made it commits it.
        insecure_seed: **Not private.** Repeatable noise instead of the operating system's, for tests only;
            what is released says so.

    Raises:
        SpecificationError: A table that unaccounted reads have shaped, or a seed that is none.
        PopulationError: Some of these users spend from another population's budget.
        LedgerError: The ledger cannot be trusted or written; queries raise it as well.

    Examples:
        >>> from recsys_budget.data import load_dataset
        >>> from recsys_budget.privacy import GaussianMechanism, PrivacyBudget, PrivacyLedger
        >>> ledger = PrivacyLedger(PrivacyBudget(epsilon=2.0, delta=1e-6))
        >>> counting, mixing = GaussianMechanism(6.0), GaussianMechanism(9.0)
        >>> survey = ledger.reserve([counting, mixing], purpose="survey")
        >>> queries = PrivateQueries(load_dataset("bundled"), survey)
        >>> queries.item_counts(counting, max_items=1)
        NoisyValues(item counts: 600, standard error 6, private)
        >>> queries.category_counts(mixing)
        NoisyValues(category counts: 18, standard error 9, private)
        >>> survey.commit()

        The mechanism for a given epsilon, where a query stands alone:

        >>> from recsys_budget.privacy import epsilon, smallest_noise
        >>> noise = smallest_noise(lambda s: [GaussianMechanism(s)], lambda m: epsilon(m, 1e-6) <= 1.0)
        >>> round(noise, 2)
        4.22

    References:
        Dwork and Roth (2014), doi:10.1561/0400000042, section 3.5 and appendix A (Gaussian mechanism).
    """

    def __init__(
        self,
        interactions: Interactions,
        ledger: PrivacyLedger | Reservation,
        *,
        insecure_seed: int | None = None,
    ) -> None:
        interactions.require_accounted()
        if insecure_seed is not None and not (isinstance(insecure_seed, int) and insecure_seed >= 0):
            raise SpecificationError(
                f"insecure_seed is {insecure_seed!r}; give a whole number from 0, or None"
            )
        owner = ledger.ledger if isinstance(ledger, Reservation) else ledger
        owner.register(interactions.users)
        self._table, self._ledger = interactions, ledger
        self._noise: NoiseSource = SystemNoise() if insecure_seed is None else SeededNoise(insecure_seed)

    def item_counts(self, mechanism: GaussianMechanism, *, max_items: int) -> NoisyValues:
        """How many users used each item, users with long histories counting less for each.

        A user of L items counts min(1, sqrt(max_items / L)) for each of them. Among tables in which everyone
        has at most ``max_items`` the counts are plain counts. 1 gives every user the same weight in Euclidean
        norm, and the least noise compared with the counts: best for ranking items by popularity.

        Sensitivity: sqrt(max_items). A user of L <= max_items adds L ones, of norm sqrt(L); one of more adds
        L times sqrt(max_items / L), of norm sqrt(max_items). The weights are rounded down to multiples of
        2**-20, in whole numbers, so the bound is exact.

        Args:
            mechanism: Its noise multiplier times the sensitivity is the standard error of each count.
            max_items: The bound on what one user counts: a public constant, at least 1; no more than all
                items are of use.

        Returns:
            One value an item, in the order of the catalogue.

        Raises:
            SpecificationError: ``max_items`` is not a whole number of at least 1.
            UnsupportedMechanismError: Another mechanism than a Gaussian one.
            BudgetExceededError: It does not fit under the cap; nothing was read or spent.
            ReservationError: The reservation does not grant it; nothing was read.
        """
        n = self._table.n_items
        bound = _bounded(max_items, n)
        sensitivity = math.sqrt(bound)

        def total() -> NDArray[np.float64]:
            lengths = np.diff(self._table.indptr)
            distinct, which = np.unique(lengths, return_inverse=True)
            # isqrt(floor(x)) is the floor of sqrt(x), so the square of a weight times L is at most max_items.
            weights = [math.isqrt(_GRID**2 * bound // max(int(length), bound)) for length in distinct]
            each = np.repeat(np.array(weights, np.float64)[which], lengths)
            return _sum_by(self._table.indices, each, n)

        values = self._release("item counts", mechanism, sensitivity, total)
        return self._values(
            "item counts", self._table.catalogue.ids.rename("item"), values, mechanism, sensitivity
        )

    def category_counts(self, mechanism: GaussianMechanism) -> NoisyValues:
        """How users' histories spread over categories, every user counting 1 in all.

        An item with several categories counts the same share for each; items without one do not count. The
        mix of a user's items is divided by its sum, so the values add up to the number of users who used a
        categorised item, but for the noise.

        Sensitivity: 1. The mix of one user has entries of at least 0 that add up to at most 1, so its
        Euclidean norm is at most 1, reached by a user of one category. Entries are rounded down to multiples
        of 2**-20.

        Args:
            mechanism: Its noise multiplier is the standard error of each value.

        Returns:
            One value a category, in the order of the catalogue.

        Raises:
            SpecificationError: The catalogue has no categories.
            UnsupportedMechanismError: Another mechanism than a Gaussian one.
            BudgetExceededError: It does not fit under the cap; nothing was read or spent.
            ReservationError: The reservation does not grant it; nothing was read.
        """
        catalogue = self._table.catalogue
        names = pd.Index(catalogue.category_names, dtype="str", name="category")
        if not len(names):
            raise SpecificationError("the catalogue has no categories; build it with a categories column")
        membership = catalogue.membership.astype(np.float64)
        per_item = np.maximum(np.diff(membership.indptr), 1)
        shares = membership.multiply(1 / per_item[:, None]).tocsr()

        def total() -> NDArray[np.float64]:
            mixes = sparse.csr_array(self._users_by_items() @ shares)
            sums = np.repeat(mixes.sum(axis=1), np.diff(mixes.indptr))
            # The entries of a user add up to 1 but for rounding errors far below 1 / _GRID. Whole numbers
            # below them therefore add up to _GRID at most.
            return _sum_by(mixes.indices, np.floor(_GRID * mixes.data / sums), len(names))

        values = self._release("category counts", mechanism, 1.0, total)
        return self._values("category counts", names, values, mechanism, 1.0)

    def gram(
        self, mechanism: GaussianMechanism, *, max_items: int, items: Sequence[str] | None = None
    ) -> NoisyGram:
        """How many users used both of two items, users with long histories counting less for each pair.

        A user of L items, counting those in ``items`` alone, adds min(1, max_items / L) to each entry of
        their pairs: the outer product of the row that :meth:`item_counts` adds, with itself.

        Sensitivity: max_items, in Frobenius norm. A user adds one number to L**2 entries, so its Frobenius
        norm is L times that number: at most max_items. The weights are rounded down to multiples of 2**-20,
        in whole numbers, so the bound is exact.

        Noise: the whole matrix is released with independent noise of standard deviation s = noise multiplier
        times max_items on each entry, and then averaged with its transpose, which costs nothing more. That
        leaves s / sqrt(2) off the diagonal and s on it. Noise on the upper triangle alone would need
        sensitivity sqrt(max_items (max_items + 1) / 2) (the norm of a user of max_items items), which is more
        than max_items / sqrt(2) on every entry off the diagonal. Those are n**2 - n of the n**2 entries.

        Args:
            mechanism: See above for what its noise multiplier means.
            max_items: The bound on what one user adds: a public constant, at least 1; no more than all
                items counted are of use.
            items: Ids to count, in the order wanted: public, or chosen from what was already released, such
                as noisy counts. None takes the whole catalogue. The noise adds up over n**2 entries, so a
                few hundred items of many users say more than thousands.

        Returns:
            The matrix; it takes about 24 n**2 bytes while it is computed.

        Raises:
            SpecificationError: ``max_items`` is not a whole number of at least 1, or ``items`` are not
                distinct items of the catalogue, or none.
            UnsupportedMechanismError: Another mechanism than a Gaussian one.
            BudgetExceededError: It does not fit under the cap; nothing was read or spent.
            ReservationError: The reservation does not grant it; nothing was read.

        References:
            Dwork, Talwar, Thakurta and Zhang (2014), doi:10.1145/2591796.2591883 (upper triangle).
        """
        positions = self._positions(items)
        n = len(positions)
        bound = _bounded(max_items, n)

        def total() -> NDArray[np.float64]:
            rows = self._users_by_items()[:, positions]
            lengths = np.diff(rows.indptr).astype(np.int64)  # scipy may choose 32 bits
            weights = sparse.diags_array((_GRID * bound // np.maximum(lengths, bound)).astype(np.float64))
            return np.asarray((rows.T @ (weights @ rows)).toarray() / _GRID)

        noisy = self._release("item Gram matrix", mechanism, float(bound), total)
        return self._gram(positions, noisy, mechanism, float(bound))

    def unit_gram(
        self,
        mechanism: GaussianMechanism,
        *,
        items: Sequence[str] | None = None,
        weights: NDArray[np.float64] | None = None,
        centre: NDArray[np.float64] | None = None,
    ) -> NoisyGram:
        """How items go together beyond what popularity explains, every user counting the same.

        A user with 0/1 row x over ``items``, of L ones, adds the outer product with itself of
        ``weights * (x - L * centre)`` divided by its norm. A centre of shares of popularity takes away what
        every user has in common, so that the whole of a user's bounded contribution says how that user
        differs. A row that the centre cancels but for 1/8 of its norm or less counts less.

        Sensitivity: 1, in Frobenius norm. The outer product of a vector of norm 1 with itself has norm 1.
        (Rows are 2**-11 shorter, which pays for rounding up to 2**34 users times items.)

        Noise: as for :meth:`gram`, of standard deviation s = noise multiplier on the diagonal and
        s / sqrt(2) off it. This is also what the entries on and above the diagonal would carry if they alone
        were released, those on the diagonal divided by sqrt(2): a user's share of that vector has norm
        1 / sqrt(2) exactly.

        Args:
            mechanism: Its noise multiplier is the standard error of an entry on the diagonal.
            items: As for :meth:`gram`.
            weights: Positive and finite, one an item, the largest at most 100 times the smallest: public
                or already released. Only their ratios matter. None weights all the same.
            centre: Expected share of each item in a history, at least 0, adding up to at most 1: public or
                already released. None does not centre.

        Returns:
            The matrix; it takes about 40 n**2 bytes while it is computed, and time that grows with the sum
            of squared history lengths.

        Raises:
            SpecificationError: ``items`` are not distinct items of the catalogue, or none; weights or centre
                are not as described.
            UnsupportedMechanismError: Another mechanism than a Gaussian one.
            BudgetExceededError: It does not fit under the cap; nothing was read or spent.
            ReservationError: The reservation does not grant it; nothing was read.
        """
        positions = self._positions(items)
        n = len(positions)
        scale = np.ones(n) if weights is None else np.array(weights, np.float64)
        middle = np.zeros(n) if centre is None else np.array(centre, np.float64)
        if scale.shape != (n,) or not (scale.min() > 0 and scale.max() <= 100 * scale.min() < math.inf):
            raise SpecificationError(
                f"weights must be {n} positive numbers, the largest at most 100 times the smallest"
            )
        if middle.shape != (n,) or not (middle.min() >= 0 and middle.sum() <= 1 + 1e-9):
            raise SpecificationError(f"centre must be {n} shares of at least 0 that add up to at most 1")

        def total() -> NDArray[np.float64]:
            return unit_gram_sum(self._users_by_items()[:, positions], scale, middle)

        noisy = self._release("item Gram matrix of unit rows", mechanism, 1.0, total)
        return self._gram(positions, noisy, mechanism, 1.0)

    def ranking_metrics(
        self,
        recommendations: Any,
        mechanism: GaussianMechanism,
        *,
        metrics: Sequence[str] = ("recall@20", "ndcg@100"),
    ) -> NoisyValues:
        """Mean metrics of recommendations, with this table as the held-out interactions.

        The means over users that :func:`recsys_budget.metrics.ranking_metrics` gives, and the number of those
        users, with noise. Each user's recommendations must come from private releases, public data and that
        user's own rows alone, as a recommender's do; slates shaped by rules over the whole population do not.

        What is summed: a user with k metrics m in [0, 1] adds m - 1/2 for each, and w = k**(1/4) / 2 for
        being there. A mean is 1/2 plus a noisy sum over the noisy number of users, clipped to [0, 1].

        Sensitivity: sqrt(k / 4 + w**2), since every m - 1/2 lies within 1/2 of 0. With s = noise multiplier
        times sensitivity, N users and a mean M, the error of the mean has variance
        (s / N)**2 (1 + (M - 1/2)**2 / w**2) to first order. This w makes it smallest for M at 0 or 1, the
        worst case. Sums of m itself, with w = 1, would have sensitivity sqrt(k + 1) and about twice the
        error.

        Args:
            recommendations: Table with columns user, item, rank, as for
                :func:`recsys_budget.metrics.ranking_metrics`. Users of this table whom it lacks score 0, all
                of them where ids are written differently: an error would tell who is there.
            mechanism: See above for what its noise multiplier means.
            metrics: Names such as "recall@20", distinct.

        Returns:
            A value for each metric, then "users": how many users have a held-out pair, unbiased. Standard
            errors of means are by the formula above with the noisy M and N; they are infinite, and the means
            worthless, when the noisy number of users is not 4 times its own standard error.

        Raises:
            SpecificationError: A metric is not known, or comes twice.
            DataError: The recommendations are no ranking of items of the catalogue.
            UnsupportedMechanismError: Another mechanism than a Gaussian one.
            BudgetExceededError: It does not fit under the cap; nothing was read or spent.
            ReservationError: The reservation does not grant it; nothing was read.
            MissingExtraError: ranx is not installed.
        """
        names = list(metrics)
        if len(set(names)) < len(names) or "users" in names:
            raise SpecificationError(f"metrics are {names}; name each once")
        # The same question about a table of nobody: finds what is wrong with it before anything is spent.
        ranking_metrics(recommendations, _nobody(self._table), names)
        k = len(names)
        weight = math.floor(_GRID * k**0.25 / 2) / _GRID
        sensitivity = math.sqrt(k / 4 + weight**2)

        def total() -> NDArray[np.float64]:
            try:
                scores = ranking_metrics(recommendations, self._table, names).to_numpy(np.float64)
            except DataError:  # all else was checked: the recommendations are for none of these users
                scores = np.zeros((np.count_nonzero(np.diff(self._table.indptr)), k))
            centred = np.clip(np.nan_to_num(scores, nan=0.0), 0.0, 1.0) - 0.5
            return np.append(np.trunc(_GRID * centred).sum(axis=0) / _GRID, weight * len(centred))

        noisy = self._release("held-out metrics", mechanism, sensitivity, total)
        error = mechanism.noise_multiplier * sensitivity
        users, users_error = noisy[k] / weight, error / weight
        means = np.clip(0.5 + noisy[:k] / max(users, users_error), 0.0, 1.0)
        errors = np.full(k, math.inf)
        if users >= _CLEAR * users_error:
            errors = error / users * np.sqrt(1 + ((means - 0.5) / weight) ** 2)
        return NoisyValues(
            what="held-out metrics",
            names=pd.Index([*names, "users"], dtype="str", name="metric"),
            values=np.append(means, users),
            standard_errors=np.append(errors, users_error),
            mechanism=mechanism,
            sensitivity=sensitivity,
            private=self._noise.private,
        )

    def _release(
        self,
        purpose: str,
        mechanism: GaussianMechanism,
        sensitivity: float,
        total: Callable[[], NDArray[np.float64]],
    ) -> NDArray[np.float64]:
        """Pay, read, add noise: the one place where private data is read. ``total`` does the reading."""
        if not isinstance(mechanism, GaussianMechanism):
            raise UnsupportedMechanismError(
                f"{mechanism!r}: a query reads the whole table once; pay for it with a GaussianMechanism"
            )

        def read(reservation: Reservation) -> NDArray[np.float64]:
            reservation.use(mechanism)
            return release_sum(total(), sensitivity=sensitivity, mechanism=mechanism, noise=self._noise)

        if isinstance(self._ledger, Reservation):
            return read(self._ledger)
        reservation = self._ledger.reserve((mechanism,), purpose=purpose)
        try:
            return read(reservation)
        finally:
            reservation.commit()

    def _positions(self, items: Sequence[str] | None) -> NDArray[np.intp]:
        catalogue = self._table.catalogue
        positions = np.arange(len(catalogue)) if items is None else catalogue.positions(items)
        if not len(positions) or (positions < 0).any() or len(np.unique(positions)) < len(positions):
            raise SpecificationError("items must be distinct ids of the catalogue, at least one")
        return positions

    def _gram(
        self,
        positions: NDArray[np.intp],
        noisy: NDArray[np.float64],
        mechanism: GaussianMechanism,
        sensitivity: float,
    ) -> NoisyGram:
        return NoisyGram(
            items=self._table.catalogue.ids[positions].rename("item"),
            matrix=(noisy + noisy.T) / 2,
            standard_error=mechanism.noise_multiplier * sensitivity / math.sqrt(2),
            mechanism=mechanism,
            sensitivity=sensitivity,
            private=self._noise.private,
        )

    def _users_by_items(self) -> sparse.csr_array:
        """0/1 in float64, which adds whole numbers without error."""
        table = self._table
        ones = np.ones(len(table.indices))
        return sparse.csr_array((ones, table.indices, table.indptr), shape=(table.n_users, table.n_items))

    def _values(
        self,
        what: str,
        names: pd.Index[Any],
        values: NDArray[np.float64],
        mechanism: GaussianMechanism,
        sensitivity: float,
    ) -> NoisyValues:
        errors = np.full(len(values), mechanism.noise_multiplier * sensitivity)
        return NoisyValues(what, names, values, errors, mechanism, sensitivity, self._noise.private)


def _bounded(max_items: int, n_items: int) -> int:
    """The contribution bound: no user has more than all items, so a larger one would only add noise."""
    if isinstance(max_items, bool) or not isinstance(max_items, int) or max_items < 1:
        raise SpecificationError(f"max_items is {max_items!r}; it must be a whole number of at least 1")
    return min(max_items, max(n_items, 1))


def _sum_by(
    places: NDArray[np.integer[Any]], contributions: NDArray[np.float64], n: int
) -> NDArray[np.float64]:
    """Sum at each place of contributions given in units of the grid."""
    return np.asarray(np.bincount(places, contributions, minlength=n) / _GRID, np.float64)


def _nobody(table: Interactions) -> Interactions:
    """A table over the same catalogue without users."""
    return Interactions(
        users=pd.Index([], dtype="str"),
        catalogue=table.catalogue,
        indptr=np.zeros(1, np.int64),
        indices=np.zeros(0, np.int32),
    )
