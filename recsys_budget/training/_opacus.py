"""The only module that knows Opacus: one private step on a module whose samples are users.

Used from Opacus: the optimizer that adds noise and averages. Not used: its gradients (``graph_sum.py`` says
why), the engine, the data loader and the accountant, since the ledger decides beforehand how many steps may
run (see ``docs/pitfalls.md``).

References:
    Abadi et al. (2016), arXiv:1607.00133 (DP-SGD).
"""

from __future__ import annotations

from typing import Any

from recsys_budget._extras import extra
from recsys_budget.errors import NumericalError
from recsys_budget.privacy import GaussianMechanism, NoiseSource, release_sum
from recsys_budget.training.graph_sum import GraphSum, Loss

with extra("train"):
    import torch
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from torch import Tensor, nn

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
    ) -> None:
        self._module = module
        self._sum = GraphSum(module, _MARGIN * max_grad_norm)
        self._optimizer = _Optimizer(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
            noise=noise,
        )

    def __call__(self, rows: Tensor, loss: Loss) -> None:
        """Run one step.

        Args:
            rows: The sampled users' rows, shape ``(batch, n)``; the batch may be empty.
            loss: From one user's outputs ``(m,)`` and row ``(n,)`` to a scalar, in torch operations that
                ``torch.func.vmap`` can batch: it never sees another user or the parameters.

        Raises:
            NumericalError: The parameters are no longer finite after the step.
        """
        self._optimizer.zero_grad()  # or the sum of the step before would be added to this one
        self._sum(rows, loss)
        self._optimizer.step()
        # Parameters are released values, so looking at them costs nothing.
        if not all(bool(torch.isfinite(p).all()) for p in self._module.parameters()):
            raise NumericalError("training diverged: parameters are not finite; lower the learning rate")


class _Optimizer(DPOptimizerFastGradientClipping):  # type: ignore[misc]  # opacus ships no types
    """Opacus's optimizer with this package's noise."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise: NoiseSource,
        expected_batch_size: float,
        **constants: Any,
    ) -> None:
        super().__init__(
            optimizer, expected_batch_size=expected_batch_size, loss_reduction="mean", **constants
        )
        self._noise = noise

    def add_noise(self) -> None:
        """Replace each gradient by its part of the clipped sum plus noise: one release for all parameters."""
        total = torch.cat([p.summed_grad.flatten() for p in self.params]).double().numpy()
        noisy = torch.from_numpy(
            release_sum(
                total,
                sensitivity=self.max_grad_norm,
                mechanism=GaussianMechanism(self.noise_multiplier),
                noise=self._noise,
            )
        )
        parts = torch.split(noisy, [p.numel() for p in self.params])
        for p, part in zip(self.params, parts, strict=True):
            p.grad = part.reshape(p.shape).to(p.dtype)
