"""Checkpoints bring back released values and never a release: torn, old, after kills, beside any ledger."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys_budget.data import SyntheticSpec, make_interactions
from recsys_budget.errors import (
    CheckpointError,
    LedgerCorruptError,
    ReservationError,
    SpecificationError,
)
from recsys_budget.models import PrivateAutoencoder
from recsys_budget.models import autoencoder as autoencoder_module
from recsys_budget.privacy import GaussianMechanism, PrivacyBudget, PrivacyLedger, SystemNoise
from recsys_budget.training import (
    Checkpoint,
    TrainingState,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from recsys_budget.training import checkpoint as checkpoint_module
from recsys_budget.training._opacus import PrivateStep

BUDGET = PrivacyBudget(6.0, 1e-5)
STEPS = 24


def table():
    return make_interactions(
        SyntheticSpec(n_users=200, n_items=30, n_categories=4, n_providers=5), rng=1
    ).interactions


def model(folder, **changes):
    constants = {
        "declared_users": 200,
        "steps": STEPS,
        "n_factors": 4,
        "checkpoint": folder,
        "checkpoint_every": 4,
        "progress": False,
    }
    return PrivateAutoencoder(**constants | changes)


@pytest.fixture
def ledger(tmp_path):
    return PrivacyLedger(BUDGET, tmp_path / "budget.db")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def released(monkeypatch):
    """What really ran, counted where it happens and not by any counter of the package."""
    ran = Counter()
    step, release = PrivateStep.__call__, autoencoder_module.release_sum

    def counted_step(self, rows, loss):
        ran["steps"] += 1
        step(self, rows, loss)

    def counted_release(*arguments, **keywords):
        ran["counts"] += 1
        return release(*arguments, **keywords)

    monkeypatch.setattr(PrivateStep, "__call__", counted_step)
    monkeypatch.setattr(autoencoder_module, "release_sum", counted_release)
    return ran


def break_off(monkeypatch, folder, ledger, *, at=8, keep=None, resume=False, **changes):
    """Fit until the checkpoint of this step cannot be written, which leaves the reservation open."""
    save = autoencoder_module.save_checkpoint

    def failing(where, checkpoint):
        if checkpoint.state.steps >= at:
            raise CheckpointError("the disk is full")
        save(where, checkpoint)
        if keep is not None:
            shutil.copytree(where, keep / str(checkpoint.state.steps))

    with monkeypatch.context() as patch:
        patch.setattr(autoencoder_module, "save_checkpoint", failing)
        with pytest.raises(CheckpointError, match="disk is full"):
            model(folder, **changes).fit(table(), ledger=ledger, resume=resume)


def reservations(ledger):
    history = ledger.history()
    return history[history["event"] == "reservation"]


def example(ledger, steps=5):
    values = {"0.weight": torch.arange(6.0).reshape(2, 3), "0.bias": torch.tensor([1.0, -2.0])}
    moments = {"0.step": torch.tensor(5.0), "0.exp_avg": torch.ones(2, 3)}
    state = TrainingState(steps, values, moments, {3: {name: v + 1 for name, v in values.items()}})
    return Checkpoint(state, {"rate": 0.1, "path": [1.0, 2.0], "none": None}, 2, ledger.head)


def equal(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_round_trip(ledger, folder):
    written = example(ledger)
    assert not has_checkpoint(folder)
    save_checkpoint(folder, written)
    assert has_checkpoint(folder)
    read = load_checkpoint(folder)
    equal(read.state.parameters, written.state.parameters)
    equal(read.state.moments, written.state.moments)
    equal(read.state.snapshots[3], written.state.snapshots[3])
    assert list(read.state.snapshots) == [3]
    assert (read.state.steps, read.constants, read.reservation, read.head) == (
        5,
        written.constants,
        2,
        written.head,
    )


def test_a_checkpoint_says_nothing_about_spending(monkeypatch, ledger, folder):
    break_off(monkeypatch, folder, ledger)
    index = json.loads((folder / "checkpoint.json").read_text())
    assert set(index) == {
        "format",
        "steps",
        "constants",
        "reservation",
        "ledger",
        "file",
        "sha256",
        "tensors",
        "index_sha256",
    }
    assert set(index["ledger"]) == {"ledger", "population", "seq", "hash"}
    words = (folder / "checkpoint.json").read_text()
    assert not any(word in words for word in ("spent", "used", "claimed", "remaining", "delta"))
    assert sorted(p.name for p in folder.iterdir()) == sorted(["checkpoint.json", index["file"]])
    # safetensors: a length, JSON, raw numbers; nothing that could be a pickle
    data = (folder / index["file"]).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    kinds = {name.partition("/")[0] for name in header} - {"__metadata__"}
    assert kinds == {"parameters", "moments"}
    names = {name.rpartition(".")[2] for name in header if name.startswith("moments/")}
    assert names == {"step", "exp_avg", "exp_avg_sq"}


def edit(folder, **changes):
    """Change the index as somebody would who does not know of its own digest, or who does."""
    path = folder / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def resealed(folder, **changes):
    index = json.loads((folder / "checkpoint.json").read_text()) | changes
    index.pop("index_sha256")
    digest = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
    (folder / "checkpoint.json").write_text(json.dumps(index | {"index_sha256": digest}))


def tensors_of(folder):
    return next(folder.glob("*.safetensors"))


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "no index": lambda f: (f / "checkpoint.json").unlink(),
    "no tensors": lambda f: tensors_of(f).unlink(),
    "empty index": lambda f: (f / "checkpoint.json").write_text(""),
    "torn index": lambda f: (f / "checkpoint.json").write_bytes((f / "checkpoint.json").read_bytes()[:200]),
    "index of something else": lambda f: (f / "checkpoint.json").write_text("[1, 2]"),
    "bottomless index": lambda f: (f / "checkpoint.json").write_text("[" * 100_000),
    "bytes for an index": lambda f: (f / "checkpoint.json").write_bytes(b"\xff\xfe\x00"),
    "torn tensors": lambda f: tensors_of(f).write_bytes(tensors_of(f).read_bytes()[:-4]),
    "one bit of a number": lambda f: flip(tensors_of(f), -3),
    "one bit of the header": lambda f: flip(tensors_of(f), 20),
    "steps edited": lambda f: edit(f, steps=1),
    "reservation edited": lambda f: edit(f, reservation=99),
    "constants edited": lambda f: edit(f, constants={"rate": 1.0}),
    "digest edited": lambda f: edit(f, sha256="0" * 64),
    "another format": lambda f: resealed(f, format="recsys-budget checkpoint 2"),
    "another shape": lambda f: resealed(f, tensors={}),
    "a file elsewhere": lambda f: resealed(f, file=f"../{tensors_of(f).name}"),
    "no head": lambda f: resealed(f, ledger={}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_a_typed_error(ledger, folder, damage):
    save_checkpoint(folder, example(ledger))
    load_checkpoint(folder)
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert caught.value.path == folder


@pytest.mark.parametrize("function", ["fsync", "replace", "open"])
@pytest.mark.parametrize("call", [1, 2, 3, 4])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_any_moment_leaves_a_whole_checkpoint(
    ledger, folder, monkeypatch, function, call, error
):
    save_checkpoint(folder, example(ledger, steps=5))
    calls, real = [], getattr(os, function)

    def failing(*arguments, **keywords):
        calls.append(1)
        if len(calls) == call:
            raise error
        return real(*arguments, **keywords)

    new = example(ledger, steps=6)
    new.state.parameters["0.bias"][0] = 7.0
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module.os, function, failing)
        try:
            save_checkpoint(folder, new)
            completed = True
        except (CheckpointError, KeyboardInterrupt):
            completed = False
    read = load_checkpoint(folder)
    assert read.state.steps in ((6,) if completed else (5, 6))
    assert float(read.state.parameters["0.bias"][0]) == {5: 1.0, 6: 7.0}[read.state.steps]
    save_checkpoint(folder, new)  # and whatever was left behind is cleared away
    assert len(list(folder.iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_a_typed_error(ledger, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(blocked / "run", example(ledger))


def test_a_broken_off_run_goes_on_under_its_reservation(monkeypatch, ledger, folder, released):
    break_off(monkeypatch, folder, ledger, at=12, epsilons=(5.0, 6.0))
    assert released == {"counts": 1, "steps": 12}
    assert reservations(ledger)["settled"].tolist() == [False]
    before = ledger.spent
    again = PrivacyLedger(BUDGET, ledger.path)
    resumed = model(folder, epsilons=(5.0, 6.0)).fit(table(), ledger=again, resume=True)
    # The state is of step 8; up to one chunk of 3 was claimed and lost with the process that broke off.
    assert released["counts"] == 1
    assert released["steps"] <= STEPS
    assert resumed.receipt_.steps == 8 + released["steps"] - 12
    assert resumed.receipt_.stop_reason == "the next step would pass what was reserved"
    assert reservations(ledger)["settled"].tolist() == [True]
    assert ledger.spent <= before
    assert resumed.receipt_.private
    assert len(resumed.epsilon_path()) == 2
    assert resumed.epsilon_path()[-1].steps == STEPS
    assert np.isfinite(resumed.score(table())).all()


def test_a_resumed_run_starts_from_the_values_that_were_kept(monkeypatch, ledger, folder):
    break_off(monkeypatch, folder, ledger)
    kept = load_checkpoint(folder).state
    assert kept.steps == 4
    seen = {}

    def spy(module, rows, loss, *, start, **constants):
        seen.update(start=start, rows=rows, **constants)
        raise CheckpointError("enough")

    monkeypatch.setattr(autoencoder_module, "train_private", spy)
    with pytest.raises(CheckpointError, match="enough"):
        model(folder).fit(table(), ledger=ledger, resume=True)
    equal(seen["start"].parameters, kept.parameters)
    equal(seen["start"].moments, kept.moments)
    assert seen["keep_every"] == 4
    assert isinstance(seen["noise"], SystemNoise)
    assert seen["mechanism"] == seen["reservation"].mechanisms[1]


def test_an_old_checkpoint_put_back_gives_no_release_more(monkeypatch, ledger, folder, released, tmp_path):
    """However often, and whichever: the sum over all resumptions never passes what was reserved."""
    old, steps = tmp_path / "old", 2 * STEPS
    break_off(monkeypatch, folder, ledger, at=12, keep=old, steps=steps)
    for kept in ("0", "4", "8"):
        shutil.rmtree(folder)
        shutil.copytree(old / kept, folder)
        break_off(monkeypatch, folder, ledger, at=int(kept) + 4, resume=True, steps=steps)
    assert released["steps"] == 12 + 3 * 4
    shutil.rmtree(folder)
    shutil.copytree(old / "0", folder)
    last = model(folder, steps=steps).fit(table(), ledger=ledger, resume=True)
    assert last.receipt_.steps == released["steps"] - 24
    assert last.receipt_.stop_reason == "the next step would pass what was reserved"
    # All of them together stay within what was reserved, less at most one chunk of 6 at each break.
    assert steps - 4 * 6 <= released["steps"] <= steps
    assert released["counts"] == 1
    shutil.rmtree(folder)
    shutil.copytree(old / "8", folder)
    with pytest.raises(ReservationError, match="settled"):
        model(folder, steps=steps).fit(table(), ledger=ledger, resume=True)
    assert len(reservations(ledger)) == 1


def test_two_holders_of_one_checkpoint_share_what_is_left(monkeypatch, ledger, folder, released, tmp_path):
    break_off(monkeypatch, folder, ledger)
    shutil.copytree(folder, tmp_path / "copy")
    # The one goes on in the middle of the other's training.
    step, nested = PrivateStep.__call__, []

    def interleaved(self, rows, loss):
        step(self, rows, loss)
        if not nested:
            nested.append(1)
            other = PrivacyLedger(BUDGET, ledger.path)
            break_off(monkeypatch, tmp_path / "copy", other, at=12, resume=True)

    with monkeypatch.context() as patch:
        patch.setattr(PrivateStep, "__call__", interleaved)
        model(folder).fit(table(), ledger=ledger, resume=True)
    assert 8 < released["steps"] <= STEPS
    assert released["counts"] == 1


def test_a_run_that_has_not_ended_is_not_written_over(monkeypatch, ledger, folder, released):
    break_off(monkeypatch, folder, ledger)
    before = (folder / "checkpoint.json").read_bytes(), ledger.spent, dict(released)
    with pytest.raises(SpecificationError, match="resume=True"):
        model(folder).fit(table(), ledger=ledger)
    assert before == ((folder / "checkpoint.json").read_bytes(), ledger.spent, dict(released))
    model(folder).fit(table(), ledger=ledger, resume=True)
    # It has ended now: its folder may serve another run.
    ledger.set_cap(PrivacyBudget(30.0, 1e-5), reason="test")
    assert model(folder).fit(table(), ledger=ledger).receipt_.steps == STEPS
    assert load_checkpoint(folder).reservation == reservations(ledger)["record"].iloc[-1]


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.5},
        {"max_grad_norm": 1.0},
        {"declared_users": 7},
        {"steps": STEPS + 1},
        {"sample_rate": 0.2},
        {"n_factors": 5},
        {"epsilons": (1.0,)},
        {"noise_multiplier": 0.5},
    ],
)
def test_other_constants_are_refused(monkeypatch, ledger, folder, change, released):
    break_off(monkeypatch, folder, ledger)
    before = dict(released)
    with pytest.raises(CheckpointError, match=next(iter(change))):
        model(folder, **change).fit(table(), ledger=ledger, resume=True)
    assert dict(released) == before


def test_another_catalogue_is_refused(monkeypatch, ledger, folder):
    break_off(monkeypatch, folder, ledger)
    other = make_interactions(
        SyntheticSpec(n_users=200, n_items=31, n_categories=4, n_providers=5), rng=1
    ).interactions
    with pytest.raises(CheckpointError, match="items"):
        model(folder).fit(other, ledger=ledger, resume=True)


def test_another_ledger_is_refused(monkeypatch, ledger, folder, tmp_path, released):
    early = tmp_path / "early.db"
    ledger.register(table().users)
    shutil.copy(ledger.path, early)
    break_off(monkeypatch, folder, ledger)
    before = dict(released)

    def resume(other):
        model(folder).fit(table(), ledger=other, resume=True)

    with pytest.raises(CheckpointError, match="belongs to"):
        resume(PrivacyLedger(BUDGET, tmp_path / "other.db"))
    with pytest.raises(CheckpointError, match="belongs to"):
        model(folder).fit(
            table().take_users(np.arange(0)),
            ledger=PrivacyLedger(BUDGET, ledger.path, population="others"),
            resume=True,
        )
    # An older copy of the right one, put in its place: it has not heard of the reservation.
    os.replace(early, ledger.path)
    with pytest.raises(LedgerCorruptError, match="older copy"):
        resume(PrivacyLedger(BUDGET, ledger.path))
    assert dict(released) == before


def test_what_cannot_go_on_is_refused_before_anything_is_spent(ledger, folder):
    for arguments, words in [
        ((model(None), ledger, True), "nothing to resume"),
        ((model(folder), PrivacyLedger(BUDGET), False), "path"),
        ((model(folder, insecure_seed=1), ledger, False), "seeded noise"),
    ]:
        fitted, where, resume = arguments
        with pytest.raises(SpecificationError, match=words):
            fitted.fit(table(), ledger=where, resume=resume)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        model(folder).fit(table(), ledger=ledger, resume=True)
    assert ledger.spent == 0


def test_a_ledger_with_less_used_than_the_state_has_steps_is_never_trusted(monkeypatch, ledger, folder):
    """The check has power: without the head, a ledger put back would grant every step a second time."""
    ledger.register(table().users)
    reserved = ledger.path.with_name("reserved.db")
    reserve = PrivacyLedger.reserve

    def copying(self, *arguments, **keywords):
        reservation = reserve(self, *arguments, **keywords)
        shutil.copy(self.path, reserved)
        return reservation

    monkeypatch.setattr(PrivacyLedger, "reserve", copying)
    break_off(monkeypatch, folder, ledger)
    os.replace(reserved, ledger.path)
    again = PrivacyLedger(BUDGET, ledger.path)
    assert not reservations(again)["settled"].any()  # the reservation is there, and nothing of it is claimed
    with pytest.raises(LedgerCorruptError):
        model(folder).fit(table(), ledger=again, resume=True)


CHILD = """
import os, signal, sys
import test_checkpoint as here
from recsys_budget.models import autoencoder
from recsys_budget.privacy import PrivacyLedger
from recsys_budget.training import checkpoint
from recsys_budget.training._opacus import PrivateStep

path, folder, log, when, at, resume = sys.argv[1:]
out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
seen = {"step": 0, "index": 0}

def die(moment):
    seen[moment] = seen.get(moment, 0) + 1
    if moment == when and seen[moment] == int(at):
        os.kill(os.getpid(), signal.SIGKILL)

step, release, replace, matrix = PrivateStep.__call__, autoencoder.release_sum, os.replace, None

def counted_step(self, rows, loss):
    os.write(out, b"step\\n")
    step(self, rows, loss)
    die("step")

def counted_release(*arguments, **keywords):
    os.write(out, b"counts\\n")
    return release(*arguments, **keywords)

def replacing(source, target):
    if str(target).endswith("checkpoint.json"):
        die("index")
    replace(source, target)

PrivateStep.__call__ = counted_step
autoencoder.release_sum = counted_release
checkpoint.os.replace = replacing
model = here.model(folder).fit(here.table(), ledger=PrivacyLedger(here.BUDGET, path), resume=resume == "1")
os.write(out, f"fitted {model.receipt_.steps}\\n".encode())
"""


@pytest.mark.slow
def test_a_run_killed_again_and_again_never_runs_more_than_was_reserved(ledger, folder, tmp_path):
    """SIGKILL between two steps, while a checkpoint is written, and right after counts were released."""
    log = tmp_path / "log"

    def child(when, at, resume):
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
            ),
            "OMP_NUM_THREADS": "1",
        }
        arguments = [str(ledger.path), str(folder), str(log), when, str(at), str(int(resume))]
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *arguments], env=environment, capture_output=True, text=True
        )
        lines = Counter(log.read_text().split("\n"))
        return done.returncode, lines, done.stderr

    code, lines, _ = child("step", 7, resume=False)
    assert code == -signal.SIGKILL
    assert (lines["counts"], lines["step"]) == (1, 7)
    assert load_checkpoint(folder).state.steps == 4
    assert ledger.spent > 0
    code, lines, _ = child("index", 2, resume=True)  # the second time that it replaces the index
    assert code == -signal.SIGKILL
    assert load_checkpoint(folder).state.steps == 8
    assert lines["counts"] == 1
    middle = lines["step"]
    code, lines, errors = child("never", 0, resume=True)
    assert code == 0, errors
    assert lines["counts"] == 1
    assert middle < lines["step"] <= STEPS
    final = next(int(line.split()[1]) for line in lines if line.startswith("fitted"))
    assert final == 8 + lines["step"] - middle
    record = reservations(ledger)
    assert record["settled"].tolist() == [True]
    # What the ledger counts covers what really ran: chunks that were claimed and lost count as run.
    used = [int(part.split(" of ")[0]) for part in record["used"].iloc[0].split("; ")]
    assert used[0] == 1
    assert lines["step"] <= used[1] <= STEPS


def test_counts_released_before_the_first_checkpoint_are_lost_and_stay_spent(monkeypatch, ledger, folder):
    break_off(monkeypatch, folder, ledger, at=0)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        model(folder).fit(table(), ledger=ledger, resume=True)
    assert ledger.spent > 0
    assert not ledger.fits([GaussianMechanism(0.5)])
