"""The state behind the explorer: a choice of epsilon, weight and numbers, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsys_budget.constraints import Constraint, Soft
from recsys_budget.constraints.base import hard_part
from recsys_budget.errors import DataError, InfeasibleError, SpecificationError
from recsys_budget.frontiers import Frontier, Point
from recsys_budget.frontiers.basis import DIVERSITY, Basis
from recsys_budget.frontiers.figures import figures
from recsys_budget.rerank import (
    Certificate,
    Conflict,
    EngagementDiversity,
    Prepared,
    Reranker,
    Scores,
    Slates,
    top_k,
)
from recsys_budget.rerank.frames import CandidateTable
from recsys_budget.rerank.loosening import number_of, with_numbers

# Answers kept, the latest.
_KEPT = 256


@dataclass(frozen=True)
class Choice:
    """What the owner of a recommender has chosen.

    Attributes:
        epsilon: Epsilon of the model; None where there is one model alone.
        diversity: Weight on diversity; None where the objective has none.
        numbers: How much each rule asks, by the name it had at first.
    """

    epsilon: float | None = None
    diversity: float | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Result:
    """What follows from a choice: slates, or why there are none.

    Attributes:
        choice: The choice.
        rules: The rules with the chosen numbers.
        slates: Slates under them; None where they conflict.
        conflict: Why there are none; None where there are some.
        room: How far each rule about all slates is from its bound, by name; see :meth:`Operation.slack`.
        figures: What the slates come to; see :func:`~recsys_budget.frontiers.figures`.
    """

    choice: Choice
    rules: tuple[Constraint, ...]
    slates: Slates | None
    conflict: Conflict | None
    room: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def certificate(self) -> Certificate | None:
        """That of the slates."""
        return None if self.slates is None else self.slates.certificate


class Operation:
    """Answers choices, from frontiers made from the same candidates and rules.

    Nothing here spends: models along an epsilon frontier were paid for when they were trained.

    Args:
        frontiers: At least one with a re-ranker behind it; at most one over epsilon.
        before: Slates in use today, with columns user, item and rank; None takes each user's most relevant
            items.

    Raises:
        SpecificationError: There is no re-ranker, or the frontiers are of different candidates.
        DataError: The slates in use are no table of slates.
    """

    def __init__(self, frontiers: tuple[Frontier, ...], before: pd.DataFrame | None = None) -> None:
        bases = [frontier.basis for frontier in frontiers]
        known = [basis for basis in bases if basis is not None and basis.reranker is not None]
        if len(known) < len(frontiers) or not known:
            raise SpecificationError(
                "explore frontiers that frontier() made with a reranker: what is chosen needs rules to follow"
            )
        if any(basis.over is not known[0].over for basis in known):
            raise SpecificationError(
                "these frontiers are of different users or catalogues; explore them apart"
            )
        paths = [f for f in frontiers if f.points and f.points[0].model is not None]
        if len(paths) > 1:
            raise SpecificationError("these are two frontiers over epsilon; give one")
        self.frontiers, self.path = frontiers, (paths[0] if paths else None)
        self.basis = _asks_all(frontiers, self.path) or known[0]
        assert self.basis.reranker is not None
        self.reranker = self.basis.reranker
        self.catalogue = self.basis.catalogue
        self._candidates: dict[float | None, Any] = {}
        self._prepared: dict[float | None, Prepared] = {}
        self._top: dict[float | None, pd.DataFrame] = {}
        self._in_use = None if before is None else self._slates(before)
        self._populations: dict[float | None, CandidateTable] = {}
        # Pairs of user and item as numbers, in order, and the row of the population that each is.
        self._places: dict[float | None, tuple[NDArray[np.int64], NDArray[np.intp]]] = {}
        self._results: dict[tuple[Any, ...], Result] = {}
        self._known: list[tuple[float | None, Reranker, Point]] | None = None

    @property
    def epsilons(self) -> tuple[float, ...]:
        """Along the path, ascending; empty where there is none."""
        return () if self.path is None else tuple(sorted(point.value for point in self.path.points))

    def numbers(self) -> dict[str, float]:
        """How much each rule asks at first, for those rules that have a number, slate size left out."""
        found = {}
        for rule in self.reranker.constraints:
            name, _ = number_of(hard_part(rule))
            if name is not None and name != "k":
                found[rule.name] = getattr(hard_part(rule), name)
        return found

    def start(self) -> Choice:
        """The choice that the frontiers were made at."""
        objective = self.reranker.objective
        weight = objective.diversity_weight if isinstance(objective, EngagementDiversity) else None
        epsilons = self.epsilons
        return Choice(epsilons[-1] if epsilons else None, weight, self.numbers())

    def candidates(self, epsilon: float | None) -> Any:
        """Of the model at this epsilon, as pandas or Scores."""
        if epsilon not in self._candidates:
            self._candidates[epsilon] = _native(self.basis.candidates(self._model(epsilon)))
        return self._candidates[epsilon]

    def _prepared_at(self, epsilon: float | None) -> Prepared:
        if epsilon not in self._prepared:
            self._prepared[epsilon] = self.basis.prepare(self.reranker, self.candidates(epsilon))
        return self._prepared[epsilon]

    def before(self, epsilon: float | None) -> pd.DataFrame:
        """Slates in use today; or each user's most relevant items, before rules and weights."""
        if self._in_use is not None:
            return self._in_use
        if epsilon not in self._top:
            top = top_k(self.candidates(epsilon), self.catalogue, self.reranker.slate_size)
            self._top[epsilon] = top
        return self._top[epsilon]

    def slate(self, result: Result, user: str) -> list[str]:
        """A user's items, in order."""
        assert result.slates is not None
        return _items_of(result.slates.frame, user)

    def slate_before(self, result: Result, user: str) -> list[str]:
        """A user's items in :meth:`before`, in order."""
        return _items_of(self.before(result.choice.epsilon), user)

    def users(self, epsilon: float | None) -> list[str]:
        """Users with candidates."""
        return self._population(epsilon).users.tolist()

    def answer(self, choice: Choice) -> Result:
        """Slates under the choice, or the conflict.

        Raises:
            SpecificationError: A number that its rule does not allow.
        """
        key = (choice.epsilon, choice.diversity, *sorted(choice.numbers.items()))
        if key in self._results:
            return self._results[key]
        rules = with_numbers(self.reranker.constraints, choice.numbers)
        weight = choice.diversity
        objective = self.reranker.objective if weight is None else EngagementDiversity(weight)
        asked = replace(self.reranker, objective=objective, constraints=rules)
        slates, conflict = None, None
        point = self._swept(choice.epsilon, asked)
        if point is not None and point.slates is not None:
            frame = nw.from_native(point.slates.frame, eager_only=True).to_pandas()
            slates = replace(point.slates, frame=frame)
        elif point is not None:
            conflict = point.conflict
        else:
            try:
                slates = self._prepared_at(choice.epsilon).rerank(
                    objective=objective, constraints=rules, progress=False
                )
            except InfeasibleError as error:
                conflict = error.conflict
        if len(self._results) >= _KEPT:
            self._results.pop(next(iter(self._results)))
        result = Result(choice, rules, slates, conflict)
        if slates is not None:
            room = self._room_of_all(rules, slates, choice.epsilon)
            result = replace(result, room=room, figures=figures(slates, self.catalogue))
        self._results[key] = result
        return self._results[key]

    def _swept(self, epsilon: float | None, asked: Reranker) -> Point | None:
        """The point of a frontier that asked the very same of the same candidates; None where none did."""
        if self._known is None:
            self._known = [
                (
                    point.value if frontier is self.path else self.start().epsilon,
                    frontier.basis.asked(frontier.swept, point.value),
                    point,
                )
                for frontier in self.frontiers
                if frontier.basis is not None and self._same_candidates(frontier)
                for point in frontier.points
            ]
        for value, made, point in self._known:
            if value != epsilon or made != asked:
                continue
            # Beyond the first number that is impossible, points hold the conflict of that one.
            if point.conflict is None or all(
                rule in asked.constraints for rule in point.conflict.constraints
            ):
                return point
        return None

    def _same_candidates(self, frontier: Frontier) -> bool:
        """Whether a frontier's points are of the candidates that choices are answered from."""
        basis = frontier.basis
        assert basis is not None
        if basis.served_history() is not self.basis.served_history():
            return False
        if frontier is self.path:
            return basis.n_candidates == self.basis.n_candidates
        if self.path is None and basis.source is self.basis.source:
            return True
        made, mine = _native(basis.candidates()), self.candidates(self.start().epsilon)
        return isinstance(made, pd.DataFrame) and made.equals(mine)

    def at(self, frontier: Frontier, place: int, choice: Choice) -> Choice:
        """The choice moved to a point of a frontier, all else as it is."""
        point: Point = frontier.points[place]
        if frontier is self.path:
            return replace(choice, epsilon=point.value)
        if frontier.swept == DIVERSITY:
            return replace(choice, diversity=point.value)
        return replace(choice, numbers={**choice.numbers, frontier.swept: point.value})

    def point(self, frontier: Frontier, choice: Choice) -> int:
        """The point of a frontier that is the choice, but for rounding on the way; -1 where none is."""

        def there(place: int) -> bool:
            other = self.at(frontier, place, choice)
            if (other.epsilon, other.numbers.keys()) != (choice.epsilon, choice.numbers.keys()):
                return False
            pairs = [(other.diversity or 0.0, choice.diversity or 0.0)]
            pairs += [(other.numbers[name], number) for name, number in choice.numbers.items()]
            return all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9) for a, b in pairs)

        return next(filter(there, range(len(frontier))), -1)

    def place(self, frontier: Frontier, result: Result) -> tuple[float, float] | None:
        """Where a result stands on a frontier's axes; None where it has no place there.

        Measured accuracy stays that of the point at its epsilon: it was measured under the rules that the
        path was made with.
        """
        known = dict(result.figures)
        if frontier is self.path:
            row = next(i for i, p in enumerate(frontier.points) if p.value == result.choice.epsilon)
            known = {str(name): value for name, value in frontier.frame.iloc[row].items()} | known
        elif frontier.swept in result.choice.numbers:
            rule = next(rule for rule in self.reranker.constraints if rule.name == frontier.swept)
            name, _ = number_of(hard_part(rule))
            known[str(name)] = result.choice.numbers[frontier.swept]
        elif result.choice.diversity is not None:
            known["weight"] = result.choice.diversity
        x, y = (float(known.get(axis, math.nan)) for axis in (frontier.x, frontier.y))
        return None if math.isnan(x) or math.isnan(y) else (x, y)

    def relaxed(self, result: Result, name: str) -> Choice | None:
        """The choice with one rule of a conflict as loose as settles it; None where no number does."""
        assert result.conflict is not None
        for rule, relaxation in zip(result.conflict.constraints, result.conflict.relaxations, strict=True):
            if rule.name == name and relaxation.relaxed is not None:
                first = tuple(self.reranker.constraints)[result.rules.index(rule)].name
                changed = getattr(hard_part(relaxation.relaxed), str(relaxation.field))
                if first in result.choice.numbers:
                    return replace(result.choice, numbers={**result.choice.numbers, first: changed})
        return None

    def reasons(self, result: Result, user: str) -> dict[str, str]:
        """Why each item of a user's slate that was not there before came in.

        Each is put to the test: the slate with the best item that gave way in its place. Either that breaks
        rules, which are named, or it lowers the objective.
        """
        now, first = self.slate(result, user), self.slate_before(result, user)
        table = self._table(result, user)
        place = {item: row for row, item in enumerate(self.catalogue.ids.take(table.items))}
        gone = [item for item in first if item not in now and item in place]
        reasons = {}
        for item in now:
            if item in first or not gone:
                continue
            swapped = np.array([place[gone[0] if other == item else other] for other in now])
            broken = [
                rule.name
                for rule in result.rules
                if rule.scope == "user" and not isinstance(rule, Soft) and rule.measure(swapped, table) > 1e-6
            ]
            if broken:
                reasons[item] = f"for {', '.join(broken)}"
            elif any(rule.scope == "population" for rule in result.rules):
                reasons[item] = "for the weight on diversity, or a rule about all slates"
            else:
                reasons[item] = "for the weight on diversity"
        return reasons

    def slack(self, result: Result, user: str) -> dict[str, float]:
        """How far each rule is from its bound: in a user's slate, or in all slates for a rule about them.

        In the rule's own unit, negative where a soft rule is violated; of a rule with several bounds the
        least.
        """
        one = self._table(result, user)
        at = _rows_of(pd.Index(one.items), pd.Index(self.catalogue.positions(self.slate(result, user))))
        room = {
            rule.name: _room(rule, one, at, np.arange(len(at)))
            for rule in result.rules
            if rule.scope == "user"
        }
        room |= result.room
        return {rule.name: room[rule.name] for rule in result.rules}

    def _room_of_all(
        self, rules: tuple[Constraint, ...], slates: Slates, epsilon: float | None
    ) -> dict[str, float]:
        """How far each rule about all slates is from its bound."""
        shared = [rule for rule in rules if rule.scope == "population"]
        if not shared:
            return {}
        everybody, n = self._population(epsilon), len(self.catalogue)
        if epsilon not in self._places:
            users = np.repeat(np.arange(len(everybody)), np.diff(everybody.offsets))
            pairs = users * n + everybody.items
            order = np.argsort(pairs)
            self._places[epsilon] = pairs[order], order
        pairs, order = self._places[epsilon]
        frame = slates.frame
        asked = everybody.users.get_indexer(frame["user"]) * n + self.catalogue.ids.get_indexer(frame["item"])
        at, places = order[np.searchsorted(pairs, asked)], frame["rank"].to_numpy() - 1
        return {rule.name: _room(rule, everybody, at, places) for rule in shared}

    def _table(self, result: Result, user: str) -> Any:
        everybody = self._population(result.choice.epsilon)
        return everybody.of(everybody.find(user))

    def _population(self, epsilon: float | None) -> CandidateTable:
        if epsilon not in self._populations:
            self._populations[epsilon] = CandidateTable.read(
                self.candidates(epsilon),
                self.catalogue,
                self.reranker.slate_size,
                self.basis.served_history(),
            )
        return self._populations[epsilon]

    def _slates(self, before: pd.DataFrame) -> pd.DataFrame:
        if missing := [name for name in ("user", "item", "rank") if name not in before]:
            raise DataError(f"the slates in use have no column {missing[0]!r}")
        slates = before.astype({"user": str, "item": str})
        slates["rank"] = pd.to_numeric(slates["rank"], errors="coerce")  # files may hold it as text
        if slates["rank"].isna().any():
            raise DataError("a rank of the slates in use is no number", column="rank")
        slates = slates.sort_values(["user", "rank"], kind="stable")
        if (unknown := self.catalogue.positions(slates["item"]) < 0).any():
            raise DataError(f"item {slates['item'][unknown].iloc[0]!r} in use is not in the catalogue")
        return slates

    def _model(self, epsilon: float | None) -> Any:
        if self.path is None or epsilon is None:
            return None
        return next(point.model for point in self.path.points if point.value == epsilon)


def _native(candidates: Any) -> Any:
    """A table as pandas; a matrix of scores as it is."""
    if isinstance(candidates, Scores):
        return candidates
    return nw.from_native(candidates, eager_only=True).to_pandas()


def _asks_all(frontiers: Sequence[Frontier], path: Frontier | None) -> Basis | None:
    """The first basis that has every weight and rule that the frontiers sweep; None where only epsilon is.

    Raises:
        SpecificationError: None has them all.
    """
    swept = [frontier for frontier in frontiers if frontier is not path and frontier.basis is not None]
    lacking = []
    for frontier in swept:
        basis = frontier.basis
        assert basis is not None
        assert basis.reranker is not None
        there = {rule.name for rule in basis.reranker.constraints}
        if isinstance(basis.reranker.objective, EngagementDiversity):
            there.add(DIVERSITY)
        missing = [other.swept for other in swept if other.swept not in there]
        if not missing:
            return basis
        lacking.append(f"the re-ranker of the frontier over {frontier.swept!r} has no {missing[0]!r}")
    if lacking:
        raise SpecificationError(
            f"{'; '.join(lacking)}. Sliders move one re-ranker: give one of the frontiers a re-ranker with "
            "all that is swept, a floor of 0 for a rule that is not to ask anything, or explore them apart"
        )
    return None


def _items_of(slates: pd.DataFrame, user: str) -> list[str]:
    items: list[str] = slates.loc[slates["user"] == user, "item"].tolist()
    return items


def _rows_of(known: pd.Index[Any], asked: pd.Index[Any]) -> NDArray[np.intp]:
    return np.asarray(known.get_indexer(asked), np.intp)


def _room(rule: Constraint, candidates: Any, at: NDArray[np.intp], places: NDArray[np.integer]) -> float:
    """The least that a rule's bounds leave, of candidates at these rows, each at its place of a slate."""
    if rule.positional:
        x = np.zeros((len(candidates.items), candidates.k))
        x[at, places] = 1.0
    else:
        x = np.zeros(len(candidates.items))
        x[at] = 1.0
    return float(np.min(np.asarray(rule.rhs(candidates)) - np.asarray(rule.lhs(x, candidates))))
