"""What budgeted queries hand out: noisy values, with the size of their noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsys_budget.privacy.mechanism import GaussianMechanism


@dataclass(frozen=True, eq=False, repr=False)
class NoisyValues:
    """Noisy answers, one a name.

    Attributes:
        what: What they are, in words.
        names: Item ids, category names or metrics, shape ``(n,)``.
        values: Shape ``(n,)``, float64, read-only. Counts are not clipped, so they are unbiased and may be
            negative.
        standard_errors: Of the noise alone, shape ``(n,)``, float64, read-only: how far the values are from
            those without noise, not how far those are from what other users would have given.
        mechanism: What was paid for.
        sensitivity: The largest change in Euclidean norm that one user can make to the sums behind the
            values; the noise on them is this times the mechanism's noise multiplier.
        private: False when repeatable noise was used: then nothing is promised.
    """

    what: str
    names: pd.Index[Any]
    values: NDArray[np.float64]
    standard_errors: NDArray[np.float64]
    mechanism: GaussianMechanism
    sensitivity: float
    private: bool

    def __post_init__(self) -> None:
        for array in (self.values, self.standard_errors):
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        errors = self.standard_errors
        spread = f"{errors.min():.3g}" + (f" to {errors.max():.3g}" if errors.max() > errors.min() else "")
        return f"NoisyValues({self.what}: {len(self)}, standard error {spread}, {_label(self)})"

    def to_frame(self) -> pd.DataFrame:
        """One row a name: the name, its value and the standard error of the noise."""
        return pd.DataFrame(
            {self.names.name: self.names, "value": self.values, "standard_error": self.standard_errors}
        )


@dataclass(frozen=True, eq=False, repr=False)
class NoisyGram:
    """A noisy item-item matrix.

    Attributes:
        items: Item ids of rows and columns, shape ``(n,)``.
        matrix: Shape ``(n, n)``, float64, symmetric, read-only; unbiased, so its smallest eigenvalues may be
            negative.
        standard_error: Of the noise on each entry off the diagonal; on the diagonal it is sqrt(2) times this.
        mechanism: What was paid for.
        sensitivity: The largest change in Frobenius norm that one user can make to the matrix.
        private: False when repeatable noise was used: then nothing is promised.
    """

    items: pd.Index[Any]
    matrix: NDArray[np.float64]
    standard_error: float
    mechanism: GaussianMechanism
    sensitivity: float
    private: bool

    def __post_init__(self) -> None:
        self.matrix.setflags(write=False)

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        n = len(self)
        return f"NoisyGram({n} x {n}, standard error {self.standard_error:.3g}, {_label(self)})"

    def to_frame(self) -> pd.DataFrame:
        """The matrix with item ids as rows and columns."""
        return pd.DataFrame(self.matrix, index=self.items, columns=self.items)


def _label(released: NoisyValues | NoisyGram) -> str:
    return "private" if released.private else "not private: repeatable noise was used"
