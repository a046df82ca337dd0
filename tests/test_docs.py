"""The site builds offline without a warning, names everything public, loads nothing, and its code runs."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from notebook_runs import execute
from packaging.specifiers import SpecifierSet
from sphinx.errors import ExtensionError
from sphinx.util.inventory import InventoryFile

import recsys_budget
from recsys_budget.cli.main import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
HOW_TO = sorted(page for page in (DOCS / "how-to").glob("*.md") if "```python" in page.read_text("utf-8"))
PUBLIC = set(recsys_budget.__all__) - {"__version__"}
PARTS = ("data", "privacy", "models", "training", "constraints", "rerank", "metrics", "frontiers", "errors")


def build(out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build the site where neither a proxy nor a name leads to a network."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    return subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", out / "trees",
         DOCS, out / "html"],
        capture_output=True, text=True, check=False, env=os.environ | nowhere | environment,
    )  # fmt: skip


class Page(HTMLParser):
    """What a page loads, where it links to, and the ids that can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.text: list[str] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "img":
            self.words.append(given.get("alt", ""))
        if tag == "a" or (tag == "link" and given.get("rel") not in ("stylesheet", "icon", "preload")):
            self.links.append(given.get("href", ""))
        else:
            self.loads += [given[name] for name in ("src", "href", "srcset", "data") if name in given]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(out)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr == ""
    return out / "html"


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


@pytest.fixture(scope="module")
def described(site) -> set[str]:
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    return {name for kind, names in inventory.data.items() if kind.startswith("py:") for name in names}


def test_every_public_name_is_described(described):
    stub = Path(recsys_budget.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    names = {name: part for part, name in re.findall(r"from \.([a-z]\w*) import \w+ as (\w+)", stub)}
    assert set(names) == PUBLIC
    assert [name for name, part in names.items() if f"recsys_budget.{part}.{name}" not in described] == []


@pytest.mark.parametrize("part", PARTS)
def test_every_name_of_every_part_is_described(part, described):
    module = importlib.import_module(f"recsys_budget.{part}")
    names = getattr(module, "__all__", None) or [
        name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__
        and not name.startswith("_")
    ]  # fmt: skip
    assert [name for name in names if f"recsys_budget.{part}.{name}" not in described] == []


def test_the_list_of_names_is_complete(pages, site):
    listed = pages[site / "reference" / "names.html"]
    targets = {link.rpartition("#")[2].rpartition(".")[2] for link in listed.links}
    assert targets >= PUBLIC


def test_no_page_loads_anything_from_elsewhere(pages, site):
    assert len(pages) > 20
    for path, page in pages.items():
        outside = [load for load in page.loads if re.match(r"(?:[a-z]+:)?//", load)]
        assert outside == [], path
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", style.read_text("utf-8")), style


def test_every_link_within_the_site_leads_somewhere(pages, site):
    broken = []
    for path, page in pages.items():
        for link in {*page.links, *page.loads}:
            if re.match(r"[a-z]+:", link) or not link:
                continue
            file, _, anchor = link.partition("#")
            target = (path.parent / unquote(file.partition("?")[0])).resolve() if file else path
            if not target.is_file() or (
                anchor and target.suffix == ".html" and unquote(anchor) not in pages[target].ids
            ):
                broken.append((path.name, link))
    assert broken == []


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_shown_as_they_are_stored(path, pages, site):
    page = pages[site / "tutorial" / f"{path.stem}.html"]
    shown = re.sub(r"\s+", " ", "".join(page.text))
    notebook = nbformat.read(path, as_version=4)
    streams = [
        output.text for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output
    ]
    assert streams
    for stream in streams:
        for line in stream.splitlines():
            assert re.sub(r"\s+", " ", line).strip() in shown
    pictures = sum(
        "image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])
    )
    assert sum("_images/" in load for load in page.loads) >= pictures


EXPLORED = """
import pandas as pd
from recsys_budget import CategoryMinimum, EngagementDiversity, ItemCatalogue, Reranker, SlateSize, frontier

items = [f"i{n}" for n in range(8)]
catalogue = ItemCatalogue.from_frame(pd.DataFrame({"item": items, "categories": ["Drama", "News"] * 4}))
candidates = pd.DataFrame({"user": "u1", "item": items, "relevance": range(8)})
reranker = Reranker(EngagementDiversity(0.3), [SlateSize(3), CategoryMinimum("News", 1)])
frontier(candidates, catalogue, "diversity", (0, 0.5), reranker=reranker, progress=False).explore()
"""


def test_an_explorer_is_shown_as_its_picture_with_words(tmp_path, configuration):
    """A page runs no kernel: what was stored of a widget must be seen, and not the name of the widget."""
    heading, cell = nbformat.v4.new_markdown_cell("# Page"), nbformat.v4.new_code_cell(EXPLORED)
    notebook = execute(nbformat.v4.new_notebook(cells=[heading, cell]), tmp_path)
    assert "application/vnd.jupyter.widget-view+json" in notebook.cells[1].outputs[-1].data
    source = tmp_path / "source"
    source.mkdir()
    text = configuration.with_words(nbformat.writes(notebook))
    (source / "index.ipynb").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", "-c", DOCS, source, tmp_path / "html"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    html = (tmp_path / "html" / "index.html").read_text(encoding="utf-8")
    (alt,) = re.findall(r'<img alt="([^"]*)" src="_images/', html)
    assert "points from engagement" in alt
    assert "VBox(" not in html
    assert "widget-view+json" not in html


def test_every_picture_on_the_site_has_words(pages):
    described = [alt for page in pages.values() for alt in page.words]
    assert described
    assert [alt for alt in described if not alt or re.search(r"\.(?:png|svg)$", alt)] == []


def test_every_pitfall_is_on_the_page_by_severity(pages, site):
    rows = [line for line in (DOCS / "pitfalls.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    shown = (site / "explanation" / "pitfalls.html").read_text("utf-8")
    headings = sum(line.startswith("| pitfall") for line in rows)
    assert shown.count("<tr ") == len(rows)
    assert headings == shown.count("<thead>")
    first, second = (
        shown.index(words) for words in ("1. The stated guarantee is false", "2. Private data is read")
    )
    assert first < shown.index("A record that forgets", first) < second


def test_a_new_section_of_pitfalls_needs_a_severity(configuration):
    text = (DOCS / "pitfalls.md").read_text(encoding="utf-8")
    with pytest.raises(ExtensionError, match="Weather"):
        configuration.pitfalls_by_severity(f"{text}\n## Weather\n\nrain\n")
    with pytest.raises(ExtensionError, match="Solvers"):
        configuration.pitfalls_by_severity(text.replace("## Solvers", "## Others"))


def test_every_command_is_in_the_reference(pages, site):
    shown = "".join(pages[site / "reference" / "command-line.html"].text)
    for option in ("--epsilon", "--policy", "--strict", "--edition", "--sha256", "--slates"):
        assert option in shown


def test_launchers_appear_once_the_repository_has_an_address(configuration, monkeypatch):
    context = {"body": "<p>text</p>"}
    configuration.launchers(None, "tutorial/01_quickstart", "page.html", context, None)
    assert context["body"] == "<p>text</p>"
    monkeypatch.setattr(configuration, "REPOSITORY", "owner/name")
    configuration.launchers(None, "tutorial/01_quickstart", "page.html", context, None)
    assert "mybinder.org/v2/gh/owner/name/HEAD?labpath=notebooks/01_quickstart.ipynb" in context["body"]
    assert "github/owner/name/blob/HEAD/notebooks/01_quickstart.ipynb" in context["body"]
    context = {"body": "<p>text</p>"}
    configuration.launchers(None, "how-to/budget", "page.html", context, None)
    assert context["body"] == "<p>text</p>"


def test_the_address_stands_on_the_page_about_launching(configuration, monkeypatch):
    text = (DOCS / "how-to" / "launch.md").read_text(encoding="utf-8")
    source = [text]
    configuration.addressed(None, "how-to/launch", source)
    assert source == [text]
    monkeypatch.setattr(configuration, "REPOSITORY", "owner/name")
    configuration.addressed(None, "how-to/budget", source)
    assert source == [text]
    configuration.addressed(None, "how-to/launch", source)
    assert "OWNER/NAME" not in source[0]
    assert "git+https://github.com/owner/name" in source[0]
    assert source[0].count("owner/name") == text.count("OWNER/NAME")


def test_an_address_that_is_none_stops_the_build(tmp_path):
    done = subprocess.run(
        [sys.executable, DOCS / "conf.py"], capture_output=True, text=True, check=False,
        env=os.environ | {"DOCS_REPOSITORY": "https://example.org/owner/name"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "give owner/name" in done.stderr


def test_what_launching_names_is_there():
    text = (DOCS / "how-to" / "launch.md").read_text(encoding="utf-8")
    for notebook in re.findall(r"notebooks/\w+\.ipynb", text):
        assert (ROOT / notebook).is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extras,) = re.findall(r"recsys-budget\[([\w,]+)\]", text)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    runtime = (ROOT / "binder" / "runtime.txt").read_text(encoding="utf-8").strip()
    assert re.fullmatch(r"python-3\.\d+", runtime)
    assert SpecifierSet(project["requires-python"]).contains(runtime.removeprefix("python-"))


def test_commands_on_pages_are_commands():
    """Every line that starts a command of ours has options that the command knows."""
    from recsys_budget.cli.doctor import parser as doctors
    from recsys_budget.cli.main import _parser

    pages = [*DOCS.rglob("*.md"), ROOT / "README.md"]
    lines = {
        line
        for page in pages
        for line in re.findall(
            r"^(?: {4,}|\$ )?(recsys-budget .*)$", page.read_text("utf-8"), flags=re.MULTILINE
        )
        if page.name != "command-line.md"
    }
    assert len(lines) > 10
    for line in lines:
        _, *words = shlex.split(line, comments=True)
        parser = doctors() if words[0] == "doctor" else _parser()
        parser.parse_args(words[1:] if words[0] == "doctor" else words)


def test_binder_installs_under_the_one_set_of_constraints():
    lines = (ROOT / "binder" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    (constraints,) = [line.partition(" ")[2] for line in lines if line.startswith("-c ")]
    assert (ROOT / "binder" / constraints).resolve() == ROOT / "constraints.txt"
    assert ".[all]" in lines


@pytest.mark.parametrize("path", HOW_TO, ids=lambda path: path.stem)
def test_the_code_of_a_how_to_page_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"^```(python|console)\n(.*?)^```", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    assert blocks
    names: dict[str, object] = {}
    for kind, source in blocks:
        if kind == "python":
            exec(compile(source, str(path), "exec"), names)
            continue
        for command in re.findall(r"^\$ (.*)$", source, flags=re.MULTILINE):
            program, *words = shlex.split(command)
            assert program == "recsys-budget"
            assert main(words) == 0


def test_the_table_of_epsilons_is_what_the_code_beside_it_says(tmp_path, capsys):
    text = (DOCS / "how-to" / "epsilon.md").read_text(encoding="utf-8")
    first = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(first[1], {})
    printed = dict(re.findall(r"epsilon +([\d.]+): at most ([\d.]+%)", capsys.readouterr().out))
    assert printed == dict(re.findall(r"^\| ([\d.]+) \| ([\d.]+%)", text, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def configuration():
    """docs/conf.py, as a module."""
    spec = importlib.util.spec_from_file_location("docs_conf", DOCS / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
