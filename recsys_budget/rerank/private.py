"""Slates under rules about all slates together, within a privacy budget: prices from noisy loads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_budget.constraints import (
    TOLERANCE,
    Constraint,
    Policy,
    Population,
    ProviderMaximum,
    ProviderMinimum,
    SlateSize,
    StockMaximum,
)
from recsys_budget.constraints.base import hard_part, require_count, require_number
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import NumericalError, SpecificationError, UnprovenBoundsError
from recsys_budget.privacy import (
    GaussianMechanism,
    PrivacyLedger,
    Reservation,
    SeededNoise,
    SystemNoise,
    epsilon,
    round_up,
    smallest_noise,
)
from recsys_budget.rerank.certificate import PrivateCertificate
from recsys_budget.rerank.fast import library
from recsys_budget.rerank.frames import CandidateTable, in_kind
from recsys_budget.rerank.loads import Loads, without_candidates
from recsys_budget.rerank.objective import EngagementDiversity, Objective
from recsys_budget.rerank.prices import ROUNDED_DOWN, DualAscent, Release, drawing_errors
from recsys_budget.rerank.proof import Proof
from recsys_budget.rerank.question import require_question
from recsys_budget.rerank.routes.laminar import LaminarTree
from recsys_budget.rerank.routes.oracle import Oracle
from recsys_budget.rerank.structure import Gains, Quotas

# Of the cost, the share that goes to measuring the slates; the rest sets prices.
_MEASURING = 0.5


@dataclass(frozen=True, eq=False)
class PrivateSlates:
    """Slates of many users, each fit to be shown to its own user, and a certificate fit to be published.

    Attributes:
        frame: As in :class:`~recsys_budget.rerank.Slates`, but without rows of users whose own rules no slate
            satisfies. A user's rows are for that user alone: they depend on the user's own candidates, and on
            those of everybody else only through prices that were paid for (joint differential privacy). The
            whole frame, its length too, is as private as the candidates.
        certificate: What is known about them: noisy or public figures.
    """

    frame: Any
    certificate: PrivateCertificate

    def __repr__(self) -> str:
        return f"PrivateSlates({self.certificate!r})"


@dataclass(frozen=True)
class PrivateReranker:
    """Choose slates under rules about all slates, and pay a privacy ledger for what these reveal.

    Such a rule makes each user's slate depend on the candidates of all others. Here it does so through prices
    alone: a price on every bound, set in rounds by dual ascent on noisy loads. A user takes the best slate,
    by own rules, at the prices of a round drawn at random; then one more release measures the loads of all
    slates. Slates are handed out if these noisy loads are so far inside the hard bounds that the bounds
    themselves hold except with probability ``beta``. ``docs/private_prices.md`` has the argument.

    All attributes are public constants: choose them without looking at private data.

    Attributes:
        objective: What to maximise: :class:`Engagement` without a discount, :class:`Novelty`, or a weighted
            sum of them.
        constraints: One hard ``SlateSize``; hard quotas on sets of items that are nested or disjoint; and,
            for all slates, ``ProviderMinimum``, ``ProviderMaximum``, ``StockMaximum``, ``TotalMaximum`` and
            ``GroupParity`` without a discount, hard or ``Soft``. Fewer items of a provider in a slate
            (``GroupMaximum``) mean less noise.
        declared_users: About how many users there are, as publicly known. It scales steps and refuses
            hopeless requests before anything is spent; no guarantee depends on it.
        noise_multiplier: All releases together cost as much as one Gaussian release with this noise. None
            takes the smallest that fits under the ledger's cap, and so spends all that is left.
        beta: Greatest probability that what the certificate claims is false and slates are handed out.
        rounds: Releases that set prices, at least 2; more make each noisier.
        insecure_seed: **Not private.** Repeatable noise and draws, for tests only; the certificate says so.

    Raises:
        SpecificationError: The above does not hold.

    Examples:
        >>> import numpy as np, pandas as pd
        >>> from recsys_budget.constraints import ProviderMinimum, SlateSize
        >>> from recsys_budget.data import ItemCatalogue
        >>> from recsys_budget.privacy import PrivacyBudget, PrivacyLedger
        >>> from recsys_budget.rerank import PrivateReranker
        >>> items = pd.DataFrame({"item": list("abcd"), "provider": ["Big", "Big", "Big", "Small"]})
        >>> candidates = pd.DataFrame({"user": np.repeat(np.arange(4000), 4), "item": list("abcd") * 4000})
        >>> candidates["relevance"] = np.random.default_rng(0).random(16000) + (candidates["item"] != "d")
        >>> reranker = PrivateReranker(
        ...     constraints=[SlateSize(2), ProviderMinimum(share=0.2, provider="Small")], declared_users=4000,
        ...     noise_multiplier=4.0, insecure_seed=0,
        ... )
        >>> ledger = PrivacyLedger(PrivacyBudget(epsilon=2.0, delta=1e-6))
        >>> slates = reranker.rerank(candidates, ItemCatalogue.from_frame(items), ledger=ledger)
        >>> bool((slates.frame["item"] == "d").mean() >= 0.2), slates.certificate.proven
        (True, True)

    References:
        Hsu, Huang, Roth and Wu (2016), arXiv:1411.0998 (noisy dual ascent; the billboard lemma is theirs and
        that of Hsu, Huang, Roth, Roughgarden and Wu 2014, arXiv:1311.2828).
    """

    objective: Objective = field(default_factory=EngagementDiversity)
    constraints: Sequence[Constraint] | Policy = ()
    declared_users: int = field(kw_only=True)
    noise_multiplier: float | None = field(default=None, kw_only=True)
    beta: float = field(default=0.05, kw_only=True)
    rounds: int = field(default=16, kw_only=True)
    insecure_seed: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "constraints", tuple(self.constraints))
        require_question(self.objective, self._rules)
        if all(rule.scope == "user" for rule in self._rules):
            raise SpecificationError(
                "no constraint is about all slates: take Reranker, whose slates then cost no privacy at all"
            )
        require_count("PrivateReranker", "declared_users", self.declared_users, least=1)
        require_count("PrivateReranker", "rounds", self.rounds, least=2)
        require_number("PrivateReranker", "beta", self.beta, least=0.0, most=0.5, open_below=True)
        if self.noise_multiplier is not None:
            GaussianMechanism(self.noise_multiplier)
        if self.insecure_seed is not None:
            require_count("PrivateReranker", "insecure_seed", self.insecure_seed, least=0)

    @property
    def _rules(self) -> tuple[Constraint, ...]:
        return tuple(self.constraints)

    @property
    def slate_size(self) -> int:
        """Items a slate."""
        return next(rule.k for rule in self._rules if isinstance(rule, SlateSize))

    def mechanisms(self, noise_multiplier: float) -> tuple[GaussianMechanism, ...]:
        """What is released: a mechanism for each round, and one for measuring the slates.

        The inverse variances of Gaussian noise add up: together these reveal exactly what one release with
        ``noise_multiplier`` does.
        """
        of_round = noise_multiplier * math.sqrt(self.rounds / (1.0 - _MEASURING))
        measuring = GaussianMechanism(noise_multiplier / math.sqrt(_MEASURING))
        return (GaussianMechanism(of_round),) * self.rounds + (measuring,)

    def rerank(self, candidates: Any, catalogue: ItemCatalogue, *, ledger: PrivacyLedger) -> PrivateSlates:
        """Slates of every user who has one by own rules.

        Args:
            candidates: As for :meth:`~recsys_budget.rerank.Reranker.rerank`. Each user's must come from that
                user's own data, public facts and private releases alone, as a private model's do.
            catalogue: The catalogue that the items are from: public.
            ledger: Of the population whose data this is. One reservation pays for everything; what is not run
                is returned where that is sound.

        Returns:
            Slates, and a certificate that may be published.

        Guarantees:
            For every user, what all others are shown together with the certificate is differentially private
            in that user's candidates, at the reservation's cost. Hard rules about one slate hold in every
            slate, counted from it. Hard bounds about all slates hold except with probability ``beta``; they
            are not counted in the slates, since a refusal for what was counted would reveal it.

        Raises:
            SpecificationError: A constraint or objective of another kind, or bounds that the noise leaves no
                room for; nothing was read or spent.
            DataError: The candidates are no table of candidates; nothing was spent.
            PopulationError: Some of these users spend from another population's budget.
            BudgetExceededError: It does not fit under the cap; nothing was spent.
            UnprovenBoundsError: The noisy loads do not prove every hard bound. The budget is spent.
            LedgerError: The ledger cannot be trusted or written.
        """
        if not isinstance(ledger, PrivacyLedger):
            raise SpecificationError(f"ledger={ledger!r}; private prices are paid for at a PrivacyLedger")
        tree, loads, gain = self._public(catalogue)
        noise = self.noise_multiplier
        if noise is None:
            noise = smallest_noise(self.mechanisms, ledger.fits)
            if not math.isfinite(noise):
                raise SpecificationError("nothing is left in the ledger; see ledger.history()")
        *each, measuring = self.mechanisms(noise)
        cost = epsilon((*each, measuring), ledger.cap.delta)
        proof = Proof(Release(loads, 3, measuring), gain, self.beta)
        proof.require_room(self._rules, self.declared_users)
        table = CandidateTable.read(candidates, catalogue, self.slate_size)
        ledger.register(table.users)
        shared = ", ".join(rule.name for rule in self._rules if rule.scope == "population")
        reservation = ledger.reserve((*each, measuring), purpose=f"prices for {shared}")
        try:
            chosen, prices, measured = self._run(table, tree, Release(loads, 2, each[0]), proof, reservation)
        finally:
            reservation.commit()
        self._verify(chosen, table)
        certificate = proof.certificate(
            prices,
            *measured,
            names=self._names(loads, catalogue),
            noise_multiplier=noise,
            epsilon=cost,
            delta=ledger.cap.delta,
            rounds=self.rounds,
            record=reservation.id,
            route="prices",
            solver_version=library(),
            private=self.insecure_seed is None,
        )
        if not certificate.proven:
            raise _unproven(certificate)
        return PrivateSlates(in_kind(table.slates(chosen), table.library), certificate)

    def _public(self, catalogue: ItemCatalogue) -> tuple[LaminarTree, Loads, float]:
        """The quotas, the loads, and the greatest objective of a slate, from public facts alone."""
        k = self.slate_size
        self.objective.check(catalogue, k)
        for rule in self._rules:
            rule.check(catalogue, k)
        nobody = without_candidates(catalogue, k, 0)
        gains = Gains.of(self.objective, nobody)
        if gains is None or gains.diversity or gains.worth is not None:
            raise SpecificationError(
                f"{self.objective!r}: private prices take engagement without a discount, novelty, and sums "
                "of them, for which the best slate at given prices is exact"
            )
        own = [rule for rule in self._rules if rule.scope == "user"]
        quotas = Quotas.of(own, nobody) if all(rule.hard for rule in own) else None
        if quotas is None:
            raise SpecificationError(
                f"{', '.join(repr(rule.name) for rule in own)}: about one slate, private prices take hard "
                "quotas on nested or disjoint sets of items alone; leave out what is none of them"
            )
        if quotas.tree.contradictory:
            raise SpecificationError(
                f"{', '.join(repr(rule.name) for rule in own)}: no slate can keep to all of these, whatever "
                "the candidates; the InfeasibleError of Reranker says which ones conflict"
            )
        loads = Loads.of(self._rules, catalogue, quotas.tree)
        gain = math.fsum(weight for weight, _ in self.objective.parts)
        require_number("an objective", "sum of weights", gain, least=0.0, most=1e6, open_below=True)
        return quotas.tree, loads, gain

    def _run(
        self,
        table: Population,
        tree: LaminarTree,
        release: Release,
        proof: Proof,
        reservation: Reservation,
    ) -> tuple[NDArray[np.int32], NDArray[np.float64], tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Slates, mean prices, and what was measured: each release is taken before it reads."""
        noise = SystemNoise() if self.insecure_seed is None else SeededNoise(self.insecure_seed)
        loads, k = proof.release.loads, self.slate_size
        settled = release.load_errors / math.sqrt(self.rounds - self.rounds // 2)
        room = np.hypot(proof.errors, settled[loads.bounds.row])
        room = np.hypot(room, drawing_errors(loads, self.declared_users))
        inside = proof.inside(self.declared_users, proof.quantile * room)
        ascent = DualAscent(release, inside, self.declared_users, proof.gain / k)
        reservation.use(release.mechanism)
        gains = Gains.of(self.objective, table)
        assert gains is not None, "looked at before anything was spent"
        oracle = Oracle(table.offsets, gains.gains, gains.items, tree)
        served = oracle.users
        apart = _apart(gains, table.offsets, k)[served] / (proof.gain / k)
        of_users = np.stack([np.ones(len(served)), apart])
        for at in range(self.rounds):
            if at:
                reservation.use(release.mechanism)
            counts = oracle.best(loads.item_prices(ascent.prices)).counts[0]
            ascent.learn(*release.noisy(counts, of_users, noise))
        reservation.use(proof.release.mechanism)
        shares = ascent.shares()
        mean = np.minimum(shares @ np.stack([p for p, _ in ascent.history]), loads.bounds.weight)
        drawn = np.searchsorted(np.cumsum(shares)[:-1], noise.uniform(len(table)), side="right")
        chosen = np.full((len(table), k), -1, np.int32)
        for at in np.flatnonzero(shares).tolist():
            there = served[drawn[served] == at]
            oracle.slates(loads.item_prices(ascent.history[at][0]), there)
            chosen[there] = oracle.chosen[there]
        prices = loads.item_prices(mean)
        low, high = proof.limits(prices)
        oracle.best(prices)
        at_best = table.offsets[served, None] + oracle.chosen[served]
        net = (gains.gains[at_best] - prices[gains.items[at_best]]).sum(axis=1)
        slates = gains.rows(chosen, table)
        reached = self.objective.value_all(slates, table)[served]
        shown = table.chosen_items(slates)
        counts = np.bincount(shown[shown >= 0], minlength=len(table.catalogue))
        of_users = np.stack(
            [np.ones(len(served)), reached / proof.gain, (net - low) / (high - low) + 2.0 * ROUNDED_DOWN]
        )
        return slates, mean, proof.release.noisy(counts, of_users, noise)

    def _verify(self, chosen: NDArray[np.integer], table: Population) -> None:
        """Raise if a slate breaks a rule of its own; each is looked at alone, and none ever should."""
        served = np.flatnonzero((chosen >= 0).any(axis=1))
        part = table if len(served) == len(table) else table.part(served)
        for rule in self._rules:
            if rule.scope == "user" and len(served):
                worst = float(np.max(rule.measure_all(chosen[served], part)))
                if not worst <= TOLERANCE:
                    raise NumericalError(f"a slate violates {rule.name!r}, so none is handed out")

    def _names(self, loads: Loads, catalogue: ItemCatalogue) -> list[tuple[str, str]]:
        """Rule, and provider or item, of each bound."""
        names = []
        for owner, part in zip(loads.bounds.owner, loads.bounds.part, strict=True):
            rule = hard_part(self._rules[owner])
            label = ""
            if isinstance(rule, StockMaximum):
                label = str(catalogue.ids[part])
            elif isinstance(rule, ProviderMinimum | ProviderMaximum):
                label = rule.provider or catalogue.provider_names[part]
            names.append((rule.name, label))
        return names


def _apart(gains: Gains, offsets: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """By how much the gains of each user's candidates at ranks k and 2 k differ."""
    starts, sizes = offsets[:-1], np.diff(offsets)
    kth, later = np.minimum(k, sizes) - 1, np.minimum(2 * k, sizes) - 1
    return np.asarray(gains.gains[starts + kth] - gains.gains[starts + later])


def _unproven(certificate: PrivateCertificate) -> UnprovenBoundsError:
    """Which bound is furthest from proven, and what would help."""
    table = certificate.bounds
    sign = np.where(table["side"] == "at most", 1.0, -1.0)
    inside = sign * (table["bound"] - table["load"])
    short = ((table["margin"] - inside) / table["margin"]).where(table["hard"] & ~table["proven"])
    worst = int(short.to_numpy(np.float64, na_value=-np.inf).argmax())
    row = table.iloc[worst]
    part = f" of {row['part']!r}" if row["part"] else ""
    return UnprovenBoundsError(
        f"{int(short.notna().sum())} hard bounds are not proven, and no slate is handed out; the budget "
        f"(epsilon {round_up(certificate.epsilon)} alone) is spent. Furthest off is {row['rule']!r}{part}: a "
        f"noisy load of {row['load']:.1f} where {row['side']} {row['bound']:.1f} needs a margin of "
        f"{row['margin']:.1f}. Margins fall with noise_multiplier and with the most items a slate may take "
        "from a provider; a bound that many candidates cannot meet must be loosened. See .certificate",
        certificate=certificate,
    )
