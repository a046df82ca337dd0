"""Invented interactions with known ground truth: tastes, choice probabilities and every other cause."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import ndtri

from recsys_budget.data._names import CATEGORY_NAMES, provider_names, titles
from recsys_budget.data.catalogue import ItemCatalogue
from recsys_budget.data.interactions import Interactions
from recsys_budget.errors import SpecificationError

_FURTHER_CATEGORIES = (0.3, 0.4, 0.2, 0.1)  # how often an item has 0, 1, 2 or 3 further categories
_FURTHER_WEIGHT = 0.35  # weight of each beside the primary one's 1
_FAVOUR = 8.0  # how much likelier a provider makes items of its two favourite categories
_FEWEST_DRAWS, _MOST_DRAWS_OVER_MEAN, _DRAWS_LOG_SPREAD = 10, 10, 0.6
_MOST_COLD_DRAWS = 4
_TASTE_LEFT_OVER = 1e-4  # expected share of a taste that cutting its stick-breaking short may misplace
_RATING_CENTRE, _RATING_MATCH, _RATING_QUALITY, _RATING_MOOD, _RATING_NOISE = 3.25, 1.5, 0.4, 0.35, 1.0
_FIRST_JOIN, _JOIN_SPAN = 1_577_836_800, 2 * 365 * 86_400  # 2020-01-01 UTC, and two years
_SESSION_DRAWS, _SESSION_GAP = 6, 6 * 86_400  # mean draws a session, mean seconds between sessions
_SHORTEST_PAUSE, _PAUSE_SPAN = 40, 560  # seconds between two draws of a session
_USERS_AT_ONCE = 20_000  # bounds memory; part of the recipe, as it orders the random draws


@dataclass(frozen=True)
class SyntheticSpec:
    """What to invent.

    Attributes:
        n_users: Users.
        n_items: Items; at least as many as there are categories and as there are providers.
        n_categories: Genre-like categories, 2 to 24. Also the rank of the true choice probabilities.
        n_providers: Providers; their catalogues have Zipf-like sizes.
        mean_draws: Mean number of draws of a user who is no cold start, before bounds (at least 10, at most
            ten times this). Drawing an item again adds nothing, so interactions are fewer than draws.
        cold_start_share: Probability that a user has 1 to 4 draws only.
        concentration: Total mass of the Dirichlet distribution of tastes: the smaller, the fewer categories
            a user cares about.
        exponent: Exponent of the Zipf-Mandelbrot appeal ``(rank + shift) ** -exponent`` of items.
        shift: Shift of the same; larger means a flatter head.

    Raises:
        SpecificationError: A number is out of its range.
    """

    n_users: int
    n_items: int
    n_categories: int = 18
    n_providers: int = 60
    mean_draws: float = 60.0
    cold_start_share: float = 0.1
    concentration: float = 1.5
    exponent: float = 1.4
    shift: float = 15.0

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "n_users": (1, 2**31 - 1),
            "n_categories": (2, len(CATEGORY_NAMES)),
            "n_providers": (1, 2**31 - 1),
            "n_items": (max(self.n_categories, self.n_providers), 2**31 - 1),
            "mean_draws": (1, 1_000),
            "cold_start_share": (0, 1),
            "concentration": (0.01, 20),
            "exponent": (0, 10),
            "shift": (0, 1e9),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            kind, noun = (Integral, "a whole number") if name.startswith("n_") else (Real, "a number")
            if not (isinstance(value, kind) and least <= float(value) <= most):
                raise SpecificationError(f"{name}={value!r}; use {noun} from {least:g} to {most:g}")


BUNDLED = SyntheticSpec(n_users=4_000, n_items=600)
"""The edition in ``data/bundled``, made with ``rng=BUNDLED_SEED``."""

BUNDLED_SEED = 2_026

LARGE = SyntheticSpec(1_000_000, 100_000, 20, 1_000, mean_draws=30.0, exponent=1.1, shift=50.0)
"""A million users and a hundred thousand items, for measuring speed and memory."""


@dataclass(frozen=True, eq=False)
class SyntheticData:
    """Interactions and what caused them. All arrays are read-only.

    Attributes:
        spec: What was asked for.
        interactions: The interactions, with ratings 1 to 5 and timestamps. The catalogue was made before any
            user, so it is public.
        theta: Each user's taste: a distribution over categories, shape ``(n_users, n_categories)``, float32.
        phi: Distribution over items within each category, sparse, float64, shape
            ``(n_categories, n_items)``.
        draws: Number of items drawn for each user before repeats were dropped, shape ``(n_users,)``, int32;
            4 or fewer for cold-start users.
    """

    spec: SyntheticSpec
    interactions: Interactions
    theta: NDArray[np.float32]
    phi: sparse.csr_array
    draws: NDArray[np.int32]

    def __post_init__(self) -> None:
        for array in (self.theta, self.phi.data, self.phi.indices, self.draws):
            array.setflags(write=False)

    def affinity(self, user_positions: NDArray[np.integer]) -> NDArray[np.float64]:
        """True probability that one draw of a user is each item: ``theta @ phi``.

        A user with n draws interacts with item i with probability ``1 - (1 - affinity_i) ** n``. Ranking by
        affinity is therefore the best possible prediction of a user's further items; of those rated highly
        it is nearly so, because ratings also depend on an item's quality.

        Args:
            user_positions: Positions of users, shape ``(n,)``.

        Returns:
            Probabilities, shape ``(n, n_items)``; each row sums to 1, to float32 precision. Ask
            for a few users at a time of a large edition.
        """
        return np.asarray(self.theta[user_positions].astype(np.float64) @ self.phi, np.float64)

    def to_csv(self, folder: str | PathLike[str]) -> None:
        r"""Write ``interactions.csv`` and ``items.csv`` into a folder, which is made if absent.

        The columns are user, item, rating, timestamp and item, title, categories (joined by "|"), provider;
        UTF-8 with "\n" line ends. Equal data give equal bytes, on every platform.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        items = self.interactions.catalogue.to_frame()
        items["categories"] = items["categories"].map("|".join)
        items.to_csv(path / "items.csv", index=False, lineterminator="\n", encoding="utf-8")
        rows = self.interactions.to_frame()
        rows["rating"] = rows["rating"].astype(np.int8)
        rows.to_csv(path / "interactions.csv", index=False, lineterminator="\n", encoding="utf-8")


def make_interactions(spec: SyntheticSpec, rng: np.random.Generator | int | None = None) -> SyntheticData:
    """Invent items, users and what the users did, from causes that the result keeps.

    The model, in the order of its draws:

    - Items: appeal ``a_i = (rank_i + shift) ** -exponent`` (Mandelbrot 1953) with ranks in random order; one
      primary category of weight 1 and 0 to 3 further ones of weight 0.35, scaled to sum to 1 as ``m_ic``;
      ``phi_ci`` is proportional to ``a_i m_ic``. Providers have Zipf-like sizes and favour two categories.
    - Users: taste ``theta_u ~ Dirichlet(concentration * base)``, where ``base`` holds Zipf-like shares of
      the categories that sum to 1, made by stick-breaking (Sethuraman 1994); and a log-normal number of
      draws, or 1 to 4 for a cold start.
    - Draws: a category from ``theta_u``, then an item from ``phi_c``, as in a topic model (Blei, Ng and
      Jordan 2003). Only the first of repeated draws counts.
    - Ratings: a linear function of how well the item's categories match the taste (``theta_u . m_i``), of
      the item's quality, of the user's mood and of noise, rounded to 1 to 5.
    - Timestamps: users join over two years from 2020 and come back in sessions.

    Args:
        spec: What to invent.
        rng: Generator or seed; None takes fresh entropy.

    Returns:
        Interactions with ground truth. Users are "u1", "u2", ..., items "i1", "i2", ...; each user has at
        least one interaction, each category and provider at least one item.

    Guarantees:
        Equal specifications and seeds give equal interactions. Only raw uniform draws are used, with
        transforms of this module, because NumPy promises no stable streams for its distributions; and what
        is kept of a user are whole numbers, which the last bit of a processor's logarithm does not move.

    References:
        Mandelbrot (1953), "An informational theory of the statistical structure of languages".
        Sethuraman (1994), "A constructive definition of Dirichlet priors", Statistica Sinica 4, 639-650.
        Blei, Ng and Jordan (2003), "Latent Dirichlet allocation", JMLR 3, 993-1022.

    >>> data = make_interactions(SyntheticSpec(n_users=100, n_items=200), rng=0)
    >>> data.interactions.catalogue
    ItemCatalogue(200 items, 18 categories, 60 providers)
    >>> data.affinity(np.array([0, 1])).shape
    (2, 200)
    """
    generator = np.random.default_rng(rng)
    base = _zipf(spec.n_categories, 2.0, 0.8)[_shuffled(spec.n_categories, generator)]
    items = _make_items(spec, base, generator)
    sizes = [min(_USERS_AT_ONCE, spec.n_users - k) for k in range(0, spec.n_users, _USERS_AT_ONCE)]
    parts = [_make_users(spec, items, base, size, generator) for size in sizes]
    users = _Users(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    interactions = Interactions(
        users=pd.Index([f"u{k}" for k in range(1, spec.n_users + 1)], dtype="str"),
        catalogue=items.catalogue,
        indptr=np.concatenate([[0], np.cumsum(users.lengths)]).astype(np.int64),
        indices=users.indices,
        ratings=users.ratings,
        timestamps=users.timestamps,
    )
    return SyntheticData(spec, interactions, users.theta, items.phi, users.draws)


class _Items(NamedTuple):
    catalogue: ItemCatalogue
    phi: sparse.csr_array
    slots: NDArray[np.intp]  # (n_items, 4): categories, the primary one first
    weights: NDArray[np.float64]  # (n_items, 4): their weights, 0 in unused slots; rows sum to 1
    quality: NDArray[np.float64]  # (n_items,): standard normal


class _Users(NamedTuple):
    theta: NDArray[np.float32]
    draws: NDArray[np.int32]
    lengths: NDArray[np.int64]
    indices: NDArray[np.int32]
    ratings: NDArray[np.float32]
    timestamps: NDArray[np.int64]


def _make_items(spec: SyntheticSpec, base: NDArray[np.float64], rng: np.random.Generator) -> _Items:
    n, n_categories, n_providers = spec.n_items, spec.n_categories, spec.n_providers
    by_appeal = _shuffled(n, rng)
    appeal = np.empty(n)
    appeal[by_appeal] = _zipf(n, spec.shift, spec.exponent)

    one_row = np.zeros((n, len(_FURTHER_CATEGORIES)), np.intp)
    slots = _pick(base[None, :], one_row, rng.random(one_row.shape))
    seats = _shuffled(n, rng)  # whom chance forgets gets a seat, so that no category or provider is empty
    slots[seats[:n_categories], 0] = np.arange(n_categories)
    further = _pick(np.array([_FURTHER_CATEGORIES]), one_row[:, 0], rng.random(n))
    weights = np.where(np.arange(slots.shape[1]) <= further[:, None], _FURTHER_WEIGHT, 0.0)
    weights[:, 0] = 1.0
    for slot in range(1, slots.shape[1]):
        weights[(slots[:, :slot] == slots[:, slot, None]).any(axis=1), slot] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)

    used = weights > 0
    rows = np.nonzero(used)[0]
    share = sparse.csr_array((weights[used] * appeal[rows], (slots[used], rows)), shape=(n_categories, n))
    phi = sparse.csr_array(sparse.diags_array(1 / share.sum(axis=1)) @ share)
    phi.sort_indices()

    size = _zipf(n_providers, 0.0, 0.8)[_shuffled(n_providers, rng)]
    favour = np.ones((n_categories, n_providers))
    for _ in range(2):
        favourite = _pick(base[None, :], np.zeros(n_providers, np.intp), rng.random(n_providers))
        favour[favourite, np.arange(n_providers)] = _FAVOUR
    providers = _pick(favour * size, slots[:, 0], rng.random(n))
    providers[seats[::-1][:n_providers]] = np.arange(n_providers)

    ones = np.ones(len(rows), np.float32)
    membership = sparse.csr_array((ones, (rows, slots[used])), shape=(n, n_categories))
    membership.sort_indices()
    catalogue = ItemCatalogue(
        ids=pd.Index([f"i{k}" for k in range(1, n + 1)], dtype="str"),
        titles=titles(by_appeal),
        category_names=tuple(sorted(CATEGORY_NAMES[:n_categories])),
        membership=membership,
        provider_names=provider_names(n_providers),
        provider_codes=providers.astype(np.int32),
    )
    return _Items(catalogue, phi, slots, weights, _normal(n, rng))


def _make_users(
    spec: SyntheticSpec, items: _Items, base: NDArray[np.float64], n: int, rng: np.random.Generator
) -> _Users:
    theta = _tastes(n, base, spec.concentration, rng)
    mean = log(spec.mean_draws) - _DRAWS_LOG_SPREAD**2 / 2
    many = np.rint(np.exp(mean + _DRAWS_LOG_SPREAD * _normal(n, rng)))
    many = np.clip(many, _FEWEST_DRAWS, _MOST_DRAWS_OVER_MEAN * spec.mean_draws)
    few = 1 + np.floor(_MOST_COLD_DRAWS * rng.random(n))
    draws = np.where(rng.random(n) < spec.cold_start_share, few, many).astype(np.int32)
    mood = _normal(n, rng)

    # One row a draw from here on, in the order in which the user made them.
    users = np.repeat(np.arange(n), draws)
    categories = _pick(theta, users, rng.random(len(users)))
    ends = np.cumsum(items.phi.data)  # each category's shares sum to 1, so category c ends at c + 1
    found = np.searchsorted(ends, categories + rng.random(len(users)), side="right")
    found = np.clip(found, items.phi.indptr[categories], items.phi.indptr[categories + 1] - 1)
    chosen = items.phi.indices[found]

    match = (theta[users[:, None], items.slots[chosen]] * items.weights[chosen]).sum(axis=1)
    liking = _RATING_CENTRE + _RATING_MATCH * match + _RATING_QUALITY * items.quality[chosen]
    liking += _RATING_MOOD * mood[users] + _RATING_NOISE * _normal(len(users), rng)
    key = users * spec.n_items + chosen
    order = np.argsort(key, kind="stable")  # so that the first of repeated draws comes first
    order = order[np.diff(key[order], prepend=-1) > 0]
    return _Users(
        theta=theta,
        draws=draws,
        lengths=np.bincount(users[order], minlength=n),
        indices=chosen[order].astype(np.int32),
        ratings=np.clip(np.rint(liking[order]), 1, 5).astype(np.float32),
        timestamps=_times(draws, rng)[order],
    )


def _tastes(
    n: int, base: NDArray[np.float64], concentration: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draws of Dirichlet(concentration * base), by breaking a stick and giving each piece to a category."""
    pieces = ceil(log(_TASTE_LEFT_OVER) / log(concentration / (1 + concentration))) + 1
    left = np.cumprod(rng.random((n, pieces)) ** (1 / concentration), axis=1)
    left[:, -1] = 0.0
    sizes = -np.diff(left, axis=1, prepend=1.0)
    owners = _pick(base[None, :], np.zeros((n, pieces), np.intp), rng.random((n, pieces)))
    cells = np.arange(n)[:, None] * len(base) + owners
    theta = np.bincount(cells.ravel(), weights=sizes.ravel(), minlength=n * len(base))
    return theta.reshape(n, len(base)).astype(np.float32)


def _times(draws: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int64]:
    """Seconds since 1970 of each user's draws, strictly increasing: bursts with days between them."""
    n = int(draws.sum())
    first = np.cumsum(draws) - draws
    gaps = _SHORTEST_PAUSE + np.floor(_PAUSE_SPAN * rng.random(n))
    returns = rng.random(n) < 1 / _SESSION_DRAWS
    gaps -= np.where(returns, np.floor(_SESSION_GAP * np.log1p(-rng.random(n))), 0.0)
    elapsed = np.cumsum(gaps.astype(np.int64))
    joined = _FIRST_JOIN + np.floor(_JOIN_SPAN * rng.random(len(draws))).astype(np.int64)
    return np.asarray(elapsed + np.repeat(joined - elapsed[first], draws), np.int64)


def _pick(
    shares: NDArray[np.floating], rows: NDArray[np.intp], quantiles: NDArray[np.float64]
) -> NDArray[np.intp]:
    """Columns at these quantiles of the distributions proportional to these rows of ``shares``."""
    n_rows, n_columns = shares.shape
    ends = np.cumsum(shares, axis=1, dtype=np.float64)
    ends /= ends[:, -1:]
    ends += np.arange(n_rows)[:, None]
    found = np.searchsorted(ends.ravel(), rows + quantiles, side="right") - rows * n_columns
    inside = np.minimum(found, n_columns - 1)  # row + quantile may round up to the next row
    return np.asarray(inside, np.intp)


def _zipf(n: int, shift: float, exponent: float) -> NDArray[np.float64]:
    ranks = np.arange(1, n + 1, dtype=np.float64)
    return np.asarray((ranks + shift) ** -exponent, np.float64)


def _normal(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return np.asarray(ndtri(np.maximum(rng.random(n), 2.0**-54)), np.float64)  # a uniform draw may be 0


def _shuffled(n: int, rng: np.random.Generator) -> NDArray[np.intp]:
    return np.argsort(rng.random(n), kind="stable")
