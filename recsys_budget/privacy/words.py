"""What an epsilon means, in plain words."""

from __future__ import annotations

import math

from recsys_budget.errors import SpecificationError


def best_bet(epsilon: float, delta: float) -> float:
    """How often the best possible bet on whether somebody is in the data can be right, from even odds.

    Whoever tells two neighbouring tables apart with a true and a false positive rate of t and f has
    ``t <= exp(epsilon) f + delta`` and ``1 - f <= exp(epsilon) (1 - t) + delta``, so is right with
    probability ``(t + 1 - f) / 2 <= (exp(epsilon) + delta) / (exp(epsilon) + 1)`` at most.

    Raises:
        SpecificationError: epsilon is negative or delta is not in [0, 1].

    References:
        Kairouz, Oh and Viswanath (2015), arXiv:1311.0776, theorem 2.1.

    Examples:
        >>> round(best_bet(1.0, 1e-6), 3)
        0.731
    """
    if not (epsilon >= 0.0 and 0.0 <= delta <= 1.0):
        raise SpecificationError(
            f"epsilon={epsilon!r} and delta={delta!r} are no guarantee; see PrivacyBudget"
        )
    return 1.0 - (1.0 - delta) / (1.0 + math.exp(min(epsilon, 700.0)))


def in_words(epsilon: float, delta: float) -> str:
    """What the guarantee promises one person, in a sentence; figures rounded up.

    Examples:
        >>> in_words(2.0, 1e-6)
        'Somebody who knew all other data and bet on whether you are in it would be right at most 88.1% of the
        time; a coin is right 50%.'
    """
    percent = math.ceil(best_bet(epsilon, delta) * 1000.0 - 1e-9) / 10.0
    return (
        "Somebody who knew all other data and bet on whether you are in it would be right at most "
        f"{percent:g}% of the time; a coin is right 50%."
    )
