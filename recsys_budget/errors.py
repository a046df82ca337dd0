"""Every error this package raises on purpose.

Each error carries its figures as fields, and its message says what was asked, what was allowed and what
to do next. Catch :class:`RecsysBudgetError` for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any


class RecsysBudgetError(Exception):
    """Base of every error raised on purpose by this package. Errors keep their fields when pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.args), vars(self)


def _rebuilt(kind: type[RecsysBudgetError], args: tuple[Any, ...]) -> RecsysBudgetError:
    """An error without its fields, as constructors ask for more than the message."""
    error = kind.__new__(kind)
    error.args = args
    return error


class DataError(RecsysBudgetError, ValueError):
    """Data that cannot be read as what it is said to be.

    Attributes:
        path: File at fault, or None for in-memory data.
        line: 1-based line in that file (or row of a frame), or None.
        column: Column at fault, or None.
        reason: The message without the place.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | PathLike[str] | None = None,
        line: int | None = None,
        column: str | None = None,
    ) -> None:
        self.path, self.line, self.column, self.reason = path, line, column, message
        where = [str(path)] if path is not None else []
        if line is not None:
            where.append(f"{'line' if path is not None else 'row'} {line}")
        if column is not None:
            where.append(f"column {column!r}")
        super().__init__(f"{', '.join(where)}: {message}" if where else message)


class CheckpointError(DataError):
    """A training checkpoint that is missing, torn or altered, belongs elsewhere, or cannot be written."""


class SpecificationError(RecsysBudgetError, ValueError):
    """A request that contradicts itself or the rules, found before any data is read."""


class MissingExtraError(RecsysBudgetError, ImportError):
    """A feature was called whose optional packages are not installed.

    Attributes:
        extra: Name of the extra that brings them.
    """

    def __init__(self, package: str, extra: str) -> None:
        self.extra = extra
        super().__init__(
            f"this feature needs the package {package!r}, which is not installed; "
            f'run: pip install "recsys-budget[{extra}]", or in a copy of the repository: '
            f'pip install ".[{extra}]"',
            name=package,
        )


class BudgetError(RecsysBudgetError):
    """Base of errors about the privacy budget."""


class BudgetExceededError(BudgetError):
    """A reservation would take the total past the cap; nothing was spent.

    Attributes:
        requested: Epsilon that the request would cost alone.
        remaining: Epsilon left under the cap before the request; 0 when nothing more fits.
        cap: Epsilon of the budget.
        largest: The largest request of the same shape that would fit: fewer steps, or where not even one fits
            more noise. None when nothing of that shape does.
    """

    def __init__(
        self,
        message: str,
        *,
        requested: float,
        remaining: float,
        cap: float,
        largest: Sequence[Any] | None = None,
    ) -> None:
        self.requested, self.remaining, self.cap = requested, remaining, cap
        self.largest = None if largest is None else tuple(largest)
        super().__init__(message)


class ReservationError(BudgetError):
    """A release that was not reserved, was used already, or is asked for in another process."""


class ReservationUsedUpError(ReservationError):
    """Every release of a reserved mechanism was taken: training stops here."""


class LedgerError(BudgetError):
    """Base of errors about the ledger itself; nothing is granted."""


class LedgerCorruptError(LedgerError):
    """The ledger's file is damaged, edited, or not the newest: what it says of spending cannot be trusted."""


class LedgerUnavailableError(LedgerError):
    """The ledger's file cannot be read or written now: permissions, a full disk, a lock, a newer format."""


class PopulationError(LedgerError):
    """Users who already spend from another population's budget."""


class UnsupportedMechanismError(BudgetError, TypeError):
    """A mechanism that the accountant cannot interpret; nothing was spent."""


class SensitivityError(BudgetError):
    """A made-up user moved the clipped sum of gradients by more than its bound: noise would not cover it.

    Attributes:
        sensitivity: How far, in units of the bound.
    """

    def __init__(self, message: str, *, sensitivity: float) -> None:
        self.sensitivity = sensitivity
        super().__init__(message)


class SolverError(RecsysBudgetError):
    """Base of errors about solving and fitting."""


class InfeasibleError(SolverError):
    """Hard constraints that no slate can satisfy together.

    Attributes:
        user: Id of the first user whose slate is impossible; None where the rules are about all users
            together.
        conflict: The :class:`~recsys_budget.rerank.Conflict`: constraints of which none can be spared, and
            what would settle it. Iterates over their names.
    """

    def __init__(self, message: str, *, user: str | None, conflict: Any) -> None:
        self.user, self.conflict = user, conflict
        super().__init__(message)


class SolverTimeoutError(SolverError):
    """The time limit passed before every user had a slate that satisfies the hard rules.

    Attributes:
        time_limit: Seconds that were allowed.
        users: Ids of users without a slate, at most ten.
        n_users: How many there are.
    """

    def __init__(self, message: str, *, time_limit: float, users: Sequence[str], n_users: int) -> None:
        self.time_limit, self.users, self.n_users = time_limit, tuple(users), n_users
        super().__init__(message)


class UnprovenBoundsError(SolverError):
    """Noisy loads that do not prove every hard bound about all slates, so no slate is handed out.

    The budget is spent. All that this error says is made from what was released.

    Attributes:
        certificate: The :class:`~recsys_budget.rerank.PrivateCertificate` of the slates not handed out.
    """

    def __init__(self, message: str, *, certificate: Any) -> None:
        self.certificate = certificate
        super().__init__(message)


class NumericalError(SolverError):
    """Numbers that fail a check, so they are not handed out: a solver's answer, parameters or scores."""


class PrivacyWarning(UserWarning):
    """A choice that weakens what the budget means, though it is allowed."""
