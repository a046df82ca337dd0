"""A linear autoencoder trained under the privacy cap: one user is one sample."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget._extras import extra
from recsys_budget.data import Interactions
from recsys_budget.errors import SpecificationError
from recsys_budget.models.base import Recommender
from recsys_budget.privacy import (
    GaussianMechanism,
    Mechanism,
    PrivacyLedger,
    Receipt,
    SampledGaussianMechanism,
    SeededNoise,
    SystemNoise,
    epsilon,
    largest_steps,
    smallest_noise,
)

with extra("train"):
    import torch
    from torch import Tensor, nn

    from recsys_budget.training import UnitRows, train_private


@dataclass(frozen=True)
class PathPoint:
    """The model as it stood when training had cost this much.

    Attributes:
        epsilon: Epsilon up to here, by PLD.
        steps: Steps up to here.
        model: The recommender with the parameters of that moment.
    """

    epsilon: float
    steps: int
    model: PrivateAutoencoder


class PrivateAutoencoder(Recommender):
    """Low-rank linear autoencoder with a popularity bias, differentially private for users.

    Two mechanisms spend from the ledger in one reservation, made before any data is read:

    1. Noisy item counts, which start the output bias at log popularity. Each user adds a vector of Euclidean
       norm at most 1 (the row divided by its norm), so that is the sensitivity.
    2. DP-SGD on the multinomial loss of Liang et al. (2018), a user's row being both input and target. Each
       sampled user's gradient is clipped; steps stop before the one that would pass the cap.

    All constructor arguments are public constants: choose them without looking at the private data.

    Args:
        declared_users: About how many users there are, as publicly known. It scales the gradient average and
            is never checked against the data, since that would reveal the true number.
        n_factors: Width of the hidden layer.
        steps: Most training steps to run.
        sample_rate: Probability that a step includes a given user.
        noise_multiplier: Noise of each step over the clip bound. None takes the smallest with which all
            ``steps`` fit under the cap; a number runs as many of ``steps`` as fit.
        max_grad_norm: Clip bound on a user's gradient.
        learning_rate: Adam's.
        counts_share: Share of the remaining epsilon at which the counts alone would be released.
        epsilon_path: Epsilons at which to keep a copy of the model. The whole path is paid for by the one
            reservation: it adds nothing to the cost.
        progress: Show a progress bar.
        insecure_seed: **Not private.** Repeatable noise instead of the operating system's, for tests only;
            the receipt says so.

    Attributes:
        catalogue_: The item catalogue.
        receipt_: What it cost.
        path_: A :class:`PathPoint` for each reachable epsilon of ``epsilon_path``, ascending.

    References:
        Liang et al. (2018), arXiv:1802.05814 (multinomial loss). Abadi et al. (2016), arXiv:1607.00133.
    """

    def __init__(
        self,
        *,
        declared_users: int,
        n_factors: int = 32,
        steps: int = 300,
        sample_rate: float = 0.1,
        noise_multiplier: float | None = None,
        max_grad_norm: float = 0.3,
        learning_rate: float = 0.01,
        counts_share: float = 0.1,
        epsilon_path: Sequence[float] = (),
        progress: bool = True,
        insecure_seed: int | None = None,
    ) -> None:
        self.declared_users = declared_users
        self.n_factors = n_factors
        self.steps = steps
        self.sample_rate = sample_rate
        self.noise_multiplier = noise_multiplier
        self.max_grad_norm = max_grad_norm
        self.learning_rate = learning_rate
        self.counts_share = counts_share
        self.epsilon_path = epsilon_path
        self.progress = progress
        self.insecure_seed = insecure_seed

    def fit(self, interactions: Interactions, *, ledger: PrivacyLedger) -> Self:
        """Reserve, then train.

        Args:
            interactions: Implicit feedback (ratings are ignored), over a declared catalogue.
            ledger: Of the population whose data this is.

        Raises:
            SpecificationError: Constants out of range, or a table that unaccounted reads have shaped.
            BudgetExceededError: Not even one step fits; nothing was read or spent.
            NumericalError: Training diverged; what was reserved stays spent.
        """
        self._check(interactions)
        counts, training = self._plan(ledger)
        marks = self._marks(counts, training, ledger.cap.delta)
        module = _linear_autoencoder(interactions.n_items, self.n_factors, self.insecure_seed)
        noise = SystemNoise() if self.insecure_seed is None else SeededNoise(self.insecure_seed)
        reservation = ledger.reserve((counts, training), purpose=f"fit {type(self).__name__}")

        reservation.use(counts)
        table = interactions.matrix()
        noisy_counts = _unit_row_sum(table) + counts.noise_multiplier * noise.normal(interactions.n_items)
        # Counts below the noise say nothing, so all of them start level.
        floor = max(counts.noise_multiplier, 1.0)
        with torch.no_grad():
            cast(nn.Linear, module[-1]).bias.copy_(
                torch.from_numpy(np.log(np.maximum(noisy_counts, floor) / floor))
            )
        run = train_private(
            module,
            table,
            _multinomial_loss,
            mechanism=training,
            reservation=reservation,
            max_grad_norm=self.max_grad_norm,
            expected_batch_size=self.sample_rate * self.declared_users,
            learning_rate=self.learning_rate,
            noise=noise,
            snapshot_at=marks,
            progress=self.progress,
        )
        reservation.commit()
        self.catalogue_ = interactions.catalogue
        self.module_ = module
        self.receipt_ = Receipt.write(
            model=type(self).__name__,
            private=noise.private,
            ledger=ledger,
            reservation=reservation,
            steps=run.steps,
            stop_reason="all steps ran" if run.steps == self.steps else "the next step would pass the cap",
            constants={name: value for name, value in self.get_params().items() if name != "progress"},
            declared_public=("item catalogue", "about how many users there are", "constructor arguments"),
        )
        self.path_ = tuple(
            PathPoint(
                epsilon((counts, _shorter(training, steps)), ledger.cap.delta),
                steps,
                self._with_parameters(run.snapshots[steps]),
            )
            for steps in sorted(marks)
        )
        return self

    def _check(self, interactions: Interactions) -> None:
        if interactions.unaccounted:
            raise SpecificationError(
                "this table was shaped by reads of private data that no budget paid for: "
                f"{'; '.join(interactions.unaccounted)}. Declare a public catalogue instead"
            )
        for name in ("declared_users", "n_factors", "steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SpecificationError(f"{name} is {value!r}; it must be a whole number of at least 1")
        for name, most in (("max_grad_norm", 1e6), ("learning_rate", 1e6), ("counts_share", 1.0)):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 < value < most):
                raise SpecificationError(f"{name} is {value!r}; it must lie strictly between 0 and {most:g}")
        path = self.epsilon_path
        if not isinstance(path, Sequence) or not all(isinstance(e, int | float) and e > 0 for e in path):
            raise SpecificationError(f"epsilon_path is {path!r}; give a sequence of positive numbers, or ()")
        seed = self.insecure_seed
        if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**63):
            raise SpecificationError(f"insecure_seed is {seed!r}; give a whole number from 0, or None")

    def _plan(self, ledger: PrivacyLedger) -> tuple[GaussianMechanism, SampledGaussianMechanism]:
        """The schedule: a function of public constants and of what the ledger has left."""
        share, delta = self.counts_share * ledger.remaining, ledger.cap.delta
        least = smallest_noise(lambda s: (GaussianMechanism(s),), lambda m: epsilon(m, delta) <= share)
        counts = GaussianMechanism(min(least, 1e4))

        def schedule(noise_multiplier: float, steps: int) -> tuple[Mechanism, ...]:
            return counts, SampledGaussianMechanism(noise_multiplier, self.sample_rate, steps)

        noise_multiplier, steps = self.noise_multiplier, self.steps
        if noise_multiplier is None:
            noise_multiplier = min(smallest_noise(lambda s: schedule(s, steps), ledger.fits), 1e4)
        else:
            steps = max(1, largest_steps(lambda n: schedule(noise_multiplier, n), ledger.fits, steps))
        # Where nothing fits, the ledger refuses this schedule, and says so with its own figures.
        return counts, SampledGaussianMechanism(noise_multiplier, self.sample_rate, steps)

    def _marks(self, counts: GaussianMechanism, training: SampledGaussianMechanism, delta: float) -> set[int]:
        """Steps after which each epsilon of the path is as nearly spent as it can be."""

        def steps_within(target: float) -> int:
            return largest_steps(
                lambda steps: (counts, _shorter(training, steps)),
                lambda released: epsilon(released, delta) <= target,
                training.steps,
            )

        return {steps_within(target) for target in self.epsilon_path} - {0}

    def _with_parameters(self, parameters: Mapping[str, Tensor]) -> Self:
        other = copy.copy(self)
        other.module_ = copy.deepcopy(self.module_)
        other.module_.load_state_dict(parameters)
        other.path_ = ()
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


def _multinomial_loss(logits: Tensor, row: Tensor) -> Tensor:
    """Cross-entropy between a user's items, equally weighted, and the softmax; a scalar."""
    share = row / row.sum().clamp(min=1)
    return -(share * torch.log_softmax(logits, 0)).sum()


def _unit_row_sum(table: sparse.csr_array) -> NDArray[np.float64]:
    """Sum over users of the row divided by its Euclidean norm: a user changes it by at most 1."""
    lengths = np.diff(table.indptr)
    weights = np.repeat(1 / np.sqrt(np.maximum(lengths, 1)), lengths)
    return np.asarray(np.bincount(table.indices, weights=weights, minlength=table.shape[1]), np.float64)


def _shorter(training: SampledGaussianMechanism, steps: int) -> SampledGaussianMechanism:
    return SampledGaussianMechanism(training.noise_multiplier, training.sample_rate, steps)
