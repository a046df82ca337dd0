"""Compiled kernels where numba is installed, and users worked through in blocks on several threads.

Every kernel has a numpy twin with the same answers, and :data:`COMPILED` says which of the two runs. Kernels
release the interpreter lock and threads come from the standard library: numba's own parallel loops abort
the process when two threads enter them at once (workqueue) or after a fork (GNU OpenMP).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from typing import Any

_numba: Any = import_module("numba") if find_spec("numba") else None

# With compilation switched off (NUMBA_DISABLE_JIT) a kernel's loops would be far slower than its twin.
COMPILED: bool = _numba is not None and not _numba.config.DISABLE_JIT


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
