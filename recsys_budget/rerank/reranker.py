"""The re-ranker: candidates in, checked slates and their certificate out."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from recsys_budget.constraints import Constraint, ItemConstraint, Policy, Population, SlateSize
from recsys_budget.constraints.base import item_rows
from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import NumericalError, SolverTimeoutError, SpecificationError
from recsys_budget.rerank import display, problem
from recsys_budget.rerank.certificate import Certificate, PrivacyMode
from recsys_budget.rerank.conflict import infeasible
from recsys_budget.rerank.dispatch import ROUTES, answer
from recsys_budget.rerank.frames import CandidateTable, in_kind
from recsys_budget.rerank.infeasibility import find_conflict
from recsys_budget.rerank.memory import Memory
from recsys_budget.rerank.objective import EngagementDiversity, Objective
from recsys_budget.rerank.prepared import Prepared
from recsys_budget.rerank.question import Outcome, Question, require_question
from recsys_budget.rerank.verification import certify, count_violations, figures


@dataclass(frozen=True, eq=False)
class Slates:
    """Slates of many users and the evidence for them.

    Attributes:
        frame: A row a user and item: user, item, rank (from 1), relevance. Users stand in the order of their
            ids, shorter ids first and then alphabetically; items by falling relevance, and in the order of
            the catalogue where equally relevant, unless a constraint or objective reads positions. A pandas,
            polars or pyarrow table, as the candidates were.
        certificate: What is known about them.
        catalogue: What the items are called, for display; None where that is not known.
    """

    frame: Any
    certificate: Certificate
    catalogue: ItemCatalogue | None = None

    def __len__(self) -> int:
        return self.certificate.n_users

    def __repr__(self) -> str:
        return f"Slates({len(self)} users, {len(self.frame)} items; {self.certificate!r})"

    def _repr_html_(self) -> str:
        return display.slates_card(self)


class CandidateSource(Protocol):
    """What offers candidates, such as a fitted recommender."""

    def recommend(self, interactions: Interactions, k: int, /) -> Any:
        """Long frame with columns user, item and relevance: each user's k best items."""


@dataclass(frozen=True)
class Reranker:
    """Choose each user's slate from scored candidates, under constraints.

    Attributes:
        objective: What to maximise: the mean over users.
        constraints: Rules for slates, or a :class:`~recsys_budget.constraints.Policy`; exactly one is a hard
            ``SlateSize``, and names are unique. Hard ones hold in every slate; see ``Soft`` for others.
        solver: Solver by its name in cvxpy: ``"HIGHS"``, ``"SCIPY"``, ``"CLARABEL"``, ``"OSQP"``, ``"SCS"``
            or whichever else is installed. None takes the fastest route that the structure of the problem
            allows, with HiGHS where a solver is needed. A solver of continuous problems solves the
            relaxation; what it says is checked, rounded, and repaired by integer programs in HiGHS where need
            be.
        gap: Relative gap to the bound at which the search stops; 1e-6 of objective is close enough in any
            case.
        max_solves: Most programs for one problem. Where that stops the search, the certificate states the
            gap reached.
        route: Route to take, for comparisons; None takes the first that knows the problem's structure.

    Raises:
        SpecificationError: The above does not hold.

    Examples:
        >>> import pandas as pd
        >>> from recsys_budget.constraints import CategoryMinimum, SlateSize
        >>> from recsys_budget.data import ItemCatalogue
        >>> from recsys_budget.rerank import Reranker
        >>> catalogue = ItemCatalogue.from_frame(
        ...     pd.DataFrame({"item": ["a", "b", "c"], "categories": ["Drama", "Drama", "Documentary"]})
        ... )
        >>> candidates = pd.DataFrame({"user": "u", "item": ["a", "b", "c"], "relevance": [3.0, 2.0, 1.0]})
        >>> reranker = Reranker(constraints=[SlateSize(2), CategoryMinimum("Documentary", 1)])
        >>> slates = reranker.rerank(candidates, catalogue)
        >>> slates.frame["item"].tolist(), slates.certificate.engagement
        (['a', 'c'], 0.8)
        >>> {name: round(price, 3) for name, price in slates.certificate.shadow_prices.items()}
        {'exactly 2 items': 0.0, 'at least 1 Documentary': 0.2}
    """

    objective: Objective = field(default_factory=EngagementDiversity)
    constraints: Sequence[Constraint] | Policy = ()
    solver: str | None = field(default=None, kw_only=True)
    gap: float = field(default=1e-3, kw_only=True)
    max_solves: int = field(default=8, kw_only=True)
    route: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "constraints", tuple(self.constraints))
        require_question(self.objective, self._rules)
        if self.solver is not None:
            problem.require_solver(self.solver)
        if not 0.0 < self.gap < 1.0:
            raise SpecificationError(
                f"gap={self.gap!r}; it is relative and must lie strictly between 0 and 1"
            )
        if self.max_solves < 1:
            raise SpecificationError(f"max_solves={self.max_solves!r}; allow at least 1")
        if self.route is not None and self.route not in ROUTES:
            raise SpecificationError(f"route={self.route!r}; there are {', '.join(ROUTES)}")

    @property
    def _rules(self) -> tuple[Constraint, ...]:
        return tuple(self.constraints)

    @property
    def slate_size(self) -> int:
        """Items a slate."""
        return next(c.k for c in self._rules if isinstance(c, SlateSize))

    @property
    def privacy(self) -> PrivacyMode:
        """What the slates will cost in privacy; see :class:`Certificate`."""
        return _privacy(self._rules)

    def rerank(
        self,
        candidates: Any,
        catalogue: ItemCatalogue,
        *,
        history: Interactions | None = None,
        time_limit: float | None = None,
        ledger: object | None = None,
        progress: bool = True,
    ) -> Slates:
        """The best slate of every user.

        Args:
            candidates: pandas, polars or pyarrow table with columns user and item (strings or integers) and
                relevance (finite, higher is better), rows in any order, one row a pair; or
                :class:`~recsys_budget.rerank.Scores`, a matrix.
            catalogue: The catalogue that the items are from.
            history: What users had used, for rules and objectives that compare slates with it. Users may be
                missing from it.
            time_limit: Wall-clock seconds after which no further search is begun, and the best slates known
                are handed out with their gap; None for no limit.
            ledger: The privacy ledger that governs the data behind the candidates, if one does. Slates whose
                making reads everybody's candidates are then refused; see
                :class:`~recsys_budget.rerank.PrivateReranker`, which pays for them.
            progress: Show a progress bar.

        Returns:
            Slates of every user that has candidates, with their certificate.

        Guarantees:
            Every hard constraint holds in every slate to 1e-6, counted from the slate and not taken from the
            solver. Without constraints about all slates, every user's slate is what a call with that user
            alone gives, whatever the order of rows. Of candidates alike in all that the problem reads, those
            first in the catalogue are chosen. Answers repeat bit for bit, unless a time limit ends the
            search.

        Raises:
            DataError: The candidates cannot be read; see the message for the row and column.
            SpecificationError: A constraint names what the catalogue lacks; or a constraint about all slates
                meets a ledger; or the solver or route does not take the problem.
            InfeasibleError: No slate of some user satisfies the constraints: ``.conflict`` names some that
                conflict, of which none can be spared.
            SolverTimeoutError: The time was over before every user had a slate that satisfies the
                constraints.
            NumericalError: A solver's answer failed the check, so nothing is handed out.
        """
        started = time.perf_counter()
        deadline = self._begin(catalogue, time_limit, ledger)
        table = CandidateTable.read(candidates, catalogue, self.slate_size, history)
        return self._answer(table, Memory(), started, time_limit, deadline, progress)

    def prepare(
        self, candidates: Any, catalogue: ItemCatalogue, *, history: Interactions | None = None
    ) -> Prepared:
        """Read candidates once, to be asked about again and again: the points of a frontier, a slider.

        Args:
            candidates: As for :meth:`rerank`.
            catalogue: The catalogue that the items are from.
            history: As for :meth:`rerank`.

        Raises:
            DataError: As for :meth:`rerank`.
            SpecificationError: A constraint names what the catalogue lacks.

        Examples:
            >>> import pandas as pd
            >>> from recsys_budget.constraints import CategoryMinimum, SlateSize
            >>> from recsys_budget.data import ItemCatalogue
            >>> from recsys_budget.rerank import Reranker
            >>> catalogue = ItemCatalogue.from_frame(
            ...     pd.DataFrame({"item": ["a", "b", "c"], "categories": ["Drama", "Drama", "News"]})
            ... )
            >>> items = ["a", "b", "c"]
            >>> candidates = pd.DataFrame({"user": "u", "item": items, "relevance": [3.0, 2.0, 1.0]})
            >>> prepared = Reranker(constraints=[SlateSize(2)]).prepare(candidates, catalogue)
            >>> for least in (0, 1):
            ...     slates = prepared.rerank(constraints=[SlateSize(2), CategoryMinimum("News", least)])
            ...     print(slates.frame["item"].tolist(), slates.certificate.engagement)
            ['a', 'b'] 1.0
            ['a', 'c'] 0.8
        """
        self._check(catalogue)
        return Prepared(self, CandidateTable.read(candidates, catalogue, self.slate_size, history))

    def _begin(self, catalogue: ItemCatalogue, time_limit: float | None, ledger: object | None) -> float:
        """Check what was asked before any candidate is read, and tell when to stop."""
        if time_limit is not None and not (isinstance(time_limit, int | float) and time_limit > 0.0):
            raise SpecificationError(f"time_limit={time_limit!r}; it is in seconds and must be above 0")
        deadline = math.inf if time_limit is None else time.monotonic() + time_limit
        self._refuse_ledger(ledger)
        self._check(catalogue)
        return deadline

    def _answer(
        self,
        table: CandidateTable,
        memory: Memory,
        started: float,
        time_limit: float | None,
        deadline: float,
        progress: bool,
    ) -> Slates:
        """Slates from candidates that were read, and from what earlier answers left."""
        named = self.route is not None or self.solver is not None
        idle = [not named and _cannot_bind(rule, table) for rule in self._rules]
        rules = tuple(rule for rule, asks_nothing in zip(self._rules, idle, strict=True) if not asks_nothing)
        question = Question(
            self.objective,
            rules,
            table,
            solver=self.solver,
            gap=self.gap,
            max_solves=self.max_solves,
            deadline=deadline,
            progress=progress,
            memory=memory,
        )
        route, outcome = answer(question, self.route)
        if outcome is None:
            raise SpecificationError(
                f"route {route!r} does not take problems of this structure; leave it out"
            )
        self._require_slates(outcome, table, memory, time_limit, deadline)
        free = {rule.name: 0.0 for rule, asks_nothing in zip(self._rules, idle, strict=True) if asks_nothing}
        outcome = replace(outcome, prices={**outcome.prices, **free})
        counted = count_violations(self._rules, outcome.chosen, table, outcome.solver)
        per_user = figures(self.objective, outcome.chosen, table, counted.penalties, outcome)
        certificate = certify(
            self.objective,
            self._rules,
            per_user,
            counted,
            outcome,
            route=route,
            privacy=_privacy(rules),
            seconds=time.perf_counter() - started,
        )
        return Slates(in_kind(table.slates(outcome.chosen), table.library), certificate, table.catalogue)

    def recommend(
        self,
        model: CandidateSource,
        interactions: Interactions,
        *,
        n_candidates: int = 200,
        time_limit: float | None = None,
        ledger: object | None = None,
        progress: bool = True,
    ) -> Slates:
        """The best slate of every user from a fitted model's candidates.

        Args:
            model: Anything with ``recommend(interactions, n)`` that answers a long frame of each user's n
                best items, such as this package's recommenders.
            interactions: What the served users have used: the model's input, and the history that rules and
                objectives compare slates with.
            n_candidates: Candidates a user.
            time_limit: As for :meth:`rerank`, like all that follow.
            ledger: The privacy ledger that governs the data behind the model.
            progress: Show a progress bar.

        Raises:
            SpecificationError: There are to be fewer candidates than a slate holds; or as for :meth:`rerank`.
            DataError: As for :meth:`rerank`, like other errors.
        """
        if n_candidates < self.slate_size:
            raise SpecificationError(
                f"n_candidates={n_candidates!r}; a slate holds {self.slate_size} items, so ask for more"
            )
        return self.rerank(
            model.recommend(interactions, n_candidates),
            interactions.catalogue,
            history=interactions,
            time_limit=time_limit,
            ledger=ledger,
            progress=progress,
        )

    def to_cvxpy(
        self,
        candidates: Any,
        catalogue: ItemCatalogue,
        user: str | None = None,
        *,
        history: Interactions | None = None,
    ) -> problem.Problem:
        """The plain cvxpy problem of one user, or of everybody: what ``rerank`` solves, by definition.

        Its one variable ``x`` is boolean. It is a selection, with an entry for each candidate, user by user,
        by falling relevance and then in the order of the catalogue; or, where a constraint or the objective
        reads positions, an assignment with a column for each place. Its value at slates is the sum of their
        ``objective`` in the certificate, less the penalties of soft constraints about all slates. With a
        concave objective it is a mixed-integer nonlinear program, which not every solver takes.

        Args:
            candidates: As for :meth:`rerank`.
            catalogue: As for :meth:`rerank`.
            user: Id of the user, for the rules about one slate; None for all users and all rules.
            history: As for :meth:`rerank`.

        Raises:
            DataError: As for :meth:`rerank`.
            SpecificationError: A constraint names what the catalogue lacks or is not convex, or the user has
                no candidates.
        """
        self._check(catalogue)
        table: Population = CandidateTable.read(candidates, catalogue, self.slate_size, history)
        rules = self._rules
        if user is not None:
            table = Population.of_one(table.of(table.find(user)))
            rules = tuple(rule for rule in rules if rule.scope == "user")
        return problem.build(self.objective, rules, table).problem

    def _check(self, catalogue: ItemCatalogue) -> None:
        self.objective.check(catalogue, self.slate_size)
        for constraint in self._rules:
            constraint.check(catalogue, self.slate_size)

    def _refuse_ledger(self, ledger: object | None) -> None:
        """Raise where slates would read private data that nobody pays for."""
        if ledger is not None and self.privacy == "population_not_private":
            named = ", ".join(repr(rule.name) for rule in self._rules if rule.scope == "population")
            raise SpecificationError(
                f"{named}: constraints about all slates make each user's slate depend on the candidates of "
                "all the others, and a ledger governs that data. Take PrivateReranker, which pays for it; or "
                "drop them; or leave the ledger out and call the result not private"
            )

    def _require_slates(
        self,
        outcome: Outcome,
        table: Population,
        memory: Memory,
        time_limit: float | None,
        deadline: float,
    ) -> None:
        """Raise unless every user has a slate, saying why not."""
        without = np.flatnonzero((outcome.chosen < 0).all(axis=1))
        impossible = np.flatnonzero(outcome.infeasible)
        if len(impossible):
            raise infeasible(
                find_conflict(
                    self._rules,
                    table,
                    impossible,
                    solver=self.solver,
                    deadline=deadline,
                    named=outcome.conflict,
                    pool=memory.pool(table),
                )
            )
        if len(without):
            first = ", ".join(repr(table.users[u]) for u in without[:3])
            if not outcome.stopped or time_limit is None:
                raise NumericalError(
                    f"{outcome.solver} found no slate for {len(without)} users, the first {first}, and no "
                    "proof that there is none; raise max_solves or name another solver"
                )
            raise SolverTimeoutError(
                f"{time_limit:g} s were not enough to find a slate that satisfies the constraints for "
                f"{len(without)} of {len(table)} users, the first {first}; allow more time, or pass "
                "fewer users",
                time_limit=time_limit,
                users=[str(table.users[u]) for u in without[:10]],
                n_users=len(without),
            )


def _privacy(rules: Sequence[Constraint]) -> PrivacyMode:
    coupled = any(rule.scope == "population" for rule in rules)
    return "population_not_private" if coupled else "per_user"


def _cannot_bind(rule: Constraint, population: Population) -> bool:
    """Whether every slate keeps a rule about all slates, by its signs: a provider's floor of 0 asks nothing.

    A function of the rule and the catalogue: what the candidates are has no say.
    """
    if rule.scope != "population" or not isinstance(rule, ItemConstraint):
        return False
    least = np.min(np.asarray(rule.rhs(population)))
    return bool(least >= 0.0 and not (item_rows(rule, population.catalogue).data > 0.0).any())
