"""Kernels that are not compiled yet: who stands in, for how long, and who compiles meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recsys_budget.rerank import warm
from recsys_budget.rerank.routes import _compiled
from recsys_budget.rerank.routes._compiled import COMPILED, Patience, interpreted, njit, over_users, pick

needs_numba = pytest.mark.skipif(not COMPILED, reason="numba is missing or switched off")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patience, "spent", 0.0)
    monkeypatch.setattr(Patience, "allowed", 3.0)
    monkeypatch.setattr(_compiled, "is_kept", lambda kernel: False)


def fresh() -> Any:
    """A kernel nobody has compiled; it counts users."""

    @njit
    def count(first: int, last: int, into: Any) -> None:
        for user in range(first, last):
            into[user] += 1

    return count


@needs_numba
def test_little_work_is_done_by_the_source_and_much_by_machine_code() -> None:
    kernel = fresh()
    assert pick(kernel, None, _compiled.SMALL) is not kernel
    assert pick(kernel, None, _compiled.SMALL + 1) is kernel
    counts = np.zeros(5, np.int64)
    over_users(kernel, 1, 4, 100, counts)
    assert counts.tolist() == [0, 1, 1, 1, 0]
    assert not kernel.signatures
    over_users(kernel, 0, 5, _compiled.SMALL + 1, counts)
    assert counts.tolist() == [1, 2, 2, 2, 1]
    assert len(kernel.signatures) == 1
    assert pick(kernel, None, 1) is kernel  # it is there now


@needs_numba
def test_patience_ends_in_the_middle_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """A twin that takes a second for a user is left when three of them are over."""
    kernel, seen = fresh(), []

    def slow(first: int, last: int, into: Any) -> None:
        seen.append((first, last))
        Patience.spent += 1.0

    monkeypatch.setattr(_compiled, "interpreted", lambda kernel: slow)
    counts = np.zeros(10, np.int64)
    over_users(kernel, 0, 10, 100, counts)
    assert seen == [(0, 1), (1, 2), (2, 3)]
    assert counts.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]


@needs_numba
def test_a_kernel_kept_from_before_is_loaded_not_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = fresh()
    monkeypatch.setattr(_compiled, "is_kept", lambda asked: asked is kernel)
    assert pick(kernel, None, 1) is kernel


@needs_numba
def test_a_twin_is_as_quiet_as_machine_code() -> None:
    @njit
    def worst(first: int, last: int, into: Any) -> None:
        for user in range(first, last):
            into[user] = np.inf * (into[user] - into[user])

    for n_rows in (1, _compiled.SMALL + 1):
        into = np.zeros(2)
        over_users(worst, 0, 2, n_rows, into)
        assert np.isnan(into).all()


@needs_numba
def test_a_twin_calls_no_machine_code() -> None:
    from recsys_budget.rerank.routes import _core, _search

    for module in (_core, _search):
        names = interpreted(module.search_users).__globals__
        called = [name for name in module.search_users.py_func.__code__.co_names if name in names]
        assert "_search" in called
        assert not [name for name in called if hasattr(names[name], "py_func")]
        inner = names["_search"].__globals__
        assert not [n for n in names["_search"].__code__.co_names if hasattr(inner.get(n), "py_func")]


def test_without_numba_the_source_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(first: int, last: int, into: list[int]) -> None:
        into.append(last - first)

    monkeypatch.setattr(_compiled, "COMPILED", False)
    into: list[int] = []
    _compiled.over_users(add, 0, 3, 10**9, into)
    assert into == [1, 1, 1]


class Child:
    """A process that ends when it is told to."""

    def __init__(self, words: list[str], **options: Any) -> None:
        self.words, self.options, self.ended = words, options, threading.Event()

    def wait(self) -> int:
        self.ended.wait(10)
        return 0


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made: list[Any] = []

    def begin(words: list[str], **options: Any) -> Child:
        made.append(Child(words, **options))
        return made[-1]

    monkeypatch.setattr(warm, "_begun", threading.Event())
    monkeypatch.setattr(warm.subprocess, "Popen", begin)
    kept = SimpleNamespace(stats=SimpleNamespace(cache_path="/somewhere"), signatures=[])
    monkeypatch.setattr(warm, "_LAST", (kept,))
    return made


def test_one_process_compiles_beside_this_one(monkeypatch: pytest.MonkeyPatch, children: list[Any]) -> None:
    monkeypatch.setattr(warm, "kernels_ready", lambda: False)
    for _ in range(3):
        warm.warm_beside()
    assert len(children) == 1
    assert children[0].words[0] == sys.executable
    assert children[0].options["stdout"] == subprocess.DEVNULL
    assert Patience.allowed >= 60.0
    children[0].ended.set()


def test_nobody_compiles_what_is_there(monkeypatch: pytest.MonkeyPatch, children: list[Any]) -> None:
    monkeypatch.setattr(warm, "kernels_ready", lambda: True)
    warm.warm_beside()
    assert not children
    assert Patience.allowed == 3.0


@needs_numba
def test_nobody_compiles_for_others_where_no_folder_keeps_it(
    monkeypatch: pytest.MonkeyPatch, children: list[Any]
) -> None:
    unkept = SimpleNamespace(stats=SimpleNamespace(cache_path=None), signatures=[])
    monkeypatch.setattr(warm, "_LAST", (unkept,))
    warm.warm_beside()
    assert not children
    assert Patience.allowed == 3.0


def test_a_computer_without_room_for_a_process_goes_on(
    monkeypatch: pytest.MonkeyPatch, children: list[Any]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(warm, "kernels_ready", lambda: False)
    monkeypatch.setattr(warm.subprocess, "Popen", refuse)
    warm.warm_beside()
    assert Patience.allowed == 3.0


@needs_numba
@pytest.mark.slow
def test_a_process_that_warms_leaves_nothing_to_compile(tmp_path: Path) -> None:
    """From an empty folder: what is small is interpreted, another process compiles, a third one finds it."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def told(code: str) -> Any:
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    ask = (
        "import json; from recsys_budget.rerank import warm;"
        "from recsys_budget.rerank.routes._core import search_users as kernel;"
    )
    assert told(ask + "print(json.dumps([warm.kernels_ready(), warm.kernels_kept()]))") == [False, False]
    assert told(ask + "warm.warm_kernels(); print(json.dumps(warm.kernels_kept()))") is True
    hits = "print(json.dumps([warm.kernels_ready(), sum(kernel.stats.cache_misses.values())]))"
    assert told(ask + "warm.warm_kernels();" + hits) == [True, 0]
