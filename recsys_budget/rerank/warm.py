"""Kernels compiled before somebody waits for them: in this process, or in another one beside it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd

from recsys_budget.constraints import CategoryMaximum, CategoryMinimum, Constraint, ProviderMinimum, SlateSize
from recsys_budget.data import ItemCatalogue
from recsys_budget.rerank.objective import Engagement, EngagementDiversity, Objective
from recsys_budget.rerank.reranker import Reranker
from recsys_budget.rerank.routes import _core, _exchange, _search
from recsys_budget.rerank.routes._compiled import (
    COMPILED,
    Patience,
    can_be_kept,
    compiling,
    is_kept,
    is_ready,
)

# What is compiled longest, route by route; each comes after what it calls.
_LAST = (_core.search_users, _search.search_users, _exchange.exchanges)
# Seconds that another process may take; longer than any computer was seen to.
_PATIENCE = 60.0
_PROGRAM = "from recsys_budget.rerank.warm import warm_kernels; warm_kernels()"

_begun = threading.Event()


def kernels_ready() -> bool:
    """Whether no re-ranking has to wait for a compiler; True where there is none to wait for."""
    return not COMPILED or all(is_ready(kernel) for kernel in _LAST)


def kernels_kept() -> bool:
    """Whether processes to come will find the machine code of what this one has compiled."""
    return COMPILED and all(is_kept(kernel) for kernel in _LAST)


def warm_kernels() -> float:
    """Compile what re-ranking runs, by re-ranking a few made-up candidates in every way.

    Machine code is kept for processes to come, where numba finds a folder to write to.

    Returns:
        Seconds that it took.
    """
    started = time.perf_counter()
    with compiling():
        for overlapping in (False, True):
            catalogue, candidates = _made_up(overlapping)
            own: list[Constraint] = [SlateSize(2), CategoryMinimum("a", 1), CategoryMaximum("b", 1)]
            shared = [*own, ProviderMinimum(3)]
            for rules in (own, shared):
                objectives: tuple[Objective, ...] = (Engagement(), EngagementDiversity(0.4))
                for objective in objectives:
                    Reranker(objective, rules).rerank(candidates, catalogue, progress=False)
    return time.perf_counter() - started


def warm_beside() -> None:
    """Compile in a process beside this one, if anything is left to compile; once a process.

    Meanwhile small problems are solved by the same kernels interpreted, so that nobody waits for either.
    """
    if _begun.is_set() or kernels_ready() or not sys.executable:
        return
    if not all(can_be_kept(kernel) for kernel in _LAST):
        return  # no folder keeps what another process compiles
    _begun.set()
    try:
        beside = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except OSError:  # no more processes: whoever needs a kernel compiles it
        return
    Patience.allowed = max(Patience.allowed, _PATIENCE)
    # Somebody has to hear that it has ended.
    threading.Thread(target=beside.wait, name="recsys-budget-warm", daemon=True).start()


def _made_up(overlapping: bool) -> tuple[ItemCatalogue, pd.DataFrame]:
    two = ["a", "b"] if overlapping else ["c"]
    kinds = [["a"], ["b"], two, ["c"], ["a"], ["b"]]
    items = [f"i{j}" for j in range(len(kinds))]
    catalogue = ItemCatalogue.from_frame(
        pd.DataFrame({"item": items, "categories": kinds, "provider": ["p", "q"] * 3})
    )
    candidates = pd.DataFrame(
        {
            "user": np.repeat(["u", "v", "w"], len(items)),
            "item": items * 3,
            "relevance": np.random.default_rng(0).random(3 * len(items)) + [0.1, 1.0] * 9,
        }
    )
    return catalogue, candidates
