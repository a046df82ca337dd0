"""Heuristics for diverse and fair slates, each as published, for comparison: one user at a time, in numpy.

All take relevance in [0, 1] by falling order and return the rows of a slate of k in the order of choice. None
knows of quotas.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Slate = NDArray[np.intp]


def mmr(relevance: Floats, unit: Floats, k: int, trade: float) -> Slate:
    """Maximal marginal relevance: ``trade * relevance - (1 - trade) * greatest cosine to what is chosen``.

    Args:
        relevance: Shape ``(n,)``.
        unit: Rows of length 1, shape ``(n, m)``; their products are cosines.
        k: Items a slate.
        trade: 1 for relevance alone.

    References:
        Carbonell and Goldstein (1998), doi:10.1145/290941.291025.
    """
    score, nearest = trade * relevance, np.zeros(len(relevance))
    slate = np.empty(k, np.intp)
    for place in range(k):
        row = int(np.argmax(score - (1.0 - trade) * nearest))
        slate[place], score[row] = row, -np.inf
        np.maximum(nearest, unit @ unit[row], out=nearest)
    return slate


def greedy_dpp(relevance: Floats, unit: Floats, k: int, sharpness: float) -> Slate:
    """Greedy search for the most likely slate of a determinantal point process.

    The kernel is ``q_i q_j cos_ij`` with ``q = exp(sharpness * relevance / 2)``. Its determinant is the
    product of the ``q^2`` and of the squared distances of each row from the span of those before, which the
    rows of a Cholesky factor give.

    References:
        Chen, Zhang and Zhou (2018), algorithm 1, arXiv:1709.05135.
    """
    log_quality = sharpness * relevance
    left = np.square(unit).sum(axis=1)  # squared distance of each row from the span of the chosen
    factor, slate = np.zeros((k, len(relevance))), np.empty(k, np.intp)
    for place in range(k):
        with np.errstate(divide="ignore"):
            score = log_quality + np.log(np.maximum(left, 1e-10))
        score[slate[:place]] = -np.inf
        row = int(np.argmax(score))
        slate[place] = row
        own = np.sqrt(max(left[row], 1e-10))
        factor[place] = (unit @ unit[row] - factor[:place].T @ factor[:place, row]) / own
        left = left - np.square(factor[place])
    return slate


def xquad(relevance: Floats, member: Floats, k: int, trade: float) -> Slate:
    """Explicit query aspect diversification, with categories as aspects.

    ``(1 - trade) * relevance + trade * sum_c p(c) p(i | c) prod over chosen j of (1 - p(j | c))``: an aspect
    is as likely as its share of the relevance, and an item is as relevant to each of its categories as it is.

    References:
        Santos, Macdonald and Ounis (2010), doi:10.1145/1772690.1772780.
    """
    of_aspect = member * relevance[:, None]
    weight = of_aspect.sum(axis=0)
    weight = weight / max(weight.sum(), 1e-12)
    unmet, score, slate = weight.copy(), (1.0 - trade) * relevance, np.empty(k, np.intp)
    for place in range(k):
        row = int(np.argmax(score + trade * (of_aspect @ unmet)))
        slate[place], score[row] = row, -np.inf
        unmet = unmet * (1.0 - of_aspect[row])
    return slate


class ProviderMaxMin:
    """Slates user by user, with prices that raise the provider who is worst off: P-MMF.

    Maximises mean relevance plus ``trade`` times the least exposure over its provider's room, where exposure
    has to stay within the room. The dual is bounded by ``sum of negative parts of room * price >= -trade``,
    and moves against the momentum of its gradient after each user; providers whose capacity is used up are no
    longer shown.

    Args:
        room: Most exposure a user of each provider, shape ``(n_providers,)``; infinite for a provider that
            fairness is not about, whose price stays 0.
        capacity: Most exposure of each provider in total.
        trade: Weight of the least exposure.
        step: Step size of the mirror descent.
        momentum: Weight of the newest gradient.

    References:
        Xu, Chen, Xu, Pang, Li and Wen (2023), algorithm 1, arXiv:2303.06660.
    """

    def __init__(
        self, room: Floats, capacity: Floats, trade: float, step: float = 1e-3, momentum: float = 0.2
    ) -> None:
        self._room, self._left, self._trade = room, capacity.astype(np.float64), trade
        self._about = np.isfinite(room)
        self._step, self._momentum = step, momentum
        self._price, self._gradient = np.zeros(len(room)), np.zeros(len(room))

    def choose(self, relevance: Floats, provider: NDArray[np.integer], k: int) -> Slate:
        """The next user's slate."""
        score = relevance / k - self._price[provider]
        score = np.where(self._left[provider] > 0.0, score, -1e6 + score)
        slate = np.argpartition(-score, k)[:k]
        slate = slate[np.argsort(-score[slate], kind="stable")]
        shown = np.bincount(provider[slate], minlength=len(self._room))
        self._left -= shown
        about, room = self._about, self._room[self._about]
        # The price falls while exposure is below the room, in units of the room.
        newest = self._momentum * (room - shown[about])
        self._gradient[about] = newest + (1.0 - self._momentum) * self._gradient[about]
        scaled = room * self._price[about] - self._step * self._gradient[about] / room
        self._price[about] = _within(scaled, self._trade) / room
        return slate


def _within(scaled: Floats, radius: float) -> Floats:
    """The nearest point whose negative parts sum to at most ``radius`` (Duchi et al. 2008)."""
    owed = np.maximum(0.0, -scaled)
    if owed.sum() <= radius:
        return scaled
    falling = np.sort(owed)[::-1]
    excess = (np.cumsum(falling) - radius) / np.arange(1, len(owed) + 1)
    cut = excess[max(0, int((falling > excess).sum()) - 1)]
    return np.where(scaled < 0.0, -np.maximum(0.0, owed - cut), scaled)
