"""What no slates can pass: upper bounds on a trade-off, put together from the certificates of its points."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

# Abscissae at which a curved bound is worked out between two ends.
_DRAWN = 201


def envelope(
    weights: NDArray[np.float64], bounds: NDArray[np.float64], x: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The most that y can be beside each x, where ``(1 - w) y + w x <= bound`` for each weight w.

    Each certificate of a weighted sum bounds both parts together: a half-plane. All of them hold at once, so
    the least of them bounds y. This holds for every x, between the swept weights too.

    Args:
        weights: In [0, 1], shape ``(n,)``.
        bounds: Upper bound at each weight, shape ``(n,)``.
        x: Shape ``(m,)``.

    Returns:
        Shape ``(m,)``; infinite where only a weight of 1 says something that x satisfies, and minus infinity
        where no slates reach x.
    """
    sloped = weights < 1.0
    lines = (bounds[sloped] - np.outer(x, weights[sloped])) / (1.0 - weights[sloped])
    least = lines.min(axis=1, initial=np.inf)
    furthest = bounds[~sloped].min(initial=np.inf)
    return np.where(x <= furthest, least, -np.inf)


def weights_bound(
    weights: NDArray[np.float64], bounds: NDArray[np.float64], x: NDArray[np.float64], names: tuple[str, str]
) -> pd.DataFrame:
    """The envelope from the least x swept to the furthest, or to where it ends."""
    drawn = np.linspace(x.min(), max(x.max(), x.min() + 1e-9), _DRAWN)
    most = envelope(weights, bounds, drawn)
    kept = np.isfinite(most)
    return pd.DataFrame({names[0]: drawn[kept], names[1]: most[kept]})


def steps_bound(
    values: NDArray[np.float64], bounds: NDArray[np.float64], sign: int, names: tuple[str, str]
) -> pd.DataFrame:
    """A staircase over the numbers a rule was swept through.

    What bounds the objective at one number bounds it at every tighter one, so the bound at a number holds as
    far as the next tighter one swept.

    Args:
        values: The rule's number at each point.
        bounds: Upper bound on the objective there.
        sign: 1 where a greater number asks for more, -1 where a smaller one does.
        names: Columns of the result.
    """
    order = np.argsort(sign * values, kind="stable")
    at, least = values[order], np.minimum.accumulate(bounds[order])
    return pd.DataFrame({names[0]: np.repeat(at, 2)[1:], names[1]: np.repeat(least, 2)[:-1]})
