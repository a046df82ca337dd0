"""What is behind a frontier as plain values that JSON holds, and back: nothing else is made of a file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from recsys_budget.constraints import Constraint, Policy
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import DataError, SpecificationError
from recsys_budget.rerank import (
    Certificate,
    Conflict,
    Coverage,
    Diversity,
    Engagement,
    EngagementDiversity,
    HistoryMatch,
    Novelty,
    Objective,
    Relaxation,
    Shortage,
)
from recsys_budget.rerank.objective import WeightedSum

_OBJECTIVES: dict[str, type[Objective]] = {
    kind.__name__: kind for kind in (Coverage, Diversity, Engagement, HistoryMatch, Novelty)
}
_NUMBER = (int, float)
_CERTIFICATE: dict[str, tuple[type, ...]] = {
    "objective": _NUMBER,
    "bound": _NUMBER,
    "gap": _NUMBER,
    "violations": (dict,),
    "soft": (list,),
    "shadow_prices": (dict,),
    "engagement": _NUMBER,
    "diversity": _NUMBER,
    "route": (str,),
    "solver": (str,),
    "solver_version": (str,),
    "n_users": (int,),
    "iterations": (int,),
    "seconds": _NUMBER,
    "timed_out": (bool,),
    "privacy": (str,),
}
_COUNTS = ("n_users", "n_without", "n_unchecked", "n_asked")
_COLUMNS = {"float": np.float64, "whole": np.int64, "yes or no": np.bool_, "text": object}


def get(record: Any, name: str, *kinds: type) -> Any:
    """What a record says under a name.

    Args:
        record: A value as read from JSON.
        name: The name.
        kinds: What the value may be; bool is no int, and int is float.

    Raises:
        DataError: The record is none, lacks the name, or has something else there.
    """
    if not isinstance(record, dict) or name not in record:
        raise DataError(f"{name!r} is missing")
    value = record[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise DataError(f"{name!r} is {str(value)[:60]!r}, which cannot be")
    return value


def number(value: float) -> float | str | None:
    """A float that JSON holds: None for NaN, a word for infinity."""
    return float(value) if math.isfinite(value) else None if math.isnan(value) else str(float(value))


def from_number(value: Any) -> float:
    """The float that :func:`number` made this of."""
    if value is None or value in ("inf", "-inf"):
        return math.nan if value is None else float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{str(value)[:60]!r} is no number")
    return float(value)


def plain_frame(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A record a column.

    Raises:
        SpecificationError: A column holds neither numbers nor text.
    """
    columns = []
    for name, column in frame.items():
        values = column.tolist()
        if column.dtype.kind == "f":
            kind, values = "float", [number(value) for value in values]
        elif column.dtype.kind in "iub":
            kind = "yes or no" if column.dtype.kind == "b" else "whole"
        elif all(isinstance(value, str) for value in values):
            kind = "text"
        else:
            raise SpecificationError(
                f"column {name!r} holds neither numbers nor text, so it cannot be written"
            )
        columns.append({"name": str(name), "kind": kind, "values": values})
    return columns


def frame_from(columns: Any) -> pd.DataFrame:
    """The frame that :func:`plain_frame` made this of."""
    found = {}
    for column in listed(columns):
        kind, values = get(column, "kind", str), get(column, "values", list)
        if kind not in _COLUMNS:
            raise DataError(f"columns of {kind[:60]!r} are not known")
        kinds: dict[str, type] = {"whole": int, "yes or no": bool, "text": str}
        if kind == "float":
            values = [from_number(value) for value in values]
        elif any(type(value) is not kinds[kind] for value in values):
            raise DataError(f"column {get(column, 'name', str)[:60]!r} is not of {kind} alone")
        made = pd.Series(values, dtype="str" if kind == "text" else _COLUMNS[kind])
        found[get(column, "name", str)] = made
    if len({len(column) for column in found.values()}) > 1:
        raise DataError("columns of a frame differ in length")
    return pd.DataFrame(found)


def listed(value: Any, kind: type | None = None) -> list[Any]:
    """The value, which must be a list, of one kind where that is given."""
    if not isinstance(value, list) or (kind is not None and any(type(v) is not kind for v in value)):
        raise DataError(f"{str(value)[:60]!r} is no such list")
    return value


def plain_objective(objective: Objective) -> dict[str, Any]:
    """The objective by its kind and numbers.

    Raises:
        SpecificationError: It is of a kind of one's own.
    """
    if type(objective) is EngagementDiversity:
        return {"kind": "EngagementDiversity", "diversity_weight": objective.diversity_weight}
    if type(objective) is WeightedSum:
        parts = [[float(weight), plain_objective(part)] for weight, part in objective.summands]
        return {"kind": "WeightedSum", "summands": parts}
    kind = type(objective).__name__
    if _OBJECTIVES.get(kind) is not type(objective):
        raise SpecificationError(
            f"the objective {objective!r} is of a kind of one's own, which cannot be written down; there are "
            f"{', '.join(sorted(_OBJECTIVES))} and sums of them"
        )
    return {"kind": kind} | {field.name: getattr(objective, field.name) for field in fields(objective)}  # type: ignore[arg-type]


def objective_from(record: Any) -> Objective:
    """The objective that :func:`plain_objective` made this of."""
    kind = get(record, "kind", str)
    if kind == "EngagementDiversity":
        return EngagementDiversity(get(record, "diversity_weight", int, float))
    if kind == "WeightedSum":
        parts = [listed(part) for part in get(record, "summands", list)]
        if any(len(part) != 2 for part in parts):
            raise DataError("a sum of objectives needs pairs of a weight and an objective")
        return WeightedSum(tuple((from_number(weight), objective_from(part)) for weight, part in parts))
    if kind not in _OBJECTIVES:
        raise DataError(f"there is no objective of kind {kind[:60]!r}")
    given = {name: value for name, value in record.items() if name != "kind"}
    # A tuple became a list.
    return _OBJECTIVES[kind](**{n: tuple(v) if isinstance(v, list) else v for n, v in given.items()})


def plain_rules(rules: Sequence[Constraint]) -> list[dict[str, Any]]:
    """Rules as the entries of a policy.

    Raises:
        SpecificationError: A rule cannot be written down, or not read back; the message names it.
    """
    entries = []
    for rule in rules:
        try:
            policy = Policy("rule", [rule])
            (entry,) = policy.to_dict()["constraints"]
            same = Policy.from_yaml(policy.to_yaml()).constraints == (rule,) == rules_from([entry])
        except DataError as error:
            raise SpecificationError(f"rule {rule.name!r} cannot be written down: {error.reason}") from error
        if not same:
            raise SpecificationError(f"rule {rule.name!r} would be another one when read back")
        entries.append(entry)
    return entries


def rules_from(entries: Any) -> tuple[Constraint, ...]:
    """The rules that :func:`plain_rules` made this of."""
    return tuple(Policy.from_json(json.dumps({"policy": "rules", "constraints": entries})).constraints)


def plain_certificate(certificate: Certificate) -> dict[str, Any]:
    """Every figure but the table of users."""
    found = {name: getattr(certificate, name) for name in _CERTIFICATE}
    return {
        name: dict(value) if isinstance(value, Mapping) else list(value) if name == "soft" else _plain(value)
        for name, value in found.items()
    }


def certificate_from(record: Any, per_user: pd.DataFrame) -> Certificate:
    """The certificate that :func:`plain_certificate` made this of."""
    found = {name: get(record, name, *kinds) for name, kinds in _CERTIFICATE.items()}
    found["soft"] = tuple(listed(found["soft"], str))
    for name in ("violations", "shadow_prices"):
        prices = found[name].items()
        found[name] = {
            str(rule): None if price is None and name == "shadow_prices" else from_number(price)
            for rule, price in prices
        }
    if found["privacy"] not in ("per_user", "population_private", "population_not_private"):
        raise DataError(f"no slates cost {found['privacy'][:60]!r} in privacy")
    if found["n_users"] != len(per_user):
        raise DataError(f"a certificate of {found['n_users']} users has figures of {len(per_user)}")
    return Certificate(**found, per_user=per_user)


def plain_conflict(conflict: Conflict) -> dict[str, Any]:
    """The conflict, its constraints by their places among the rules."""

    def place(rule: Constraint) -> int:
        return next(i for i, other in enumerate(conflict.rules) if other is rule or other == rule)

    return {
        "rules": plain_rules(conflict.rules),
        "constraints": [place(rule) for rule in conflict.constraints],
        "offers": list(conflict.offers),
        "proven": bool(conflict.proven),
        "certified": bool(conflict.certified),
        "relaxations": [
            {
                "constraint": place(relaxation.constraint),
                "relaxed": plain_rules([] if relaxation.relaxed is None else [relaxation.relaxed]),
                "field": relaxation.field,
                "amount": _plain(relaxation.amount),
                "exact": bool(relaxation.exact),
                "complete": bool(relaxation.complete),
                "n_users": int(relaxation.n_users),
            }
            for relaxation in conflict.relaxations
        ],
        "shortages": [
            {field.name: _plain(getattr(shortage, field.name)) for field in fields(shortage)}
            for shortage in conflict.shortages
        ],
        "users": [str(user) for user in conflict.users],
        **{name: int(getattr(conflict, name)) for name in _COUNTS},
    }


def conflict_from(record: Any) -> Conflict:
    """The conflict that :func:`plain_conflict` made this of."""
    rules = rules_from(get(record, "rules", list))

    def at(place: Any) -> Constraint:
        if type(place) is not int or not 0 <= place < len(rules):
            raise DataError(f"there is no rule at {str(place)[:60]!r}")
        return rules[place]

    relaxations = []
    for relaxation in get(record, "relaxations", list):
        relaxed = rules_from(get(relaxation, "relaxed", list))
        relaxations.append(
            Relaxation(
                constraint=at(relaxation.get("constraint")),
                relaxed=relaxed[0] if relaxed else None,
                field=get(relaxation, "field", str, type(None)),
                amount=get(relaxation, "amount", int, float, type(None)),
                exact=get(relaxation, "exact", bool),
                complete=get(relaxation, "complete", bool),
                n_users=get(relaxation, "n_users", int),
            )
        )
    return Conflict(
        constraints=tuple(at(place) for place in get(record, "constraints", list)),
        rules=rules,
        offers=tuple(listed(get(record, "offers", list), str)),
        proven=get(record, "proven", bool),
        certified=get(record, "certified", bool),
        relaxations=tuple(relaxations),
        shortages=tuple(
            Shortage(
                get(shortage, "constraint", str),
                get(shortage, "kind", str),
                get(shortage, "who", str),
                get(shortage, "amount", int, float),
                get(shortage, "below", bool),
            )
            for shortage in get(record, "shortages", list)
        ),
        users=tuple(listed(get(record, "users", list), str)),
        **{name: get(record, name, int) for name in _COUNTS},
    )


def plain_catalogue(catalogue: ItemCatalogue) -> dict[str, Any]:
    """Everything that is known about the items."""
    indptr, indices = catalogue.membership.indptr.tolist(), catalogue.membership.indices.tolist()
    return {
        "items": catalogue.ids.tolist(),
        "titles": catalogue.titles.tolist(),
        "categories": list(catalogue.category_names),
        "members": [indices[start:end] for start, end in pairwise(indptr)],
        "providers": list(catalogue.provider_names),
        "provider": catalogue.provider_codes.tolist(),
        "attributes": {name: [number(v) for v in values] for name, values in catalogue.attributes.items()},
    }


def catalogue_from(record: Any) -> ItemCatalogue:
    """The catalogue that :func:`plain_catalogue` made this of."""
    items, titles = listed(get(record, "items", list), str), listed(get(record, "titles", list), str)
    categories = listed(get(record, "categories", list), str)
    providers = listed(get(record, "providers", list), str)
    members = [listed(codes, int) for codes in get(record, "members", list)]
    all_members = list(chain.from_iterable(members))
    owners = listed(get(record, "provider", list), int)
    for codes, names in ((all_members, categories), ([c for c in owners if c != -1], providers)):
        if codes and not 0 <= min(codes) <= max(codes) < len(names):
            raise DataError("an item is of a category or provider that the catalogue does not name")
    indptr = np.concatenate([[0], np.cumsum([len(codes) for codes in members])]).astype(np.int64)
    indices = np.array(all_members, np.int32)
    ones = np.ones(len(indices), np.float32)
    return ItemCatalogue(
        ids=pd.Index(items, dtype="str"),
        titles=np.array(titles, object),
        category_names=tuple(categories),
        membership=sparse.csr_array((ones, indices, indptr), shape=(len(members), len(categories))),
        provider_names=tuple(providers),
        provider_codes=np.array(owners, np.int32),
        attributes={
            name: np.array([from_number(v) for v in listed(values)])
            for name, values in get(record, "attributes", dict).items()
        },
    )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
