"""Sum of clipped per-user gradients of any allowed module, from one backward pass.

The backward pass stops at the outputs of the layers with parameters. What flows back into a layer, times what
went in, is each user's gradient, and it is never built: norms come from the two in closed form, and the sum
of gradients times clip weights is one product of the same two.

That they are the same two is the point. Ghost clipping takes norms from one backward pass and lets a second
one, from scaled losses, compute the sum. Where terms cancel, what is left of float32 is rounding, and that
differs between the passes: with inputs of up to 1e6 a user moved such a sum by 1.8 times the bound.

References:
    Goodfellow (2015), arXiv:1510.01799 (norms of outer products). Bu, Wang, Zha and Karypis (2023),
    arXiv:2210.00038 (sums from the same backward pass). Li et al. (2022), arXiv:2110.05679 (ghost clipping).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from recsys_budget._extras import extra
from recsys_budget.errors import SpecificationError
from recsys_budget.training.allowed import RowGraph

with extra("train"):
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]


class GraphSum:
    """Sum of clipped per-user gradients of a module, under any loss.

    Args:
        module: See :class:`~recsys_budget.training.allowed.RowGraph`.
        bound: What each user's gradient is clipped to: its Euclidean norm over all parameters.

    Guarantee:
        No user moves the sum by more than ``bound``, but for rounding of the sum itself, whatever the user's
        row holds: norms are those of the very numbers that are summed, and are taken in float64, where
        squares of float32 numbers neither vanish nor overflow. A user whose values are not finite, or above
        1e6, counts as zero.

    Raises:
        SpecificationError: A layer, or a use of it, that is not known to be sound.
    """

    def __init__(self, module: nn.Module, bound: float) -> None:
        self._graph = RowGraph(module)
        self._parameters, self._bound = list(module.parameters()), bound

    def __call__(self, rows: Tensor, loss: Loss) -> None:
        """Leave the sum in ``grad`` of each parameter.

        Args:
            rows: Shape ``(batch, n)``; the batch may be empty.
            loss: From one user's outputs ``(m,)`` and row ``(n,)`` to a scalar.

        Raises:
            SpecificationError: The loss of a user is no scalar.
        """
        for p in self._parameters:
            p.grad = torch.zeros_like(p)
        if len(rows) == 0:
            return
        with torch.enable_grad():
            rows = rows.to(self._parameters[0])
            outputs, usable, uses = self._graph(rows)
            leaf = outputs.detach().requires_grad_()
            losses = torch.func.vmap(loss)(leaf, rows)
            if losses.shape != (len(rows),):
                raise SpecificationError(
                    f"the loss of a user is {list(losses.shape[1:])}; it must be a scalar"
                )
            (towards,) = torch.autograd.grad(losses.sum(), leaf)
            flows = torch.autograd.grad(outputs, [use.output for use in uses], towards)
        pairs = [(use.layer, use.input.detach(), flow) for use, flow in zip(uses, flows, strict=True)]
        norms = sum(_squares(*pair) for pair in pairs) ** 0.5
        # Written so that NaN fails. Who fails leaves: a weight of zero times infinity would be NaN.
        usable &= torch.isfinite(towards).all(dim=1) & torch.isfinite(norms)
        kept = slice(None) if bool(usable.all()) else usable
        weights = (self._bound / norms[kept].clamp(min=self._bound)).to(towards.dtype)[:, None]
        for layer, values, flow in pairs:
            for p, total in _sums(layer, values[kept], weights * flow[kept]):
                p.grad = total


def _squares(layer: Any, values: Tensor, flow: Tensor) -> Tensor:
    """Of each user's gradient norm, float64; ``values`` went in and ``flow`` comes back, one row a user."""
    bias = 0.0 if layer.bias is None else _length(flow) ** 2
    if isinstance(layer, nn.LayerNorm):
        return _length(_normalised(layer, values) * flow) ** 2 + bias
    return _length(flow) ** 2 * _length(values) ** 2 + bias


def _sums(layer: Any, values: Tensor, flow: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Of all users' gradients, to each parameter its own."""
    if isinstance(layer, nn.LayerNorm):
        yield layer.weight, (_normalised(layer, values) * flow).sum(0)
    else:
        yield layer.weight, flow.t() @ values
    if layer.bias is not None:
        yield layer.bias, flow.sum(0)


def _length(rows: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return lengths


def _normalised(layer: nn.LayerNorm, values: Tensor) -> Tensor:
    return F.layer_norm(values, layer.normalized_shape, eps=layer.eps)
