"""The only module that knows Opacus: one private step on a module whose samples are users.

Used from Opacus: ghost clipping (per-user gradient norms without per-user gradients) and the optimizer that
adds noise and averages. Not used: the engine, the data loader and the accountant, since the ledger decides
beforehand how many steps may run (see ``docs/pitfalls.md``).

References:
    Abadi et al. (2016), arXiv:1607.00133 (DP-SGD). Li et al. (2022), arXiv:2110.05679 (ghost clipping).
"""

from __future__ import annotations

import warnings
from typing import Any

from recsys_budget._extras import extra
from recsys_budget.errors import NumericalError, SpecificationError
from recsys_budget.privacy import NoiseSource

with extra("train"):
    import torch
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from torch import Tensor, nn

# Layers whose per-user gradient norm Opacus computes exactly when a sample is one row. Each was checked
# against a backward pass per user (tests/test_training.py).
_ALLOWED = (nn.Linear, nn.Tanh, nn.ReLU, nn.Identity)


class PrivateStep:
    """Clip each user's gradient, sum, add noise, divide by a public constant, and let the optimizer step.

    Guarantee: the sum that receives the noise changes by at most ``max_grad_norm`` (Euclidean, over all
    parameters) when one user is added to or removed from the batch, whatever the user's row holds.

    Args:
        module: Maps rows ``(batch, n)`` to outputs ``(batch, m)``; built of the allowed layers, no parameter
            used twice. Its parameters change in place.
        optimizer: A torch optimizer over the module's parameters.
        noise_multiplier: Standard deviation of the noise over ``max_grad_norm``.
        max_grad_norm: Clip bound, positive.
        expected_batch_size: Public constant that the noisy sum is divided by; never the true size.
        noise: Where the noise comes from.

    Raises:
        SpecificationError: A layer that is not allowed.
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
        owned = {id(p) for layer in module.modules() if type(layer) in _ALLOWED for p in layer.parameters()}
        for name, layer in module.named_modules():
            # The exact type: a subclass may use its weights in another way.
            if not list(layer.children()) and type(layer) not in _ALLOWED:
                raise SpecificationError(
                    f"layer {name!r} is a {type(layer).__name__}, whose per-user gradients are not known to "
                    f"be right; use {', '.join(allowed.__name__ for allowed in _ALLOWED)}"
                )
        for name, parameter in module.named_parameters():
            if id(parameter) not in owned:
                raise SpecificationError(
                    f"parameter {name!r} belongs to no layer with known per-user gradients"
                )
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
        self._max_grad_norm = max_grad_norm

    def __call__(self, rows: Tensor, losses: Any) -> None:
        """Run one step.

        Args:
            rows: The sampled users' rows, shape ``(batch, n)``; the batch may be empty.
            losses: Callable from ``(outputs, rows)`` to one loss a user, shape ``(batch,)``; a user's loss
                must depend on that user's row alone.

        Raises:
            NumericalError: The parameters are no longer finite after the step.
        """
        with warnings.catch_warnings():
            # Rows need no gradient of their own, which is what torch warns Opacus's hooks about.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            self._sum_clipped(rows, losses)
        self._optimizer.step()
        # Parameters are released values, so looking at them costs nothing.
        if not all(bool(torch.isfinite(p).all()) for p in self._wrapped.parameters()):
            raise NumericalError("training diverged: parameters are not finite; lower the learning rate")

    def _sum_clipped(self, rows: Tensor, losses: Any) -> None:
        """Leave the sum of clipped per-user gradients in ``p.grad``."""
        self._optimizer.zero_grad()
        parameters = [p for p in self._wrapped.parameters() if p.requires_grad]
        for p in parameters:
            p.grad = torch.zeros_like(p)
        if len(rows) == 0:
            return
        for p in parameters:
            p._norm_sample = None  # so that no norm of an earlier batch can stand in for one of this
        per_user = losses(self._wrapped(rows), rows)
        if per_user.shape != (len(rows),):
            raise SpecificationError(
                f"losses must be one a user, shape ({len(rows)},), but have {tuple(per_user.shape)}"
            )
        per_user.sum().backward(retain_graph=True)
        if any(p._norm_sample is None or len(p._norm_sample) != len(rows) for p in parameters):
            raise SpecificationError(
                "some layer did not see one row a user, so that its per-user gradients are not known"
            )
        norms = self._wrapped.get_norm_sample()
        # A user whose gradient is not finite contributes nothing: zero weights alone would leave NaN behind.
        usable = torch.isfinite(norms)
        weights = (self._max_grad_norm / (norms[usable] + 1e-6)).clamp(max=1.0)
        for p in parameters:
            p.grad = torch.zeros_like(p)
        self._wrapped.disable_hooks()
        try:
            if bool(usable.all()):
                (weights * per_user).sum().backward()
            elif bool(usable.any()):
                kept = rows[usable]
                (weights * losses(self._wrapped(kept), kept)).sum().backward()
        finally:
            self._wrapped.enable_hooks()


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
        """Replace each gradient by the clipped sum plus noise."""
        scale = self.noise_multiplier * self.max_grad_norm
        for p in self.params:
            draw = torch.from_numpy(self._noise.normal(p.numel())).reshape(p.shape)
            p.grad = (p.summed_grad.to(draw.dtype) + scale * draw).to(p.dtype)
