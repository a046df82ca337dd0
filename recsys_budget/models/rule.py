"""The published rule: which private model, with which constants, from public quantities alone."""

from __future__ import annotations

import math

from recsys_budget.errors import SpecificationError
from recsys_budget.models.item_model import PrivateItemModel
from recsys_budget.models.private_popularity import PrivatePopularity
from recsys_budget.privacy import GaussianMechanism, PrivacyBudget, PrivacyLedger, smallest_noise

# Users for each unit of noise, below which a matrix of items says nothing: derived by benchmarks/rule.py.
_FEWEST = 100.0


def recommend_model(
    declared_users: int, n_items: int, epsilon: float, delta: float
) -> PrivateItemModel | PrivatePopularity:
    """The model to fit on a fresh budget, not fitted yet.

    With sigma the noise multiplier that one Gaussian release has at this epsilon and delta, what can be
    learnt depends on ``declared_users / sigma``: how far the sum over all users stands above the noise that
    hides one of them. Below 100 the answer is :class:`PrivatePopularity`; from there on
    :class:`PrivateItemModel` with its defaults, whose head grows with the square root of the same ratio and
    which falls back to popularity by itself where nothing stands out. The same for all datasets;
    ``docs/choosing_a_model.md`` has the reasons, and what it was derived on.

    Args:
        declared_users: About how many users there are, as publicly known.
        n_items: Items of the public catalogue.
        epsilon: Of the budget, positive; infinity is no budget.
        delta: Of the budget.

    Returns:
        A model with its constants set; call its ``fit``.

    Raises:
        SpecificationError: A number out of range.

    Examples:
        >>> from recsys_budget.models import recommend_model
        >>> recommend_model(100_000, 10_000, epsilon=2.0, delta=1e-6)
        PrivateItemModel(declared_users=100000)
        >>> recommend_model(100, 500, epsilon=0.5, delta=1e-3)
        PrivatePopularity(declared_users=100)
    """
    for name, value in (("declared_users", declared_users), ("n_items", n_items)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SpecificationError(f"{name} is {value!r}; it must be a whole number of at least 1")
    ledger = PrivacyLedger(PrivacyBudget(epsilon, delta))
    sigma = smallest_noise(lambda noise: (GaussianMechanism(noise),), ledger.fits)
    if n_items < 2 or math.isinf(sigma) or declared_users < _FEWEST * sigma:
        return PrivatePopularity(declared_users=declared_users)
    return PrivateItemModel(declared_users=declared_users)
