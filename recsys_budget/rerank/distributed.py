"""Rules about all slates, where candidates are spread over processes or machines.

Candidates stay where they are. The driver sends prices, and gets back sums of what they lead to and the few
exchanges that cost next to nothing; from these it finds the same slates as one process, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsys_budget.constraints import Constraint, Population
from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.data._columns import in_shortlex
from recsys_budget.errors import DataError, NumericalError, SolverTimeoutError, SpecificationError
from recsys_budget.rerank.certificate import Certificate
from recsys_budget.rerank.conflict import infeasible
from recsys_budget.rerank.fast import library
from recsys_budget.rerank.frames import CandidateTable, in_kind
from recsys_budget.rerank.infeasibility import by_prices, find_conflict
from recsys_budget.rerank.question import Outcome
from recsys_budget.rerank.reranker import Reranker
from recsys_budget.rerank.routes.answers import Selection
from recsys_budget.rerank.routes.coupled import Coupled
from recsys_budget.rerank.routes.laminar import LaminarTree
from recsys_budget.rerank.routes.oracle import Oracle
from recsys_budget.rerank.routes.shards import Shards
from recsys_budget.rerank.structure import Gains
from recsys_budget.rerank.together import Together
from recsys_budget.rerank.verification import Counted, certify, count_violations, figures

Map = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class DistributedSlates:
    """Slates in parts, and the evidence for all of them.

    Attributes:
        parts: For each part of the candidates, in order, what ``map`` made of its slates: frames like
            ``Slates.frame``, or whatever stands for frames that stay on workers.
        certificate: What is known about all slates; its figures are those of one process.
    """

    parts: Any
    certificate: Certificate


def rerank_distributed(
    parts: Any,
    *,
    reranker: Reranker,
    catalogue: ItemCatalogue,
    history: Interactions | None = None,
    map: Map | None = None,
    gather: Callable[[Any], Sequence[Any]] = list,
    time_limit: float | None = None,
    ledger: object | None = None,
) -> DistributedSlates:
    """The slates of all users of all parts, under rules about one slate and about all slates together.

    Each part is read once. Then rounds follow, some tens of them: prices go to every part, sums come back.
    With ``p`` parts a round moves about ``8 p n_items`` bytes. Parts keep what they work with between rounds;
    where one is lost and made again, answers stay the same.

    Dask, each user's rows in one part::

        parts = client.compute(candidates.shuffle(on="user").to_delayed())
        rerank_distributed(parts, map=client.map, gather=client.gather, reranker=..., catalogue=...)

    A pool of processes or threads; to processes, parts travel each round::

        rerank_distributed(frames, map=pool.map, reranker=..., catalogue=...)

    Args:
        parts: Tables of candidates as for :meth:`Reranker.rerank`, all rows of a user in one of them; or what
            stands for these in ``map``. Parts may be empty.
        reranker: With some rule about all slates; of structure that the ``"coupled"`` route knows.
        catalogue: The catalogue that the items are from.
        history: As for :meth:`Reranker.rerank`.
        map: Calls a function with each part, as the built-in ``map`` does, and with the same item of further
            lists, if given. It may return something that stands for the results, in order, as Dask's futures
            do. None works in this process.
        gather: The results that ``map`` stands for, as a list.
        time_limit: Wall-clock seconds after which no further round is begun.
        ledger: The privacy ledger that governs the data; see :meth:`Reranker.rerank`, which refuses it too.

    Guarantees:
        Slates and certificate are those of ``Reranker.rerank`` with all parts in one table, bit for bit but
        for the time taken, however users are spread and in whatever order parts answer; unless a time limit
        ends the search, or there are no more than 5,000 candidates, which one process leaves to integer
        programs where prices alone do not reach the gap.

    Raises:
        DataError: As for ``Reranker.rerank``; or a user is in two parts.
        SpecificationError: No rule is about all slates (see ``rerank_part``), or the structure is another; or
            as for ``Reranker.rerank``.
        InfeasibleError: As for ``Reranker.rerank``; where users alone have no slate, the conflict tells of
            those in one part.
        SolverTimeoutError: The time was over before slates kept to every rule.
        NumericalError: Slates that keep to every rule were not found, or failed the check.
    """
    started = time.perf_counter()
    deadline = reranker._begin(catalogue, time_limit, ledger)
    run = _in_this_process if map is None else map
    rules = tuple(reranker.constraints)
    _require_structure(reranker, catalogue)
    held = _kept(run(partial(_read, reranker=reranker, catalogue=catalogue, history=history), parts))
    users, numbers = _numbers(gather(run(_users, held)))
    without = [at for at, head in enumerate(gather(run(_head, held))) if head[1]]
    if without:
        gather(run(partial(_explain, rules=rules, deadline=deadline), held))
    largest = max(head[0] for head in gather(run(_head, held)))
    share = [largest] * len(numbers), [len(users)] * len(numbers)
    held = _kept(run(_number, held, numbers, *share))

    def ask(of_parts: Any, name: str, *arguments: Any) -> Sequence[Any]:
        return gather(run(partial(_ask, name=name, arguments=arguments), of_parts))

    def under(tree: LaminarTree) -> Shards:
        looser = _kept(run(partial(_under, tree=tree), held))
        return Shards(partial(ask, looser), tree, largest, len(users))

    everybody = _stand_in(catalogue, users, reranker.slate_size)
    together = Together.of(rules, everybody)
    assert together is not None
    if together.crossed:
        raise infeasible(by_prices(rules, everybody, together.crossed, under, deadline))
    shards = Shards(partial(ask, held), together.quotas.tree, largest, len(users))
    left = None if time_limit is None else max(1e-3, deadline - time.monotonic())
    found = together.solve(shards, None, reranker.gap, left)
    if found.ray is not None:
        raise infeasible(by_prices(rules, everybody, together.conflict(found.ray), under, deadline))
    late = time.monotonic() >= deadline
    if not found.satisfied:
        _refuse(found, len(users), time_limit if late else None)
    outcome = Outcome(
        chosen=np.zeros((0, reranker.slate_size), np.int32),
        infeasible=np.zeros(0, bool),
        bound=None,
        total=float(found.bound),
        iterations=int(np.ceil(found.evaluations)),
        prices=together.prices(found, shards),
        solver="prices",
        version=library(),
        stopped=late,
    )
    counted = gather(run(partial(_count, reranker=reranker, selection=found.selection), held))
    per_user = pd.concat([table for _, _, table in counted], ignore_index=True)
    per_user = per_user.iloc[np.argsort(np.concatenate(numbers))].reset_index(drop=True)
    violations = _all_violations(rules, [each for each, _, _ in counted])
    shown = np.sum([each for _, each, _ in counted], axis=0)
    shared = [rule for rule in rules if rule.scope == "population"]
    slates, arranged = _arranged(everybody, shown)
    violations |= count_violations(shared, slates, arranged, "prices").violations
    certificate = certify(
        reranker.objective,
        rules,
        per_user,
        Counted({rule.name: violations[rule.name] for rule in rules}, np.zeros(0), 0.0),
        outcome,
        route="coupled",
        privacy=reranker.privacy,
        seconds=time.perf_counter() - started,
    )
    return DistributedSlates(_kept(run(partial(_slates, selection=found.selection), held)), certificate)


@dataclass(frozen=True, eq=False)
class _Part:
    """One part, as it stays on a worker."""

    table: CandidateTable
    gains: Gains
    oracle: Oracle


def _read(frame: Any, *, reranker: Reranker, catalogue: ItemCatalogue, history: Interactions | None) -> _Part:
    """Read a part and find its users' best slates without prices."""
    if len(frame):
        table = CandidateTable.read(frame, catalogue, reranker.slate_size, history)
    else:
        library_of = nw.from_native(frame, eager_only=True).implementation
        nobody = _stand_in(catalogue, pd.Index([], dtype="str"), reranker.slate_size)
        table = CandidateTable(**{**vars(nobody), "library": library_of})
    together, gains = Together.of(tuple(reranker.constraints), table), Gains.of(reranker.objective, table)
    assert together is not None
    assert gains is not None
    return _Part(table, gains, Oracle(table.offsets, gains.gains, gains.items, together.quotas.tree))


def _users(part: _Part) -> pd.Index[Any]:
    return part.table.users


def _head(part: _Part) -> tuple[float, int]:
    """Its greatest gain, and how many users have no slate."""
    return part.oracle.largest, int((~part.oracle.feasible).sum())


def _explain(part: _Part, *, rules: Sequence[Constraint], deadline: float) -> None:
    """Raise for users of this part who have no slate by themselves."""
    impossible = np.flatnonzero(~part.oracle.feasible)
    if len(impossible):
        raise infeasible(find_conflict(rules, part.table, impossible, deadline=deadline))


def _number(part: _Part, numbers: NDArray[np.int64], largest: float, served: int) -> _Part:
    """The part, its users knowing their number among all."""
    return replace(part, oracle=part.oracle.among(numbers, largest, served))


def _under(part: _Part, *, tree: LaminarTree) -> _Part:
    """The part under other quotas, none of them tighter."""
    oracle, gains = part.oracle, part.gains
    other = Oracle(part.table.offsets, gains.gains, gains.items, tree)
    return replace(part, oracle=other.among(oracle.numbers, oracle.largest, oracle.served))


def _ask(part: _Part, *, name: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(part.oracle, name)(*arguments)


def _chosen(part: _Part, selection: Selection) -> NDArray[np.int32]:
    return part.gains.rows(part.oracle.select(selection), part.table)


def _count(
    part: _Part, *, reranker: Reranker, selection: Selection
) -> tuple[dict[str, float], NDArray[np.int64], pd.DataFrame]:
    """Violations of rules about one slate, how often each item is shown, and the per-user figures."""
    chosen, table = _chosen(part, selection), part.table
    own = [rule for rule in reranker.constraints if rule.scope == "user"]
    counted = count_violations(own, chosen, table, "prices")
    nothing = np.zeros(len(table), bool)
    claim = Outcome(chosen, nothing, None, np.inf, 0, {}, "prices", library())
    per_user = figures(reranker.objective, chosen, table, counted.penalties, claim)
    items = table.chosen_items(chosen)
    shown = np.bincount(items[items >= 0], minlength=len(table.catalogue))
    return counted.violations, shown.astype(np.int64), per_user


def _slates(part: _Part, *, selection: Selection) -> Any:
    return in_kind(part.table.slates(_chosen(part, selection)), part.table.library)


def _in_this_process(function: Callable[..., Any], *lists: Any) -> list[Any]:
    return [function(*each) for each in zip(*lists, strict=True)]


def _kept(results: Any) -> Any:
    """What can be mapped over again and again."""
    return list(results) if isinstance(results, Iterator) else results


def _require_structure(reranker: Reranker, catalogue: ItemCatalogue) -> None:
    """Raise unless prices can answer."""
    nobody = _stand_in(catalogue, pd.Index([], dtype="str"), reranker.slate_size)
    if all(rule.scope == "user" for rule in reranker.constraints):
        raise SpecificationError(
            "no rule is about all slates, so parts need not know of each other; see rerank_part"
        )
    gains = Gains.of(reranker.objective, nobody)
    linear = gains is not None and not gains.diversity and gains.worth is None
    plain = reranker.solver is None and reranker.route in (None, "coupled")
    if not (linear and plain and Together.of(tuple(reranker.constraints), nobody) is not None):
        raise SpecificationError(
            "only hard rules that are nested quotas, sums over all slates and coverage, with a linear "
            "objective without a discount and no solver named, are kept over parts; gather the candidates "
            "and call Reranker.rerank"
        )


def _numbers(ids: Sequence[pd.Index[Any]]) -> tuple[pd.Index[Any], list[NDArray[np.int64]]]:
    """All users in order, and the place of each part's users among them."""
    each = np.concatenate([np.asarray(part, object) for part in ids])
    again = pd.Index(each).duplicated()
    if not len(each) or again.any():
        raise DataError(
            f"user {each[again.argmax()]!r} is in two parts; spread the table by user"
            if len(each)
            else "there is no candidate; pass at least one row"
        )
    users, places = in_shortlex(each)
    return users, np.split(places, np.cumsum([len(part) for part in ids])[:-1])


def _stand_in(catalogue: ItemCatalogue, users: pd.Index[Any], k: int) -> Population:
    """Users without candidates."""
    nothing = np.zeros(0, np.intp)
    return Population(catalogue, users, np.zeros(len(users) + 1, np.int64), nothing, np.zeros(0), k)


def _arranged(everybody: Population, shown: NDArray[np.int64]) -> tuple[NDArray[np.int32], Population]:
    """All shown items, dealt out anew: to rules about sums it is the same who was shown an item."""
    n_users, k = len(everybody), everybody.k
    items = np.repeat(np.arange(len(shown)), shown)
    starts = np.arange(n_users + 1, dtype=np.int64) * k
    dealt = replace(everybody, offsets=starts, items=items, relevance=np.zeros(len(items)))
    return np.broadcast_to(np.arange(k, dtype=np.int32), (n_users, k)), dealt


def _all_violations(rules: Sequence[Constraint], parts: Sequence[dict[str, float]]) -> dict[str, float]:
    return {rule.name: max(part[rule.name] for part in parts) for rule in rules if rule.scope == "user"}


def _refuse(found: Coupled, n_users: int, time_limit: float | None) -> None:
    if time_limit is not None:
        raise SolverTimeoutError(
            f"{time_limit:g} s were not enough to find slates of {n_users} users that keep to every rule; "
            "allow more time",
            time_limit=time_limit,
            users=[],
            n_users=n_users,
        )
    raise NumericalError(
        f"prices found no slates of {n_users} users that keep to every rule (worst by "
        f"{found.violations.max():g}), and no proof that there are none; loosen a rule, or gather the "
        "candidates and call Reranker.rerank"
    )
