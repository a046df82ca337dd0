"""Alternating least squares under the privacy cap: users solve their own part, items are released."""

from __future__ import annotations

import math
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import SpecificationError
from recsys_budget.models._alternation import Alternation, EqualPairs, WeightedPairs, unit_rows, users_sum
from recsys_budget.models._constants import require_seed, require_whole
from recsys_budget.models.base import Recommender
from recsys_budget.privacy import (
    GaussianMechanism,
    PrivacyLedger,
    Receipt,
    SeededNoise,
    SystemNoise,
    release_sum,
    smallest_noise,
)

# Each sweep gets this much more of the budget than the one before: the last ones decide.
_GROWTH = 1.5
# Items and factors for each unit of sqrt(users / noise): where all pairs weigh alike, and where each item has
# a matrix, which drowns earlier.
_EQUAL, _WEIGHTED = (8.0, 0.4), (4.0, 0.13)
_MOST_FACTORS = 128


class PrivateALS(Recommender):
    """Factorisation by alternating least squares, differentially private for users.

    A user's vector is computed from that user's own rows and from released item factors, and is never
    released; when a user is scored it is computed again. So only the items' half of each sweep spends (the
    billboard model: *joint* differential privacy, and plain differential privacy of the released item
    factors). All mechanisms are in one reservation, made before any data is read:

    1. Noisy item counts. A user adds a vector of norm at most 1 (the row divided by its norm). They choose
       the ``head_items`` that are factorised; other items rank below them, by their counts.
    2. In each sweep, one noisy sum over users of the outer product of the user's row and the user's features.
       The row is weighted by the items' noisy counts to the power ``-count_exponent``, so that rare items are
       drowned less, and scaled to norm 1; the features are the user's vector at norm 1, and its products with
       itself where pairs are weighted. So one user moves the whole sum, all items together, by at most 1.

    With ``unobserved_weight=None`` all pairs weigh alike, and a sum has ``head_items x n_factors`` entries.
    With a number it is DPALS as published: absent pairs weigh less than present ones, which needs a matrix
    for each item, ``n_factors (n_factors + 1) / 2`` entries more for each, and as much more noise.

    A sweep can be no better aimed than what came before it, and before the first there are the counts alone.
    So it starts from the public catalogue where there is one: from items of one category or provider.

    What noise leaves of the factors is read off singular values that stand out from it. Where none does,
    ``rank_`` is 0 and the model is noisy popularity.

    The constants were chosen on generated data and on splits inside the training users of MovieLens and
    goodbooks-10k: test users of the published figures had no part in it.

    All constructor arguments are public constants: choose them without looking at the private data.

    Args:
        declared_users: About how many users there are, as publicly known; never checked against the data.
        n_factors: Width of the factors. None takes 0.4 sqrt(declared_users / noise), with the noise
            multiplier of one release that spends all the ledger has left, or 0.13 times that square root with
            an ``unobserved_weight``; at least 2 and at most 128.
        head_items: Items factorised. None takes 8 and 4 times the same square root.
        sweeps: How often users and items take turns. Each gets 1.5 times the budget of the one before.
        unobserved_weight: Weight of absent pairs beside present ones; None weighs all alike.
        count_exponent: How much more rare items weigh in a user's row, from 0 to 1.
        counts_share: Share of the budget, in 1 / noise^2, that the counts get.
        use_catalogue: Whether the first sweep asks about the categories and providers of the public
            catalogue, and not about random directions alone; of effect where all pairs weigh alike.
        insecure_seed: **Not private.** Repeatable noise instead of the operating system's, for tests only;
            the receipt says so.

    Attributes:
        catalogue_: The item catalogue.
        counts_: Noisy counts, each user counting 1 in Euclidean norm; shape ``(n_items,)``, float64.
        head_: Positions of the factorised items, shape ``(head_items,)``, by noisy count.
        rank_: How many directions stand out from the noise; with ``unobserved_weight``, the width.
        receipt_: What it cost.

    References:
        Chien et al. (2021), arXiv:2107.09802 (DPALS). Krichene et al. (2023), arXiv:2302.07975 (weights by
        counts). Hu, Koren and Volinsky (2008), doi:10.1109/ICDM.2008.22 (implicit ALS). Hardt and Price
        (2014), arXiv:1311.2495 (noisy subspace iteration). Hsu et al. (2014), arXiv:1311.2828 (billboard).

    Examples:
        >>> from recsys_budget import PrivacyBudget, PrivacyLedger, load_dataset
        >>> table = load_dataset("bundled").positives(4)
        >>> ledger = PrivacyLedger(PrivacyBudget(epsilon=4.0, delta=1e-6))
        >>> model = PrivateALS(declared_users=4000).fit(table, ledger=ledger)
        >>> model.receipt_.private, model.receipt_.steps
        (True, 4)
    """

    def __init__(
        self,
        *,
        declared_users: int,
        n_factors: int | None = None,
        head_items: int | None = None,
        sweeps: int = 4,
        unobserved_weight: float | None = None,
        count_exponent: float = 1 / 3,
        counts_share: float = 0.1,
        use_catalogue: bool = True,
        insecure_seed: int | None = None,
    ) -> None:
        self.declared_users = declared_users
        self.n_factors = n_factors
        self.head_items = head_items
        self.sweeps = sweeps
        self.unobserved_weight = unobserved_weight
        self.count_exponent = count_exponent
        self.counts_share = counts_share
        self.use_catalogue = use_catalogue
        self.insecure_seed = insecure_seed

    def fit(self, interactions: Interactions, *, ledger: PrivacyLedger) -> Self:
        """Reserve, then count and sweep; afterwards the reservation is settled.

        An interrupt (a notebook's stop button) after the first sweep ends training: the model is that of the
        last complete sweep, and the receipt says so.

        Args:
            interactions: Implicit feedback (ratings are ignored), over a declared catalogue.
            ledger: Of the population whose data this is.

        Raises:
            SpecificationError: Constants out of range, or a table that unaccounted reads have shaped; nothing
                was read or spent.
            PopulationError: Some of these users spend from another population's budget.
            BudgetExceededError: The ledger has nothing left; nothing was read or spent.
            LedgerError: The ledger cannot be trusted or written.
        """
        self._check(interactions)
        ledger.register(interactions.users)
        counting, *sweeping = mechanisms = self._plan(ledger)
        n_head, n_factors = self._sizes(
            counting.noise_multiplier * math.sqrt(self.counts_share), interactions
        )
        noise = SystemNoise() if self.insecure_seed is None else SeededNoise(self.insecure_seed)
        rng = np.random.default_rng(self.insecure_seed)  # where to start: nothing private hangs on it
        reservation = ledger.reserve(mechanisms, purpose=f"fit {type(self).__name__}")
        done, stop_reason = 0, "all sweeps ran"
        try:
            reservation.use(counting)
            table = interactions.matrix()
            everything = np.arange(interactions.n_items)
            plain = unit_rows(table, everything, np.ones(interactions.n_items))
            counts = release_sum(
                np.asarray(plain.sum(axis=0), np.float64), sensitivity=1.0, mechanism=counting, noise=noise
            )
            order = np.argsort(-counts, kind="stable")
            head = order[:n_head]
            # A count below its own noise says nothing.
            likely = np.maximum(counts[head], counting.noise_multiplier)
            weights = likely**-self.count_exponent
            step: Alternation
            if self.unobserved_weight is None:
                groups = _groups(interactions.catalogue, head) if self.use_catalogue else None
                step = EqualPairs.start(likely, weights, n_factors, rng, groups)
            else:
                step = WeightedPairs.start(n_head, n_factors, self.unobserved_weight, rng)
            try:
                for mechanism in sweeping:
                    reservation.use(mechanism)
                    if not done:
                        rows = unit_rows(table, head, weights, everybody=step.everybody)
                    total = users_sum(rows, step)
                    noisy = release_sum(total, sensitivity=1.0, mechanism=mechanism, noise=noise)
                    step = step.next(noisy, mechanism.noise_multiplier)
                    done += 1
            except KeyboardInterrupt:
                if not done:
                    raise
                stop_reason = "interrupted"
        finally:
            reservation.commit()
        self.catalogue_ = interactions.catalogue
        self.counts_, self.head_, self._tail, self._weights = counts, head, order[n_head:], weights
        self._step = step
        self.rank_ = step.rank
        self.receipt_ = Receipt.write(
            model=type(self).__name__,
            private=noise.private,
            ledger=ledger,
            reservation=reservation,
            steps=done,
            stop_reason=stop_reason,
            constants=self.get_params(),
            declared_public=("item catalogue", "about how many users there are", "constructor arguments"),
        )
        return self

    def _check(self, interactions: Interactions) -> None:
        interactions.require_accounted()
        if not interactions.n_items:
            raise SpecificationError("the catalogue has no items; there is nothing to factorise")
        for name in ("declared_users", "sweeps", "n_factors", "head_items"):
            value = getattr(self, name)
            if value is None and name in ("n_factors", "head_items"):
                continue
            require_whole(name, value)
        for name, least, most, closed in (
            ("counts_share", 0.0, 1.0, False),
            ("count_exponent", 0.0, 1.0, True),
            ("unobserved_weight", 1e-6, 1e6, False),
        ):
            value = getattr(self, name)
            if value is None and name == "unobserved_weight":
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and (least <= value <= most if closed else least < value < most)):
                where = "from" if closed else "strictly between"
                raise SpecificationError(f"{name} is {value!r}; it must lie {where} {least:g} and {most:g}")
        if not isinstance(self.use_catalogue, bool):
            raise SpecificationError(f"use_catalogue is {self.use_catalogue!r}; it must be True or False")
        require_seed(self.insecure_seed)

    def _plan(self, ledger: PrivacyLedger) -> tuple[GaussianMechanism, ...]:
        """The schedule: a function of public constants and of what the ledger has left."""
        growth = _GROWTH ** np.arange(self.sweeps)
        shares = [self.counts_share, *((1 - self.counts_share) * growth / growth.sum())]

        def schedule(noise: float) -> tuple[GaussianMechanism, ...]:
            return tuple(GaussianMechanism(noise / math.sqrt(share)) for share in shares)

        # Where nothing fits, the ledger refuses this schedule, and says so with its own figures.
        return schedule(min(smallest_noise(schedule, ledger.fits), 1e4))

    def _sizes(self, noise: float, interactions: Interactions) -> tuple[int, int]:
        """How many items and factors stand a chance: the published rule, of public quantities alone."""
        scale = math.sqrt(self.declared_users / noise)
        items, factors = _EQUAL if self.unobserved_weight is None else _WEIGHTED
        n_head = round(items * scale) if self.head_items is None else self.head_items
        n_head = min(max(n_head, 1), interactions.n_items)
        n_factors = self.n_factors
        if n_factors is None:
            n_factors = min(max(round(factors * scale), 2), _MOST_FACTORS)
        return n_head, min(n_factors, n_head)

    def _scores(self, batch: Interactions) -> NDArray[np.float32]:
        rows = unit_rows(batch.matrix(), self.head_, self._weights)
        head = self._step.scores(rows)
        scores = np.empty((batch.n_users, batch.n_items), np.float32)
        scores[:, self.head_] = head
        if len(self._tail):
            # Below all head items, and as wide a range as theirs, so that float32 tells the tail apart.
            low = head.min(axis=1, keepdims=True)
            span = np.maximum(head.max(axis=1, keepdims=True) - low, 1e-6)
            scores[:, self._tail] = low - span * np.arange(1, len(self._tail) + 1) / len(self._tail)
        return scores


def _groups(catalogue: ItemCatalogue, items: NDArray[np.intp]) -> sparse.csr_array:
    """Items x their categories and providers, 1 where an item belongs to one."""
    codes = catalogue.provider_codes[items]
    known = np.flatnonzero(codes >= 0)
    shape = (len(items), len(catalogue.provider_names))
    providers = sparse.csr_array((np.ones(len(known)), (known, codes[known])), shape=shape)
    categories = sparse.csr_array(catalogue.membership[items].astype(np.float64))
    return sparse.csr_array(sparse.hstack([categories, providers], format="csr"))
