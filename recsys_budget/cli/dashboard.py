"""The explorer as a page of its own, for people who write no code: served to this computer alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from recsys_budget.constraints import Policy
from recsys_budget.data import read_catalogue
from recsys_budget.data.files import table_file
from recsys_budget.errors import InfeasibleError, MissingExtraError, SpecificationError
from recsys_budget.frontiers import bundled_frontiers, frontier, read_frontiers
from recsys_budget.rerank import Conflict, Reranker

if TYPE_CHECKING:
    from recsys_budget.frontiers import Basis
    from recsys_budget.widgets import Explorer

TEMPLATES = Path(__file__).parents[1] / "widgets" / "jupyter"
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
LOOPBACK = "127.0.0.1"
# The gap at which a slider's answer is good enough to look at.
_GAP = 0.01


def command(
    candidates: Path | None = None,
    *,
    catalogue: Path | None = None,
    policy: Path | None = None,
    slates: Path | None = None,
    frontiers: Path | None = None,
    host: str = LOOPBACK,
    port: int = 8866,
    browser: bool = True,
) -> tuple[list[str], dict[str, str], tempfile.TemporaryDirectory[str]]:
    """What serves the page: a command, its environment, and the folder it needs while it runs.

    Args:
        candidates: As for ``recsys-budget rerank``; None shows :func:`~recsys_budget.bundled_frontiers`.
        catalogue: As for ``recsys-budget rerank``; needed with candidates.
        policy: The rules; needed with candidates. Without, they are asked of the bundled frontiers'
            candidates.
        slates: Slates in use today, shown as "before"; None shows each user's most relevant items there.
        frontiers: A file of :func:`~recsys_budget.write_frontiers` to show, in place of candidates and rules.
        host: Address to serve on. Anything but this computer's own lets others in, without a password.
        port: Port; 0 takes a free one.
        browser: Open a browser.

    Raises:
        SpecificationError: Candidates come without a catalogue or policy, or files do not go together.
        MissingExtraError: Voila is not installed.
    """
    if candidates is not None and (catalogue is None or policy is None):
        raise SpecificationError("candidates need --catalogue, what the items are, and --policy, the rules")
    if frontiers is not None and (candidates or catalogue or policy):
        raise SpecificationError(
            "--frontiers has candidates, catalogue and rules of its own; leave the other files out"
        )
    if candidates is None and (catalogue is not None or (slates is not None and frontiers is None)):
        raise SpecificationError("give the file of candidates that the catalogue and the slates go with")
    if find_spec("voila") is None:
        raise MissingExtraError("voila", "notebook")
    paths = {"candidates": candidates, "catalogue": catalogue, "policy": policy, "slates": slates}
    paths["frontiers"] = frontiers
    asked = {name: None if path is None else str(path.resolve()) for name, path in paths.items()}
    source = (
        "import json\nfrom recsys_budget.cli.dashboard import explorer\n"
        f"explorer(**json.loads({json.dumps(json.dumps(asked))}))"
    )
    cell: dict[str, Any] = {
        "cell_type": "code",
        "execution_count": None,
        "id": "page",
        "metadata": {},
        "outputs": [],
    }
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook: dict[str, Any] = {
        "cells": [cell | {"source": source}],
        "metadata": {"kernelspec": kernel, "title": "recsys-budget"},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    folder = tempfile.TemporaryDirectory(prefix="recsys-budget-")
    page = Path(folder.name) / "dashboard.ipynb"
    page.write_text(json.dumps(notebook), encoding="utf-8")
    known = os.environ.get("JUPYTER_PATH")
    environment = {"JUPYTER_PATH": os.pathsep.join([str(TEMPLATES), *([known] if known else [])])}
    words = [sys.executable, "-m", "voila", str(page), "--template=recsys-budget", f"--Voila.ip={host}"]
    words += [f"--port={port}", "--show_tracebacks=True", *([] if browser else ["--no-browser"])]
    return words, os.environ | environment, folder


def serve(**options: Any) -> int:
    """Serve the page until it is interrupted; see :func:`command`."""
    words, environment, folder = command(**options)
    with folder:
        try:
            return subprocess.run(words, env=environment, check=False).returncode
        except KeyboardInterrupt:
            return 0


def explorer(
    candidates: str | None = None,
    catalogue: str | None = None,
    policy: str | None = None,
    slates: str | None = None,
    frontiers: str | None = None,
) -> Explorer | Conflict:
    """What the page shows: the explorer, or why no slates satisfy the rules."""
    from recsys_budget.widgets import Explorer

    before = None
    if slates is not None:
        before = table_file(Path(slates), ("user", "item", "rank")).read().to_pandas()
    if candidates is None and policy is None:
        return Explorer(
            *(bundled_frontiers() if frontiers is None else read_frontiers(frontiers)), before=before
        )
    assert policy is not None
    if candidates is None:
        basis = cast("Basis", bundled_frontiers()[-1].basis)
        table, items = basis.candidates(), basis.catalogue
    else:
        assert catalogue is not None
        table = table_file(Path(candidates), ("user", "item", "relevance")).read()
        items = read_catalogue(catalogue)
    base = Reranker(constraints=Policy.read(policy), gap=_GAP)
    try:
        swept = frontier(table, items, "diversity", WEIGHTS, reranker=base, progress=False)
    except InfeasibleError as error:
        return cast("Conflict", error.conflict)
    return Explorer(swept, before=before)
