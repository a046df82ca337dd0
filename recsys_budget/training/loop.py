"""The training loop: reserve, then sample, then step; the step that would pass the cap does not run."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
from scipy import sparse
from tqdm.auto import tqdm

from recsys_budget._extras import extra
from recsys_budget.errors import ReservationUsedUpError, SpecificationError
from recsys_budget.privacy import NoiseSource, Reservation, SampledGaussianMechanism

with extra("train"):
    import torch

    from recsys_budget.training import sensitivity
    from recsys_budget.training._opacus import PrivateStep

if TYPE_CHECKING:
    from torch import Tensor, nn

    StateDict = Mapping[str, Tensor]


# Multiplications of one pass over a batch below which one thread is used: threads then wait for each other
# longer than they work. Measured with 2 threads on 2 cores, one of them busy: steps 15 to 30 times slower.
_SMALL = 5e8

ALL_STEPS = "all steps ran"
USED_UP = "the next step would pass what was reserved"
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class TrainingState:
    """Where a training run stands: released values alone, so that keeping it costs nothing.

    Attributes:
        steps: Steps that led here.
        parameters: Of the module.
        moments: Adam's, which are functions of noisy sums; empty before the first step.
        snapshots: See :class:`TrainingRun`.
    """

    steps: int
    parameters: StateDict
    moments: StateDict = field(default_factory=dict)
    snapshots: Mapping[int, StateDict] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingRun:
    """What a training run did.

    Attributes:
        steps: Steps that led to the parameters, those before a resumption among them.
        stop_reason: Why it ended, in words: "all steps ran", "the next step would pass what was reserved"
            or "interrupted".
        snapshots: Parameters after each number of paid steps that was asked for, keyed by it.
    """

    steps: int
    stop_reason: str
    snapshots: Mapping[int, StateDict]


def train_private(
    module: nn.Module,
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
    start: TrainingState | None = None,
    keep: Callable[[TrainingState], None] | None = None,
    keep_every: int = 50,
    progress: bool = True,
    device: str | torch.device | None = None,
    check_sensitivity: bool = False,
    distributed: bool = False,
) -> TrainingRun:
    """Train a module with differentially private gradient steps (Adam), one user being one sample.

    Each step takes one release from the reservation *before* it reads a row, draws a fresh Poisson sample of
    the users, clips each sampled user's gradient, and adds Gaussian noise. Adam sees noisy gradients only.

    The step that nothing was reserved for does not run: training ends, and the module has the parameters from
    before it. An interrupt (``KeyboardInterrupt``, a notebook's stop button) ends training in the same way.

    Args:
        module: A graph of layers that ``PrivateStep`` allows. It receives the parameters after the last
            complete step, and nothing else, when training ends for whatever reason.
        rows: Users x items, private; row i is all that is read of user i.
        loss: From one user's outputs and row to a scalar; see ``PrivateStep``. A linear autoencoder under
            :class:`~recsys_budget.training.MultinomialLoss` is trained without dense rows.
        mechanism: The reserved schedule: noise, sample rate and number of steps.
        reservation: Paid permission for it. Settling it is left to the caller.
        max_grad_norm: Per-user clip bound.
        expected_batch_size: Public constant that noisy sums are divided by.
        learning_rate: Adam's.
        noise: Source of the sampling masks and the noise.
        snapshot_at: Numbers of paid steps after which to keep a copy of the parameters.
        start: State to go on from, under a reservation whose releases up to there were taken. Steps that were
            paid for and then lost in a crash are not run again.
        keep: Called with the state before the first step, after every ``keep_every``, and after the last.
        keep_every: Steps between two calls of ``keep``.
        progress: Show a progress bar.
        device: Where to train, as torch names it; None takes a GPU where there is one. Rows are sampled and
            noise is drawn on the processor; the module stays where it is.
        check_sensitivity: Test the module with made-up users before the first step and after the last; see
            :func:`~recsys_budget.training.check_sensitivity`.
        distributed: See :func:`~recsys_budget.training.train_private_distributed`, which sets it.

    Returns:
        Steps run, why they ended, and snapshots.

    Raises:
        SpecificationError: Constants out of range, rows that are not a sparse matrix, a module that is not
            allowed, or a state of another module; nothing was read.
        ReservationError: The reservation does not grant the schedule; nothing was read. Or Opacus's
            accountant, a second witness, did not see a step once: the module is as it was before that step.
        NumericalError: Training diverged.
        SensitivityError: With ``check_sensitivity``, a made-up user moved the clipped sum by more than the
            bound: before the first step nothing was read, and after the last the module must not be used.

    References:
        Abadi et al. (2016), arXiv:1607.00133. Kingma and Ba (2015), arXiv:1412.6980.
    """
    constants = {
        "expected_batch_size": expected_batch_size,
        "max_grad_norm": max_grad_norm,
        "learning_rate": learning_rate,
        "keep_every": keep_every,
    }
    for name, value in constants.items():
        if not (math.isfinite(value) and value > 0):
            raise SpecificationError(f"{name} is {value}; it must be positive and finite")
    if not sparse.issparse(rows) or rows.format != "csr":
        # A loader would draw its own batches, and only Poisson samples cost what is accounted.
        raise SpecificationError(
            f"rows are a {type(rows).__name__}; give all users as one scipy.sparse.csr_array: batches are "
            "Poisson samples drawn by the loop itself"
        )
    if check_sensitivity:
        sensitivity.check_sensitivity(module, loss, rows.shape[1], max_grad_norm=max_grad_norm)
    # Opacus leaves exact sums and norms of the last batch on what it trains, so it gets a copy.
    copied = copy.deepcopy(module).to(_device(device))
    adam = torch.optim.Adam(copied.parameters(), lr=learning_rate)
    step = PrivateStep(
        copied,
        adam,
        noise_multiplier=mechanism.noise_multiplier,
        max_grad_norm=max_grad_norm,
        expected_batch_size=expected_batch_size,
        noise=noise,
        sample_rate=mechanism.sample_rate,
        distributed=distributed,
    )
    paid = 0
    if start is None:
        start = TrainingState(0, _values(copied))
    else:
        _restore(start, copied, adam)
        paid = reservation.used(mechanism)
    copied.train()
    steps, parameters = start.steps, start.parameters
    # What a crash took away is given as it stood before: a mark in between has been paid for all the same.
    snapshots = {mark: parameters for mark in snapshot_at if steps <= mark <= paid} | dict(start.snapshots)
    stop_reason = None
    if keep is not None and steps == 0:
        keep(start)
    try:
        with _threads_worth_their_while(expected_batch_size * sum(p.numel() for p in copied.parameters())):
            for number in tqdm(
                range(paid + 1, mechanism.steps + 1),
                desc="private steps",
                initial=paid,
                total=mechanism.steps,
                disable=not progress,
            ):
                reservation.use(mechanism)
                chosen = np.flatnonzero(noise.uniform(rows.shape[0]) < mechanism.sample_rate)
                step(rows[chosen], loss)
                steps, parameters = steps + 1, _values(copied)
                if number in snapshot_at:
                    snapshots[number] = parameters
                if keep is not None and (steps % keep_every == 0 or number == mechanism.steps):
                    keep(TrainingState(steps, parameters, _moments(adam), dict(snapshots)))
    except ReservationUsedUpError:
        stop_reason = USED_UP
    except KeyboardInterrupt:
        stop_reason = INTERRUPTED
    finally:
        module.load_state_dict(parameters)
        module.eval()
    if check_sensitivity:
        sensitivity.check_sensitivity(module, loss, rows.shape[1], max_grad_norm=max_grad_norm)
    return TrainingRun(steps, stop_reason or (ALL_STEPS if steps == mechanism.steps else USED_UP), snapshots)


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise SpecificationError(f"device is {device!r}, which torch cannot use here: {error}") from error
    return place


def _values(module: nn.Module) -> StateDict:
    """The parameters as fresh tensors: attributes that Opacus put on them stay behind."""
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


def _moments(adam: torch.optim.Adam) -> StateDict:
    """Adam's state, flat: what it holds of each parameter, by the parameter's place."""
    return {
        f"{place}.{name}": value.detach().cpu().clone()
        for place, values in adam.state_dict()["state"].items()
        for name, value in values.items()
    }


def _restore(state: TrainingState, module: nn.Module, adam: torch.optim.Adam) -> None:
    own = module.state_dict()
    if {name: value.shape for name, value in state.parameters.items()} != {
        n: v.shape for n, v in own.items()
    }:
        raise SpecificationError("the state to go on from is of a module with other parameters")
    module.load_state_dict(state.parameters)
    values: dict[int, dict[str, Tensor]] = {}
    for key, value in state.moments.items():
        place, _, name = key.partition(".")
        values.setdefault(int(place), {})[name] = value
    adam.load_state_dict(cast("dict[str, object]", adam.state_dict()) | {"state": values})


@contextmanager
def _threads_worth_their_while(multiplications: float) -> Iterator[None]:
    before = torch.get_num_threads()
    if multiplications < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
