"""Checkpoints: what a training run has released so far, on disk, so that a crash does not lose it.

A checkpoint holds released values and the number of the reservation that paid for them. It holds nothing that
is trusted about spending: what may still be run, the ledger alone says. So an old checkpoint put back brings
back old parameters, and not one release.

In a folder: ``checkpoint.json`` names a safetensors file and its SHA-256. Each checkpoint writes a new tensor
file before the JSON that names it is replaced, so that at every moment the folder holds a whole one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys_budget._extras import extra
from recsys_budget.errors import CheckpointError
from recsys_budget.privacy import LedgerHead, PrivacyLedger, Reservation
from recsys_budget.training.loop import TrainingState

with extra("train"):
    import safetensors.torch
    import torch
    from safetensors import SafetensorError

if TYPE_CHECKING:
    from torch import Tensor

_FORMAT = "recsys-budget checkpoint 1"
# What reading a file that is not what it should be can raise.
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError)
_INDEX, _TENSORS = "checkpoint.json", "checkpoint-*.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A training run as it stood at one moment.

    Attributes:
        state: Parameters, Adam's moments and snapshots: released values alone.
        constants: Public constants of the run, as JSON has them; it goes on under the same ones only.
        reservation: Number, in the ledger, of the reservation that pays for it.
        head: The ledger's head at that moment.
    """

    state: TrainingState
    constants: Mapping[str, Any]
    reservation: int
    head: LedgerHead

    def reopen(self, ledger: PrivacyLedger, constants: Mapping[str, Any]) -> Reservation:
        """The reservation to go on under, with what the ledger says is left of it.

        Args:
            ledger: The one that paid for the run so far.
            constants: Of the run that is about to go on.

        Raises:
            CheckpointError: The checkpoint belongs to another ledger, population or set of constants.
            LedgerCorruptError: The ledger is older than the checkpoint: a copy was put in its place.
            ReservationError: The reservation is settled, so that nothing can be run under it any more.
        """
        self._check_ledger(ledger)
        ours, theirs = _plain(constants), self.constants
        different = sorted(name for name in ours.keys() | theirs if ours.get(name) != theirs.get(name))
        if different:
            name = different[0]
            raise CheckpointError(
                f"the checkpoint is of a run with other constants ({', '.join(different)}): {name} was "
                f"{theirs.get(name)!r} and is {ours.get(name)!r}. Go on with the same ones"
            )
        ledger.verify(self.head)
        return ledger.resume(self.reservation)

    def settled(self, ledger: PrivacyLedger) -> bool:
        """Whether the run was settled, so that nobody can go on from here and nothing is lost with it.

        Raises:
            CheckpointError: The checkpoint belongs to another ledger or population.
            LedgerCorruptError: The ledger is older than the checkpoint.
        """
        self._check_ledger(ledger)
        ledger.verify(self.head)
        records = ledger.history().set_index("record")
        return bool(records.at[self.reservation, "settled"])

    def _check_ledger(self, ledger: PrivacyLedger) -> None:
        head = ledger.head
        if (self.head.ledger, self.head.population) != (head.ledger, head.population):
            raise CheckpointError(
                f"the checkpoint belongs to population {self.head.population!r} of ledger "
                f"{self.head.ledger}, not to {head.population!r} of {head.ledger}: open that one, or give "
                "the run another folder"
            )


def save_checkpoint(folder: str | PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint in place of the one before it; a crash at any moment leaves one of the two, whole.

    Args:
        folder: A folder for this run alone; made if there is none.
        checkpoint: What to write.

    Raises:
        CheckpointError: It cannot be written; the one before it is intact.
    """
    place = Path(folder)
    tensors = {
        # Cloned, since a snapshot of the last step is the parameters themselves, and no two may share memory.
        f"{kind}/{name}": value.clone(memory_format=torch.contiguous_format)
        for kind, values in _parts(checkpoint.state).items()
        for name, value in values.items()
    }
    data = safetensors.torch.save(tensors)
    digest = hashlib.sha256(data).hexdigest()
    name = f"checkpoint-{digest[:32]}.safetensors"
    index = {
        "format": _FORMAT,
        "steps": checkpoint.state.steps,
        "constants": checkpoint.constants,
        "reservation": checkpoint.reservation,
        "ledger": asdict(checkpoint.head),
        "file": name,
        "sha256": digest,
        "tensors": _shapes(tensors),
    }
    text = json.dumps(index | {"index_sha256": _digest(index)}, indent=2, allow_nan=False) + "\n"
    try:
        place.mkdir(parents=True, exist_ok=True)
        _write(place / name, data)
        _write(place / _INDEX, text.encode())
        for old in place.glob(_TENSORS):
            if old.name != name:
                old.unlink()
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint cannot be written: {error}. Make room or rights, and go on from the one before",
            path=place,
        ) from error


def load_checkpoint(folder: str | PathLike[str]) -> Checkpoint:
    """Read and check the checkpoint of a folder. Nothing is unpickled.

    Raises:
        CheckpointError: There is none, or it is torn or was altered.
    """
    place = Path(folder)
    try:
        text = (place / _INDEX).read_bytes()
    except OSError as error:
        raise CheckpointError(f"there is no checkpoint to go on from: {error}", path=place) from error
    try:
        index = json.loads(text)
        stated = index.pop("index_sha256")
        if index["format"] != _FORMAT or stated != _digest(index):
            raise ValueError("its index was altered, or another version wrote it")
        if Path(index["file"]).name != index["file"]:
            raise ValueError("its index names a file outside the folder")
        data = (place / index["file"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != index["sha256"]:
            raise ValueError("its tensors are not those that were written")
        tensors = safetensors.torch.load(data)
        if _shapes(tensors) != index["tensors"]:
            raise ValueError("its tensors do not have the shapes that its index says")
        return Checkpoint(
            _state(index["steps"], tensors),
            index["constants"],
            index["reservation"],
            LedgerHead(**index["ledger"]),
        )
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        OSError,
        SafetensorError,
    ) as error:
        raise CheckpointError(
            f"this checkpoint cannot be trusted: {error}. What its reservation paid for stays spent; delete "
            "the folder to start again",
            path=place,
        ) from error


def has_checkpoint(folder: str | PathLike[str]) -> bool:
    """Whether there is a checkpoint in the folder, whole or not."""
    return (Path(folder) / _INDEX).exists()


def _parts(state: TrainingState) -> dict[str, Mapping[str, Tensor]]:
    snapshots = {f"snapshot {mark}": values for mark, values in state.snapshots.items()}
    return {"parameters": state.parameters, "moments": state.moments} | snapshots


def _state(steps: int, tensors: Mapping[str, Tensor]) -> TrainingState:
    parts: dict[str, dict[str, Tensor]] = {"parameters": {}, "moments": {}}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        parts.setdefault(kind, {})[name] = value
    parameters, moments = parts.pop("parameters"), parts.pop("moments")
    snapshots = {int(kind.removeprefix("snapshot ")): values for kind, values in parts.items()}
    return TrainingState(steps, parameters, moments, snapshots)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{value.dtype} {list(value.shape)}" for name, value in tensors.items()}


def _plain(constants: Mapping[str, Any]) -> dict[str, Any]:
    """Constants as they come back from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(constants)))
    return plain


def _digest(index: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and not return before it is on the disk."""
    temporary = path.with_name(f"{path.name}.new")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    finally:
        temporary.unlink(missing_ok=True)
