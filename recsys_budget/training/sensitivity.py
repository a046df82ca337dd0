"""The neighbouring-user test: how far the clipped sum moves when one user leaves, on rows made to break it.

A second line behind the proofs of ``allowed.py``. It reads no private data, so it is free. It proves nothing:
a module that passes it alone is not admitted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from recsys_budget._extras import extra
from recsys_budget.errors import RecsysBudgetError, SensitivityError, SpecificationError

with extra("train"):
    import torch
    from torch import Tensor, nn

    from recsys_budget.training._opacus import PrivateStep

# The bound itself, and one that every gradient of some size exceeds.
_BOUNDS = (1.0, 1e-3)
_TINY = 1e-9


class _Silence:
    """A noise source that adds nothing, so that a step shows the clipped sum itself: for made-up rows."""

    private = False

    def uniform(self, size: int) -> NDArray[np.float64]:
        return np.zeros(size)

    def normal(self, size: int) -> NDArray[np.float64]:
        return np.zeros(size)


def adversarial_rows(width: int) -> Tensor:
    """Made-up users: what real ones look like, and what makes gradients large, vanish, overflow or cancel.

    Args:
        width: Number of items.

    Returns:
        Shape ``(16, width)``, float32; the same in every call.
    """
    rng = np.random.default_rng(20)

    def some(share: float) -> NDArray[np.float32]:
        return (rng.random(width) < share).astype(np.float32)

    first, last = np.zeros(width, np.float32), np.zeros(width, np.float32)
    first[0] = last[-1] = 1
    usual, many = some(0.2), np.ones(width, np.float32)
    rows: list[NDArray[np.floating]] = [
        *(np.zeros(width), first, last, many, usual, usual, some(0.02), some(0.5)),
        *(-usual, 1e-20 * usual, 1e3 * usual, 9e5 * rng.random(width), 9e5 * many + usual),
        *(1e20 * usual, np.where(first > 0, np.inf, 0), np.where(usual > 0, np.nan, 0)),
    ]
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def neighbour_sensitivity(
    module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], rows: Tensor, *, max_grad_norm: float
) -> float:
    """How far one user moves the clipped sum at most, among these, in units of the bound.

    Takes a private step without noise on all rows, and one without each of them. Of real users' rows the
    figure is **not private**; of :func:`adversarial_rows` it says nothing about anybody.

    Args:
        module: The module, at the parameters to test; it is not changed.
        loss: From one user's outputs and row to a scalar, as in training.
        rows: One a user, shape ``(users, n)``.
        max_grad_norm: Clip bound.

    Returns:
        The largest Euclidean distance, over all parameters together, between the sum of all and the sum
        without one, divided by ``max_grad_norm``. Above 1, a stated epsilon would be wrong.

    Raises:
        SpecificationError: The module is not allowed, or module and loss cannot be computed of such rows.
    """
    copied = copy.deepcopy(module).train()
    step = PrivateStep(
        copied,
        torch.optim.SGD(copied.parameters(), lr=0.0),
        noise_multiplier=1.0,
        max_grad_norm=max_grad_norm,
        expected_batch_size=1.0,
        noise=_Silence(),
    )

    def total(of: Tensor) -> Tensor:
        step(of, loss)
        return torch.cat([p.grad.flatten() for p in copied.parameters() if p.grad is not None]).double()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for so few rows, threads wait longer for each other than they work
    try:
        whole = total(rows)
        moved = [
            float((whole - total(torch.cat([rows[:user], rows[user + 1 :]]))).norm())
            for user in range(len(rows))
        ]
    except RecsysBudgetError:
        raise
    except Exception as error:  # whatever torch says of a user's own module and loss
        raise SpecificationError(
            f"the module and its loss cannot be computed of rows of width {rows.shape[1]}: {error}. The loss "
            "gets one user's outputs (m,) and row (n,), and returns a scalar that depends on the outputs"
        ) from error
    finally:
        torch.set_num_threads(threads)
    # NaN stays: it compares as no number below 1.
    return float(np.max(moved, initial=0.0)) / max_grad_norm


def check_sensitivity(
    module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], width: int, *, max_grad_norm: float
) -> float:
    """Run the neighbouring-user test on made-up rows, where clipping binds and where it may not.

    Args:
        module: The module, at the parameters to test, and tested at random ones as well; it is not changed.
        loss: From one user's outputs and row to a scalar.
        width: Number of items.
        max_grad_norm: Clip bound.

    Returns:
        The largest :func:`neighbour_sensitivity` found, at most 1.

    Raises:
        SensitivityError: A made-up user moved the sum by more than the bound.
        SpecificationError: The module is not allowed, or cannot be computed of rows of that width.
    """
    rows, elsewhere = adversarial_rows(width), copy.deepcopy(module)
    generator = torch.Generator().manual_seed(20)
    with torch.no_grad():
        for p in elsewhere.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
    worst = 0.0
    for tested in (module, elsewhere):
        for share in _BOUNDS:
            bound = max(share * max_grad_norm, _TINY)
            found = neighbour_sensitivity(tested, loss, rows, max_grad_norm=bound)
            # Written so that NaN fails.
            if not found <= 1:
                raise SensitivityError(
                    f"one made-up user moved the clipped sum by {found:.4g} times the bound of {bound:g}, so "
                    "noise would not cover it. Do not train this module with this loss; please report it",
                    sensitivity=found,
                )
            worst = max(worst, found)
    return worst
