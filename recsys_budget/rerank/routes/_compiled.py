"""Compiled kernels where numba is installed, and users worked through in blocks on several threads.

Every kernel has a twin with the same answers bit for bit: one in numpy, or its own source interpreted. Where
numba is missing (:data:`COMPILED` is false) the twin runs; and where the kernel has never been compiled on
this machine, which takes seconds, while there is so little to do that the twin is done sooner. Kernels
release the interpreter lock and threads come from the standard library: numba's own parallel loops abort
the process when two threads enter them at once (workqueue) or after a fork (GNU OpenMP).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

_numba: Any = import_module("numba") if find_spec("numba") else None

# With compilation switched off (NUMBA_DISABLE_JIT) a kernel's loops would be far slower than its twin.
COMPILED: bool = _numba is not None and not _numba.config.DISABLE_JIT


# Candidates up to which a twin may stand in for a kernel that is not compiled yet.
SMALL = 20_000


class Patience:
    """How long twins may stand in for kernels, in seconds, and how long they did."""

    allowed = 3.0
    spent = 0.0


def njit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel on its first call; without numba, return it as it is.

    Machine code is kept between processes where numba finds a folder to write to. Numba notices a change of
    the kernel's own file alone, so a kernel calls no kernel of another file.
    """
    if not COMPILED:
        return function
    compiled: Callable[..., Any]
    try:
        compiled = _numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder for the cache: a read-only installation without a home
        compiled = _numba.njit(nogil=True)(function)
    return compiled


def is_ready(kernel: Any) -> bool:
    """Whether a kernel runs without being compiled: it has been, by this process or by one before."""
    return COMPILED and (bool(kernel.signatures) or is_kept(kernel))


def pick(kernel: Callable[..., Any], twin: Callable[..., Any] | None, n_rows: int) -> Callable[..., Any]:
    """A kernel, or its twin while that is done sooner than the kernel is compiled.

    Args:
        kernel: What :func:`njit` made.
        twin: The same in numpy; None takes the kernel's own source, interpreted.
        n_rows: How much there is to do, in candidates.
    """
    if COMPILED and (n_rows > SMALL or Patience.spent > Patience.allowed or is_ready(kernel)):
        return kernel
    stand_in = interpreted(kernel) if twin is None else twin

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        with np.errstate(all="ignore"):  # machine code computes with infinities and says nothing
            result = stand_in(*arguments)
        Patience.spent += time.perf_counter() - start
        return result

    return timed


def over_users(kernel: Callable[..., Any], first: int, last: int, n_rows: int, *arguments: Any) -> None:
    """Call ``kernel(first, last, *arguments)``; user by user while a twin stands in."""
    user = first
    while user < last:
        chosen = pick(kernel, None, n_rows)
        until = last if chosen is kernel else user + 1
        chosen(user, until, *arguments)
        user = until


@contextmanager
def compiling() -> Iterator[None]:
    """No twin stands in meanwhile."""
    allowed, Patience.allowed = Patience.allowed, -1.0
    try:
        yield
    finally:
        Patience.allowed = allowed


@cache
def interpreted(kernel: Any) -> Callable[..., Any]:
    """The source of a kernel, and of those that it calls, as plain Python."""
    if not COMPILED:
        return kernel  # type: ignore[no-any-return]
    function = kernel.py_func
    names = dict(function.__globals__)
    twin = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    for name in function.__code__.co_names:
        if hasattr(names.get(name), "py_func"):
            names[name] = interpreted(names[name])
    return twin


def can_be_kept(kernel: Any) -> bool:
    """Whether there is a folder for machine code of this kernel."""
    return COMPILED and kernel.stats.cache_path is not None


def is_kept(kernel: Any) -> bool:
    """Whether numba keeps machine code of this kernel from before, as its files are named."""
    if not can_be_kept(kernel):
        return False
    function = kernel.py_func
    named = f"*{function.__qualname__}-{function.__code__.co_firstlineno}.*.nbi"
    try:
        return next(Path(kernel.stats.cache_path).glob(named), None) is not None
    except OSError:
        return False


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def by_blocks(work: Callable[[int, int], None], n: int, *, block: int, threads: int | None = None) -> None:
    """Call ``work(first, last)`` on consecutive blocks of ``range(n)``, several at a time.

    Blocks do not depend on the number of threads. As long as each writes to its own part of the output, or
    partial sums are kept per block and added in order, neither do results.

    Args:
        work: Works on ``first <= i < last``; runs on several threads at once.
        n: Number of things to work on.
        block: Things a block.
        threads: Most threads at once; None takes as many as there are cores.
    """
    starts = range(0, n, block)
    threads = min(threads or cores(), len(starts))
    if threads <= 1:
        for first in starts:
            work(first, min(first + block, n))
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, first, min(first + block, n)) for first in starts]:
            done.result()
