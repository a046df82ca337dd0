"""The re-ranker: candidates in, checked slates and their certificate out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from recsys_budget.constraints import TOLERANCE, Candidates, Constraint, SlateSize
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import NumericalError, SpecificationError
from recsys_budget.rerank import problem
from recsys_budget.rerank.certificate import Certificate
from recsys_budget.rerank.conflict import infeasible, minimal_conflict
from recsys_budget.rerank.frames import CandidateTable
from recsys_budget.rerank.objective import EngagementDiversity, diversity, engagement


@dataclass(frozen=True, eq=False)
class Slates:
    """Slates of many users and the evidence for them.

    Attributes:
        frame: A row a user and item: user, item, rank (from 1), relevance. Users stand in the order of their
            ids, shorter ids first and then alphabetically; items by falling relevance, and in the order of
            the catalogue where equally relevant.
        certificate: What is known about them.
    """

    frame: pd.DataFrame
    certificate: Certificate

    def __len__(self) -> int:
        return self.certificate.n_users

    def __repr__(self) -> str:
        return f"Slates({len(self)} users, {len(self.frame)} items; {self.certificate!r})"


@dataclass(frozen=True)
class Reranker:
    """Choose each user's slate from scored candidates, under hard constraints.

    Attributes:
        objective: What to maximise.
        constraints: Rules that every slate satisfies; exactly one is a ``SlateSize``, and names are unique.
        solver: ``"HIGHS"`` or ``"SCIPY"``: cvxpy solvers that report a bound on what they did not find.
        gap: Relative gap to the bound, per user, at which the search stops; 1e-6 of objective is close enough
            in any case. A linear objective (no weight on diversity) is solved to the solver's precision.
        max_solves: Most integer programs a user. Where that stops the search, the certificate states the
            gap reached.

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
    """

    objective: EngagementDiversity = field(default_factory=EngagementDiversity)
    constraints: Sequence[Constraint] = ()
    solver: str = field(default="HIGHS", kw_only=True)
    gap: float = field(default=1e-3, kw_only=True)
    max_solves: int = field(default=8, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "constraints", tuple(self.constraints))
        sizes = sum(isinstance(c, SlateSize) for c in self.constraints)
        if sizes != 1:
            raise SpecificationError(f"constraints must hold exactly one SlateSize, not {sizes}")
        names = [c.name for c in self.constraints]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise SpecificationError(
                f"constraints share the name {twice[0]!r}; pass name= to tell them apart"
            )
        if self.solver not in problem.SOLVERS:
            raise SpecificationError(f"solver={self.solver!r}; use one of {', '.join(problem.SOLVERS)}")
        if not 0.0 < self.gap < 1.0:
            raise SpecificationError(
                f"gap={self.gap!r}; it is relative and must lie strictly between 0 and 1"
            )
        if self.max_solves < 1:
            raise SpecificationError(f"max_solves={self.max_solves!r}; allow at least 1")

    @property
    def slate_size(self) -> int:
        """Items a slate."""
        return next(c.k for c in self.constraints if isinstance(c, SlateSize))

    def rerank(self, candidates: Any, catalogue: ItemCatalogue, *, progress: bool = True) -> Slates:
        """The best slate of every user.

        Args:
            candidates: pandas, polars or pyarrow table with columns user and item (strings or integers) and
                relevance (finite, higher is better), rows in any order, one row a pair.
            catalogue: The catalogue that the items are from.
            progress: Show a progress bar.

        Returns:
            Slates of every user that has candidates, with their certificate.

        Guarantees:
            Every constraint holds in every slate to 1e-6, counted from the slate and not taken from the
            solver. Every user's slate is what a call with that user alone gives, whatever the order of rows.
            Of candidates alike in all but the id, those first in the catalogue are chosen.

        Raises:
            DataError: The candidates cannot be read; see the message for the row and column.
            SpecificationError: A constraint names a category that the catalogue lacks.
            InfeasibleError: No slate of some user satisfies the constraints: ``.conflict`` names some that
                conflict, of which none can be spared.
            NumericalError: A solver's answer failed the check, so nothing is handed out.
        """
        started = time.perf_counter()
        self._check(catalogue)
        table = CandidateTable.from_frame(candidates, catalogue)
        compiled: dict[int, problem.CompiledProblem] = {}
        slates: list[NDArray[np.intp]] = []
        figures: list[dict[str, Any]] = []
        violations = dict.fromkeys((c.name for c in self.constraints), 0.0)
        for position in tqdm(range(len(table)), desc="re-ranking", unit="user", disable=not progress):
            user = table.of(position)
            chosen, found = self._solve(user, compiled)
            for name, violation in self._verify(chosen, user).items():
                violations[name] = max(violations[name], violation)
            slates.append(chosen)
            figures.append(self._figures(chosen, found, user))
        per_user = pd.DataFrame(figures)
        objective, bound = float(per_user["objective"].mean()), float(per_user["bound"].mean())
        certificate = Certificate(
            objective=objective,
            bound=bound,
            gap=_relative_gap(objective, bound),
            violations=violations,
            engagement=float(per_user["engagement"].mean()),
            diversity=float(per_user["diversity"].mean()),
            route="cvxpy",
            solver=self.solver,
            solver_version=problem.versions(self.solver),
            n_users=len(table),
            solves=int(per_user["solves"].sum()),
            seconds=time.perf_counter() - started,
            privacy="per_user",
            per_user=per_user,
        )
        return Slates(table.slates(slates), certificate)

    def to_cvxpy(self, candidates: Any, catalogue: ItemCatalogue, user: str) -> problem.Problem:
        """The plain cvxpy problem of one user: what ``rerank`` solves, by definition.

        Its one variable ``x`` is boolean, with an entry for each of the user's candidates, by falling
        relevance and then in the order of the catalogue. Its value at a slate is that user's ``objective`` in
        the certificate. With weight on diversity it is a mixed-integer quadratic program, which not every
        solver takes.

        Args:
            candidates: As for :meth:`rerank`.
            catalogue: As for :meth:`rerank`.
            user: Id of the user.

        Raises:
            DataError: As for :meth:`rerank`.
            SpecificationError: A constraint names a category that the catalogue lacks, or the user has no
                candidates.
        """
        self._check(catalogue)
        chosen = CandidateTable.from_frame(candidates, catalogue).find(user)
        return problem.build(self.objective, self.constraints, chosen, self.slate_size)

    def _check(self, catalogue: ItemCatalogue) -> None:
        for constraint in self.constraints:
            constraint.check(catalogue)

    def _solve(
        self, user: Candidates, compiled: dict[int, problem.CompiledProblem]
    ) -> tuple[NDArray[np.intp], problem.Solution]:
        form = self.objective.form(user, self.slate_size)
        if len(user) not in compiled:
            compiled[len(user)] = problem.CompiledProblem(
                self.constraints,
                like=user,
                form=form,
                k=self.slate_size,
                solver=self.solver,
                gap=self.gap,
                max_solves=self.max_solves,
            )
        found = compiled[len(user)].solve(user, form)
        if found.chosen is None:
            raise infeasible(minimal_conflict(self.constraints, user, self.solver), user)
        return _first_of_alike(found.chosen, user), found

    def _verify(self, chosen: NDArray[np.intp], user: Candidates) -> dict[str, float]:
        """Violation of each constraint by name, none above tolerance."""
        measured = {c.name: c.measure(chosen, user) for c in self.constraints}
        for name, violation in measured.items():
            if not violation <= TOLERANCE:
                raise NumericalError(
                    f"user {user.user!r}: the slate that {self.solver} calls optimal violates {name!r} by "
                    f"{violation:g}, so it is not handed out; try the other solver"
                )
        return measured

    def _figures(self, chosen: NDArray[np.intp], found: problem.Solution, user: Candidates) -> dict[str, Any]:
        objective = self.objective.value(chosen, user)
        if not objective <= found.bound + TOLERANCE:
            raise NumericalError(
                f"user {user.user!r}: the slate's objective {objective:.9f} is above {self.solver}'s bound "
                f"{found.bound:.9f}, so that bound proves nothing; try the other solver"
            )
        bound = max(objective, found.bound)
        return {
            "user": user.user,
            "objective": objective,
            "bound": bound,
            "gap": _relative_gap(objective, bound),
            "engagement": engagement(chosen, user),
            "diversity": diversity(chosen, user),
            "solves": found.solves,
            "candidates": len(user),
        }


def _first_of_alike(chosen: NDArray[np.intp], user: Candidates) -> NDArray[np.intp]:
    """The same slate with each candidate replaced by the first that is alike, ascending."""
    labels = user.alike()
    order = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[order], labels[order])
    wanted = np.bincount(labels[chosen], minlength=len(user))
    return np.sort(order[np.arange(len(user)) - first < wanted[labels[order]]])


def _relative_gap(objective: float, bound: float) -> float:
    return (bound - objective) / bound if bound - objective > TOLERANCE else 0.0
