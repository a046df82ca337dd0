"""Concave functions of a selection, written once for solvers, for cvxpy and for numpy.

``log`` and ``positive`` are the two functions that operators cannot write. On arrays they are numpy's; the
module that knows cvxpy registers how to apply them to its expressions, so that nothing here imports a solver.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any

import numpy as np
from numpy.typing import NDArray


@singledispatch
def log(z: Any) -> Any:
    """Natural logarithm, entry by entry; concave."""
    return np.log(z)


@singledispatch
def positive(z: Any) -> Any:
    """``max(z, 0)``, entry by entry; convex."""
    return np.maximum(z, 0.0)


@dataclass(frozen=True, eq=False)
class Separable(ABC):
    """A convex function ``sum_j f_j(y_j)`` of a vector y, never infinite where y >= 0.

    Attributes:
        weight: Factor in front of the sum, not negative.
    """

    weight: float

    def scaled(self, factor: float) -> Separable:
        """The same function times a factor that is not negative."""
        return replace(self, weight=factor * self.weight)

    @abstractmethod
    def __call__(self, y: Any) -> Any:
        """The sum, a number; y is an array or a cvxpy expression of shape ``(m,)``."""

    @abstractmethod
    def tangents(self, y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Values and slopes of each ``f_j`` at ``y_j``, shape of y."""

    @abstractmethod
    def points(self, k: int) -> NDArray[np.float64]:
        """Where to put first tangents, shape ``(points, 1)`` or ``(points, m)``; only affects speed."""


# Shares of the slate that one category holds.
_SHARES = np.array([[0.0, 0.03, 0.06, 0.09, 0.12, 0.16, 0.2, 0.25, 0.3]]).T


@dataclass(frozen=True, eq=False)
class SquaredNorm(Separable):
    """``weight * ||y||^2``."""

    def __call__(self, y: Any) -> Any:
        """The sum of squares, times the weight."""
        return self.weight * (np.ones(y.shape[0]) @ (y**2))

    def tangents(self, y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Squares, and twice y."""
        return self.weight * np.square(y), 2.0 * self.weight * y

    def points(self, k: int) -> NDArray[np.float64]:
        """A few shares of the slate."""
        return _SHARES * k


@dataclass(frozen=True, eq=False)
class Shortfall(Separable):
    """``weight * sum_j max(0, target - y_j)``.

    Attributes:
        target: What each entry should reach.
    """

    target: float

    def __call__(self, y: Any) -> Any:
        """The shortfall of all entries, times the weight."""
        return self.weight * (np.ones(y.shape[0]) @ positive(self.target - y))

    def tangents(self, y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Shortfalls; slope -1 below the target, 0 from there on."""
        short = self.target - y
        return self.weight * np.maximum(short, 0.0), self.weight * -(short > 0.0).astype(np.float64)

    def points(self, k: int) -> NDArray[np.float64]:
        """One on each side of the corner: these two tangents are the function."""
        return np.array([[self.target - 1.0], [self.target + 1.0]])


@dataclass(frozen=True, eq=False)
class Divergence(Separable):
    """``weight * KL(p || (1 - alpha) y + alpha p)`` in nats, for shares y.

    Attributes:
        target: The shares p, shape ``(m,)``, not negative; where 0, the entry of y has no say.
        alpha: Share of p mixed into y, which keeps the divergence finite.

    References:
        Steck (2018), equations 6 and 7, doi:10.1145/3240323.3240372.
    """

    target: NDArray[np.float64]
    alpha: float

    def __call__(self, y: Any) -> Any:
        """The divergence, times the weight."""
        p, kept = self._kept()
        if not len(kept):
            return 0.0 * (np.ones(y.shape[0]) @ y)
        mixed = (1.0 - self.alpha) * y[kept] + self.alpha * p
        return self.weight * (p @ np.log(p) - p @ log(mixed))

    def tangents(self, y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Each entry's part of the sum, and its slope."""
        values, slopes = np.zeros((2, *y.shape))
        p, kept = self._kept()
        mixed = (1.0 - self.alpha) * np.maximum(y[..., kept], 0.0) + self.alpha * p
        values[..., kept] = p * np.log(p / mixed)
        slopes[..., kept] = -(1.0 - self.alpha) * p / mixed
        return self.weight * values, self.weight * slopes

    def points(self, k: int) -> NDArray[np.float64]:
        """A few shares of the slate."""
        return np.vstack([_SHARES, [[0.5], [1.0]]])

    def _kept(self) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        kept = np.flatnonzero(self.target > 0.0)
        return self.target[kept], kept


@dataclass(frozen=True, eq=False)
class ConcaveForm:
    """``constant + linear @ x - sum of f(factor.T @ x)`` over terms, each f convex and separable.

    Attributes:
        linear: Shape ``(n,)``, or ``(n, k)`` where the positions of items have a say; float64.
        terms: Pairs of a factor, shape ``(n, m)``, dense or sparse, and a function of m numbers.
        constant: What is added whatever x is.
    """

    linear: NDArray[np.float64]
    terms: tuple[tuple[Any, Separable], ...] = ()
    constant: float = 0.0

    @property
    def is_linear(self) -> bool:
        """Whether there is no term but the linear one."""
        return not self.terms

    @property
    def positional(self) -> bool:
        """Whether the function reads positions, and so takes an assignment."""
        return self.linear.ndim == 2

    def __call__(self, x: Any) -> Any:
        """The value, a number.

        Args:
            x: Selection of shape ``(n,)``, or assignment ``(n, k)`` where ``positional``; an array or a cvxpy
                expression.
        """
        if self.positional:
            k = self.linear.shape[1]
            value = sum(self.linear[:, p] @ x[:, p] for p in range(k))
            x = x @ np.ones(k)
        else:
            value = self.linear @ x
        for factor, function in self.terms:
            value = value - function(factor.T @ x)
        return value + self.constant

    def __add__(self, other: ConcaveForm) -> ConcaveForm:
        a, b = self.linear, other.linear
        if a.ndim != b.ndim:
            a, b = (part if part.ndim == 2 else part[:, None] for part in (a, b))
        return ConcaveForm(a + b, self.terms + other.terms, self.constant + other.constant)

    def scaled(self, factor: float) -> ConcaveForm:
        """The same function times a factor that is not negative."""
        terms = tuple((matrix, function.scaled(factor)) for matrix, function in self.terms)
        return ConcaveForm(factor * self.linear, terms if factor > 0.0 else (), factor * self.constant)
