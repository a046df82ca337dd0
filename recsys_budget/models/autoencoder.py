"""A linear autoencoder trained under the privacy cap: one user is one sample."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils.validation import check_is_fitted

from recsys_budget._extras import extra
from recsys_budget.data import Interactions
from recsys_budget.errors import CheckpointError, SpecificationError
from recsys_budget.models._constants import fitting, require_epsilons, require_seed, require_whole
from recsys_budget.models.base import Recommender
from recsys_budget.models.path import PathPoint
from recsys_budget.models.warm_start import (
    head_of,
    log_popularity,
    release_gram,
    warm_factors,
    weights_of,
)
from recsys_budget.privacy import (
    GaussianMechanism,
    Mechanism,
    NoiseSource,
    PrivacyLedger,
    Receipt,
    Reservation,
    SampledGaussianMechanism,
    SeededNoise,
    SystemNoise,
    Use,
    epsilon,
    largest_steps,
    plan_budget,
    release_sum,
    smallest_noise,
)

with extra("train"):
    import torch
    from torch import Tensor, nn

    from recsys_budget.training import (
        Checkpoint,
        MultinomialLoss,
        TrainingState,
        UnitRows,
        has_checkpoint,
        load_checkpoint,
        save_checkpoint,
        train_private,
    )
    from recsys_budget.training.loop import ALL_STEPS

# Parameters of the class that say how it runs, and not what it computes.
_RUNNING = ("progress", "device", "check_sensitivity", "checkpoint", "checkpoint_every")
# Items up to which all are in the softmax, and how many are otherwise.
_ALL_ITEMS, _NEGATIVES = 2**14, 2**12
# Budget of the counts and of the steps beside that of the Gram matrix, in 1 / noise**2.
_COUNTS_TO_GRAM, _STEPS_TO_GRAM = 1 / 9, 1 / 4


class PrivateAutoencoder(Recommender):
    """Low-rank linear autoencoder with a popularity bias, differentially private for users.

    Two or three mechanisms spend from the ledger in one reservation, made before any data is read:

    1. Noisy item counts, which start the output bias at log popularity. Each user adds a vector of Euclidean
       norm at most 1 (the row divided by its norm), so that is the sensitivity.
    2. With ``start="gram"``, a noisy Gram matrix of the items that the counts put first, of sensitivity 1.
       What stands out from its noise is where both layers start (``models/warm_start.py``).
       Where nothing does, they start at random.
    3. DP-SGD on the multinomial loss of Liang et al. (2018), a user's row being both input and target. Each
       sampled user's gradient is clipped; steps stop before the one that would pass the cap.

    All constructor arguments are public constants: choose them without looking at the private data. What is
    None is set by one rule for all data:

    * ``n_factors``: 32; from a Gram matrix as many as stand out, 64 at most.
    * ``steps`` and ``sample_rate``: 300 and 0.1; from a Gram matrix 30 and 0.5.
    * ``max_grad_norm`` and ``learning_rate``: 0.3 and 0.01; from a Gram matrix 0.1 and 0.01.
    * ``negatives``: all items up to 16,384 of them, and 4,096 of more.

    Args:
        declared_users: About how many users there are, as publicly known. It scales the gradient average and
            is never checked against the data, since that would reveal the true number.
        start: None starts the factors at random; "gram" from a noisy Gram matrix. The planner then splits the
            budget: about three quarters go to the matrix.
        n_factors: Width of the hidden layer.
        steps: Most training steps to run.
        sample_rate: Probability that a step includes a given user.
        noise_multiplier: Noise of each step over the clip bound. None takes the smallest with which all
            ``steps`` fit under the cap; a number runs as many of ``steps`` as fit, and needs ``start=None``.
        max_grad_norm: Clip bound on a user's gradient.
        learning_rate: Adam's.
        negatives: Items in each step's softmax beside a user's own; see
            :class:`~recsys_budget.training.MultinomialLoss`.
        counts_share: Share of the remaining epsilon at which the counts alone would be released; with
            ``start=None``.
        epsilons: At which to keep a copy of the model: see :meth:`epsilon_path`.
        checkpoint: Folder for this run's checkpoints, so that ``fit(..., resume=True)`` goes on after a
            crash; it needs a ledger with a path. The folder holds released values alone. None keeps none.
        checkpoint_every: Steps between two checkpoints.
        progress: Show a progress bar.
        device: Where to train, as torch names it; None takes a GPU where there is one.
        check_sensitivity: Debug: remove made-up users one by one before the first step and after the last,
            and raise ``SensitivityError`` where one moves the clipped sum by more than the bound.
        insecure_seed: **Not private.** Repeatable noise instead of the operating system's, for tests only;
            the receipt says so.

    Attributes:
        catalogue_: The item catalogue.
        receipt_: What it cost.

    References:
        Liang et al. (2018), arXiv:1802.05814 (multinomial loss). Abadi et al. (2016), arXiv:1607.00133.
    """

    def __init__(
        self,
        *,
        declared_users: int,
        start: str | None = None,
        n_factors: int | None = None,
        steps: int | None = None,
        sample_rate: float | None = None,
        noise_multiplier: float | None = None,
        max_grad_norm: float | None = None,
        learning_rate: float | None = None,
        negatives: int | None = None,
        counts_share: float = 0.1,
        epsilons: Sequence[float] = (),
        checkpoint: str | PathLike[str] | None = None,
        checkpoint_every: int = 50,
        progress: bool = True,
        device: str | None = None,
        check_sensitivity: bool = False,
        insecure_seed: int | None = None,
    ) -> None:
        self.declared_users = declared_users
        self.start = start
        self.n_factors = n_factors
        self.steps = steps
        self.sample_rate = sample_rate
        self.noise_multiplier = noise_multiplier
        self.max_grad_norm = max_grad_norm
        self.learning_rate = learning_rate
        self.negatives = negatives
        self.counts_share = counts_share
        self.epsilons = epsilons
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every
        self.progress = progress
        self.device = device
        self.check_sensitivity = check_sensitivity
        self.insecure_seed = insecure_seed

    def fit(self, interactions: Interactions, *, ledger: PrivacyLedger, resume: bool = False) -> Self:
        """Reserve, then train; afterwards the reservation is settled, so that what was not run is returned.

        An interrupt (a notebook's stop button) while steps run ends training: the model has the parameters
        after the last complete step, and the receipt says so.

        Args:
            interactions: Implicit feedback (ratings are ignored), over a declared catalogue.
            ledger: Of the population whose data this is.
            resume: Go on from the checkpoint of a run that broke off, under its reservation: with the same
                constants, the same data and the same ledger. Counts are not released again, and steps that
                were paid for and then lost are not run again.

        Raises:
            SpecificationError: Constants out of range, a table that unaccounted reads have shaped, or a
                checkpoint folder where another run has not ended; nothing was read or spent.
            PopulationError: Some of these users spend from another population's budget.
            BudgetExceededError: Not even one step fits; nothing was read or spent.
            CheckpointError: There is no usable checkpoint to go on from; or one cannot be written, and then
                the reservation stays open, so that the run can go on from the one before.
            LedgerError: The ledger cannot be trusted or written.
            NumericalError: Training diverged; what was run stays spent.
        """
        self._check(interactions)
        self._check_checkpoint(ledger, resume)
        ledger.register(interactions.users)
        rule = self._rule(interactions.n_items)
        constants = {name: value for name, value in self.get_params().items() if name not in _RUNNING} | rule
        fixed = constants | {"items": _digest(interactions)}
        state = None
        if resume:
            checkpoint = load_checkpoint(cast("str | PathLike[str]", self.checkpoint))
            reservation, state = checkpoint.reopen(ledger, fixed), checkpoint.state
        else:
            planned = self._plan(ledger, rule)
            reservation = ledger.reserve(planned, purpose=f"fit {type(self).__name__}")
        mechanisms = reservation.mechanisms
        first, training = mechanisms[:-1], cast(SampledGaussianMechanism, mechanisms[-1])
        noise = SystemNoise() if self.insecure_seed is None else SeededNoise(self.insecure_seed)

        def keep(state: TrainingState) -> None:
            assert self.checkpoint is not None
            save_checkpoint(self.checkpoint, Checkpoint(state, fixed, reservation.id, ledger.head))

        try:
            if state is None:
                reservation.use(first[0])
            table = interactions.matrix()
            module = self._module(table, reservation, state, rule, noise)
            run = train_private(
                module,
                table,
                MultinomialLoss(rule["negatives"]),
                mechanism=training,
                reservation=reservation,
                max_grad_norm=rule["max_grad_norm"],
                expected_batch_size=rule["sample_rate"] * self.declared_users,
                learning_rate=rule["learning_rate"],
                noise=noise,
                snapshot_at=self._marks(first, training, ledger.cap.delta),
                start=state,
                keep=None if self.checkpoint is None else keep,
                keep_every=self.checkpoint_every,
                progress=self.progress,
                device=self.device,
                check_sensitivity=self.check_sensitivity,
            )
        except CheckpointError:
            raise  # left open, to go on from the checkpoint before
        except BaseException:
            reservation.commit()
            raise
        reservation.commit()
        self.catalogue_ = interactions.catalogue
        self.module_ = module
        cut = run.stop_reason == ALL_STEPS and run.steps < rule["steps"]
        self.receipt_ = Receipt.write(
            model=type(self).__name__,
            private=noise.private,
            ledger=ledger,
            reservation=reservation,
            steps=run.steps,
            stop_reason="the next step would pass the cap" if cut else run.stop_reason,
            constants=constants,
            declared_public=("item catalogue", "about how many users there are", "constructor arguments"),
        )
        self._path = tuple(
            PathPoint(
                epsilon((*first, replace(training, steps=steps)), ledger.cap.delta),
                steps,
                self._with_parameters(run.snapshots[steps]),
            )
            for steps in sorted(run.snapshots)
        )
        return self

    def epsilon_path(self) -> tuple[PathPoint, ...]:
        """The model as it stood at each of ``epsilons`` that was reached, ascending.

        Every point is the same run, looked at earlier: all of them together cost what the run cost, and the
        last costs what the receipt says. Each is a model of its own that cannot be trained on.

        Raises:
            NotFittedError: ``fit`` was not called (scikit-learn's error).
        """
        check_is_fitted(self, "module_")
        return self._path

    def _module(
        self,
        table: sparse.csr_array,
        reservation: Reservation,
        state: TrainingState | None,
        rule: Mapping[str, Any],
        noise: NoiseSource,
    ) -> nn.Sequential:
        """Where training starts: a state to go on from, or what the releases before the steps say.

        The counts are paid for by the caller; a Gram matrix is here, before it is read.
        """
        n = table.shape[1]
        if state is not None:
            return _linear_autoencoder(n, len(state.parameters["1.weight"]), self.insecure_seed)
        counts, *gram = cast("Sequence[GaussianMechanism]", reservation.mechanisms[:-1])
        noisy = release_sum(_unit_row_sum(table), sensitivity=1.0, mechanism=counts, noise=noise)
        bias = log_popularity(noisy, counts.noise_multiplier)
        factors = np.zeros((n, 0))
        for mechanism in gram:
            head = head_of(bias, self.declared_users, mechanism.noise_multiplier)
            reservation.use(mechanism)
            matrix = release_gram(table, head, weights_of(bias, head), mechanism, noise)
            factors = warm_factors(
                matrix,
                head,
                bias,
                noise=mechanism.noise_multiplier,
                declared_users=self.declared_users,
                n_factors=rule["n_factors"],
            )
        width = factors.shape[1] or rule["n_factors"]
        module = _linear_autoencoder(n, width, self.insecure_seed)
        encode, decode = cast("tuple[nn.Linear, nn.Linear]", (module[1], module[2]))
        with torch.no_grad():
            decode.bias.copy_(torch.from_numpy(bias))
            if factors.shape[1]:
                encode.weight.copy_(torch.from_numpy(factors.T))
                decode.weight.copy_(torch.from_numpy(factors))
        return module

    def _check(self, interactions: Interactions) -> None:
        interactions.require_accounted()
        rule = self._rule(interactions.n_items)
        for name in ("declared_users", "n_factors", "steps", "checkpoint_every"):
            value = rule.get(name, getattr(self, name))
            require_whole(name, value)
        for name, most in (("max_grad_norm", 1e6), ("learning_rate", 1e6), ("counts_share", 1.0)):
            value = rule.get(name, getattr(self, name))
            if not (isinstance(value, int | float) and 0 < value < most):
                raise SpecificationError(f"{name} is {value!r}; it must lie strictly between 0 and {most:g}")
        if self.start not in (None, "gram"):
            raise SpecificationError(f"start is {self.start!r}; give None or 'gram'")
        if self.start is not None and self.noise_multiplier is not None:
            raise SpecificationError(
                f"the planner sets the noise where start is {self.start!r}; leave noise_multiplier at None"
            )
        MultinomialLoss(rule["negatives"])
        SampledGaussianMechanism(1.0, rule["sample_rate"], rule["steps"])
        require_epsilons(self.epsilons)
        require_seed(self.insecure_seed)

    def _check_checkpoint(self, ledger: PrivacyLedger, resume: bool) -> None:
        if self.checkpoint is None:
            if resume:
                raise SpecificationError("nothing to resume from: give the model its checkpoint folder")
            return
        if ledger.path is None:
            raise SpecificationError(
                "a run goes on after a crash only if its ledger does: give the ledger a path or no checkpoint"
            )
        if self.insecure_seed is not None:
            raise SpecificationError("seeded noise would repeat after a resumption: give no checkpoint")
        if not resume and has_checkpoint(self.checkpoint):
            checkpoint = load_checkpoint(self.checkpoint)
            if not checkpoint.settled(ledger):
                raise SpecificationError(
                    f"{self.checkpoint} holds a run of {checkpoint.state.steps} steps that can go on: call "
                    "fit with resume=True, or give another folder"
                )

    def _rule(self, n_items: int) -> dict[str, Any]:
        """The constants that None stands for: functions of public quantities, the same for all data."""
        rule: dict[str, Any] = {
            "n_factors": 32, "steps": 300, "sample_rate": 0.1, "max_grad_norm": 0.3, "learning_rate": 0.01,
            "negatives": None if n_items <= _ALL_ITEMS else _NEGATIVES,
        }  # fmt: skip
        if self.start is not None:
            # Few large steps: what they refine is nearly right, and each takes as much noise.
            rule |= {"n_factors": 64, "steps": 30, "sample_rate": 0.5, "max_grad_norm": 0.1}
        return {
            name: value if getattr(self, name) is None else getattr(self, name)
            for name, value in rule.items()
        }

    def _plan(self, ledger: PrivacyLedger, rule: Mapping[str, Any]) -> tuple[Mechanism, ...]:
        """The schedule: a function of public constants and of what the ledger has left."""
        steps, rate = rule["steps"], rule["sample_rate"]
        if self.start is not None:
            # A use takes a share of the budget that goes with the root of its error times what noise costs
            # it.
            uses = (
                Use("counts", error=_COUNTS_TO_GRAM**2),
                Use("gram", error=1.0),
                Use("steps", error=_STEPS_TO_GRAM**2 / (steps * rate**2), sample_rate=rate, steps=steps),
            )
            *first, last = plan_budget(ledger, uses).mechanisms
            return (*first, SampledGaussianMechanism(last.noise_multiplier, rate, steps))
        share, delta = self.counts_share * ledger.remaining, ledger.cap.delta
        least = smallest_noise(lambda s: (GaussianMechanism(s),), lambda m: epsilon(m, delta) <= share)
        counts = GaussianMechanism(min(least, 1e4))

        def schedule(noise_multiplier: float, steps: int) -> tuple[Mechanism, ...]:
            return counts, SampledGaussianMechanism(noise_multiplier, rate, steps)

        return fitting(schedule, ledger, self.noise_multiplier, steps)

    def _marks(
        self, first: Sequence[Mechanism], training: SampledGaussianMechanism, delta: float
    ) -> set[int]:
        """Steps after which each of the epsilons is as nearly spent as it can be."""

        def steps_within(target: float) -> int:
            return largest_steps(
                lambda steps: (*first, replace(training, steps=steps)),
                lambda released: epsilon(released, delta) <= target,
                training.steps,
            )

        return {steps_within(target) for target in self.epsilons} - {0}

    def _with_parameters(self, parameters: Mapping[str, Tensor]) -> Self:
        other = copy.copy(self)
        other.module_ = copy.deepcopy(self.module_)
        other.module_.load_state_dict(parameters)
        other._path = ()
        return other

    def _scores(self, batch: Interactions) -> NDArray[np.float32]:
        with torch.no_grad():
            scores: NDArray[np.float32] = self.module_(torch.from_numpy(batch.matrix().toarray())).numpy()
        return scores


def _linear_autoencoder(n_items: int, n_factors: int, seed: int | None) -> nn.Sequential:
    """Row -> unit row -> hidden -> one logit an item; no nonlinearity."""
    encode, decode = nn.Linear(n_items, n_factors, bias=False), nn.Linear(n_factors, n_items)
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    with torch.no_grad():
        encode.weight.normal_(0, 1 / math.sqrt(n_factors), generator=generator)
        decode.weight.normal_(0, 0.1 / math.sqrt(n_factors), generator=generator)
    return nn.Sequential(UnitRows(), encode, decode)


def _unit_row_sum(table: sparse.csr_array) -> NDArray[np.float64]:
    """Sum over users of the row divided by its Euclidean norm: a user changes it by at most 1.

    Exactly so: entries are rounded down to multiples of 2**-26, which float64 adds without rounding up to
    2**27 users.
    """
    lengths = np.diff(table.indptr)
    weights = np.repeat(np.floor(2.0**26 / np.sqrt(np.maximum(lengths, 1))) * 2.0**-26, lengths)
    return np.asarray(np.bincount(table.indices, weights=weights, minlength=table.shape[1]), np.float64)


def _digest(interactions: Interactions) -> str:
    """Of the item ids in their order: what a run goes on with must have the same columns."""
    return hashlib.sha256("\0".join(interactions.catalogue.ids).encode()).hexdigest()
