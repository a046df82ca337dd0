"""Private training of a module of one's own: what is not proven to be bounded is refused."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from recsys_budget._extras import extra
from recsys_budget.data import Interactions
from recsys_budget.errors import SpecificationError
from recsys_budget.models._constants import fitting, require_seed, require_whole
from recsys_budget.models.base import Recommender
from recsys_budget.privacy import (
    PrivacyLedger,
    Receipt,
    SampledGaussianMechanism,
    SeededNoise,
    SystemNoise,
)

with extra("train"):
    import torch
    from torch import Tensor, nn

    from recsys_budget.training import check_sensitivity, train_private
    from recsys_budget.training.allowed import RowGraph
    from recsys_budget.training.loop import ALL_STEPS


class PrivateTrainer(Recommender):
    """Train your own ``torch.nn.Module`` under the privacy cap: one user is one sample.

    The module maps rows ``(batch, n_items)`` of zeros and ones to outputs ``(batch, m)``. It is accepted
    only if every layer, and every use of it, is on a list of those that are proven to treat each user's row
    apart (``recsys_budget.training.allowed.LAYERS`` and ``FUNCTIONS``, each with its proof): Linear,
    LayerNorm and activations, nested, in branches, added and concatenated. What it computes is read off its
    graph, and the graph is what is trained and what predicts. Then made-up users are removed one by one
    from made-up batches, at the module's start and elsewhere, and none may move the clipped sum by more
    than the bound. That test alone admits nothing. Both come before anything is reserved, and read no
    private data.

    All constructor arguments are public constants: choose them without looking at the private data. That
    goes for the module's parameters as well: they must not have been computed from private data.

    Args:
        module: What to train. It is copied, and stays as it is.
        loss: From one user's outputs ``(m,)`` and row ``(n_items,)`` to a scalar, in torch operations that
            ``torch.func.vmap`` can batch. It is given no other user and no parameters; let it read nothing
            private besides.
        declared_users: About how many users there are, as publicly known; see :class:`PrivateAutoencoder`.
        steps: Most training steps to run.
        sample_rate: Probability that a step includes a given user.
        noise_multiplier: Noise of each step over the clip bound. None takes the smallest with which all
            ``steps`` fit under the cap; a number runs as many of ``steps`` as fit.
        max_grad_norm: Clip bound on a user's gradient.
        learning_rate: Adam's.
        check_sensitivity: Run the test on made-up users once more, with the trained parameters, before the
            model is handed out.
        progress: Show a progress bar.
        device: Where to train, as torch names it; None takes a GPU where there is one.
        insecure_seed: **Not private.** Repeatable noise instead of the operating system's, for tests only;
            the receipt says so.

    Attributes:
        catalogue_: The item catalogue.
        module_: The trained copy of the module.
        receipt_: What it cost.

    Examples:
        >>> import torch
        >>> from recsys_budget.models import PrivateTrainer
        >>> tied = torch.nn.Linear(4, 4)
        >>> def squared(outputs, row):
        ...     return ((outputs - row) ** 2).sum()
        >>> trainer = PrivateTrainer(torch.nn.Sequential(tied, tied), squared, declared_users=100)
        >>> trainer.check(n_items=4)
        Traceback (most recent call last):
        ...
        recsys_budget.errors.SpecificationError: a layer or its weight is used twice ...
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        declared_users: int,
        steps: int = 300,
        sample_rate: float = 0.1,
        noise_multiplier: float | None = None,
        max_grad_norm: float = 1.0,
        learning_rate: float = 0.01,
        check_sensitivity: bool = False,
        progress: bool = True,
        device: str | None = None,
        insecure_seed: int | None = None,
    ) -> None:
        self.module = module
        self.loss = loss
        self.declared_users = declared_users
        self.steps = steps
        self.sample_rate = sample_rate
        self.noise_multiplier = noise_multiplier
        self.max_grad_norm = max_grad_norm
        self.learning_rate = learning_rate
        self.check_sensitivity = check_sensitivity
        self.progress = progress
        self.device = device
        self.insecure_seed = insecure_seed

    def check(self, n_items: int) -> float:
        """Whether the module and its loss can be trained privately; reads no data and spends nothing.

        Args:
            n_items: Width of a user's row.

        Returns:
            The furthest that a made-up user moved the clipped sum, in units of the bound: at most 1.

        Raises:
            SpecificationError: A constant out of range, or a layer or a use of it that is not known to be
                sound; the message says why.
            SensitivityError: A made-up user moved the clipped sum by more than the bound.
        """
        self._check_constants()
        return check_sensitivity(self.module, self.loss, n_items, max_grad_norm=self.max_grad_norm)

    def fit(self, interactions: Interactions, *, ledger: PrivacyLedger) -> Self:
        """Check, reserve, then train; afterwards the reservation is settled.

        An interrupt (a notebook's stop button) while steps run ends training: the model has the parameters
        after the last complete step, and the receipt says so.

        Args:
            interactions: Implicit feedback (ratings are ignored), over a declared catalogue.
            ledger: Of the population whose data this is.

        Raises:
            SpecificationError: As :meth:`check` raises it, or a table that unaccounted reads have shaped;
                nothing was read or spent.
            SensitivityError: As :meth:`check` raises it; nothing was read or spent. With
                ``check_sensitivity`` also after training, and then what was run stays spent.
            PopulationError: Some of these users spend from another population's budget.
            BudgetExceededError: Not even one step fits; nothing was read or spent.
            LedgerError: The ledger cannot be trusted or written.
            NumericalError: Training diverged; what was run stays spent.
        """
        interactions.require_accounted()
        self.check(interactions.n_items)
        ledger.register(interactions.users)
        mechanism = self._plan(ledger)
        reservation = ledger.reserve((mechanism,), purpose=f"fit {type(self).__name__}")
        noise = SystemNoise() if self.insecure_seed is None else SeededNoise(self.insecure_seed)
        module = copy.deepcopy(self.module)
        constants = self.get_params() | {"module": _description(module), "loss": _name(self.loss)}
        try:
            run = train_private(
                module,
                interactions.matrix(),
                self.loss,
                mechanism=mechanism,
                reservation=reservation,
                max_grad_norm=self.max_grad_norm,
                expected_batch_size=self.sample_rate * self.declared_users,
                learning_rate=self.learning_rate,
                noise=noise,
                progress=self.progress,
                device=self.device,
                check_sensitivity=self.check_sensitivity,
            )
        finally:
            reservation.commit()
        self.catalogue_ = interactions.catalogue
        self.module_ = module
        cut = run.stop_reason == ALL_STEPS and run.steps < self.steps
        self.receipt_ = Receipt.write(
            model=type(self).__name__,
            private=noise.private,
            ledger=ledger,
            reservation=reservation,
            steps=run.steps,
            stop_reason="the next step would pass the cap" if cut else run.stop_reason,
            constants=constants,
            declared_public=(
                "item catalogue",
                "about how many users there are",
                "constructor arguments, with the parameters that the module started from",
            ),
        )
        return self

    def predict(self, interactions: Interactions) -> NDArray[np.float32]:
        """The module's outputs for every user, from the users' own rows.

        Args:
            interactions: Histories, over the catalogue the module was trained on.

        Returns:
            Shape ``(n_users, m)``, float32. Where m is the number of items, ``score`` and ``recommend`` take
            them for relevance.

        Raises:
            NotFittedError: ``fit`` was not called (scikit-learn's error).
            SpecificationError: The histories are over another catalogue.
            NumericalError: An output is not finite.
        """
        parts = [outputs for _, outputs in super()._batches(interactions)]
        return np.concatenate(parts) if parts else self._scores(interactions)

    def _batches(self, interactions: Interactions) -> Iterator[tuple[Interactions, NDArray[np.float32]]]:
        for batch, outputs in super()._batches(interactions):
            if outputs.shape[1] != batch.n_items:
                raise SpecificationError(
                    f"the module gives {outputs.shape[1]} outputs a user, and there are {batch.n_items} "
                    "items: they are no relevance. Use predict"
                )
            yield batch, outputs

    def _scores(self, batch: Interactions) -> NDArray[np.float32]:
        graph = RowGraph(self.module_)
        with torch.no_grad():
            rows = torch.from_numpy(batch.matrix().toarray()).to(next(self.module_.parameters()))
            outputs: NDArray[np.float32] = graph(rows)[0].float().numpy()
        return outputs

    def _check_constants(self) -> None:
        for name in ("declared_users", "steps"):
            require_whole(name, getattr(self, name))
        for name in ("max_grad_norm", "learning_rate"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 < value < 1e6):
                raise SpecificationError(f"{name} is {value!r}; it must lie strictly between 0 and 1e6")
        require_seed(self.insecure_seed)

    def _plan(self, ledger: PrivacyLedger) -> SampledGaussianMechanism:
        """The schedule: a function of public constants and of what the ledger has left."""

        def schedule(noise_multiplier: float, steps: int) -> tuple[SampledGaussianMechanism]:
            return (SampledGaussianMechanism(noise_multiplier, self.sample_rate, steps),)

        (mechanism,) = fitting(schedule, ledger, self.noise_multiplier, self.steps)
        return cast(SampledGaussianMechanism, mechanism)


def _description(module: nn.Module) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.contiguous().cpu().numpy().tobytes())
    return {"type": type(module).__name__, "layers": str(module), "start_sha256": digest.hexdigest()}


def _name(loss: Callable[..., Any]) -> str:
    return getattr(loss, "__qualname__", None) or repr(loss)
