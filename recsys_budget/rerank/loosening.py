"""The number that says how much a rule asks, and the same rule with that number moved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from recsys_budget.constraints import Constraint, Soft
from recsys_budget.constraints.base import hard_part
from recsys_budget.errors import SpecificationError


def number_of(rule: Constraint) -> tuple[str | None, int]:
    """The field that says how much a rule asks, and 1 where more asks for more, -1 where less does."""
    for name, sign in rule.tighter.items():
        value = getattr(rule, name)
        if isinstance(value, int | float | np.integer | np.floating):
            return name, sign
    return None, 0


def moved_by(rule: Constraint, field: str, change: float, *, tidy: bool = True) -> Constraint | None:
    """The rule with a number moved, under a name that says so if it was named by its numbers.

    Args:
        rule: The rule.
        field: Name of the number.
        change: How far it moves.
        tidy: Round to twelve digits.

    Returns:
        None where the rule does not allow such a number.
    """
    value = getattr(rule, field)
    if isinstance(value, int | np.integer):
        moved: float = int(value) + round(change)
    else:
        moved = float(f"{value + change:.12g}") if tidy else value + change
    try:
        changes: dict[str, Any] = {field: moved}
        if _is_named_by_numbers(rule):
            changes["name"] = ""
        return replace(rule, **changes)
    except SpecificationError:
        return None


def with_number(rule: Constraint, number: float) -> tuple[Constraint, str, int]:
    """The rule asking for another number, the field that has it, and the sign of :func:`number_of`.

    Raises:
        SpecificationError: The rule has no such number, or does not allow this one.
    """
    inner = hard_part(rule)
    field, sign = number_of(inner)
    if field is None:
        raise SpecificationError(f"{rule.name!r} has no number that says how much it asks")
    whole = isinstance(getattr(inner, field), int | np.integer)
    if whole and float(number) != round(number):
        raise SpecificationError(f"{rule.name!r}: {field}={number!r}, but it must be a whole number")
    changes: dict[str, Any] = {field: round(number) if whole else float(number)}
    if _is_named_by_numbers(inner):
        changes["name"] = ""
    moved = replace(inner, **changes)
    if isinstance(rule, Soft):
        moved = Soft(
            moved, rule.weight, name=rule.name if rule.name != inner.name else "", reason=rule.reason
        )
    return moved, field, sign


def with_numbers(rules: Iterable[Constraint], numbers: Mapping[str, float]) -> tuple[Constraint, ...]:
    """Rules, those that are named asking for another number: see :func:`with_number`."""
    return tuple(with_number(rule, numbers[rule.name])[0] if rule.name in numbers else rule for rule in rules)


def _is_named_by_numbers(rule: Constraint) -> bool:
    try:
        return rule.name == rule.default_name()
    except SpecificationError:  # a kind that is always named by its owner
        return False


def one_step(rule: Constraint, field: str, sign: int) -> tuple[Constraint | None, float]:
    """The rule made a step looser, and the step; None where it is as loose as can be."""
    value = getattr(rule, field)
    steps = (1.0,) if isinstance(value, int | np.integer) else (abs(value) / 2.0 or 1.0, 1e-3, 1e-6)
    for step in steps:
        trial = moved_by(rule, field, -sign * step, tidy=False)
        if trial is not None:
            return trial, step
    return None, 0.0
