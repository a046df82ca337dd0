"""Notebooks run from a clean kernel, and are stored as they ran: in order, with output, without errors."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output
from notebook_runs import MOST_BYTES, errors, execute, faults, kinds

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

pytestmark = pytest.mark.timeout(900)

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.slow
@every_notebook
def test_runs_and_gives_what_is_stored(path, tmp_path):
    stored = nbformat.read(path, as_version=4)
    fresh = execute(stored, tmp_path)
    assert errors(fresh) == []
    assert kinds(fresh) == kinds(stored)


@every_notebook
def test_stored_as_it_ran(path):
    assert faults(nbformat.read(path, as_version=4)) == []


@pytest.mark.parametrize("name", ["03_private_training", "06_case_study"])
def test_what_is_stored_is_of_the_bundled_data(name):
    """MovieLens, which these notebooks take where it is, may not be passed on."""
    assert "users x 600 items" in nbformat.writes(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4))


@pytest.mark.slow
@pytest.mark.real_data
def test_the_case_study_runs_on_real_data(data_home, tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_BUDGET_DATA", str(data_home))
    fresh = execute(nbformat.read(FOLDER / "06_case_study.ipynb", as_version=4), tmp_path)
    assert errors(fresh) == []
    assert "6040 users x 3883 items" in nbformat.writes(fresh)


def test_an_error_hidden_in_a_widget_is_found(tmp_path):
    source = """
import ipywidgets

area = ipywidgets.Output()
with area:
    raise ValueError("nobody sees this")
area
"""
    assert errors(execute(new_notebook(cells=[new_code_cell(source)]), tmp_path)) == [
        "ValueError: nobody sees this"
    ]


def good() -> NotebookNode:
    cells = [
        new_code_cell("import recsys_budget", execution_count=1),
        new_code_cell(
            "print('data/bundled or ../data/bundled')",
            execution_count=2,
            outputs=[new_output("stream", text="https://example.org/a/b </td></tr> and/or 1/2/3\n")],
        ),
    ]
    return new_notebook(cells=cells)


def out_of_order(notebook: NotebookNode) -> None:
    notebook.cells[1].execution_count = 3


def never_run(notebook: NotebookNode) -> None:
    for cell in notebook.cells:
        cell.update(execution_count=None, outputs=[])


def stripped(notebook: NotebookNode) -> None:
    notebook.cells[1].outputs = []


def failed(notebook: NotebookNode) -> None:
    notebook.cells[1].outputs = [new_output("error", ename="ValueError", evalue="no", traceback=[])]


def at_home(notebook: NotebookNode) -> None:
    notebook.cells[1].outputs[0].text = "written to /home/somebody/out.json\n"


def at_home_on_windows(notebook: NotebookNode) -> None:
    notebook.cells[1].outputs[0].text = "written to C:\\Users\\somebody\\out.json\n"


def too_large(notebook: NotebookNode) -> None:
    notebook.cells[1].outputs = [new_output("display_data", {"image/png": "A" * MOST_BYTES})]


def test_a_good_notebook_has_no_fault():
    assert faults(good()) == []


@pytest.mark.parametrize(
    "spoil", [out_of_order, never_run, stripped, failed, at_home, at_home_on_windows, too_large]
)
def test_a_spoilt_notebook_has_one(spoil):
    notebook = good()
    spoil(notebook)
    assert faults(notebook)
