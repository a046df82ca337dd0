"""Notebooks run in kernels of their own, and what is wrong with them as they are stored."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError
from nbformat import NotebookNode

MOST_BYTES = 1_000_000
# Seconds that a cell may take on a busy machine.
PATIENCE = 120

# An absolute path of two or more parts, but neither a relative one nor a part of a URL; or a Windows home.
LOCAL_PATH = re.compile(r"(?<![\w.:/<~])/[\w.-]+(?:/[\w.-]+)+|[A-Za-z]:\\+Users\\")


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """A copy of the notebook, run in a kernel of this interpreter that starts in this folder.

    Once in a great while kernel and client wait for each other, both idle: then it is run once more.
    """

    def run() -> NotebookNode:
        client = NotebookClient(
            copy.deepcopy(notebook),
            timeout=PATIENCE,
            kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
        )
        return client.execute()

    try:
        return run()
    except CellTimeoutError:
        return run()


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def errors(notebook: NotebookNode) -> list[str]:
    """Errors in the outputs of cells, and in those of Output widgets, which nbclient passes over."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    saved = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    for widget in saved.get("state", {}).values():
        if widget["model_name"] == "OutputModel":
            outputs += widget["state"].get("outputs", [])
    return [f"{out['ename']}: {out['evalue']}" for out in outputs if out["output_type"] == "error"]


def kinds(notebook: NotebookNode) -> list[set[str]]:
    """What each code cell put out: the kinds of data, less warnings, which depend on installed versions."""
    return [
        {
            kind
            for output in cell.outputs
            for kind in ([output["name"]] if output.output_type == "stream" else output.get("data", {}))
        }
        - {"stderr"}
        for cell in code_cells(notebook)
    ]


def faults(notebook: NotebookNode) -> list[str]:
    """What is wrong with a notebook as it is stored."""
    found = errors(notebook)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        found.append(f"cells ran in the order {counts}; restart the kernel and run all")
    if not any(kinds(notebook)):
        found.append("no cell has output; save the notebook with it")
    text = nbformat.writes(notebook)
    found += [f"local path {match[0]}" for match in LOCAL_PATH.finditer(readable(notebook))]
    if len(text.encode()) > MOST_BYTES:
        found.append(f"{len(text.encode())} bytes; draw fewer or smaller figures")
    return found


def readable(notebook: NotebookNode) -> str:
    """All text of a notebook, without figures, which are letters and slashes when encoded."""
    parts = [cell.source for cell in notebook.cells]
    for cell in code_cells(notebook):
        for output in cell.outputs:
            parts += [output.get("text", ""), *output.get("traceback", [])]
            parts += [
                str(data) for kind, data in output.get("data", {}).items() if not kind.startswith("image/")
            ]
    return "\n".join(parts)
