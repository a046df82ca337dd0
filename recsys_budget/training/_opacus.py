"""The only module that knows Opacus: one private step on a module whose samples are users.

Used from Opacus: ghost clipping (per-user gradient norms without per-user gradients), the optimizer that
adds noise and averages, and its accountant as a second witness, which counts steps and decides nothing. Not
used: the engine and the data loader, since the ledger decides beforehand how many steps may run (see
``docs/pitfalls.md``).

References:
    Abadi et al. (2016), arXiv:1607.00133 (DP-SGD). Li et al. (2022), arXiv:2110.05679 (ghost clipping).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from scipy import sparse

from recsys_budget._extras import extra
from recsys_budget.errors import NumericalError, ReservationError, SpecificationError
from recsys_budget.privacy import GaussianMechanism, NoiseSource, drawn_ahead, release_sum
from recsys_budget.training.linear import LinearSum, MultinomialLoss

with extra("train"):
    import torch
    from opacus.accountants import RDPAccountant
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


class UnitRows(nn.Module):
    """Divide each row by its Euclidean norm; an empty row stays empty."""

    def forward(self, rows: Tensor) -> Tensor:
        """Rows of norm 1 or 0, in the shape given."""
        return nn.functional.normalize(rows, dim=1)


# Layers that treat each row of a batch apart and whose per-row gradient norm Opacus computes exactly:
# tests/test_training.py holds each to one backward pass a user.
_ALLOWED = (nn.Linear, nn.Tanh, nn.ReLU, nn.Identity, UnitRows)
# Of larger activations the squares could be huge where those of gradients vanish in float32, and the product
# of the two would be a wrong norm. No table of interactions holds any such value.
_LARGEST = 1e6
# Gradients are clipped a little below the bound, so that the bound holds despite float32 rounding of the sum.
_MARGIN = 1 - 1e-3


class PrivateStep:
    """Clip each user's gradient, sum, add noise, divide by a public constant, and let the optimizer step.

    Guarantee: the sum that receives the noise changes by at most ``max_grad_norm`` (Euclidean, over all
    parameters) when one user is added to or removed from the batch, whatever the user's row holds.

    It rests on three things: the module is a plain sequence of layers that treat each row apart; a loss sees
    one user's outputs and row and nothing else; and Opacus's norms are exact for these layers.

    Args:
        module: Maps rows ``(batch, n)`` to outputs ``(batch, m)``. Its parameters change in place, and the
            module is unfit for release: Opacus leaves un-noised sums and norms on it.
        optimizer: A torch optimizer over the module's parameters.
        noise_multiplier: Standard deviation of the noise over ``max_grad_norm``.
        max_grad_norm: Clip bound, positive.
        expected_batch_size: Public constant that the noisy sum is divided by; never the true size.
        noise: Where the noise comes from.
        sample_rate: Of the batches: what Opacus's accountant is told.

    Raises:
        SpecificationError: The module is not a sequence of allowed layers, each used once, in float32 or
            float64, without hooks or buffers.
    """

    def __init__(
        self,
        module: nn.Sequential,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_batch_size: float,
        noise: NoiseSource,
        sample_rate: float = 1.0,
    ) -> None:
        _check(module)
        self._wrapped = GradSampleModuleFastGradientClipping(
            module, loss_reduction="sum", max_grad_norm=max_grad_norm, use_ghost_clipping=True
        )
        self._layers = list(module)  # Opacus's hooks are on them
        self._linear: dict[MultinomialLoss, LinearSum | None] = {}
        self._optimizer = _Optimizer(
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
        with _exact_products(next(self._wrapped.parameters()).device):
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
                with warnings.catch_warnings():
                    # Rows need no gradient of their own, which is what torch warns Opacus's hooks about.
                    warnings.filterwarnings("ignore", message="Full backward hook is firing")
                    self._sum_clipped(rows.to(next(self._wrapped.parameters())), loss)
                self._optimizer.noise = self._noise
                self._optimizer.step()
        if self.released != seen + 1:
            raise ReservationError(
                f"one step ran, and Opacus's accountant saw {self.released - seen}: something else steps "
                "or hooks the optimizer. Leave it to this package; what was paid for stays spent"
            )
        # Parameters are released values, so looking at them costs nothing.
        extremes = (end for p in self._wrapped.parameters() for end in torch.aminmax(p.detach()))
        if not all(bool(torch.isfinite(end)) for end in extremes):
            raise NumericalError("training diverged: parameters are not finite; lower the learning rate")

    def _linear_sum(self, loss: Loss) -> LinearSum | None:
        """The closed form, where module and loss have one."""
        if type(loss) is not MultinomialLoss:
            return None
        if loss not in self._linear:
            layers = [layer for layer in self._layers if type(layer) is not nn.Identity]
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
                    largest=_LARGEST,
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

    def _sum_clipped(self, rows: Tensor, loss: Loss) -> None:
        """Leave the sum of clipped per-user gradients in ``p.grad``."""
        self._clear()
        if len(rows) == 0:
            return
        usable = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        outputs: Any = rows
        for layer in self._layers:
            # Written so that NaN fails.
            usable &= (outputs.detach().abs() <= _LARGEST).all(dim=1)
            outputs = layer(outputs)
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


def _check(module: nn.Module) -> None:
    allowed = ", ".join(layer.__name__ for layer in _ALLOWED)
    if type(module) is not nn.Sequential:
        raise SpecificationError(
            f"a {type(module).__name__} cannot be trained privately: per-user gradients are known to be "
            f"right for torch.nn.Sequential of {allowed} only"
        )
    layers = list(module)
    for layer in layers:
        # The exact type: a subclass may mix users or use its weights in another way.
        if type(layer) not in _ALLOWED:
            raise SpecificationError(
                f"the per-user gradients of a {type(layer).__name__} are not known to be right; use {allowed}"
            )
        hooks = (
            layer._forward_hooks,
            layer._forward_pre_hooks,
            layer._backward_hooks,
            layer._backward_pre_hooks,
        )
        if any(hooks) or list(layer.buffers()):
            raise SpecificationError(f"a {type(layer).__name__} has hooks or buffers; remove them")
    parameters = [p for layer in layers for p in layer.parameters()]
    if len({id(p) for p in parameters}) < len(parameters):
        raise SpecificationError("a layer or parameter stands twice in the sequence; give each place its own")
    if any(p.dtype not in (torch.float32, torch.float64) for p in parameters):
        raise SpecificationError("parameters must be float32 or float64: gradients underflow in less")


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
        self.noise = noise

    def add_noise(self) -> None:
        """Replace each gradient by its part of the clipped sum plus noise: one release for all parameters."""
        size = sum(p.numel() for p in self.params)
        total = torch.empty(size, dtype=torch.float64)
        for p, part in zip(self.params, self._parts(total), strict=True):
            part.copy_(p.summed_grad)
        noisy = release_sum(
            total.numpy(),
            sensitivity=self.max_grad_norm,
            mechanism=GaussianMechanism(self.noise_multiplier),
            noise=self.noise,
        )
        for p, part in zip(self.params, self._parts(torch.from_numpy(noisy)), strict=True):
            p.grad = part.to(p)

    def _parts(self, flat: Tensor) -> list[Tensor]:
        """Views of each parameter's part, in its shape."""
        parts = torch.split(flat, [p.numel() for p in self.params])
        return [part.view(p.shape) for p, part in zip(self.params, parts, strict=True)]


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
