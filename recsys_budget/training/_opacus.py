"""The only module that knows Opacus: one private step on a module whose samples are users.

Used from Opacus: ghost clipping (per-user gradient norms without per-user gradients) and the optimizer that
adds noise and averages. Not used: the engine, the data loader and the accountant, since the ledger decides
beforehand how many steps may run (see ``docs/pitfalls.md``).

References:
    Abadi et al. (2016), arXiv:1607.00133 (DP-SGD). Li et al. (2022), arXiv:2110.05679 (ghost clipping).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from recsys_budget._extras import extra
from recsys_budget.errors import NumericalError
from recsys_budget.privacy import GaussianMechanism, NoiseSource, release_sum
from recsys_budget.training.allowed import RowGraph

with extra("train"):
    import torch
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


# Gradients are clipped a little below the bound, so that the bound holds despite float32 rounding of the sum.
_MARGIN = 1 - 1e-3


class PrivateStep:
    """Clip each user's gradient, sum, add noise, divide by a public constant, and let the optimizer step.

    Guarantee: the sum that receives the noise changes by at most ``max_grad_norm`` (Euclidean, over all
    parameters) when one user is added to or removed from the batch, whatever the user's row holds.

    It rests on three things: the module is a graph of layers that treat each row apart, and that graph is
    what runs (``training/allowed.py``); a loss sees one user's outputs and row and nothing else; and Opacus's
    norms are exact for these layers.

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
        self._graph = RowGraph(module)
        self._wrapped = GradSampleModuleFastGradientClipping(
            module, loss_reduction="sum", max_grad_norm=max_grad_norm, use_ghost_clipping=True
        )
        self._optimizer = _Optimizer(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
            noise=noise,
        )
        self._bound = _MARGIN * max_grad_norm

    def __call__(self, rows: Tensor, loss: Loss) -> None:
        """Run one step.

        Args:
            rows: The sampled users' rows, shape ``(batch, n)``; the batch may be empty.
            loss: From one user's outputs ``(m,)`` and row ``(n,)`` to a scalar, in torch operations that
                ``torch.func.vmap`` can batch: it never sees another user or the parameters.

        Raises:
            NumericalError: The parameters are no longer finite after the step.
        """
        with warnings.catch_warnings():
            # Rows need no gradient of their own, which is what torch warns Opacus's hooks about.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            self._sum_clipped(rows, loss)
        self._optimizer.step()
        # Parameters are released values, so looking at them costs nothing.
        if not all(bool(torch.isfinite(p).all()) for p in self._wrapped.parameters()):
            raise NumericalError("training diverged: parameters are not finite; lower the learning rate")

    def _sum_clipped(self, rows: Tensor, loss: Loss) -> None:
        """Leave the sum of clipped per-user gradients in ``p.grad``."""
        self._optimizer.zero_grad()
        self._clear()
        if len(rows) == 0:
            return
        outputs: Any
        outputs, usable = self._graph(rows)
        leaf = outputs.detach().requires_grad_()
        (towards,) = torch.autograd.grad(torch.func.vmap(loss)(leaf, rows).sum(), leaf)
        outputs.backward(towards, retain_graph=True)  # Opacus's hooks find the norms
        norms = self._wrapped.get_norm_sample()
        usable &= torch.isfinite(towards).all(dim=1) & torch.isfinite(norms)
        if not bool(usable.all()):
            # A user who is left out adds zero. A weight of zero would not do: times infinity it is NaN.
            self._sum_clipped(rows[usable], loss)
            return
        weights = (self._bound / (norms + 1e-6)).clamp(max=1.0)
        self._clear()
        self._wrapped.disable_hooks()
        try:
            outputs.backward(weights[:, None] * towards)
        finally:
            self._wrapped.enable_hooks()

    def _clear(self) -> None:
        for p in self._wrapped.parameters():
            p.grad = torch.zeros_like(p)


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
