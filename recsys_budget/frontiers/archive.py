"""Frontiers in one file, for somebody who has neither the models nor the data."""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from recsys_budget.constraints import Calibration, Policy
from recsys_budget.constraints.base import hard_part
from recsys_budget.errors import DataError, SpecificationError
from recsys_budget.frontiers import records
from recsys_budget.frontiers.basis import Basis
from recsys_budget.frontiers.frontier import Frontier
from recsys_budget.rerank import Certificate, HistoryMatch, Slates
from recsys_budget.rerank.frames import CandidateTable

FORMAT, VERSION = "recsys-budget frontiers", 1
MAIN, _README = "frontiers.json", "README.txt"
MOST_FILES, MOST_BYTES = 1000, 1 << 30
# JSON takes many times its length in memory.
MOST_JSON = 1 << 26
PER_USER = ("objective", "bound", "gap", "engagement", "diversity")

_ABOUT = """Frontiers of recsys_budget, for recsys_budget.read_frontiers.

NOT PUBLIC UNLESS ITS USERS ARE INVENTED. candidates-*.csv, slates-*.csv and figures-*.csv are about the
users who were served, one by one; history-*.csv, where it is there, is what they had used. Whoever may not
see those may not see this file. A privacy budget paid for the model, and not for this file: what it protects
is the people the model was trained on.

frontiers.json says what was swept and what was measured. Users, items and candidates stand in the tables by
their places, from 0: a user in users-*.json, an item in catalogue-*.json, a candidate in candidates-*.csv.
"""


@dataclass
class _Parts:
    """Files of an archive, numbered by kind; equal ones are kept once."""

    files: dict[str, bytes] = field(default_factory=dict)

    def add(self, kind: str, suffix: str, content: bytes) -> int:
        for place in count(1):
            if self.files.setdefault(f"{kind}-{place}.{suffix}", content) == content:
                return place
        raise AssertionError  # count() does not end

    def add_json(self, kind: str, value: Any) -> int:
        return self.add(kind, "json", _json(value))

    def add_table(self, kind: str, columns: Mapping[str, NDArray[Any]]) -> int:
        file = io.BytesIO()
        csv.write_csv(pa.table(dict(columns)), file)
        return self.add(kind, "csv", file.getvalue())


def write_frontiers(path: str | PathLike[str], *frontiers: Frontier) -> None:
    """Write frontiers into one file, to be opened without models or data.

    :func:`~recsys_budget.frontiers.read_frontiers` opens it. The file holds what the explorer needs: at each
    point the candidates, slates, certificate or conflict, and figures; the catalogue, the rules, the
    objective; histories only where a rule or objective compares with them. No model, and no pickle: it is a
    zip archive of JSON, CSV and the rules as a policy in YAML.

    **An archive is as private as the users who were served.** Candidates and slates are about them one by
    one, and figures measured on what they used besides were not paid for. The privacy budget protects the
    people that the model was trained on, not these.

    Args:
        path: File to write; replaced if it exists.
        frontiers: Made by :func:`~recsys_budget.frontiers.frontier`, or put together by hand without slates.

    Guarantees:
        The same frontiers give the same bytes with the same packages. The file appears whole or not at all.

    Raises:
        SpecificationError: There is no frontier; or a rule or objective cannot be written down, which the
            message names; or a point has slates that are not of the candidates behind the frontier. Nothing
            is written.
        DataError: The file cannot be written.
    """
    if not frontiers:
        raise SpecificationError("there is nothing to write; give at least one frontier")
    parts, groups = _Parts(), _Groups()
    conflicts: list[Any] = []
    main = {
        "format": FORMAT,
        "version": VERSION,
        "frontiers": [_frontier(frontier, parts, groups, conflicts) for frontier in frontiers],
    }
    main["conflicts"] = [records.plain_conflict(conflict) for conflict in conflicts]
    parts.files |= {_README: _ABOUT.encode(), MAIN: _json(main)}
    total = sum(map(len, parts.files.values()))
    longest = max(len(content) for name, content in parts.files.items() if name.endswith(".json"))
    if len(parts.files) > MOST_FILES or total > MOST_BYTES or longest > MOST_JSON:
        raise SpecificationError(
            f"{len(parts.files)} files of {total} bytes are more than would be read again; write "
            "fewer users or frontiers to one archive"
        )
    target = Path(path)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".frontiers-") as scratch:
            packed = Path(scratch, "packed")
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
                for name in sorted(parts.files):
                    info = zipfile.ZipInfo(name)  # of 1980: the same bytes whenever it is written
                    info.compress_type, info.create_system = zipfile.ZIP_DEFLATED, 3
                    info.external_attr = 0o644 << 16
                    archive.writestr(info, parts.files[name])
            os.replace(packed, target)
    except OSError as error:
        raise DataError(f"cannot be written: {error}", path=path) from error


class _Groups:
    """Frontiers that can be explored together are over the same object: users to serve, or a catalogue."""

    def __init__(self) -> None:
        self._known: list[Any] = []

    def place(self, over: Any) -> int:
        for place, known in enumerate(self._known):
            if known is over:
                return place
        self._known.append(over)
        return len(self._known) - 1


def _frontier(frontier: Frontier, parts: _Parts, groups: _Groups, conflicts: list[Any]) -> dict[str, Any]:
    basis = frontier.basis
    behind = None if basis is None or basis.reranker is None else basis
    own = None if behind is None else _table(behind)
    record: dict[str, Any] = {
        name: getattr(frontier, name) for name in ("x", "y", "x_better", "label", "error", "note", "swept")
    }
    record |= {
        "band": None if frontier.band is None else list(frontier.band),
        "frame": records.plain_frame(frontier.frame),
        "bound": None if frontier.bound is None else records.plain_frame(frontier.bound),
        "basis": None if behind is None or own is None else _basis(behind, own, parts, groups),
        "points": [],
        "slates": None,
        "figures": None,
    }
    slates: dict[str, list[NDArray[Any]]] = {name: [] for name in ("point", "candidate", "rank")}
    figures: dict[str, list[NDArray[Any]]] = {name: [] for name in ("point", *PER_USER)}
    for place, point in enumerate(frontier.points):
        said: dict[str, Any] = {
            "value": records.number(point.value), "candidates": None, "certificate": None, "conflict": None,
        }  # fmt: skip
        if point.conflict is not None:
            if point.conflict not in conflicts:
                conflicts.append(point.conflict)
            said["conflict"] = conflicts.index(point.conflict)
        table = own
        if behind is not None and point.model is not None:
            table = _table(behind, point.model)
            said["candidates"] = _candidates(table, parts)
        if point.slates is not None:
            if table is None:
                raise SpecificationError(f"point {place} has slates, but no candidates are known behind it")
            certificate, rows, ranks = _located(point.slates, table, place)
            said["certificate"] = records.plain_certificate(certificate)
            for name, column in (("point", np.full(len(rows), place)), ("candidate", rows), ("rank", ranks)):
                slates[name].append(column)
            figures["point"].append(np.full(len(certificate.per_user), place))
            for name in PER_USER:
                figures[name].append(certificate.per_user[name].to_numpy(np.float64))
        record["points"].append(said)
    if slates["point"]:
        record["slates"] = parts.add_table("slates", {n: np.concatenate(v) for n, v in slates.items()})
        record["figures"] = parts.add_table("figures", {n: np.concatenate(v) for n, v in figures.items()})
    return record


def _basis(basis: Basis, table: CandidateTable, parts: _Parts, groups: _Groups) -> dict[str, Any]:
    reranker = basis.reranker
    assert reranker is not None
    records.plain_rules(tuple(reranker.constraints))
    policy = Policy("rules of a frontier", tuple(reranker.constraints))
    compares = any(isinstance(hard_part(rule), Calibration) for rule in reranker.constraints)
    compares |= any(isinstance(part, HistoryMatch) for _, part in reranker.objective.parts)
    return {
        "group": groups.place(basis.over),
        "catalogue": parts.add_json("catalogue", records.plain_catalogue(basis.catalogue)),
        "candidates": _candidates(table, parts),
        "history": _history(basis, table, parts) if compares else None,
        "policy": parts.add("policy", "yaml", policy.to_yaml().encode()),
        "objective": records.plain_objective(reranker.objective),
        "n_candidates": int(basis.n_candidates),
        **{name: getattr(reranker, name) for name in ("solver", "gap", "max_solves", "route")},
    }


def _table(basis: Basis, model: Any = None) -> CandidateTable:
    assert basis.reranker is not None
    return CandidateTable.read(basis.candidates(model), basis.catalogue, basis.reranker.slate_size)


def _candidates(table: CandidateTable, parts: _Parts) -> dict[str, int]:
    users = np.repeat(np.arange(len(table.users)), np.diff(table.offsets))
    columns = {"user": users, "item": np.asarray(table.items, np.int64), "relevance": table.relevance}
    return {
        "users": parts.add_json("users", table.users.tolist()),
        "table": parts.add_table("candidates", columns),
    }


def _history(basis: Basis, table: CandidateTable, parts: _Parts) -> dict[str, int] | None:
    """What the users with candidates had used."""
    history = basis.served_history()
    if history is None:
        return None
    served = history.users.get_indexer(table.users)
    mine = history.take_users(served[served >= 0])
    return {
        "catalogue": parts.add_json("catalogue", records.plain_catalogue(history.catalogue)),
        "users": parts.add_json("users", mine.users.tolist()),
        "table": parts.add_table("history", {"user": mine.rows, "item": mine.indices.astype(np.int64)}),
    }


def _located(
    slates: Slates, table: CandidateTable, place: int
) -> tuple[Certificate, NDArray[np.int64], NDArray[np.int64]]:
    """The certificate, and where in the table of candidates each place of the slates stands."""
    certificate = slates.certificate
    if not isinstance(certificate, Certificate):
        raise SpecificationError(f"point {place} has a {type(certificate).__name__}, which cannot be written")
    frame = nw.from_native(slates.frame, eager_only=True).to_pandas()
    n = len(table.catalogue)
    of_rows = np.repeat(np.arange(len(table.users)), np.diff(table.offsets)) * n + table.items
    users = np.asarray(table.users.get_indexer(pd.Index(frame["user"], dtype="str")), np.int64)
    wanted = users * n + table.catalogue.positions(frame["item"])
    rows = np.asarray(pd.Index(of_rows).get_indexer(pd.Index(wanted)), np.int64)
    if (
        (rows < 0).any()
        or not np.array_equal(table.relevance[rows], frame["relevance"].to_numpy(np.float64))
        or certificate.per_user["user"].tolist() != table.users.tolist()
    ):
        raise SpecificationError(
            f"the slates of point {place} are not of the candidates behind this frontier; sweep it again"
        )
    return certificate, rows, frame["rank"].to_numpy(np.int64)


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
