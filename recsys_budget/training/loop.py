"""The training loop: reserve, then sample, then step; the step that would pass the cap does not run."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from tqdm.auto import tqdm

from recsys_budget._extras import extra
from recsys_budget.errors import SpecificationError
from recsys_budget.privacy import NoiseSource, Reservation, SampledGaussianMechanism

with extra("train"):
    import torch

    from recsys_budget.training._opacus import PrivateStep

if TYPE_CHECKING:
    from torch import Tensor, nn

    StateDict = Mapping[str, Tensor]


# Multiplications of one pass over a batch below which one thread is used: threads then wait for each other
# longer than they work. Measured with 2 threads on 2 cores, one of them busy: steps 15 to 30 times slower.
_SMALL = 5e8


@dataclass(frozen=True)
class TrainingRun:
    """What a training run did.

    Attributes:
        steps: Steps run.
        snapshots: Parameters after each step that was asked for, keyed by the number of steps.
    """

    steps: int
    snapshots: Mapping[int, StateDict]


def train_private(
    module: nn.Sequential,
    rows: sparse.csr_array,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    mechanism: SampledGaussianMechanism,
    reservation: Reservation,
    max_grad_norm: float,
    expected_batch_size: float,
    learning_rate: float,
    noise: NoiseSource,
    snapshot_at: Collection[int] = (),
    progress: bool = True,
) -> TrainingRun:
    """Train a module with differentially private gradient steps (Adam), one user being one sample.

    Each step takes one release from the reservation *before* it reads a row, draws a fresh Poisson sample of
    the users, clips each sampled user's gradient, and adds Gaussian noise. Adam sees noisy gradients only.

    Args:
        module: A ``torch.nn.Sequential`` of the layers that ``PrivateStep`` allows. It receives the released
            parameters, and nothing else, when training ends, or stops for whatever reason.
        rows: Users x items, private; row i is all that is read of user i.
        loss: From one user's outputs and row to a scalar; see ``PrivateStep``.
        mechanism: The reserved schedule: noise, sample rate and number of steps.
        reservation: Paid permission for it.
        max_grad_norm: Per-user clip bound.
        expected_batch_size: Public constant that noisy sums are divided by.
        learning_rate: Adam's.
        noise: Source of the sampling masks and the noise.
        snapshot_at: Step counts after which to keep a copy of the parameters.
        progress: Show a progress bar.

    Returns:
        Steps run and snapshots.

    Raises:
        SpecificationError: Constants out of range, or a module that is not allowed; nothing was read.
        ReservationError: The reservation does not grant the schedule, or is used up.
        NumericalError: Training diverged.

    References:
        Abadi et al. (2016), arXiv:1607.00133. Kingma and Ba (2015), arXiv:1412.6980.
    """
    constants = {
        "expected_batch_size": expected_batch_size,
        "max_grad_norm": max_grad_norm,
        "learning_rate": learning_rate,
    }
    for name, value in constants.items():
        if not (math.isfinite(value) and value > 0):
            raise SpecificationError(f"{name} is {value}; it must be positive and finite")
    # Opacus leaves exact sums and norms of the last batch on what it trains, so it gets a copy.
    copied = copy.deepcopy(module)
    step = PrivateStep(
        copied,
        torch.optim.Adam(copied.parameters(), lr=learning_rate),
        noise_multiplier=mechanism.noise_multiplier,
        max_grad_norm=max_grad_norm,
        expected_batch_size=expected_batch_size,
        noise=noise,
    )
    copied.train()
    snapshots: dict[int, StateDict] = {}
    try:
        with _threads_worth_their_while(expected_batch_size * sum(p.numel() for p in copied.parameters())):
            for number in tqdm(range(1, mechanism.steps + 1), desc="private steps", disable=not progress):
                reservation.use(mechanism)
                chosen = np.flatnonzero(noise.uniform(rows.shape[0]) < mechanism.sample_rate)
                step(torch.from_numpy(rows[chosen].toarray().astype(np.float32, copy=False)), loss)
                if number in snapshot_at:
                    snapshots[number] = _values(copied)
    finally:
        module.load_state_dict(_values(copied))
        module.eval()
    return TrainingRun(mechanism.steps, snapshots)


def _values(module: nn.Module) -> StateDict:
    """The parameters as fresh tensors: attributes that Opacus put on them stay behind."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@contextmanager
def _threads_worth_their_while(multiplications: float) -> Iterator[None]:
    before = torch.get_num_threads()
    if multiplications < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
