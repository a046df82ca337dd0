"""Why no slate exists: a smallest set of constraints that cannot hold together, and what would settle it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from recsys_budget import _html
from recsys_budget.constraints import Constraint
from recsys_budget.errors import InfeasibleError, SpecificationError


@dataclass(frozen=True, eq=False)
class Relaxation:
    """How far one constraint of a conflict must give way, all others as they are.

    Attributes:
        constraint: As it was asked for.
        relaxed: With the smallest change of its number that settles the conflict; None where no change of its
            number does, or none is known. Leaving the constraint out settles the conflict in any case.
        field: The number that changes; None where the constraint has none.
        amount: How far that number moves, in its own unit; without such a number, the violation of the
            constraint that has to be put up with, in the constraint's unit. None where no amount is known.
        exact: Whether nothing smaller will do; otherwise something smaller may.
        complete: Whether all hard constraints can then be satisfied, rather than the conflict's own alone.
        n_users: Users for whom that is so, the others having been too many to look at each.
    """

    constraint: Constraint
    relaxed: Constraint | None
    field: str | None
    amount: float | None
    exact: bool
    complete: bool
    n_users: int

    def __str__(self) -> str:
        name = repr(self.constraint.name)
        if self.relaxed is not None:
            was, becomes = (getattr(rule, str(self.field)) for rule in (self.constraint, self.relaxed))
            return f"{name}: {self.field} {_number(was)} -> {_number(becomes)}{self._caveats()}"
        if self.amount is not None:
            return (
                f"{name}: leave it out, or put up with a violation of {_number(self.amount)}{self._caveats()}"
            )
        return f"{name}: no change of its number is known to do; leave it out"

    def _caveats(self) -> str:
        said = [] if self.exact else ["less may do"]
        if not self.complete:
            said.append("other constraints conflict as well")
        return f" ({'; '.join(said)})" if said else ""


@dataclass(frozen=True)
class Shortage:
    """What one provider or item lacks, or has too much of, in the slates that violate a constraint least.

    Attributes:
        constraint: Name of the constraint about all slates.
        kind: What is short.
        who: Name of the provider, or id of the item.
        amount: How far its sum is from the bound, in the constraint's unit, above 0.
        below: Whether it is below a floor, rather than above a ceiling.
    """

    constraint: str
    kind: Literal["provider", "item"]
    who: str
    amount: float
    below: bool

    def __str__(self) -> str:
        return f"{self.kind} {self.who!r} {self._how()} for {self.constraint!r}"

    def _how(self) -> str:
        return f"{_number(self.amount)} {'short' if self.below else 'too much'}"


@dataclass(frozen=True, eq=False)
class Conflict(Collection[str]):
    """Hard constraints that no slate satisfies together; iterates over their names.

    Attributes:
        constraints: The conflicting constraints, in the order asked.
        rules: Every constraint that was asked for, soft ones too.
        offers: For each conflicting constraint what the candidates offer, in words.
        proven: Whether two things are certain: that no slate satisfies the conflicting constraints (a
            complete search found none, or ``certified``), and that leaving out any one of them leaves some
            that do (a solution was found and checked). A slate size beside a constraint that is not linear or
            reads positions is taken as given: only the others can be left out. So it is in populations too
            large for integer programs, where prices prove the conflict.
        certified: Whether weights of the constraints prove without trust in any solver that they conflict:
            their weighted sum, in float64, asks for more than any candidates could give (Farkas' lemma).
        relaxations: One for each conflicting constraint.
        shortages: Providers and items for which constraints about all slates fail, worst first, at most
            twenty.
        users: Ids of users whom this conflict leaves without a slate, at most ten.
        n_users: How many there are.
        n_without: Users without a slate, for this or other reasons.
        n_unchecked: Of these, users for whom it was not found out whether this conflict is the reason.
        n_asked: Users in all.
    """

    constraints: tuple[Constraint, ...]
    rules: tuple[Constraint, ...]
    offers: tuple[str, ...]
    proven: bool
    certified: bool
    relaxations: tuple[Relaxation, ...]
    shortages: tuple[Shortage, ...]
    users: tuple[str, ...]
    n_users: int
    n_without: int
    n_unchecked: int
    n_asked: int

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the conflicting constraints."""
        return tuple(constraint.name for constraint in self.constraints)

    @property
    def together(self) -> bool:
        """Whether some of the constraints are about all slates together."""
        return any(constraint.scope == "population" for constraint in self.constraints)

    def __len__(self) -> int:
        return len(self.constraints)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def relaxed(self, name: str) -> tuple[Constraint, ...]:
        """All constraints asked for, with the named one relaxed as little as settles the conflict.

        Args:
            name: Name of one of the conflicting constraints.

        Raises:
            SpecificationError: There is no such constraint in the conflict, or no change of its number is
                known to settle it.
        """
        for relaxation in self.relaxations:
            if relaxation.constraint.name == name:
                if relaxation.relaxed is None:
                    raise SpecificationError(f"{relaxation}; see Conflict.without")
                return tuple(
                    relaxation.relaxed if rule is relaxation.constraint else rule for rule in self.rules
                )
        raise SpecificationError(self._no_member(name))

    def without(self, name: str) -> tuple[Constraint, ...]:
        """All constraints asked for but the named one of the conflict.

        Raises:
            SpecificationError: There is no such constraint in the conflict.
        """
        if name not in self:
            raise SpecificationError(self._no_member(name))
        return tuple(rule for rule in self.rules if rule.name != name)

    def _no_member(self, name: str) -> str:
        return f"{name!r} is not part of this conflict, which is of {', '.join(map(repr, self.names))}"

    def __repr__(self) -> str:
        return f"Conflict({', '.join(map(repr, self.names))}; {self._who()})"

    def _who(self) -> str:
        """The users that are hit."""
        if self.together:
            return f"all {self.n_asked} users together" if self.n_asked > 1 else f"user {self.users[0]!r}"
        return f"user {self.users[0]!r}" + (
            f" and {self.n_users - 1} more of {self.n_asked}" if self.n_users > 1 else ""
        )

    def _rest(self) -> str:
        """The users without a slate that are not hit."""
        others = self.n_without - self.n_users - self.n_unchecked
        said = [f"{others} more users have no slate for other reasons"] if others else []
        if self.n_unchecked:
            said.append(f"{self.n_unchecked} more users without a slate were not looked at")
        return "; ".join(said)

    def _evidence(self) -> str:
        how = "weights that were checked" if self.certified else "a complete search"
        if self.proven:
            return f"Proven by {how}; without any one of these, the others can be satisfied."
        if self.certified:
            return f"Proven by {how}, but perhaps not all of these are needed."
        return "Not proven: it was not found out whether all of these are needed."

    def __str__(self) -> str:
        lines = [f"{self._who()}: no slate satisfies{' together' if len(self) > 1 else ''}"]
        for rule, offer in zip(self.constraints, self.offers, strict=True):
            lines.append(f"  {rule.name!r}{_because(rule)}: {offer}")
        if len(self.users) > 1 and not self.together:
            more = "" if len(self.users) == self.n_users else ", ..."
            lines.append(f"Users hit: {', '.join(map(repr, self.users))}{more}")
        if rest := self._rest():
            lines.append(f"{rest}.")
        if self.shortages:
            lines.append("At the least violation:")
            lines += [f"  {shortage}" for shortage in self.shortages]
        lines.append(
            "Relax one of these constraints, or pass candidates that offer more. The least that does:"
        )
        lines += [f"  {relaxation}" for relaxation in self.relaxations]
        return "\n".join([*lines, self._evidence()])

    def _repr_html_(self) -> str:
        """A card; all that anybody supplied is escaped."""
        rows = [
            (rule.name, rule.reason, offer, str(relaxation).removeprefix(f"{rule.name!r}: "))
            for rule, offer, relaxation in zip(self.constraints, self.offers, self.relaxations, strict=True)
        ]
        parts = [
            _html.table(rows, ["constraint", "asked because", "what there is", "the least that settles it"])
        ]
        if self.shortages:
            short = [(s.kind, s.who, s._how(), s.constraint) for s in self.shortages]
            parts.append(
                _html.details("Who is short", _html.table(short, ["what", "who", "amount", "constraint"]))
            )
        if len(self.users) > 1 and not self.together:
            parts.append(_html.details(f"{self.n_users} users are hit", ", ".join(self.users)))
        if rest := self._rest():
            parts.append(_html.text(f"{rest}."))
        together = " together" if len(self) > 1 else ""
        return _html.card(f"{self._who()}: no slate satisfies{together}", *parts, note=self._evidence())


def infeasible(conflict: Conflict) -> InfeasibleError:
    """The error that says what a conflict says."""
    alone = conflict.users[0] if conflict.users and not (conflict.together and conflict.n_asked > 1) else None
    return InfeasibleError(str(conflict), user=alone, conflict=conflict)


def _because(rule: Constraint) -> str:
    return f" (asked because: {rule.reason!r})" if rule.reason else ""


def _number(value: float) -> str:
    return f"{value:.6g}"
