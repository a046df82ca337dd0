"""The receipt: what a model cost, under which definition, and what was taken as public."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import Any

from recsys_budget._version import __version__
from recsys_budget.privacy.accounting import epsilon, round_up
from recsys_budget.privacy.ledger import PrivacyLedger
from recsys_budget.privacy.mechanism import Mechanism
from recsys_budget.privacy.reservation import Reservation

_PACKAGES = ("numpy", "scipy", "torch", "opacus", "dp-accounting")


@dataclass(frozen=True, repr=False)
class Receipt:
    """A fitted model's account of itself, written when its training ends.

    Attributes:
        model: Name of the class.
        private: False when repeatable noise was used: then nothing below is a guarantee.
        unit: What is protected: always ``"user"``.
        adjacency: Which tables are neighbours: training tables that differ by all rows of one user.
        epsilon: Cost of this model's mechanisms alone, by PLD, rounded up to four decimals.
        delta: The delta that epsilon goes with.
        cap: Epsilon of the ledger's cap.
        ledger_epsilon: What the ledger guaranteed for everything in it when this was written: this model and
            whatever came before, rounded up to four decimals.
        mechanisms: One mapping a mechanism: its kind and fields.
        steps: Training steps run.
        stop_reason: Why training ended.
        constants: Public constants of the model.
        declared_public: What was taken as public knowledge, in words.
        versions: Package versions that made it.
    """

    model: str
    private: bool
    unit: str
    adjacency: str
    epsilon: float
    delta: float
    cap: float
    ledger_epsilon: float
    mechanisms: tuple[Mapping[str, Any], ...]
    steps: int
    stop_reason: str
    constants: Mapping[str, Any]
    declared_public: tuple[str, ...]
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
        """Write the receipt for what this reservation paid for."""
        return cls(
            model=model,
            private=private,
            unit="user",
            adjacency="add or remove one user of the training table",
            epsilon=round_up(epsilon(reservation.mechanisms, ledger.cap.delta)),
            delta=ledger.cap.delta,
            cap=ledger.cap.epsilon,
            ledger_epsilon=round_up(ledger.guaranteed_epsilon),
            mechanisms=tuple(_describe(m) for m in reservation.mechanisms),
            steps=steps,
            stop_reason=stop_reason,
            constants=dict(constants),
            declared_public=tuple(declared_public),
            versions={"recsys-budget": __version__, "python": platform.python_version()}
            | {name: metadata.version(name) for name in _PACKAGES},
        )

    @property
    def guarantee(self) -> str:
        """What everything in the ledger guarantees, in words; both figures are rounded up."""
        if not self.private:
            return "not private: repeatable noise was used"
        delta = round_up(self.delta, 1 - math.floor(math.log10(self.delta)))
        return (
            f"epsilon {self.ledger_epsilon:.4f} at delta {delta:.1e} for each {self.unit} ({self.adjacency})"
        )

    def __repr__(self) -> str:
        return f"Receipt({self.model}: {self.guarantee}; {self.steps} steps, {self.stop_reason})"

    def to_json(self) -> str:
        """The receipt as indented JSON."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Receipt:
        """The receipt that :meth:`to_json` wrote."""
        fields = json.loads(text)
        for name in ("mechanisms", "declared_public"):
            fields[name] = tuple(fields[name])
        return cls(**fields)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the JSON to a file."""
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")


def _describe(mechanism: Mechanism) -> dict[str, Any]:
    return {"kind": type(mechanism).__name__} | asdict(mechanism)
