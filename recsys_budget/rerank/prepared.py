"""Candidates that were read once, to be asked about again and again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from recsys_budget.constraints import Constraint, Policy
from recsys_budget.rerank.frames import CandidateTable
from recsys_budget.rerank.memory import Memory
from recsys_budget.rerank.objective import Objective

if TYPE_CHECKING:
    from recsys_budget.rerank.reranker import Reranker, Slates


class Prepared:
    """Candidates in order, and what the last answer about them left to start from.

    Made by :meth:`Reranker.prepare`. Each answer costs what its difference from the one before costs: bounds
    that move a little leave most slates as they are.

    Not safe for use by two threads at once.
    """

    def __init__(self, reranker: Reranker, table: CandidateTable) -> None:
        self.reranker = reranker
        self._table = table
        self._memory = Memory()

    def __len__(self) -> int:
        return len(self._table)

    def __repr__(self) -> str:
        return f"Prepared({len(self)} users, {len(self._table.items)} candidates)"

    def rerank(
        self,
        *,
        objective: Objective | None = None,
        constraints: Sequence[Constraint] | Policy | None = None,
        time_limit: float | None = None,
        ledger: object | None = None,
        progress: bool = True,
    ) -> Slates:
        """The best slate of every user, from another objective or under other constraints.

        Args:
            objective: What to maximise; None takes the re-ranker's own.
            constraints: The rules, all of them; None takes the re-ranker's own.
            time_limit: As for :meth:`Reranker.rerank`, like the rest.
            ledger: The privacy ledger that governs the data.
            progress: Show a progress bar.

        Guarantees:
            Those of :meth:`Reranker.rerank`: rules counted from the slates, a certificate within the gap
            asked for. Without constraints about all slates, the slates are those that it gives. With such
            constraints the search starts from prices and slates of the answer before, so of slates that are
            equally good within the gap it may find others; the same sequence of calls gives the same answers,
            bit for bit.

        Raises:
            SpecificationError: As for :class:`Reranker` and :meth:`Reranker.rerank`, like other errors.
        """
        started = time.perf_counter()
        changed: dict[str, object] = {}
        if objective is not None:
            changed["objective"] = objective
        if constraints is not None:
            changed["constraints"] = tuple(constraints)
        asked = replace(self.reranker, **changed) if changed else self.reranker  # type: ignore[arg-type]
        deadline = asked._begin(self._table.catalogue, time_limit, ledger)
        if asked.slate_size != self._table.k:
            self._table, self._memory = replace(self._table, k=asked.slate_size), Memory()
        return asked._answer(self._table, self._memory, started, time_limit, deadline, progress)
