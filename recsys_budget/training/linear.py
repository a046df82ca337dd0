"""Clipped gradient sums of a linear autoencoder in closed form: no user's gradient is ever built.

A user with input x has h = W x + a, logits V h + b, and a loss whose derivative by the logits is r. Its
gradient consists of outer products, r h' for V and (V' r) x' for W, and of r and V' r for the biases; the
norm of an outer product is the product of the norms. So with g = V' r the square of the gradient's norm is

    |r|^2 (|h|^2 + 1) + |g|^2 (|x|^2 + 1)

(without a 1 where there is no bias), and sums over users of gradients times weights are two matrix products.

References:
    Goodfellow (2015), arXiv:1510.01799 (norms of outer products). Abadi et al. (2016), arXiv:1607.00133.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys_budget._extras import extra
from recsys_budget.errors import SpecificationError

with extra("train"):
    import torch
    from torch import Tensor, nn

# Numbers that one block of users holds at a time, in the largest of its arrays.
_BLOCK = 2**22


@dataclass(frozen=True)
class MultinomialLoss:
    """Cross-entropy between a user's items, equally weighted, and the softmax of the outputs; a scalar.

    A row that sums to less than 1 counts as little as that; an empty row is worth 0.

    Attributes:
        negatives: None puts all items into the softmax: its cost is users x items. A number lets every step
            choose so many items, the same for all users: one half those of the largest output bias, the rest
            uniformly from the others. The softmax is then over the user's own items, the chosen popular ones,
            and the chosen others, which stand for all others and are weighted by how many of these there are
            to each: the sum of exponentials is right in expectation. Its cost is users x negatives, and
            interactions. For the linear autoencoder alone.

    Guarantee:
        With negatives a user's gradient is still a function of the user's own row, of the parameters, which
        are released values, and of randomness that has nothing to do with any user: which items were chosen.
        Given these it is one gradient a user, clipped like any other, so choosing changes no sensitivity. The
        noise is on all parameters, chosen or not.

    Raises:
        SpecificationError: ``negatives`` is neither None nor a whole number of at least 2.

    References:
        Liang et al. (2018), arXiv:1802.05814. Jean et al. (2015), arXiv:1412.2007 (sampled softmax).
    """

    negatives: int | None = None

    def __post_init__(self) -> None:
        n = self.negatives
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 2):
            raise SpecificationError(
                f"negatives is {n!r}; give a whole number of at least 2, or None for all"
            )

    def __call__(self, outputs: Tensor, row: Tensor) -> Tensor:
        """The loss of one user, over all items: ``outputs`` and ``row`` have shape ``(n_items,)``."""
        share = row / row.sum().clamp(min=1)
        return -(share * torch.log_softmax(outputs, 0)).sum()


@dataclass(frozen=True)
class _Rows:
    """Users' rows as flat arrays: what stands at each entry, in the order of users, and what a user has."""

    users: Tensor
    items: Tensor
    offsets: Tensor  # where each user's entries start; one more for the end
    inputs: Tensor  # x at each entry
    shares: Tensor  # of the user's loss, at each entry
    squares: Tensor  # |x|^2 of each user
    whole: Tensor  # sum of each user's shares

    @classmethod
    def read(cls, rows: sparse.csr_array, *, unit: bool, largest: float, like: Tensor) -> Self:
        """Rows with a value that is not finite or above ``largest`` are read as empty ones."""
        lengths = np.diff(rows.indptr)
        users = np.repeat(np.arange(len(lengths)), lengths)

        def by_user(values: NDArray[np.float64]) -> NDArray[np.float64]:
            sums = np.zeros(len(lengths))
            if len(values):
                sums[lengths > 0] = np.add.reduceat(values, rows.indptr[:-1][lengths > 0])
            return sums

        values = rows.data.astype(np.float64)
        # Written so that NaN fails.
        unfit = ~(abs(values) <= largest)
        if unfit.any():
            values[np.isin(users, users[unfit])] = 0.0
        shares = values / np.maximum(by_user(values), 1.0)[users]
        if unit:
            values = values / np.maximum(np.sqrt(by_user(values**2)), 1e-12)[users]
        squares, whole = by_user(values**2), by_user(shares)
        index = (torch.from_numpy(a).to(like.device) for a in (users, rows.indices, rows.indptr))
        return cls(*index, *(torch.from_numpy(a).to(like) for a in (values, shares, squares, whole)))

    def part(self, first: int, last: int) -> Self:
        """Some users in a row."""
        start, end = self.offsets[first], self.offsets[last]
        return type(self)(
            self.users[start:end] - first,
            self.items[start:end],
            self.offsets[first : last + 1] - start,
            self.inputs[start:end],
            self.shares[start:end],
            self.squares[first:last],
            self.whole[first:last],
        )


@dataclass(frozen=True)
class Columns:
    """Items that every user's softmax has.

    Attributes:
        weight: Of the output layer for these items, one row each.
        bias: The same of its bias, or None.
        items: Which they are; None stands for all.
        place: Of each item of the catalogue among them, -1 for the others.
        popular: How many of them, from the front, stand for themselves alone.
    """

    weight: Tensor
    bias: Tensor | None
    items: Tensor | None
    place: Tensor
    popular: int


class LinearSum:
    """Sum of clipped per-user gradients of a linear autoencoder under :class:`MultinomialLoss`.

    Args:
        encode: From items to factors, with or without bias.
        decode: From factors to items, with or without bias.
        unit: Whether rows are divided by their Euclidean norm first.
        negatives: See :class:`MultinomialLoss`.
        bound: What each user's gradient is clipped to.
        largest: Users with an input or a hidden value above this count as zero.
        uniform: Source of uniform numbers, to choose negatives with.

    Guarantee:
        As that of ``PrivateStep``: no user moves the sum by more than ``bound``, but for float32 rounding of
        the sum, whatever the user's row holds. Norms are those of the very numbers that are multiplied.
    """

    def __init__(
        self,
        encode: nn.Linear,
        decode: nn.Linear,
        *,
        unit: bool,
        negatives: int | None,
        bound: float,
        largest: float,
        uniform: Callable[[int], NDArray[np.float64]],
    ) -> None:
        self._encode, self._decode, self._unit = encode, decode, unit
        self._negatives = None if negatives is None or negatives >= decode.out_features else negatives
        self._bound, self._largest, self._uniform = bound, largest, uniform

    @torch.no_grad()
    def __call__(self, rows: sparse.csr_array, columns: Columns) -> None:
        """Leave the sum in ``grad`` of each parameter; ``rows`` are users x items."""
        encode, decode = self._encode, self._decode
        # Built anew, so that whether an item stands twice in a row is looked at and not believed.
        rows = sparse.csr_array((rows.data, rows.indices, rows.indptr), rows.shape)
        rows.sum_duplicates()
        table = _Rows.read(rows, unit=self._unit, largest=self._largest, like=decode.weight)
        inward, n = encode.weight.t().contiguous(), len(table.squares)
        # Of each user, times the clip weight: h, g, 1, and r at the user's own items.
        hidden, back = (inward.new_zeros(n, inward.shape[1]) for _ in range(2))
        weights, own = inward.new_zeros(n), torch.zeros_like(table.inputs)
        outward, level = torch.zeros_like(columns.weight), inward.new_zeros(len(columns.weight))
        for first, last in self._blocks(table, columns):
            part = table.part(first, last)
            h = _product(part.inputs, part.items, part.offsets, inward)
            if encode.bias is not None:
                h += encode.bias
            r, at = self._residual(h, part, columns)
            g = r @ columns.weight
            square = torch.linalg.vector_norm(r, dim=1) ** 2
            if at is not None:
                g += _product(at, part.items, part.offsets, decode.weight)
                square.index_add_(0, part.users, at**2)
            norms = (
                square * ((h**2).sum(1) + (decode.bias is not None))
                + (g**2).sum(1) * (part.squares + (encode.bias is not None))
            ).sqrt()
            weight = (self._bound / (norms + 1e-6)).clamp(max=1.0)
            # Written so that NaN fails.
            usable = torch.isfinite(norms) & (h.abs() <= self._largest).all(dim=1)
            if not bool(usable.all()):
                # A weight of zero would not do: times infinity it is NaN.
                weight = weight.where(usable, 0)
                h, g, r = (t.where(usable[:, None], 0) for t in (h, g, r))
                at = None if at is None else at.where(usable[part.users], 0)
            h, g = h * weight[:, None], g * weight[:, None]
            outward.addmm_(r.t(), h)
            level += weight @ r
            hidden[first:last], back[first:last], weights[first:last] = h, g, weight
            if at is not None:
                own[table.offsets[first] : table.offsets[last]] = at
        self._leave(_Transposed.of(rows, table), (outward, level, own), (hidden, back, weights), columns)

    def choose(self) -> Columns:
        """Items for every user's softmax: all, or some that depend on released values and chance alone."""
        weight, bias, n = self._decode.weight, self._decode.bias, self._decode.out_features
        if self._negatives is None:
            return Columns(weight, bias, None, torch.empty(0), n)
        order = self._uniform(n)
        popular = 0 if bias is None else self._negatives // 2
        if bias is not None:
            # Uniform numbers lie below 1, so the popular items come first.
            order[torch.topk(bias, popular).indices.cpu().numpy()] = 2.0
        items = torch.from_numpy(np.argsort(-order)[: self._negatives].copy()).to(weight.device)
        place = torch.full((n,), -1, device=weight.device)
        place[items] = torch.arange(len(items), device=weight.device)
        return Columns(weight[items], None if bias is None else bias[items], items, place, popular)

    def _blocks(self, table: _Rows, columns: Columns) -> Iterator[tuple[int, int]]:
        n = len(table.squares)
        wide = len(columns.weight)
        if columns.items is not None:
            wide += 2 * self._decode.in_features * len(table.users) // max(n, 1)
        step = max(1, _BLOCK // wide)
        return ((first, min(first + step, n)) for first in range(0, n, step))

    def _residual(self, h: Tensor, part: _Rows, columns: Columns) -> tuple[Tensor, Tensor | None]:
        """Derivative of each user's loss by the logits of the columns, and by those of own items apart."""
        weight, bias = columns.weight.t(), columns.bias
        logits = h @ weight if bias is None else torch.addmm(bias, h, weight)
        if columns.items is None:
            r = torch.softmax(logits, 1)
            if not bool((part.whole == 1).all()):
                r *= part.whole[:, None]
            r.view(-1).index_add_(0, part.users * r.shape[1] + part.items, part.shares, alpha=-1)
            return r, None
        at = (h[part.users] * self._decode.weight[part.items]).sum(1)
        if self._decode.bias is not None:
            at += self._decode.bias[part.items]
        # Own items stand for themselves, so they leave the columns.
        place = columns.place[part.items]
        met = place >= 0
        logits[part.users[met], place[met]] = -torch.inf
        n, others = len(h), len(self._decode.weight) - columns.popular
        drawn = logits.shape[1] - columns.popular

        def count(which: Tensor) -> Tensor:
            return torch.bincount(part.users[which], minlength=n)

        there = others - count((place < 0) | (place >= columns.popular))
        seen = drawn - count(place >= columns.popular)
        logits[:, columns.popular :] += (there / seen.clamp(min=1)).log()[:, None]
        top = torch.full_like(part.whole, -torch.inf).scatter_reduce_(0, part.users, at, "amax")
        own = torch.zeros_like(top).index_add_(0, part.users, (at - top[part.users]).exp())
        total = torch.logaddexp(torch.logsumexp(logits, 1), top + own.log())
        whole = part.whole[:, None]
        r = (logits - total[:, None]).exp() * whole
        return r, (at - total[part.users]).exp() * part.whole[part.users] - part.shares

    def _leave(
        self,
        table: _Transposed,
        sums: tuple[Tensor, Tensor, Tensor],
        each: tuple[Tensor, Tensor, Tensor],
        columns: Columns,
    ) -> None:
        (outward, level, own), (hidden, back, weights) = sums, each
        if columns.items is not None:
            outward = table.product(own, hidden).index_add_(0, columns.items, outward)
            level = table.product(own, weights[:, None])[:, 0].index_add_(0, columns.items, level)
        self._encode.weight.grad = table.product(table.inputs, back).t()
        self._decode.weight.grad = outward
        if self._encode.bias is not None:
            self._encode.bias.grad = back.sum(0)
        if self._decode.bias is not None:
            self._decode.bias.grad = level


@dataclass(frozen=True)
class _Transposed:
    """The same rows by items: the users of each item."""

    users: Tensor
    offsets: Tensor
    order: Tensor  # of the entries, among those in the order of users
    inputs: Tensor

    @classmethod
    def of(cls, rows: sparse.csr_array, table: _Rows) -> Self:
        order = sparse.csr_array((np.arange(rows.nnz), rows.indices, rows.indptr), rows.shape).tocsc()
        device = table.inputs.device
        users, offsets, places = (torch.from_numpy(a) for a in (order.indices, order.indptr, order.data))
        return cls(users.to(device), offsets.to(device), places.to(device), table.inputs)

    def product(self, values: Tensor, weights: Tensor) -> Tensor:
        """Items x users, with these values in the order of users, times ``weights``."""
        return _product(values[self.order], self.users, self.offsets, weights)


def _product(values: Tensor, columns: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """A sparse matrix by its rows times a dense one."""
    return nn.functional.embedding_bag(
        columns, weights, offsets, mode="sum", per_sample_weights=values, include_last_offset=True
    )
