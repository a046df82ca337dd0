"""Re-rank a file of candidates under a policy: slates and their certificate, or why there are none."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import add
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from recsys_budget.constraints import Policy
from recsys_budget.data import read_catalogue, read_interactions
from recsys_budget.data.files import table_file
from recsys_budget.errors import DataError
from recsys_budget.rerank import (
    Coverage,
    Diversity,
    Engagement,
    HistoryMatch,
    Novelty,
    Objective,
    Reranker,
    Slates,
)

OBJECTIVES: dict[str, type[Objective]] = {
    "engagement": Engagement,
    "diversity": Diversity,
    "coverage": Coverage,
    "history-match": HistoryMatch,
    "novelty": Novelty,
}


def rerank_file(
    candidates: Path,
    *,
    policy: Path,
    catalogue: Path,
    output: Path,
    certificate: Path | None = None,
    history: Path | None = None,
    attributes: Sequence[str] = (),
    objective: Sequence[tuple[str, float]] = (),
    solver: str | None = None,
    gap: float = 1e-3,
    time_limit: float | None = None,
    progress: bool = True,
) -> Slates:
    """Re-rank candidates from a file and write the slates, and their certificate, to files.

    Files are written beside their place and moved there when all of them are whole: whatever happens, there
    is the old file or the new one.

    Args:
        candidates: ``.csv``, ``.tsv`` (either may end in ``.gz``) or ``.parquet`` with columns user, item and
            relevance.
        policy: YAML or JSON; see :class:`~recsys_budget.constraints.Policy`.
        catalogue: Items, in a file of the same kinds, with columns item and, if known, title, categories
            (joined by ``|``) and provider.
        output: ``.csv`` or ``.parquet``.
        certificate: JSON; None writes none.
        history: Interactions, for rules and objectives that compare slates with it.
        attributes: Columns of numbers in the catalogue, for rules about them.
        objective: Pairs of a name in ``OBJECTIVES`` and a weight; none is engagement alone.
        solver: As for :class:`~recsys_budget.rerank.Reranker`, like all that follow.
        gap: Relative gap to the bound.
        time_limit: Seconds.
        progress: Show a progress bar.

    Raises:
        DataError: A file cannot be read or written, or holds what cannot be used; the error says where.
        InfeasibleError: No slates satisfy the policy.
    """
    write = _writer(output)  # an unknown suffix is refused before any work
    parts = [weight * OBJECTIVES[name]() for name, weight in objective] or [Engagement()]
    reranker = Reranker(reduce(add, parts), Policy.read(policy), solver=solver, gap=gap)
    items = read_catalogue(catalogue, attributes=attributes)
    used = None if history is None else read_interactions(history, catalogue=items)
    file = table_file(candidates, ("user", "item", "relevance"))
    table = file.read()
    with file.located():
        slates = reranker.rerank(table, items, history=used, time_limit=time_limit, progress=progress)
    written: dict[Path, Callable[[Path], object]] = {output: partial(write, slates.frame)}
    if certificate is not None:
        text = slates.certificate.to_json() + "\n"
        written[certificate] = partial(Path.write_text, data=text, encoding="utf-8")
    _write_all(written)
    return slates


def weighted(text: str) -> tuple[str, float]:
    """Parse ``name=weight``, for argparse."""
    name, equals, weight = text.partition("=")
    if name not in OBJECTIVES:
        raise argparse.ArgumentTypeError(f"{name!r} is no objective; there are {', '.join(OBJECTIVES)}")
    try:
        number = float(weight) if equals else 1.0
    except ValueError:
        number = -1.0
    if not 0.0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{weight!r} is no weight; write {name}=0.3")
    return name, number


def _writer(path: Path) -> Callable[[pa.Table, Path], None]:
    match path.suffix.lower():
        case ".csv":
            return pyarrow.csv.write_csv  # type: ignore[no-any-return]
        case ".parquet":
            return pq.write_table  # type: ignore[no-any-return]
    raise DataError(f"the suffix {path.suffix!r} is not known; write to .csv or .parquet", path=path)


def _write_all(written: dict[Path, Callable[[Path], object]]) -> None:
    """Write each file under another name beside its place, and move all of them when none has failed."""
    drafts: dict[Path, Path] = {}
    try:
        for path, write in written.items():
            try:
                handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
                os.close(handle)
                drafts[path] = Path(draft)
                write(drafts[path])
                drafts[path].chmod(0o666 & ~_umask())
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"cannot be written: {error}", path=path) from error
        for path, ready in drafts.items():
            try:
                ready.replace(path)
            except OSError as error:
                raise DataError(f"cannot be written: {error}", path=path) from error
    finally:
        for draft_left in drafts.values():
            draft_left.unlink(missing_ok=True)


def _umask() -> int:
    """The process's mask for the rights of new files, which ``mkstemp`` does not heed."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
