"""One private training step beside its peers, in one run: time and memory of each.

    python benchmarks/training.py [--json] [--repeats 15] [--scale]

3,706 items, 64 factors, a Poisson sample of about 604 of 6,040 generated users with 165 items each. Rows:

- ``nonprivate``: the same model, loss and optimizer without clipping and noise, in the same sparse closed
  form;
- ``autograd``: the same, by torch's autograd on dense rows, as it is usually written;
- ``ours``: ``PrivateStep`` with noise from the operating system, the default;
- ``ours_torch_noise``: the same with torch's generator, which is repeatable and so not private;
- ``ghost``, ``hooks``, ``functorch``: Opacus on dense rows, with its own noise and optimizer: ghost clipping,
  per-user gradients by hooks, and per-user gradients by functorch.

Figures: ``ms`` a step (median, the rows taking turns), ``cpu_ms`` of all cores together, and ``peak_mb``, by
how much a process that runs the row alone grows beyond one that has everything loaded. ``--scale`` runs one
epoch of a private autoencoder of 100,000 items on 1,000,000 generated users instead, and prints its seconds
(on the clock, and of all cores), memory and interactions.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from scipy import sparse
from torch import nn

from recsys_budget.privacy import (
    PrivacyBudget,
    PrivacyLedger,
    SampledGaussianMechanism,
    SystemNoise,
)
from recsys_budget.training import MultinomialLoss, UnitRows, train_private
from recsys_budget.training._opacus import PrivateStep

USERS, ITEMS, FACTORS, LENGTH, RATE, CLIP, SIGMA = 6040, 3706, 64, 165, 0.1, 0.3, 2.0
EXPECTED = RATE * USERS


class TorchNoise:
    """torch's generator: repeatable, so **not private**."""

    private = False

    def uniform(self, size: int) -> NDArray[np.float64]:
        """In [0, 1)."""
        return torch.rand(size, dtype=torch.float64).numpy()

    def normal(self, size: int) -> NDArray[np.float64]:
        """Standard normal."""
        return torch.randn(size).double().numpy()  # drawn in float32, as Opacus does


def users(n: int, items: int, length: int, seed: int = 0) -> sparse.csr_array:
    """Rows of random lengths around ``length``; items by a long-tailed popularity."""
    rng = np.random.default_rng(seed)
    parts, block = [], 50_000
    popularity = np.cumsum(1 / (np.arange(items) + 20.0))
    popularity /= popularity[-1]
    for first in range(0, n, block):
        lengths = rng.geometric(1 / length, min(block, n - first)).clip(1, items // 4)
        who = np.repeat(np.arange(len(lengths)), lengths)
        what = np.searchsorted(popularity, rng.random(len(who)))
        key = np.unique(who * items + what.clip(0, items - 1))
        who, what = np.divmod(key, items)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(who, minlength=len(lengths)))])
        parts.append(
            sparse.csr_array(
                (np.ones(len(key), np.float32), what.astype(np.int32), offsets), (len(lengths), items)
            )
        )
    return sparse.csr_array(sparse.vstack(parts, format="csr"))


def module(items: int = ITEMS, factors: int = FACTORS) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(UnitRows(), nn.Linear(items, factors, bias=False), nn.Linear(factors, items))


def adam(made: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(made.parameters(), lr=0.01)


def dense(batch: sparse.csr_array) -> torch.Tensor:
    return torch.from_numpy(batch.toarray())


def mean_loss(outputs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Each user's loss, shape ``(batch,)``."""
    share = rows / rows.sum(1, keepdim=True).clamp(min=1)
    return -(share * torch.log_softmax(outputs, 1)).sum(1)


def nonprivate() -> Callable[[sparse.csr_array], None]:
    made = module()
    encode, decode = made[1], made[2]
    optimizer = adam(made)
    bag = nn.functional.embedding_bag

    @torch.no_grad()
    def step(batch: sparse.csr_array) -> None:
        lengths = np.diff(batch.indptr)
        users = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
        size = torch.from_numpy(lengths).clamp(min=1).float()
        items, offsets = torch.from_numpy(batch.indices), torch.from_numpy(batch.indptr)
        inputs = size.rsqrt()[users]
        h = bag(
            items,
            encode.weight.t().contiguous(),
            offsets,
            mode="sum",
            per_sample_weights=inputs,
            include_last_offset=True,
        )
        r = torch.softmax(torch.addmm(decode.bias, h, decode.weight.t()), 1)
        r.view(-1).index_add_(0, users * r.shape[1] + items, (1 / size)[users], alpha=-1)
        g = r @ decode.weight
        by_item = batch.tocsc()
        turned = bag(
            torch.from_numpy(by_item.indices),
            g * size.rsqrt()[:, None],
            torch.from_numpy(by_item.indptr),
            mode="sum",
            include_last_offset=True,
        )
        encode.weight.grad = turned.t() / EXPECTED
        decode.weight.grad, decode.bias.grad = r.t() @ h / EXPECTED, r.sum(0) / EXPECTED
        optimizer.step()

    return step


def autograd() -> Callable[[sparse.csr_array], None]:
    made = module()
    optimizer = adam(made)

    def step(batch: sparse.csr_array) -> None:
        rows = dense(batch)
        optimizer.zero_grad()
        (mean_loss(made(rows), rows).sum() / EXPECTED).backward()
        optimizer.step()

    return step


def private(noise: Any) -> Callable[[sparse.csr_array], None]:
    made = module()
    step = PrivateStep(
        made,
        adam(made),
        noise_multiplier=SIGMA,
        max_grad_norm=CLIP,
        expected_batch_size=EXPECTED,
        noise=noise,
        sample_rate=RATE,
    )
    loss = MultinomialLoss()
    return lambda batch: step(batch, loss)


def noisy(kind: type[DPOptimizer], made: nn.Module) -> Any:
    """One of Opacus's optimizers, with its own noise."""
    return kind(
        adam(made),
        noise_multiplier=SIGMA,
        max_grad_norm=CLIP,
        expected_batch_size=EXPECTED,
        loss_reduction="mean",
    )


def ghost() -> Callable[[sparse.csr_array], None]:
    made = module()
    wrapped = GradSampleModuleFastGradientClipping(
        made, loss_reduction="sum", max_grad_norm=CLIP, use_ghost_clipping=True
    )
    optimizer = noisy(DPOptimizerFastGradientClipping, made)

    def step(batch: sparse.csr_array) -> None:
        rows = dense(batch)
        optimizer.zero_grad()
        losses = mean_loss(wrapped(rows), rows)
        losses.sum().backward(retain_graph=True)
        weights = wrapped.get_clipping_coef()
        optimizer.zero_grad()
        wrapped.disable_hooks()
        (weights * losses).sum().backward()
        wrapped.enable_hooks()
        optimizer.step()

    return step


def per_user(**how: Any) -> Callable[[sparse.csr_array], None]:
    made = module()
    wrapped = GradSampleModule(made, loss_reduction="sum", **how)
    optimizer = noisy(DPOptimizer, made)

    def step(batch: sparse.csr_array) -> None:
        rows = dense(batch)
        optimizer.zero_grad()
        mean_loss(wrapped(rows), rows).sum().backward()
        optimizer.step()

    return step


ROWS: dict[str, Callable[[], Callable[[sparse.csr_array], None]]] = {
    "nonprivate": nonprivate,
    "autograd": autograd,
    "ours": lambda: private(SystemNoise()),
    "ours_torch_noise": lambda: private(TorchNoise()),
    "ghost": ghost,
    "hooks": per_user,
    "functorch": lambda: per_user(force_functorch=True),
}
SLOW = ("hooks", "functorch")


def batch_of(table: sparse.csr_array, rng: np.random.Generator) -> sparse.csr_array:
    return table[np.flatnonzero(rng.random(table.shape[0]) < RATE)]


def milliseconds(repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median of each row's steps, on the clock and of all cores; in each round all rows step on one batch."""
    table, rng = users(USERS, ITEMS, LENGTH), np.random.default_rng(1)
    steps = {name: make() for name, make in ROWS.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ROWS}
    for turn in range(repeats + 1):
        batch = batch_of(table, rng)
        for name, step in steps.items():
            if name in SLOW and turn > max(3, repeats // 3):
                continue
            start, busy = time.perf_counter(), time.process_time()
            step(batch)
            if turn:  # the first one warms up
                times[name].append((time.perf_counter() - start, time.process_time() - busy))
    medians = {name: 1e3 * np.median(found, axis=0) for name, found in times.items()}
    return {name: float(m[0]) for name, m in medians.items()}, {
        name: float(m[1]) for name, m in medians.items()
    }


def memory(what: str) -> float:
    """Of this process in MB, on Linux: "VmRSS" is held now, "VmHWM" is the most since it was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def grow(name: str) -> float:
    """By how much this process grows over three steps of a row."""
    table, rng = users(USERS, ITEMS, LENGTH), np.random.default_rng(1)
    autograd()(batch_of(table, rng)[:8])  # loads what torch loads late
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # what was most until now is what is held now
    before = memory("VmRSS")
    step = ROWS[name]()
    for _ in range(3):
        step(batch_of(table, rng))
    return memory("VmHWM") - before


def peaks() -> dict[str, float]:
    return {
        name: float(
            subprocess.run(
                [sys.executable, __file__, "--grow", name], check=True, capture_output=True, text=True
            ).stdout
        )
        for name in ROWS
    }


def scale(n: int, items: int) -> dict[str, float]:
    """One epoch, from rows in memory to the last step, in the calling process."""
    rate, length = 0.01, 50
    start = time.perf_counter()
    table = users(n, items, length)
    generated = time.perf_counter() - start
    steps = round(1 / rate)
    mechanism = SampledGaussianMechanism(1.0, rate, steps)
    reservation = PrivacyLedger(PrivacyBudget(20.0, 1e-8)).reserve([mechanism], purpose="scale")
    start, busy = time.perf_counter(), time.process_time()
    run = train_private(
        module(items),
        table,
        MultinomialLoss(4096),
        mechanism=mechanism,
        reservation=reservation,
        max_grad_norm=CLIP,
        expected_batch_size=rate * n,
        learning_rate=0.01,
        noise=SystemNoise(),
        progress=False,
    )
    return {
        "users": n,
        "items": items,
        "interactions": table.nnz,
        "steps": run.steps,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - busy,
        "seconds_to_generate": generated,
        "peak_mb": memory("VmHWM"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="of torch; train_private takes 1 at this size")
    parser.add_argument("--scale", action="store_true", help="one epoch of 1M users x 100k items instead")
    parser.add_argument("--users", type=int, default=1_000_000, help="of --scale")
    parser.add_argument("--items", type=int, default=100_000, help="of --scale")
    parser.add_argument("--grow", choices=ROWS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    if not arguments.scale:
        torch.set_num_threads(arguments.threads)
    if arguments.grow:
        print(grow(arguments.grow))
        return
    result: dict[str, Any]
    if arguments.scale:
        result = scale(arguments.users, arguments.items)
    else:
        ms, cpu_ms = milliseconds(arguments.repeats)
        result = {
            "ours_over_nonprivate": ms["ours"] / ms["nonprivate"],
            "ours_torch_noise_over_nonprivate": ms["ours_torch_noise"] / ms["nonprivate"],
            "ghost_over_ours": ms["ghost"] / ms["ours"],
            "hooks_over_ours": ms["hooks"] / ms["ours"],
            "functorch_over_ours": ms["functorch"] / ms["ours"],
            "ms": ms,
            "cpu_ms": cpu_ms,
            "peak_mb": peaks(),
        }
    print(json.dumps(result, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
