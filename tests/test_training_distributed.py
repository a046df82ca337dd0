"""Training in several processes under torch's own launcher: the same steps and the same bill as in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import sparse
from torch import nn

from recsys_budget.errors import SpecificationError
from recsys_budget.privacy import (
    PrivacyBudget,
    PrivacyLedger,
    SampledGaussianMechanism,
    SeededNoise,
    SystemNoise,
)
from recsys_budget.training import MultinomialLoss, UnitRows, train_private, train_private_distributed
from recsys_budget.training.distributed import _Part

N, USERS, PROCESSES = 12, 61, 2
MECHANISM = SampledGaussianMechanism(2.0, 0.4, 7)
CONSTANTS = {"max_grad_norm": 0.3, "expected_batch_size": 20.0, "learning_rate": 0.05, "progress": False}

SCRIPT = """
import json, sys
import numpy as np
import torch
from safetensors.torch import save_file
from torch import distributed as dist

sys.path.insert(0, {tests!r})
import test_training_distributed as t
from recsys_budget.errors import RecsysBudgetError
from recsys_budget.privacy import SampledGaussianMechanism, SeededNoise, SystemNoise
from recsys_budget.training import train_private_distributed

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
first = rank == 0
own = slice(*(t.USERS * r // world for r in (rank, rank + 1)))
rows, users = t.rows()[own], t.users()[own]
report = {{}}


def run(module, loss, noise, *, mechanism=t.MECHANISM, steps=None, users=users, reservation="own", **changes):
    ledger = t.ledger()
    if reservation == "own":
        reservation = ledger.reserve([mechanism], purpose="test") if first else None
    result = train_private_distributed(
        module,
        rows,
        users,
        loss,
        mechanism=mechanism,
        reservation=reservation,
        noise=noise,
        **t.CONSTANTS | changes,
    )
    return result, ledger, reservation


for name, (make, loss) in t.CASES.items():
    torch.manual_seed(rank)  # every process builds another module; all start from the first one's
    module = make()
    if first:
        t.reset(module)
    reads = []
    result, ledger, reservation = run(module, loss, SeededNoise(3), snapshot_at=(2,))
    save_file(
        dict(module.state_dict()) | {{"snapshot." + k: v for k, v in result.snapshots[2].items()}},
        f"{{sys.argv[1]}}/{{name}}-{{rank}}.safetensors",
    )
    report[name] = [result.steps, result.stop_reason]
    if first:
        report[name] += [reservation.used(t.MECHANISM), ledger.spent, list(ledger.history()["event"])]

# Noise from the operating system: every process ends with the same parameters all the same.
module = t.reset(t.wide())
run(module, t.silent, SystemNoise(), mechanism=SampledGaussianMechanism(2.5, 0.4, 1), learning_rate=1.0)
weights = module.state_dict()["0.weight"]
save_file({{"weights": weights}}, f"{{sys.argv[1]}}/noise-{{rank}}.safetensors")

# What was reserved runs out in all processes together.
few, other = SampledGaussianMechanism(2.0, 0.4, 7), SampledGaussianMechanism(2.0, 0.1, 7)
ledger = t.ledger()
reservation = ledger.reserve([few], purpose="test") if first else None
if first:
    for _ in range(4):
        reservation.use(few)
result, *_ = run(t.reset(t.linear()), t.squared, SeededNoise(1), mechanism=few, reservation=reservation)
report["run out"] = [result.steps, result.stop_reason]


def refusal(**changes):
    try:
        run(t.linear(), t.squared, SystemNoise(), **changes)
    except RecsysBudgetError as error:
        return [type(error).__name__, str(error)]


twice = list(users)
twice[0] = "0"
report["refused"] = {{
    "a user in two processes": refusal(users=twice),
    "users and rows": refusal(users=list(users)[1:] if rank == world - 1 else users),
    "constants": refusal(learning_rate=0.1 * (1 + rank)),
    "nobody pays": refusal(reservation=None),
    "not reserved": refusal(reservation=t.ledger().reserve([other], purpose="x") if first else None),
}}
with open(f"{{sys.argv[1]}}/report-{{rank}}.json", "w") as file:
    json.dump(report, file)
dist.destroy_process_group()
"""


def rows():
    return sparse.csr_array((np.random.default_rng(0).random((USERS, N)) < 0.3).astype(np.float32))


def users():
    return [str(i) for i in range(USERS)]


def ledger():
    return PrivacyLedger(PrivacyBudget(50.0, 1e-6))


def reset(module):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return module


def linear():
    return nn.Sequential(UnitRows(), nn.Linear(N, 4, bias=False), nn.Linear(4, N))


def deep():
    return nn.Sequential(nn.Linear(N, 6), nn.Tanh(), nn.Linear(6, N))


def wide():
    return nn.Sequential(nn.Linear(N, 5000, bias=False))


def squared(outputs, row):
    return ((outputs - row) ** 2).sum()


def silent(outputs, row):
    return 0.0 * outputs.sum()


CASES = {"closed form": (linear, MultinomialLoss()), "graph": (deep, squared)}


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    script = folder / "train.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(PROCESSES),
    ]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(script), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads((folder / f"report-{rank}.json").read_text()) for rank in range(PROCESSES)]
    return folder, reports


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_parameters_and_bill_are_those_of_one_process(launched, name):
    folder, reports = launched
    make, loss = CASES[name]
    module, alone = reset(make()), ledger()
    reservation = alone.reserve([MECHANISM], purpose="test")
    result = train_private(
        module,
        rows(),
        loss,
        mechanism=MECHANISM,
        reservation=reservation,
        noise=SeededNoise(3),
        snapshot_at=(2,),
        **CONSTANTS,
    )
    found = [load_file(folder / f"{name}-{rank}.safetensors") for rank in range(PROCESSES)]
    for other in found[1:]:
        assert all(torch.equal(found[0][key], value) for key, value in other.items())
    for key, value in module.state_dict().items():
        torch.testing.assert_close(found[0][key], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            found[0][f"snapshot.{key}"], result.snapshots[2][key], rtol=1e-4, atol=1e-5
        )
        assert not torch.equal(found[0][key], reset(make()).state_dict()[key])
    assert [report[name][:2] for report in reports] == [[result.steps, result.stop_reason]] * PROCESSES
    # The users were registered before, in one process by whoever calls; else the record is the same.
    used, spent, events = reports[0][name][2:]
    assert used == reservation.used(MECHANISM) == MECHANISM.steps
    assert spent == alone.spent
    assert events.count("reservation") == list(alone.history()["event"]).count("reservation") == 1


@pytest.mark.slow
def test_noise_of_the_first_process_reaches_all(launched):
    folder, _ = launched
    found = [load_file(folder / f"noise-{rank}.safetensors")["weights"] for rank in range(PROCESSES)]
    assert torch.equal(found[0], found[1])
    moved = found[0] - reset(wide()).state_dict()["0.weight"]
    assert abs(float(moved.sign().mean())) < 0.05


@pytest.mark.slow
def test_what_was_reserved_runs_out_in_all_processes(launched):
    _, reports = launched
    assert {tuple(report["run out"]) for report in reports} == {
        (3, "the next step would pass what was reserved")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a user in two processes", "two processes"),
        ("users and rows", "users for"),
        ("constants", "different constants"),
        ("nobody pays", "needs a reservation"),
        ("not reserved", "not reserved"),
    ],
)
def test_every_process_refuses(launched, name, why):
    _, reports = launched
    refusals = [report["refused"][name] for report in reports]
    assert all(refusal is not None and why in refusal[1] for refusal in refusals)
    kind = "ReservationError" if name == "not reserved" else "SpecificationError"
    assert {refusal[0] for refusal in refusals} == {kind}


def test_without_a_group_it_says_how_to_start_one():
    with pytest.raises(SpecificationError, match="torchrun"):
        train_private_distributed(
            linear(),
            rows(),
            users(),
            squared,
            mechanism=MECHANISM,
            reservation=None,
            noise=SystemNoise(),
            **CONSTANTS,
        )


def test_private_processes_draw_for_their_own_users_and_repeatable_ones_share():
    parts = [_Part(SeededNoise(1), start, 3, 9) for start in (0, 3, 6)]
    whole = SeededNoise(1)
    for _ in range(3):
        together = np.concatenate([part.uniform(3) for part in parts])
        np.testing.assert_array_equal(together, whole.uniform(9))
        draws = [part.normal(4) for part in parts]
        expected = whole.normal(4)
        assert all(np.array_equal(draw, expected) for draw in draws)
    private = _Part(SystemNoise(), 0, 3, 9)
    assert private.private
    assert private.uniform(3).shape == (3,)
    with pytest.raises(SpecificationError, match="3 users"):
        private.uniform(9)
