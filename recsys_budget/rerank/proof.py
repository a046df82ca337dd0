"""What one noisy measurement of slates proves about hard bounds, and about how good the slates are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from recsys_budget.constraints import Constraint
from recsys_budget.errors import SpecificationError
from recsys_budget.rerank.certificate import PrivateCertificate
from recsys_budget.rerank.prices import Release

# Of the places that bounds leave free, the share that room for noise may take.
_AIMED = 0.7


@dataclass(frozen=True, eq=False)
class Proof:
    """How far inside its bound a noisy load must be.

    Every claim is about a sum of released numbers times public ones, so its noise is normal with a known
    standard deviation, and the claim is off by more than ``quantile`` of these with probability at most
    ``beta / claims``. There is a claim for every bound, and three more: for the number of users from above
    and from below, and for the objective beside its bound.

    Attributes:
        release: What measures: loads, then the number of users, the objective over ``gain``, and what the
            best slate at the mean prices nets, as a share of the way between :meth:`limits`.
        gain: The greatest objective of a slate.
        beta: Greatest probability that any claim is off.
    """

    release: Release
    gain: float
    beta: float

    @cached_property
    def quantile(self) -> float:
        """Standard deviations that normal noise exceeds, on one side, with probability beta over claims."""
        return float(-special.ndtri(self.beta / (len(self.release.loads.bounds) + 3)))

    @cached_property
    def errors(self) -> NDArray[np.float64]:
        """Standard deviation of each noisy load less its noisy bound, ``(n_bounds,)``."""
        bounds = self.release.loads.bounds
        return np.hypot(self.release.load_errors[bounds.row], bounds.per_user * self.release.statistic_error)

    def margins(self, users: float) -> NDArray[np.float64]:
        """How far inside each bound its noisy load must be, for at most so many users, ``(n_bounds,)``."""
        loads = self.release.loads
        return self.quantile * self.errors + users * loads.rounding[loads.bounds.row]

    def require_room(self, rules: Sequence[Constraint], users: int) -> None:
        """Raise where noise leaves no room within hard bounds, whatever the candidates; reads only constants.

        Raises:
            SpecificationError: A bound could not be proven even by the most, or the least, that so many
                slates can add; or floor and ceiling of a row are too near; or floors together ask for more
                places than there are, or ceilings for fewer.
        """
        loads, bounds = self.release.loads, self.release.loads.bounds
        at, margin = bounds.at(users), self.margins(users)
        noise = self.release.mechanism.noise_multiplier
        room = np.where(
            bounds.sign > 0, at - users * loads.least[bounds.row], users * loads.most[bounds.row] - at
        )
        for b in np.flatnonzero(bounds.hard & (room < margin)):
            raise _no_room(rules[bounds.owner[b]].name, room[b], margin[b], noise)
        for low, high in self._pairs(at):
            gap, both = at[high] - at[low], margin[high] + margin[low]
            if gap < both:
                raise _no_room(rules[bounds.owner[high]].name, gap, both, noise)
        for those, most in self._together(at, users):
            both = float(margin[those].sum())
            if most < both:
                names = ", ".join(dict.fromkeys(rules[owner].name for owner in bounds.owner[those]))
                raise _no_room(f"{names}, together", most, both, noise)

    def inside(self, users: int, wanted: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far inside each bound to aim: the margin, and of the room wanted what leaves all a target."""
        at, margin = self.release.loads.bounds.at(users), self.margins(users)
        share = np.ones(len(wanted))
        for those, most in self._together(at, users):
            left = max(0.0, most - float(margin[those].sum()))
            fits = _AIMED * left / max(float(wanted[those].sum()), 1e-300)
            share[those] = np.minimum(share[those], fits)
        return margin + share * wanted

    def _tightest(self, at: NDArray[np.float64], sign: float) -> dict[int, int]:
        """The tightest hard bound of that side of each row that has any."""
        bounds = self.release.loads.bounds
        those = np.flatnonzero(bounds.hard & (bounds.sign == sign))
        those = those[np.argsort(-sign * at[those], kind="stable")]
        return dict(zip(bounds.row[those].tolist(), those.tolist(), strict=True))

    def _pairs(self, at: NDArray[np.float64]) -> list[tuple[int, int]]:
        """Floor and ceiling of each row that has both."""
        low, high = self._tightest(at, -1.0), self._tightest(at, 1.0)
        return [(low[row], high[row]) for row in low if row in high]

    def _together(self, at: NDArray[np.float64], users: int) -> list[tuple[NDArray[np.intp], float]]:
        """Floors, and ceilings, on rows that share no item, and by how much all places can exceed them.

        What slates add to such rows together is at most what the k items do that count most in any of them,
        and at least what the k items do that count least.
        """
        loads, found = self.release.loads, []
        for sign in (-1.0, 1.0):
            tightest = self._tightest(at, sign)
            for block in loads.blocks:
                rows = [row for row in block.tolist() if row in tightest]
                each = np.sort(np.asarray(loads.rows[rows].sum(axis=0), np.float64))
                if not rows or each[0] < 0.0:
                    continue
                those = np.array([tightest[row] for row in rows], np.intp)
                ends = each[-loads.size :] if sign < 0 else each[: loads.size]
                found.append((those, sign * (float(at[those].sum()) - users * float(ends.sum()))))
        return found

    def limits(self, prices: NDArray[np.float64]) -> tuple[float, float]:
        """Between what a slate nets at these prices of items, whatever the candidates."""
        k = self.release.loads.size
        ordered = np.sort(prices)
        return -float(ordered[-k:].sum()), self.gain - float(ordered[:k].sum())

    def certificate(
        self,
        prices: NDArray[np.float64],
        noisy_loads: NDArray[np.float64],
        statistics: NDArray[np.float64],
        names: Sequence[tuple[str, str]],
        **facts: Any,
    ) -> PrivateCertificate:
        """What the measurement proves; a function of public and released numbers alone.

        Args:
            prices: On bounds, at which the last statistic was measured.
            noisy_loads: As released.
            statistics: As released: users, objective, net gain at the prices.
            names: Rule and part of each bound.
            **facts: What else the certificate says.
        """
        loads, bounds = self.release.loads, self.release.loads.bounds
        users, error = float(statistics[0]), self.release.statistic_error
        most_users = max(0.0, users + self.quantile * error)
        at, load = bounds.at(users), noisy_loads[bounds.row]
        margin = self.margins(most_users)
        beyond = bounds.sign * (load - at)
        proven = beyond + margin <= 0.0
        wishes = np.where(bounds.hard, 0.0, bounds.weight)
        penalty = float(wishes @ np.maximum(0.0, beyond))
        largest_penalty = float(wishes @ np.maximum(0.0, beyond + margin))
        # The dual function: net gains of the best slates, and what the bounds are worth. Rounded rows may be
        # off by ``rounding`` a user.
        low, high = self.limits(loads.item_prices(prices))
        a_user = low + float(prices @ (bounds.sign * bounds.per_user + loads.rounding[bounds.row]))
        fixed = float(prices @ (bounds.sign * bounds.constant))
        best = (high - low) * float(statistics[2]) + a_user * users + fixed
        total = self.gain * float(statistics[1])
        spread = error * float(np.hypot(np.hypot(high - low, a_user), self.gain))
        fewest = users - self.quantile * error
        lost = best - total + largest_penalty + self.quantile * spread
        shown = max(users, 1.0)
        objective, bound = (total - penalty) / shown, best / shown
        return PrivateCertificate(
            objective=objective,
            bound=bound,
            standard_error=error
            / shown
            * max(
                float(np.hypot(self.gain, objective)),
                float(np.hypot(high - low, a_user - bound)),
            ),
            given_up=max(0.0, lost) / fewest if fewest >= 1.0 else float("inf"),
            bounds=pd.DataFrame(
                {
                    "rule": pd.Series([rule for rule, _ in names], dtype="str"),
                    "part": pd.Series([part for _, part in names], dtype="str"),
                    "side": pd.Series(np.where(bounds.sign > 0, "at most", "at least"), dtype="str"),
                    "bound": at,
                    "load": load,
                    "margin": margin,
                    "price": prices,
                    "hard": bounds.hard,
                    "proven": proven,
                }
            ),
            users=users,
            users_error=error,
            beta=self.beta,
            **facts,
        )


def _no_room(names: str, room: float, margin: float, noise: float) -> SpecificationError:
    enough = (
        f"it would take noise {room / margin:.2g} times as large, or that many more users"
        if room > 0.0
        else "no noise is small enough: the bound itself is out of reach"
    )
    return SpecificationError(
        f"{names}: noise of {noise:.3g} takes a margin of {margin:.4g} to prove, and there is room for "
        f"{max(room, 0.0):.4g}; {enough}. Loosen the bound, spend more, or allow fewer items of a provider "
        "in a slate. Nothing was read or spent"
    )
