"""Private training in several processes, each with the rows of some users: one mechanism, as if in one.

Started by torch's own launcher, ``torchrun --nproc-per-node 2 train.py``, where every process runs ::

    torch.distributed.init_process_group("gloo")
    first = torch.distributed.get_rank() == 0
    reservation = ledger.reserve([mechanism], purpose="train in two processes") if first else None
    train_private_distributed(module, rows, users, loss, mechanism=mechanism, reservation=reservation, ...)

Why it costs what one process costs. Whether a user is in a batch is a draw of that user's own process,
independent of all others, so the batch of all processes together is a Poisson sample at the same rate. The
clipped sums of all processes are added up in the first one, which adds noise once, and every process takes
the same step from that one noisy sum. So each step is one release of the same mechanism, and the first
process claims it from the ledger before any process reads a row. Sums without noise travel between the
processes: they must trust each other, and whatever lies between them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget._extras import extra
from recsys_budget.errors import (
    RecsysBudgetError,
    ReservationError,
    ReservationUsedUpError,
    SpecificationError,
)
from recsys_budget.privacy import Mechanism, NoiseSource, Reservation, SampledGaussianMechanism
from recsys_budget.training.loop import TrainingRun, train_private

with extra("train"):
    from torch import Tensor, nn
    from torch import distributed as dist

    from recsys_budget.training.allowed import RowGraph


def train_private_distributed(
    module: nn.Module,
    rows: sparse.csr_array,
    users: Sequence[str],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    mechanism: SampledGaussianMechanism,
    reservation: Reservation | None,
    max_grad_norm: float,
    expected_batch_size: float,
    learning_rate: float,
    noise: NoiseSource,
    snapshot_at: Collection[int] = (),
    progress: bool = True,
) -> TrainingRun:
    """As :func:`train_private`, called in every process of torch's default group, each with its users' rows.

    Repeatable noise of one seed in all of them gives the parameters that one process gives with the rows of
    all, those of the first process first, but for rounding of sums.

    Args:
        module: The same in every process; all start from the first one's parameters, and end with the same.
        rows: This process's users x items, private.
        users: Their ids, one a row. No user may have rows in two processes: that would be twice the bound.
        loss: The same in every process.
        mechanism: The reserved schedule: noise, sample rate and number of steps.
        reservation: Paid permission for it, in the first process; None in the others. Users of all processes
            are registered with its ledger.
        max_grad_norm: Per-user clip bound.
        expected_batch_size: Public constant that noisy sums are divided by: of all processes together.
        learning_rate: Adam's.
        noise: Source of the sampling masks, and in the first process of the noise.
        snapshot_at: Numbers of paid steps after which to keep a copy of the parameters.
        progress: Show a progress bar in the first process.

    Returns:
        What happened, the same in every process.

    Raises:
        SpecificationError: There is no group of processes, they disagree on what to do, a user is in two of
            them, the reservation is missing or in the wrong place, or as :func:`train_private` raises it:
            in every process, and nothing was read.
        PopulationError: Some users spend from another population's budget.
        ReservationError: The reservation does not grant the schedule; nothing was read.
        NumericalError: Training diverged.
        RuntimeError: Torch's, where another process died. The module is as it was after the last complete
            step, and what was claimed stays spent.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise SpecificationError(
            "there is no group of processes: start the script with torchrun, and call "
            'torch.distributed.init_process_group("gloo") in it; or use train_private'
        )
    constants = {
        "max_grad_norm": max_grad_norm,
        "expected_batch_size": expected_batch_size,
        "learning_rate": learning_rate,
        "snapshot_at": tuple(snapshot_at),
    }
    first = dist.get_rank() == 0
    pays = "the first process, and no other, needs a reservation"
    _agree(pays if (reservation is None) == first else _problem(module, rows, users, loss))
    shapes = [(name, value.dtype, value.shape) for name, value in module.state_dict().items()]
    plans = _gathered((mechanism, constants, shapes, noise.private))
    _agree(
        None if plans.count(plans[0]) == len(plans) else "processes were given different constants or modules"
    )
    _register(users, reservation)
    for value in module.state_dict().values():
        dist.broadcast(value, 0)
    sizes = _gathered(rows.shape[0])
    start = sum(sizes[: dist.get_rank()])
    return train_private(
        module,
        rows,
        loss,
        mechanism=mechanism,
        reservation=cast(Reservation, _OfTheFirst(reservation)),
        max_grad_norm=max_grad_norm,
        expected_batch_size=expected_batch_size,
        learning_rate=learning_rate,
        noise=_Part(noise, start, rows.shape[0], sum(sizes)),
        snapshot_at=snapshot_at,
        progress=progress and first,
        device="cpu",
        distributed=True,
    )


class _OfTheFirst:
    """The first process's reservation, asked by it and answered to all."""

    def __init__(self, reservation: Reservation | None) -> None:
        self._reservation = reservation

    def use(self, mechanism: Mechanism) -> None:
        """One release, or the same refusal in every process."""
        answer: list[Any] = [None]
        try:
            if self._reservation is not None:
                self._reservation.use(mechanism)
        except BaseException as error:
            answer = [(type(error).__name__, str(error))]
            dist.broadcast_object_list(answer, 0)
            raise
        dist.broadcast_object_list(answer, 0)
        if answer[0] is not None:
            kind, message = answer[0]
            if kind == ReservationUsedUpError.__name__:
                raise ReservationUsedUpError(message)
            if kind == KeyboardInterrupt.__name__:
                raise KeyboardInterrupt
            raise ReservationError(f"the first process: {message}")


class _Part:
    """A source of randomness for the users of one process among all.

    Private sources are independent in every process. Of a repeatable one, which all processes have alike,
    each takes its own users' part of what one process would have drawn for everybody.
    """

    def __init__(self, noise: NoiseSource, start: int, size: int, total: int) -> None:
        self._noise, self._start, self._size, self._total = noise, start, size, total

    @property
    def private(self) -> bool:
        return self._noise.private

    def uniform(self, size: int) -> NDArray[np.float64]:
        if size != self._size:
            raise SpecificationError(
                f"{size} numbers were asked for, and this process has {self._size} users"
            )
        if self._noise.private:
            return self._noise.uniform(size)
        return self._noise.uniform(self._total)[self._start : self._start + size]

    def normal(self, size: int) -> NDArray[np.float64]:
        return self._noise.normal(size)


def _problem(
    module: nn.Module,
    rows: sparse.csr_array,
    users: Sequence[str],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> str | None:
    """What this process alone can tell is wrong."""
    if getattr(rows, "format", None) != "csr":
        return f"rows are a {type(rows).__name__}; give a scipy.sparse.csr_array"
    if len(users) != rows.shape[0]:
        return f"{len(users)} users for {rows.shape[0]} rows"
    if getattr(loss, "negatives", None) is not None:
        return "negatives are chosen in one process; give MultinomialLoss() to several"
    if any(value.device.type != "cpu" for value in module.state_dict().values()):
        return "the module is not on the processor; move it there"
    try:
        RowGraph(module)
    except SpecificationError as error:
        return str(error)
    return None


def _register(users: Sequence[str], reservation: Reservation | None) -> None:
    """Tell the first process's ledger about everybody, each of whom is in one process only."""
    parts: list[Any] | None = [None] * dist.get_world_size() if reservation is not None else None
    dist.gather_object(list(map(str, users)), parts, 0)
    error: RecsysBudgetError | None = None
    if reservation is not None and parts is not None:
        everybody = [user for part in parts for user in part]
        if len(set(everybody)) < len(everybody):
            error = SpecificationError(
                "a user has rows in two processes, or twice in one, and would move sums by twice the bound"
            )
        else:
            try:
                reservation.ledger.register(everybody)
            except RecsysBudgetError as refused:
                error = refused
    problems = _gathered(None if error is None else str(error))
    if error is not None:
        raise error
    _raise_first(problems)


def _agree(problem: str | None) -> None:
    """Raise what is wrong in any process in all of them, so that none waits for one that has left."""
    _raise_first(_gathered(problem))


def _raise_first(problems: list[str | None]) -> None:
    for rank, problem in enumerate(problems):
        if problem is not None:
            raise SpecificationError(f"process {rank}: {problem}")


def _gathered(value: Any) -> list[Any]:
    """The value of each process, by rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
