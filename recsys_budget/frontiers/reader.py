"""Reading an archive of frontiers with care: it may be damaged, edited, or made to do harm."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from recsys_budget.constraints import Policy
from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.data.archive import opened_zip, unpacked
from recsys_budget.errors import DataError, NumericalError
from recsys_budget.frontiers import records
from recsys_budget.frontiers.archive import FORMAT, MAIN, MOST_BYTES, MOST_FILES, MOST_JSON, PER_USER, VERSION
from recsys_budget.frontiers.basis import Basis, StoredCandidates
from recsys_budget.frontiers.frontier import Frontier, Point
from recsys_budget.frontiers.records import get
from recsys_budget.rerank import Reranker, Slates
from recsys_budget.rerank.frames import CandidateTable
from recsys_budget.rerank.question import Outcome
from recsys_budget.rerank.verification import certify, count_violations, figures

# Figures that are counted again may differ by the order in which floats are added.
_SAME = 1e-6


def read_frontiers(path: str | PathLike[str], *, max_bytes: int = MOST_BYTES) -> tuple[Frontier, ...]:
    """Read what :func:`~recsys_budget.frontiers.write_frontiers` wrote: every slider of the explorer moves.

    Nothing in the file is run, and no file is written while it is read. Slates are counted again: they keep
    the rules, and come to what their certificates say. A bound is not proven again: it is what the one who
    wrote the file says.

    Args:
        path: The file.
        max_bytes: Most bytes that it may unpack to, counted while unpacking.

    Returns:
        The frontiers, in the order written. Where there were models, points have
        :class:`~recsys_budget.frontiers.StoredCandidates`; frames are pandas ones.

    Raises:
        DataError: The file is not there, no archive of frontiers, damaged, of another version, too large, or
            says what does not fit together.
    """
    place = Path(path)
    with opened_zip(place, MOST_FILES) as (opened, entries):
        try:
            return _Reader(place, opened, entries, max_bytes).frontiers()
        except DataError as error:
            if error.path is not None:
                raise
            raise DataError(error.reason, path=path) from error
        except (
            NumericalError,
            ValueError,
            TypeError,
            OverflowError,
            RecursionError,
            pa.ArrowException,
        ) as error:
            # What was read is plain values; whoever wrote them, they are not those of an archive.
            raise DataError(f"is damaged, or was edited: {error}", path=path) from error


class _Reader:
    """An archive that is open, and what was read of it so far."""

    def __init__(
        self, path: Path, opened: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], max_bytes: int
    ) -> None:
        self._path, self._opened, self._entries, self._room = path, opened, entries, max_bytes
        self._catalogues: dict[tuple[int, int], ItemCatalogue] = {}
        self._histories: dict[tuple[int, ...], Interactions] = {}
        self._candidates: dict[tuple[int, ...], CandidateTable] = {}

    def frontiers(self) -> tuple[Frontier, ...]:
        main = self._json(MAIN) if MAIN in self._entries else None
        if not isinstance(main, dict) or main.get("format") != FORMAT:
            raise DataError("is no archive of frontiers, which write_frontiers makes")
        version = get(main, "version", int)
        if version != VERSION:
            then = "update recsys_budget" if version > VERSION else "write the frontiers again"
            raise DataError(
                f"is an archive of version {version}, and this release reads version {VERSION}; {then}"
            )
        conflicts = [records.conflict_from(record) for record in get(main, "conflicts", list)]
        return tuple(self._frontier(record, conflicts) for record in get(main, "frontiers", list))

    def _frontier(self, record: Any, conflicts: list[Any]) -> Frontier:
        behind = get(record, "basis", dict, type(None))
        basis = None if behind is None else self._basis(behind)
        bound = get(record, "bound", list, type(None))
        band = get(record, "band", list, type(None))
        if band is not None and len(records.listed(band, str)) != 2:
            raise DataError("a band has two columns, of the lowest run and of the highest")
        swept, said = get(record, "swept", str), get(record, "points", list)
        slates, per_user = {}, {}
        if any(get(point, "certificate", dict, type(None)) is not None for point in said):
            name = f"slates-{get(record, 'slates', int)}.csv"
            slates = self._numbers(name, ("point", "candidate", "rank"), ())
            per_user = self._numbers(f"figures-{get(record, 'figures', int)}.csv", ("point",), PER_USER)
        points = []
        for place, point in enumerate(said):
            conflict = get(point, "conflict", int, type(None))
            if conflict is not None and not 0 <= conflict < len(conflicts):
                raise DataError(f"there is no conflict {conflict}")
            value = records.from_number(get(point, "value", int, float))
            kept = get(point, "candidates", dict, type(None))
            certificate = get(point, "certificate", dict, type(None))
            table = made = None
            if basis is not None and (kept or certificate):
                table = self._table(kept or get(behind, "candidates", dict), basis)
            if certificate is not None:
                if table is None or basis is None:
                    raise DataError("there are slates without candidates")
                rows, ranks = (slates[name][slates["point"] == place] for name in ("candidate", "rank"))
                mine = {name: per_user[name][per_user["point"] == place] for name in PER_USER}
                made = _slates(table, rows, ranks, certificate, mine)
                _recount(made, basis.asked(swept, value), table, rows)
            points.append(
                Point(
                    value,
                    made,
                    None if conflict is None else conflicts[conflict],
                    None if kept is None or table is None else StoredCandidates(_frame(table)),
                )
            )
        return Frontier(
            records.frame_from(get(record, "frame", list)),
            x=get(record, "x", str),
            y=get(record, "y", str),
            x_better=get(record, "x_better", str),
            label=get(record, "label", str, type(None)),
            error=get(record, "error", str, type(None)),
            band=None if band is None else (band[0], band[1]),
            note=get(record, "note", str),
            bound=None if bound is None else records.frame_from(bound),
            points=tuple(points),
            swept=swept,
            basis=basis,
        )

    def _basis(self, record: dict[str, Any]) -> Basis:
        policy = self._bytes(f"policy-{get(record, 'policy', int)}.yaml", MOST_JSON).decode()
        reranker = Reranker(
            records.objective_from(get(record, "objective", dict)),
            Policy.from_yaml(policy).constraints,
            solver=get(record, "solver", str, type(None)),
            gap=get(record, "gap", int, float),
            max_solves=get(record, "max_solves", int),
            route=get(record, "route", str, type(None)),
        )
        over = self._catalogue(get(record, "group", int), get(record, "catalogue", int))
        used, history = get(record, "history", dict, type(None)), None
        if used is not None:
            history = self._history(used, get(record, "group", int))
        basis = Basis(None, over, reranker, history, get(record, "n_candidates", int))
        return replace(basis, source=_frame(self._table(get(record, "candidates", dict), basis)))

    def _table(self, kept: dict[str, Any], basis: Basis) -> CandidateTable:
        """Candidates, each user's best first."""
        assert basis.reranker is not None
        k, places = basis.reranker.slate_size, (get(kept, "users", int), get(kept, "table", int))
        key = (id(basis.over), id(basis.history), k, *places)
        if key not in self._candidates:
            users = self._users(places[0])
            columns = self._numbers(f"candidates-{places[1]}.csv", ("user", "item"), ("relevance",))
            catalogue = basis.catalogue
            _within(columns["user"], len(users))
            _within(columns["item"], len(catalogue))
            frame = pd.DataFrame(
                {
                    "user": users.take(columns["user"]),
                    "item": catalogue.ids.take(columns["item"]),
                    "relevance": columns["relevance"],
                }
            )
            table = CandidateTable.read(frame, catalogue, k, basis.history)
            if not table.users.equals(users) or not np.array_equal(table.items, columns["item"]):
                raise DataError("candidates stand in another order than they were written in")
            self._candidates[key] = table
        return self._candidates[key]

    def _history(self, kept: dict[str, Any], group: int) -> Interactions:
        places = get(kept, "users", int), get(kept, "table", int)
        if (group, *places) not in self._histories:
            users = self._users(places[0])
            catalogue = self._catalogue(group, get(kept, "catalogue", int))
            columns = self._numbers(f"history-{places[1]}.csv", ("user", "item"), ())
            _within(columns["user"], len(users))
            _within(columns["item"], len(catalogue))
            if (np.diff(columns["user"]) < 0).any():
                raise DataError("histories do not stand user by user")
            counts = np.bincount(columns["user"], minlength=len(users))
            self._histories[group, *places] = Interactions(
                users, catalogue, np.concatenate([[0], np.cumsum(counts)]), columns["item"].astype(np.int32)
            )
        return self._histories[group, *places]

    def _catalogue(self, group: int, place: int) -> ItemCatalogue:
        """One object for all frontiers of a group: those can be explored together."""
        if (group, place) not in self._catalogues:
            self._catalogues[group, place] = records.catalogue_from(self._json(f"catalogue-{place}.json"))
        return self._catalogues[group, place]

    def _users(self, place: int) -> pd.Index[Any]:
        users: pd.Index[Any] = pd.Index(records.listed(self._json(f"users-{place}.json"), str), dtype="str")
        return users

    def _numbers(self, name: str, whole: tuple[str, ...], real: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """A table of numbers."""
        kinds = dict.fromkeys(whole, pa.int64()) | dict.fromkeys(real, pa.float64())
        options = csv.ConvertOptions(column_types=kinds, null_values=[])
        table = csv.read_csv(io.BytesIO(self._bytes(name, MOST_BYTES)), convert_options=options)
        if table.column_names != list(kinds):
            raise DataError(f"{name!r} has other columns than {', '.join(kinds)}")
        return {column: table[column].to_numpy() for column in kinds}

    def _json(self, name: str) -> Any:
        return json.loads(self._bytes(name, MOST_JSON))

    def _bytes(self, name: str, most: int) -> bytes:
        if name not in self._entries:
            raise DataError(f"lacks {name!r}")
        room = min(self._room, most)
        content = b"".join(unpacked(self._opened, self._entries[name], room, self._path))
        self._room -= len(content)
        return content


def _within(places: NDArray[np.int64], n: int) -> None:
    if len(places) and not 0 <= places.min() <= places.max() < n:
        raise DataError(f"a table names places outside the {n} there are")


def _frame(table: CandidateTable) -> pd.DataFrame:
    """As a recommender offers them."""
    sizes = np.diff(table.offsets)
    return pd.DataFrame(
        {
            "user": table.users.repeat(sizes),
            "item": table.catalogue.ids.take(table.items),
            "rank": np.arange(len(table.items)) - np.repeat(table.offsets[:-1], sizes) + 1,
            "relevance": table.relevance,
        }
    )


def _slates(
    table: CandidateTable,
    rows: NDArray[np.int64],
    ranks: NDArray[np.int64],
    certificate: dict[str, Any],
    figures: dict[str, NDArray[np.float64]],
) -> Slates:
    """Slates as they were handed out: where each place stands among the candidates, and its rank."""
    _within(rows, len(table.items))
    if any(len(column) != len(table) for column in figures.values()):
        raise DataError("a certificate needs figures of every user")
    users = np.searchsorted(table.offsets, rows, side="right") - 1
    frame = pd.DataFrame(
        {
            "user": table.users.take(users),
            "item": table.catalogue.ids.take(table.items[rows]),
            "rank": ranks,
            "relevance": table.relevance[rows],
        }
    )
    per_user = pd.DataFrame({"user": table.users, **figures, "candidates": np.diff(table.offsets)})
    return Slates(frame, records.certificate_from(certificate, per_user), table.catalogue)


def _recount(slates: Slates, reranker: Reranker, table: CandidateTable, rows: NDArray[np.int64]) -> None:
    """Count what slates come to, without believing their certificate.

    Raises:
        NumericalError: They break a hard rule, or are better than their bound.
        DataError: Their certificate says something else of them.
    """
    said, k, rank = slates.certificate, reranker.slate_size, slates.frame["rank"].to_numpy()
    users = np.searchsorted(table.offsets, rows, side="right") - 1
    _within(rank - 1, k)
    if len(np.unique(users * k + rank)) < len(rank) or len(np.unique(rows)) < len(rows):
        raise DataError("a slate has an item or a place twice")
    chosen = np.full((len(table), k), -1, np.int32)
    chosen[users, rank - 1] = rows - table.offsets[users]
    rules, table = tuple(reranker.constraints), replace(table, k=k)
    bound = said.per_user["bound"].to_numpy(np.float64)
    outcome = Outcome(
        chosen,
        np.zeros(len(table), bool),
        None if np.isnan(bound).any() else bound,
        said.bound * len(table),
        said.iterations,
        {},
        said.solver,
        said.solver_version,
    )
    counted = count_violations(rules, chosen, table, said.solver)
    per_user = figures(reranker.objective, chosen, table, counted.penalties, outcome)
    found = certify(
        reranker.objective,
        rules,
        per_user,
        counted,
        outcome,
        route=said.route,
        privacy=said.privacy,
        seconds=said.seconds,
    )
    names = ("objective", "bound", "gap", "engagement", "diversity")
    figures_of = [
        [getattr(c, name) for name in names] + [c.violations.get(rule.name, np.inf) for rule in rules]
        for c in (said, found)
    ]
    users_of = [c.per_user[[*PER_USER]].to_numpy(np.float64) for c in (said, found)]
    if (
        not np.allclose(figures_of[0], figures_of[1], rtol=0.0, atol=_SAME)
        or not np.allclose(users_of[0], users_of[1], rtol=0.0, atol=_SAME, equal_nan=True)
        or said.soft != found.soft
        or len(said.violations) != len(rules)
    ):
        raise DataError("a certificate says something else than its slates come to")
