"""The receipt: what a model cost, under which definition, and what was taken as public."""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib import metadata, resources
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

from recsys_budget import _html
from recsys_budget._version import __version__
from recsys_budget.errors import DataError, RecsysBudgetError, SpecificationError
from recsys_budget.privacy._account import describe, restore
from recsys_budget.privacy.accounting import epsilon, filter_epsilon, round_up
from recsys_budget.privacy.ledger import LedgerHead, PrivacyLedger
from recsys_budget.privacy.reservation import Reservation

_FORMAT = 1
_PACKAGES = ("numpy", "scipy", "torch", "opacus", "dp-accounting")
_FIGURES = ("epsilon", "filter_epsilon", "ledger_epsilon", "cap", "delta")


@dataclass(frozen=True, repr=False)
class Receipt:
    """A fitted model's account of itself, written when its training ends.

    As JSON it follows the schema that :meth:`schema` returns. In a notebook it shows itself as a card.

    Attributes:
        model: Name of the class.
        private: False when repeatable noise was used, or data was read without spending: then nothing below
            is a guarantee.
        reason: Why it is not private, in words; None for a private model.
        unit: What is protected: always ``"user"``.
        adjacency: Which tables are neighbours: training tables that differ by all rows of one user.
        epsilon: Cost of this model's mechanisms alone, as reserved, by PLD: valid for a schedule fixed before
            it starts. This figure and the next three are rounded up to four decimals; all five are None where
            nothing was spent.
        filter_epsilon: The same by the Renyi filter of the ledger's cap, which is valid whatever else was
            chosen after seeing results, and looser.
        ledger_epsilon: What the ledger guaranteed for everything in it when this was written: this model and
            whatever came before.
        cap: Epsilon of the ledger's cap.
        delta: The delta that all of them go with.
        mechanisms: One mapping a mechanism: its kind and fields.
        steps: Training steps run.
        stop_reason: Why training ended.
        constants: Public constants of the model, as plain JSON values.
        declared_public: What was taken as public knowledge, in words.
        ledger_head: Where the ledger's record ended when this was written; None where nothing was spent.
        versions: Package versions that made it.
    """

    model: str
    private: bool
    reason: str | None
    unit: str
    adjacency: str
    epsilon: float | None
    filter_epsilon: float | None
    ledger_epsilon: float | None
    cap: float | None
    delta: float | None
    mechanisms: tuple[Mapping[str, Any], ...]
    steps: int
    stop_reason: str
    constants: Mapping[str, Any]
    declared_public: tuple[str, ...]
    ledger_head: LedgerHead | None
    versions: Mapping[str, str]

    @classmethod
    def write(
        cls,
        *,
        model: str,
        private: bool,
        ledger: PrivacyLedger,
        reservation: Reservation,
        steps: int,
        stop_reason: str,
        constants: Mapping[str, Any],
        declared_public: Sequence[str],
    ) -> Receipt:
        """Write the receipt for what this reservation paid for; ``private`` is False for repeatable noise."""
        receipt = cls.not_private(
            model=model,
            reason="repeatable noise was used",
            constants=constants,
            declared_public=declared_public,
        )
        return replace(
            receipt,
            private=private,
            reason=None if private else receipt.reason,
            epsilon=round_up(epsilon(reservation.mechanisms, ledger.cap.delta)),
            filter_epsilon=round_up(filter_epsilon(reservation.mechanisms, ledger.cap)),
            ledger_epsilon=round_up(ledger.guaranteed_epsilon),
            cap=ledger.cap.epsilon,
            delta=ledger.cap.delta,
            mechanisms=tuple(describe(m) for m in reservation.mechanisms),
            steps=steps,
            stop_reason=stop_reason,
            ledger_head=ledger.head,
        )

    @classmethod
    def not_private(
        cls,
        *,
        model: str,
        reason: str,
        constants: Mapping[str, Any],
        declared_public: Sequence[str],
        stop_reason: str = "no steps to run",
    ) -> Receipt:
        """The receipt of a model that reads private data without spending."""
        return cls(
            model=model,
            private=False,
            reason=reason,
            unit="user",
            adjacency="add or remove one user of the training table",
            epsilon=None,
            filter_epsilon=None,
            ledger_epsilon=None,
            cap=None,
            delta=None,
            mechanisms=(),
            steps=0,
            stop_reason=stop_reason,
            constants={str(name): _plain(value) for name, value in constants.items()},
            declared_public=tuple(declared_public),
            ledger_head=None,
            versions=_versions(),
        )

    @property
    def guarantee(self) -> str:
        """What everything in the ledger guarantees, in words; both figures are rounded up."""
        if not self.private or self.ledger_epsilon is None or self.delta is None:
            return f"not private: {self.reason}"
        delta = round_up(self.delta, 1 - math.floor(math.log10(self.delta)))
        return (
            f"epsilon {self.ledger_epsilon:.4f} at delta {delta:.1e} for each {self.unit} ({self.adjacency})"
        )

    def __repr__(self) -> str:
        return f"Receipt({self.model}: {self.guarantee}; {self.steps} steps, {self.stop_reason})"

    def verify(self, ledger: PrivacyLedger) -> None:
        """Hold this receipt against its ledger, and its figures against its mechanisms.

        Args:
            ledger: Of the population whose data the model was fitted on.

        Raises:
            SpecificationError: Nothing was spent for this model, or the ledger is of another population.
            LedgerCorruptError: The ledger is not the one this was written under, or an older copy of it.
            DataError: The stated epsilon is below what the mechanisms cost (by more than 0.1%, which versions
                of the accounting may differ by): the receipt was edited.
        """
        if self.ledger_head is None or self.delta is None or self.epsilon is None:
            raise SpecificationError(f"{self.model} spent nothing, so no ledger knows it ({self.guarantee})")
        if self.ledger_head.population != ledger.population:
            raise SpecificationError(
                f"this receipt is about {self.ledger_head.population!r}, not {ledger.population!r}; open the "
                f"ledger with population={self.ledger_head.population!r}"
            )
        ledger.verify(self.ledger_head)
        cost = epsilon([restore(mechanism) for mechanism in self.mechanisms], self.delta)
        if cost > 1.001 * self.epsilon:
            raise DataError(
                f"the receipt of {self.model} states epsilon {self.epsilon}, but its mechanisms cost "
                f"{round_up(cost)} at delta {self.delta:g}: it was edited. Trust the ledger"
            )

    def to_json(self) -> str:
        """The receipt as indented JSON."""
        return json.dumps({"format": _FORMAT} | asdict(self), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Receipt:
        """The receipt that :meth:`to_json` wrote.

        Raises:
            DataError: The text is not that: broken JSON, a field that is missing, unknown, written twice
                or of the wrong kind, or figures that contradict each other.
        """
        try:
            raw = json.loads(text, object_pairs_hook=_no_twice, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise DataError(f"not a receipt: {error}") from error
        _check(raw)
        head = raw["ledger_head"]
        return cls(
            **{name: value for name, value in raw.items() if name != "format"}
            | {name: None if raw[name] is None else float(raw[name]) for name in _FIGURES}
            | {name: tuple(raw[name]) for name in ("mechanisms", "declared_public")}
            | {"ledger_head": None if head is None else LedgerHead(**head)}
        )

    @staticmethod
    def schema() -> dict[str, Any]:
        """The JSON Schema (draft 2020-12) that receipts follow."""
        source = resources.files("recsys_budget.privacy").joinpath("receipt.schema.json")
        schema: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
        return schema

    def save(self, path: str | PathLike[str]) -> None:
        """Write a file: a page for people where its name ends in ``.html``, JSON where it ends in ``.json``.

        Raises:
            SpecificationError: It ends in something else.
        """
        path = Path(path)
        match path.suffix:
            case ".json":
                path.write_text(self.to_json() + "\n", encoding="utf-8")
            case ".html":
                path.write_text(self.to_html(), encoding="utf-8")
            case other:
                raise SpecificationError(f"{path} ends in {other!r}; name the file .json or .html")

    def to_html(self) -> str:
        """A page of its own that shows everything, without a network, light or dark."""
        return _html.page(f"Receipt: {self.model}", _html.Html(self._repr_html_()))

    def _repr_html_(self) -> str:
        spent, rows = [], [("steps", f"{self.steps} ({self.stop_reason})")]
        if self.ledger_head is not None:
            spent = [
                _html.gauge(self.ledger_epsilon or 0.0, self.cap or 1.0, label="epsilon of the ledger")
                if self.private
                else "",
                _html.table(
                    [
                        ("this model alone, as a schedule fixed in advance (PLD)", f"{self.epsilon:.4f}"),
                        ("this model alone, by the filter (Renyi)", f"{self.filter_epsilon:.4f}"),
                    ],
                    ["cost", "epsilon"],
                ),
                _html.table(
                    [
                        (
                            m["kind"],
                            ", ".join(f"{name} {value}" for name, value in m.items() if name != "kind"),
                        )
                        for m in self.mechanisms
                    ],
                    ["released", "how"],
                ),
            ]
            rows.append(("ledger head", "; ".join(f"{k} {v}" for k, v in vars(self.ledger_head).items())))
        rows.append(("taken as public", "; ".join(self.declared_public)))
        meaning = (
            "Epsilons are rounded up. Adding or removing everything that one user did changes the chance of "
            "anything this model could have become by a factor of at most e^epsilon, but for a chance "
            "of delta."
        )
        return _html.card(
            f"Receipt: {self.model}",
            _html.text(self.guarantee),
            *spent,
            _html.table(rows),
            _html.details("public constants", _html.table(list(self.constants.items()))),
            _html.details("versions", _html.table(list(self.versions.items()))),
            note=meaning if self.private else "Nothing here is a guarantee.",
        )


def _versions() -> dict[str, str]:
    versions = {"recsys-budget": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # an extra that this model does not need
    return versions


def _plain(value: Any) -> Any:
    """As JSON can hold it and gives it back: never an error, since the model is already fitted."""
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping():
            return {str(name): _plain(inside) for name, inside in value.items()}
        case list() | tuple():
            return [_plain(inside) for inside in value]
        case _:
            return str(value)


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"written twice: {sorted({name for name in names if names.count(name) > 1})}")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no figure of a receipt")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_head(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {field.name for field in fields(LedgerHead)}
        and all(_is_text(value[name]) for name in ("ledger", "population"))
        and _is_count(value["seq"])
        and isinstance(value["hash"], str)
        and re.fullmatch("[0-9a-f]{64}", value["hash"]) is not None
    )


def _is_mechanism(value: Any) -> bool:
    if not (isinstance(value, dict) and all(_is_number(v) for k, v in value.items() if k != "kind")):
        return False
    try:
        restore(value)
    except (KeyError, TypeError, RecsysBudgetError):
        return False
    return True


# What each field must be, in words, and whether it is.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "format": (f"{_FORMAT}", lambda v: _is_count(v) and v == _FORMAT),
    "model": ("text", _is_text),
    "private": ("true or false", lambda v: isinstance(v, bool)),
    "reason": ("text or null", lambda v: v is None or _is_text(v)),
    "unit": ('"user"', lambda v: v == "user"),
    "adjacency": ("text", _is_text),
    "epsilon": ("a number from 0, or null", lambda v: v is None or (_is_number(v) and v >= 0)),
    "filter_epsilon": ("a number from 0, or null", lambda v: v is None or (_is_number(v) and v >= 0)),
    "ledger_epsilon": ("a number from 0, or null", lambda v: v is None or (_is_number(v) and v >= 0)),
    "cap": ("a number above 0, or null", lambda v: v is None or (_is_number(v) and v > 0)),
    "delta": ("a number between 0 and 1, or null", lambda v: v is None or (_is_number(v) and 0 < v < 1)),
    "mechanisms": ("mechanisms", lambda v: isinstance(v, list) and all(map(_is_mechanism, v))),
    "steps": ("a whole number from 0", _is_count),
    "stop_reason": ("text", _is_text),
    "constants": ("an object", lambda v: isinstance(v, dict)),
    "declared_public": ("texts", lambda v: isinstance(v, list) and all(map(_is_text, v))),
    "ledger_head": ("a point in a ledger, or null", lambda v: v is None or _is_head(v)),
    "versions": ("an object of texts", lambda v: isinstance(v, dict) and all(map(_is_text, v.values()))),
}


def _check(raw: Any) -> None:
    if not isinstance(raw, dict):
        raise DataError(f"not a receipt: a JSON {type(raw).__name__} where an object belongs")
    missing, unknown = sorted(_FIELDS.keys() - raw.keys()), sorted(raw.keys() - _FIELDS.keys())
    if missing or unknown:
        raise DataError(f"not a receipt: missing fields {missing}, unknown fields {unknown}")
    for name, (words, holds) in _FIELDS.items():
        if not holds(raw[name]):
            raise DataError(f"not a receipt: {name} is {raw[name]!r:.80}; it must be {words}", column=name)
    if raw["private"] != (raw["reason"] is None):
        raise DataError("not a receipt: it needs a reason if it is not private, and null if it is")
    spent = [raw[name] is not None for name in (*_FIGURES, "ledger_head")] + [bool(raw["mechanisms"])]
    if any(spent) != all(spent) or (raw["private"] and not all(spent)):
        raise DataError(
            f"not a receipt: {', '.join(_FIGURES)}, ledger_head and mechanisms go together; a private model "
            "has all of them, and one that spent nothing has none"
        )
