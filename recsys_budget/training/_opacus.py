"""The only module that knows Opacus: one private step on a module whose samples are users.

Used from Opacus: the optimizer that adds noise and averages, and its accountant as a second witness, which
counts steps and decides nothing. Not used: its gradients (``graph_sum.py`` says why), the engine and the data
loader, since the ledger decides beforehand how many steps may run (see ``docs/pitfalls.md``).

References:
    Abadi et al. (2016), arXiv:1607.00133 (DP-SGD).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from scipy import sparse

from recsys_budget._extras import extra
from recsys_budget.errors import NumericalError, ReservationError, SpecificationError
from recsys_budget.privacy import GaussianMechanism, NoiseSource, drawn_ahead, release_sum
from recsys_budget.training.allowed import LARGEST, UnitRows
from recsys_budget.training.graph_sum import GraphSum, Loss
from recsys_budget.training.linear import LinearSum, MultinomialLoss

with extra("train"):
    import torch
    from opacus.accountants import RDPAccountant
    from opacus.optimizers import (
        DistributedDPOptimizerFastGradientClipping,
        DPOptimizerFastGradientClipping,
    )
    from torch import Tensor, nn
    from torch import distributed as dist

# Gradients are clipped a little below the bound, so that the bound holds despite float32 rounding of the sum.
_MARGIN = 1 - 1e-3


class PrivateStep:
    """Clip each user's gradient, sum, add noise, divide by a public constant, and let the optimizer step.

    Guarantee: the sum that receives the noise changes by at most ``max_grad_norm`` (Euclidean, over all
    parameters) when one user is added to or removed from the batch, whatever the user's row holds.

    It rests on three things: the module is a graph of layers that treat each row apart, and that graph is
    what runs (``training/allowed.py``); a loss sees one user's outputs and row and nothing else; and norms
    are of the very numbers that are summed (``training/graph_sum.py``).

    Args:
        module: Maps rows ``(batch, n)`` to outputs ``(batch, m)``. Its parameters change in place, and the
            module is unfit for release: Opacus leaves un-noised sums and norms on it.
        optimizer: A torch optimizer over the module's parameters.
        noise_multiplier: Standard deviation of the noise over ``max_grad_norm``.
        max_grad_norm: Clip bound, positive.
        expected_batch_size: Public constant that the noisy sum is divided by; never the true size.
        noise: Where the noise comes from.
        sample_rate: Of the batches: what Opacus's accountant is told.
        distributed: Whether this process has the rows of some users only, and others of its group those of
            the rest: see :func:`~recsys_budget.training.train_private_distributed`.

    Raises:
        SpecificationError: A layer of the module, or a use of it, is not known to be sound.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_batch_size: float,
        noise: NoiseSource,
        sample_rate: float = 1.0,
        distributed: bool = False,
    ) -> None:
        self._module = module
        self._sum = GraphSum(module, _MARGIN * max_grad_norm)
        self._linear: dict[MultinomialLoss, LinearSum | None] = {}
        kind = _DistributedOptimizer if distributed else _Optimizer
        self._optimizer = kind(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
            noise=noise,
        )
        self._noise, self._bound = noise, _MARGIN * max_grad_norm
        self._accountant = RDPAccountant()
        self._optimizer.attach_step_hook(self._accountant.get_optimizer_hook_fn(sample_rate))

    @property
    def released(self) -> int:
        """Noisy sums so far, as Opacus's accountant has seen them."""
        return sum(steps for *_, steps in self._accountant.history)

    def __call__(self, rows: Tensor | sparse.csr_array, loss: Loss) -> None:
        """Run one step.

        Args:
            rows: The sampled users' rows, shape ``(batch, n)``; the batch may be empty. A linear autoencoder
                reads sparse rows as they are where the loss is a :class:`MultinomialLoss`: see
                :class:`~recsys_budget.training.linear.LinearSum`. Any other module gets dense ones.
            loss: From one user's outputs ``(m,)`` and row ``(n,)`` to a scalar, in torch operations that
                ``torch.func.vmap`` can batch: it never sees another user or the parameters.

        Raises:
            NumericalError: The parameters are no longer finite after the step.
            SpecificationError: A loss with negatives, and the module is no linear autoencoder.
            ReservationError: Opacus's accountant did not see this step, or saw it more than once.
        """
        seen = self.released
        self._optimizer.zero_grad()  # or the sum of the step before would be added to this one
        with _exact_products(next(self._module.parameters()).device):
            linear = self._linear_sum(loss)
            if linear is not None:
                if not sparse.issparse(rows):
                    rows = sparse.csr_array(rows.cpu().numpy())
                # Noise depends on no user, so it may be drawn before what it is added to is known.
                size = sum(p.numel() for p in self._optimizer.params)
                columns = linear.choose()
                with drawn_ahead(self._noise, size) as self._optimizer.noise:
                    linear(rows, columns)
                    self._optimizer.step()
            else:
                if not isinstance(rows, Tensor):
                    rows = torch.from_numpy(rows.toarray())
                self._sum(rows, loss)
                self._optimizer.noise = self._noise
                self._optimizer.step()
        if self.released != seen + 1:
            raise ReservationError(
                f"one step ran, and Opacus's accountant saw {self.released - seen}: something else steps "
                "or hooks the optimizer. Leave it to this package; what was paid for stays spent"
            )
        # Parameters are released values, so looking at them costs nothing.
        extremes = (end for p in self._module.parameters() for end in torch.aminmax(p.detach()))
        if not all(bool(torch.isfinite(end)) for end in extremes):
            raise NumericalError("training diverged: parameters are not finite; lower the learning rate")

    def _linear_sum(self, loss: Loss) -> LinearSum | None:
        """The closed form, where module and loss have one."""
        if type(loss) is not MultinomialLoss:
            return None
        if loss not in self._linear:
            sequence = self._module if type(self._module) is nn.Sequential else ()
            layers = [layer for layer in sequence if type(layer) is not nn.Identity]
            unit = bool(layers) and type(layers[0]) is UnitRows
            encode, decode = layers[unit:] if len(layers) == 2 + unit else (None, None)
            if (
                type(encode) is nn.Linear
                and type(decode) is nn.Linear
                and all(p.requires_grad for layer in layers for p in layer.parameters())
            ):
                self._linear[loss] = LinearSum(
                    encode,
                    decode,
                    unit=unit,
                    negatives=loss.negatives,
                    bound=self._bound,
                    largest=LARGEST,
                    uniform=self._noise.uniform,
                )
            elif loss.negatives is not None:
                raise SpecificationError(
                    "negatives are for a linear autoencoder: UnitRows or nothing, and two Linear layers. "
                    "Give MultinomialLoss() for another module"
                )
            else:
                self._linear[loss] = None
        return self._linear[loss]


class _Release:
    """What Opacus's optimizers do about noise, replaced by this package's."""

    params: list[nn.Parameter]
    max_grad_norm: float
    noise_multiplier: float

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise: NoiseSource,
        expected_batch_size: float,
        **constants: Any,
    ) -> None:
        super().__init__(  # type: ignore[call-arg]
            optimizer, expected_batch_size=expected_batch_size, loss_reduction="mean", **constants
        )
        self.noise = noise

    def add_noise(self) -> None:
        """Replace each gradient by its part of the clipped sum plus noise: one release for all parameters."""
        size = sum(p.numel() for p in self.params)
        total = torch.empty(size, dtype=torch.float64)
        for p, part in zip(self.params, self._parts(total), strict=True):
            part.copy_(p.summed_grad)  # type: ignore[attr-defined]
        for p, part in zip(self.params, self._parts(self._release(total)), strict=True):
            p.grad = part.to(p)

    def _release(self, total: Tensor) -> Tensor:
        return torch.from_numpy(
            release_sum(
                total.numpy(),
                sensitivity=self.max_grad_norm,
                mechanism=GaussianMechanism(self.noise_multiplier),
                noise=self.noise,
            )
        )

    def _parts(self, flat: Tensor) -> list[Tensor]:
        """Views of each parameter's part, in its shape."""
        parts = torch.split(flat, [p.numel() for p in self.params])
        return [part.view(p.shape) for p, part in zip(self.params, parts, strict=True)]


class _Optimizer(_Release, DPOptimizerFastGradientClipping):  # type: ignore[misc]  # opacus ships no types
    """Of a process that has everybody's rows."""


class _DistributedOptimizer(_Release, DistributedDPOptimizerFastGradientClipping):  # type: ignore[misc]
    """Of processes that have some users' rows each; all of them take the same step.

    Opacus's own adds noise to the sum of the first process and adds the others' sums to that. Then what is
    released depends on how those sums were rounded; so here they are added up before there is noise.
    """

    def _release(self, total: Tensor) -> Tensor:
        dist.reduce(total, 0)
        if self.rank == 0:
            total = super()._release(total)
        elif not self.noise.private:
            self.noise.normal(len(total))  # repeatable noise is repeated in all processes, so that they agree
        dist.broadcast(total, 0)
        return total

    def reduce_gradients(self) -> None:
        """Nothing is left to add up."""


@contextmanager
def _exact_products(device: torch.device) -> Iterator[None]:
    """Products in the precision of the parameters: in less, a clipped sum is longer than its norms say."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
