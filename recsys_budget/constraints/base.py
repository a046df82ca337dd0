"""What every constraint is: a named inequality, and an independent way to measure its violation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget.constraints.candidates import Candidates, Population
from recsys_budget.constraints.form import ConcaveForm
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import SpecificationError

# A larger violation, in the constraint's own unit, is a violation.
TOLERANCE = 1e-6


def _refuse_own_lhs(kind: type, written: str) -> None:
    """Solvers read what lhs is made from, so a lhs written beside it would mean something else."""
    if "lhs" in vars(kind):
        raise TypeError(f"{kind.__name__} must write {written} and not lhs, which is made from it")


@dataclass(frozen=True)
class Constraint(ABC):
    """A rule about slates: ``lhs(x, candidates) <= rhs(candidates)``, where x is 1 for chosen candidates.

    The inequality is what the rule *means*; ``measure`` counts the violation of an emitted slate item by
    item, without the inequality, and so checks solver and inequality both. Both have the same unit: the
    violation is the sum of what each entry of lhs is above its rhs. Subclasses are frozen dataclasses of the
    numbers asked for. A rule is hard; :class:`Soft` makes a soft rule of any.

    A rule of one's own subclasses this one and writes the abstract methods; or see
    :class:`~recsys_budget.constraints.custom.Custom`.

    Attributes:
        name: How errors and certificates call the rule; unique within one re-ranker. Empty takes a name made
            from the numbers asked for.
        reason: Why the owner wants the rule, in the owner's words.
    """

    # Fields that bound something: +1 where a greater number asks for more, -1 where a smaller one does.
    tighter: ClassVar[Mapping[str, int]] = {}

    name: str = field(default="", kw_only=True)
    reason: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        for what in ("name", "reason"):
            if not isinstance(getattr(self, what), str):
                raise SpecificationError(f"{type(self).__name__}: {what} must be text")
        if not self.name:
            object.__setattr__(self, "name", self.default_name())

    @property
    def penalty(self) -> float:
        """What a unit of violation takes from the objective: infinitely much for a hard rule."""
        return math.inf

    @property
    def hard(self) -> bool:
        """Whether no emitted slate may violate the rule."""
        return math.isinf(self.penalty)

    @property
    def scope(self) -> Literal["user", "population"]:
        """Whether the rule is about each user's slate, or about all slates together."""
        return "user"

    @property
    def positional(self) -> bool:
        """Whether the rule reads the order of a slate: lhs then takes an assignment and not a selection."""
        return False

    @abstractmethod
    def default_name(self) -> str:
        """The name taken when the owner gives none."""

    @abstractmethod
    def rhs(self, candidates: Any) -> float | NDArray[np.float64]:
        """Right-hand side: a number, or a vector as long as ``lhs``."""

    @abstractmethod
    def lhs(self, x: Any, candidates: Any) -> Any:
        """Left-hand side, convex in x by cvxpy's rules, that serves cvxpy and numpy alike.

        Slicing and operators do; for more, see :mod:`recsys_budget.constraints.form`.

        Args:
            x: Selection of shape ``(n,)``, 1 for chosen candidates; or, where ``positional``, assignment of
                shape ``(n, k)``, 1 where a candidate is at a place. A float64 array or a cvxpy Variable.
            candidates: What x selects from: the :class:`Candidates` of a user, or for a rule about all slates
                together the :class:`Population`, whose rows x then has.

        Returns:
            A number or vector of x's kind.
        """

    @abstractmethod
    def measure(self, chosen: NDArray[np.integer], candidates: Any) -> float:
        """Violation of emitted slates in the rule's own unit; 0.0 when the rule holds.

        Anybody's slates will do, whether or not a re-ranker made them.

        Args:
            chosen: Rows of the candidates in the order of the slate, shape ``(any,)``; for a rule about all
                slates together as in :class:`Population`, shape ``(n_users, any)``.
            candidates: The candidates of that user, or the population.
        """

    def measure_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """Violation of each user's slate, shape ``(n_users,)``; for a rule about one user's slate.

        Args:
            chosen: As in :class:`Population`.
            population: The candidates.
        """
        return np.array([self.measure(rows[rows >= 0], population.of(u)) for u, rows in enumerate(chosen)])

    def check(self, catalogue: ItemCatalogue, k: int) -> None:  # noqa: B027 - most rules suit every catalogue
        """Raise SpecificationError if this rule asks for what the catalogue or a slate of k does not have."""

    def explain(self, candidates: Any) -> str:
        """What the rule asks beside what these candidates offer, in words, for a conflict's message."""
        return f"asked of {len(candidates)} candidates"


class UserConstraint(Constraint):
    """A rule about one user's slate that is measured for all users at once."""

    def measure(self, chosen: NDArray[np.integer], candidates: Candidates) -> float:
        """As in :class:`Constraint`."""
        return float(self.measure_all(np.asarray(chosen)[None, :], Population.of_one(candidates))[0])

    @abstractmethod
    def measure_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """As in :class:`Constraint`."""


class PopulationConstraint(Constraint):
    """A rule about all users' slates together.

    What it asks of one user depends on the candidates of the others, so slates made under it are not free
    post-processing of private scores; see :class:`~recsys_budget.rerank.Certificate`.
    """

    @property
    def scope(self) -> Literal["user", "population"]:
        """All slates together."""
        return "population"

    def explain(self, candidates: Population) -> str:
        """How many users there are."""
        return f"asked of {len(candidates)} users together"


class LinearConstraint(Constraint):
    """A rule whose lhs is ``coefficients @ x``, or ``coefficients @ (x @ position_weights)``."""

    def __init_subclass__(cls, **options: Any) -> None:
        _refuse_own_lhs(cls, "coefficients")
        super().__init_subclass__(**options)

    @abstractmethod
    def coefficients(self, candidates: Any) -> Any:
        """Matrix of shape ``(m, n)``: dense for one user's candidates, sparse for a population."""

    def position_weights(self, k: int) -> NDArray[np.float64] | None:
        """What each of k places counts, shape ``(k,)``; None where the order of a slate has no say."""
        return None

    @property
    def positional(self) -> bool:
        """Whether places count differently."""
        return self.position_weights(1) is not None

    def lhs(self, x: Any, candidates: Any) -> Any:
        """The left-hand sides, shape ``(m,)``."""
        weights = self.position_weights(candidates.k)
        return self.coefficients(candidates) @ (x if weights is None else x @ weights)


class ItemConstraint(LinearConstraint):
    """A linear rule whose coefficients are facts about items, the same for every user.

    Where such a rule's coefficients are all 0 and 1, or all 0 and -1, it bounds how many items of a set are
    chosen. Re-rankers find sets that are nested or disjoint by looking at these numbers, and then need no
    general solver; a rule of one's own profits too.
    """

    @abstractmethod
    def item_rows(self, catalogue: ItemCatalogue) -> sparse.csr_array:
        """Coefficients of all items, shape ``(n_items, m)``."""

    def coefficients(self, candidates: Any) -> Any:
        """The candidates' part of :meth:`item_rows`."""
        rows = item_rows(self, candidates.catalogue)[candidates.items].T
        return rows.toarray() if isinstance(candidates, Candidates) else rows.tocsr()


class ConvexConstraint(Constraint):
    """A rule that a concave function of the selection is at least so much."""

    def __init_subclass__(cls, **options: Any) -> None:
        _refuse_own_lhs(cls, "form")
        super().__init_subclass__(**options)

    @abstractmethod
    def form(self, candidates: Any) -> ConcaveForm:
        """The concave function."""

    def lhs(self, x: Any, candidates: Any) -> Any:
        """The function's negative, a number."""
        return -self.form(candidates)(x)


@dataclass(frozen=True)
class Soft(Constraint):
    """Any rule as a wish: slates may violate it, and the objective falls by ``weight`` for each unit they do.

    The violation is measured and reported like that of a hard rule. The name and reason are the rule's own
    unless given.

    Attributes:
        constraint: The rule.
        weight: What a unit of violation costs, in units of the objective: of the user's objective for a rule
            about one slate, of the sum of all users' objectives for a rule about all slates. Above 0.

    Examples:
        >>> from recsys_budget.constraints import CategoryMinimum
        >>> Soft(CategoryMinimum("Documentary", 2), 0.05).name
        'at least 2 Documentary'
    """

    constraint: Constraint
    weight: float

    def __post_init__(self) -> None:
        if not isinstance(self.constraint, Constraint) or isinstance(self.constraint, Soft):
            raise SpecificationError(f"Soft wraps a hard constraint, not {self.constraint!r}")
        require_number("Soft", "weight", self.weight, least=0.0, open_below=True)
        said = {"name": self.name or self.constraint.name, "reason": self.reason or self.constraint.reason}
        object.__setattr__(self, "constraint", replace(self.constraint, **said))
        for what, text in said.items():
            object.__setattr__(self, what, text)
        super().__post_init__()

    @property
    def penalty(self) -> float:
        """The weight."""
        return float(self.weight)

    @property
    def scope(self) -> Literal["user", "population"]:
        """That of the rule."""
        return self.constraint.scope

    @property
    def positional(self) -> bool:
        """Whether the rule reads positions."""
        return self.constraint.positional

    def default_name(self) -> str:
        """That of the rule."""
        return self.constraint.name

    def rhs(self, candidates: Any) -> float | NDArray[np.float64]:
        """That of the rule."""
        return self.constraint.rhs(candidates)

    def lhs(self, x: Any, candidates: Any) -> Any:
        """That of the rule."""
        return self.constraint.lhs(x, candidates)

    def measure(self, chosen: NDArray[np.integer], candidates: Any) -> float:
        """That of the rule."""
        return self.constraint.measure(chosen, candidates)

    def measure_all(self, chosen: NDArray[np.integer], population: Population) -> NDArray[np.float64]:
        """That of the rule."""
        return self.constraint.measure_all(chosen, population)

    def check(self, catalogue: ItemCatalogue, k: int) -> None:
        """As for the rule."""
        self.constraint.check(catalogue, k)

    def explain(self, candidates: Any) -> str:
        """As for the rule."""
        return self.constraint.explain(candidates)


def hard_part(constraint: Constraint) -> Constraint:
    """The rule inside a soft one; any other as it is."""
    return constraint.constraint if isinstance(constraint, Soft) else constraint


_KEPT = 256
_ROWS: WeakKeyDictionary[ItemCatalogue, dict[Hashable, sparse.csr_array]] = WeakKeyDictionary()


def item_rows(constraint: ItemConstraint, catalogue: ItemCatalogue) -> sparse.csr_array:
    """The rule's ``item_rows``, worked out once a catalogue unless many others were since."""
    known = _ROWS.setdefault(catalogue, {})
    if constraint not in known:
        if len(known) >= _KEPT:  # a slider makes a new rule at each move
            known.clear()
        known[constraint] = sparse.csr_array(constraint.item_rows(catalogue)).astype(np.float64)
    return known[constraint]


def indicator(members: NDArray[np.bool_]) -> sparse.csr_array:
    """A sparse column with 1 where true, shape ``(n, 1)``."""
    return sparse.csr_array(members.astype(np.float64)[:, None])


def require_count(kind: str, field: str, value: object, *, least: int) -> None:
    """Raise SpecificationError unless the value is a whole number of at least ``least``."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:  # type: ignore[operator]
        raise SpecificationError(f"{kind}: {field}={value!r}, but it must be a whole number, {least} or more")


def require_number(
    kind: str,
    field: str,
    value: object,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    open_below: bool = False,
) -> None:
    """Raise SpecificationError unless the value is a finite number within the limits."""
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    inside = real and math.isfinite(value) and least <= value <= most  # type: ignore[arg-type, operator]
    if not inside or (open_below and value == least):
        limits = f"{'above' if open_below else 'at least'} {least:g}" if math.isfinite(least) else "finite"
        limits += f" and at most {most:g}" if math.isfinite(most) else ""
        raise SpecificationError(f"{kind}: {field}={value!r}, but it must be a number, {limits}")


def require_name(kind: str, field: str, value: object) -> None:
    """Raise SpecificationError unless the value is text that is not empty."""
    if not isinstance(value, str) or not value:
        raise SpecificationError(f"{kind} needs the name of a {field}, not {value!r}")
