"""A membership test: can a model's own likelihood tell those it was trained on from others?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import logsumexp

from recsys_budget.data import Interactions
from recsys_budget.errors import SpecificationError
from recsys_budget.models import Recommender

# Users at a time, so that memory is so many times items.
_BATCH = 1024


@dataclass(frozen=True)
class Attack:
    """How well members were told from others.

    Attributes:
        auc: Probability that a member scores above another user, ties counting half: 0.5 is chance.
        standard_error: Of ``auc``, were members and others alike.
        advantage: Share of members minus share of others above a threshold, which was chosen on one half of
            the users and is measured on the other: 0 is chance.
    """

    auc: float
    standard_error: float
    advantage: float


@dataclass(frozen=True)
class Membership:
    """What the test found. **Not private**: it looks at who was in the table.

    Attributes:
        model: The attack on the model.
        control: The same attack on the control. Where it does not succeed there, the test has no power, and
            says nothing about the model.
    """

    model: Attack
    control: Attack

    @property
    def has_power(self) -> bool:
        """Whether the attack succeeds on the control: three standard errors above chance."""
        return self.control.auc > 0.5 + 3 * self.control.standard_error


def own_likelihood(model: Recommender, users: Interactions) -> NDArray[np.float64]:
    """Mean log-probability of each user's own items under the softmax of the model's scores.

    Args:
        model: Any fitted recommender.
        users: Their histories.

    Returns:
        Shape ``(n_users,)``; 0 for a user without items.
    """
    found = [np.empty(0)]
    for start in range(0, users.n_users, _BATCH):
        part = users.take_users(np.arange(start, min(start + _BATCH, users.n_users)))
        scores = model.score(part).astype(np.float64)
        logs = scores[part.rows, part.indices] - logsumexp(scores, axis=1)[part.rows]
        lengths = np.diff(part.indptr)
        found.append(np.bincount(part.rows, logs, minlength=part.n_users) / np.maximum(lengths, 1))
    return np.concatenate(found)


def membership_test(
    model: Recommender, members: Interactions, others: Interactions, *, control: Recommender
) -> Membership:
    """Tell the users a model was trained on from others by :func:`own_likelihood`, and try it on a control.

    A model of epsilon at delta allows no test an advantage above (exp(epsilon) - 1 + 2 delta) /
    (exp(epsilon) + 1). In practice far less is found: a failed attack proves nothing, which is why there is
    a control.

    Args:
        model: The model.
        members: Users it was trained on.
        others: Users it was not, chosen at random from the same people.
        control: A model without privacy, trained on the same members, such as
            :class:`~recsys_budget.models.EASE` with a small penalty.

    Raises:
        SpecificationError: Fewer than two users on either side, or a user on both.
    """
    if min(members.n_users, others.n_users) < 2:
        raise SpecificationError(
            f"{members.n_users} members and {others.n_users} others; at least two of each are needed"
        )
    both = members.users.intersection(others.users)
    if len(both):
        raise SpecificationError(f"{both[0]!r} is both a member and another user; split the users first")
    model_attack, control_attack = (
        _attack(own_likelihood(tried, members), own_likelihood(tried, others)) for tried in (model, control)
    )
    return Membership(model_attack, control_attack)


def _attack(members: NDArray[np.float64], others: NDArray[np.float64]) -> Attack:
    n, k = len(members), len(others)
    ranks = stats.rankdata(np.concatenate([members, others]))
    auc = (ranks[:n].sum() - n * (n + 1) / 2) / (n * k)
    error = math.sqrt((n + k + 1) / (12 * n * k))  # Mann and Whitney (1947), of alike sides without ties
    thresholds = np.unique(np.concatenate([members[::2], others[::2]]))
    best = thresholds[np.argmax(_gap(members[::2], others[::2], thresholds))]
    return Attack(float(auc), error, float(_gap(members[1::2], others[1::2], np.array([best]))[0]))


def _gap(
    members: NDArray[np.float64], others: NDArray[np.float64], thresholds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Share of members minus share of others at or above each threshold."""
    below = [np.searchsorted(np.sort(side), thresholds) / len(side) for side in (members, others)]
    return below[1] - below[0]
