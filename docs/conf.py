"""How the site is made: offline, from stored notebooks, docstrings and the pages in docs/.

``make docs`` writes it to ``out/docs/html``. Pages that repeat what stands elsewhere are made before each
build, and git ignores them: notebooks, public names, the command line's help, and pitfalls by severity.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

HERE = Path(__file__).parent
# The package beside these pages, whichever is installed.
sys.path.insert(0, str(HERE.parent))

import recsys_budget  # noqa: E402
from recsys_budget.cli.main import main  # noqa: E402

project = "recsys_budget"
copyright = "the authors of recsys_budget"
release = version = recsys_budget.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "pitfalls.md"]

# The notebooks are shown as they were run and stored; widgets by their picture, for no kernel runs here.
nb_execution_mode = "off"
nb_mime_priority_overrides = [("html", "image/png", 5)]
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autosummary_generate = False
# Every name of this package that a page refers to must be described; names from elsewhere are not looked up.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!recsys_budget\.).*"),
    ("py:class", r"recsys_budget\..*\._\w+"),
    ("py:class", r"recsys_budget\..*\._\w+\.\w+"),
    ("py:class", r"recsys_budget\.audit\.one_run\.Model"),
    ("py:class", r"recsys_budget\.rerank\.(reranker\.CandidateSource|objective\.WeightedSum)"),
]
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_custom_sections = [("Guarantees", "notes_style")]
python_maximum_signature_line_length = 100
maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"recsys_budget {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}

# The sections of pitfalls.md, worst first. A new section needs a place here, or the build stops.
SEVERITY = {
    "The stated guarantee is false, and nothing shows it": (
        "Spending more than planned",
        "Sensitivity above the bound",
        "Leaving something behind",
        "A record that forgets",
    ),
    "Private data is read, and nobody pays for it": ("Reading without paying",),
    "A rule is broken, or an answer is wrong": ("Solvers",),
    "Data is misread, or text does what it should not": ("Files",),
}

# Where the repository is published, as "owner/name"; the launchers need it, and nothing else does.
REPOSITORY = os.environ.get("DOCS_REPOSITORY") or os.environ.get("GITHUB_REPOSITORY", "")
if REPOSITORY and not re.fullmatch(r"[\w.-]+/[\w.-]+", REPOSITORY):
    raise ExtensionError(f"DOCS_REPOSITORY={REPOSITORY!r}; give owner/name")


def pitfalls_by_severity(text: str) -> str:
    """The page of pitfalls with its sections under what they lead to, worst first.

    Raises:
        ExtensionError: A section has no severity, or a severity names a section that is not there.
    """
    head, *parts = re.split(r"(?m)^## ", text)
    sections = {part.partition("\n")[0].strip(): part.partition("\n")[2].strip() for part in parts}
    placed = [name for names in SEVERITY.values() for name in names]
    if sorted(placed) != sorted(sections):
        wrong = sorted(set(sections) ^ set(placed))
        raise ExtensionError(f"pitfalls.md and SEVERITY in docs/conf.py disagree about {wrong}")
    introduction = head.partition("\n")[2].strip()
    body = [f"# Pitfalls, worst first\n\n{introduction}"]
    for rank, (severity, names) in enumerate(SEVERITY.items(), 1):
        body.append(f"## {rank}. {severity}")
        body += [f"### {name}\n\n{sections[name]}" for name in names]
    return "\n\n".join(body) + "\n"


def public_names() -> str:
    """The page that lists every name of the package, by the part it comes from, with its first line."""
    groups: dict[str, list[str]] = {}
    stub = Path(recsys_budget.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    for module, name in re.findall(r"^from \.(\w+) import (\w+)", stub, flags=re.MULTILINE):
        if not module.startswith("_"):
            groups.setdefault(module, []).append(name)
    body = ["# Public names\n\nEach is imported as `from recsys_budget import NAME`.\n"]
    for module, names in groups.items():
        listed = "".join(f"   ~recsys_budget.{module}.{name}\n" for name in names)
        body.append(f"## {module.capitalize()}\n\n```{{eval-rst}}\n.. autosummary::\n\n{listed}```\n")
    return "\n".join(body)


def command_line() -> str:
    """The page with the help of every command, as the program prints it."""
    commands = ["", "demo", "rerank", "dashboard", "doctor"]
    commands += ["data list", "data fetch", "data generate", "data frontiers"]
    body = [
        "# Command line\n\nEvery command exits with 0 when done, with 1 when something was refused, with 2 "
        "after wrong usage, and with 3 when no slates satisfy the rules.\n"
    ]
    for command in commands:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*command.split(), "--help"])
        body.append(
            f"## recsys-budget {command}".rstrip() + f"\n\n```text\n{printed.getvalue().rstrip()}\n```\n"
        )
    return "\n".join(body)


def with_words(notebook: str) -> str:
    """A notebook whose pictures have words; else the name of their file would be read out."""
    parsed = json.loads(notebook)
    for cell in parsed["cells"]:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                said = " ".join("".join(output["data"].get("text/plain", ())).split())
                # A widget describes its picture; a figure of matplotlib says "<Figure size ...>".
                said = "The figure that the code above draws" if said[:1] in ("", "<") else said
                cell["metadata"].setdefault("mystnb", {}).setdefault("image", {}).setdefault("alt", said)
    return json.dumps(parsed, indent=1, ensure_ascii=False) + "\n"


def generate(app: Sphinx) -> None:
    """Make the pages that repeat what stands elsewhere; those that are right already stay as they are."""
    os.environ["COLUMNS"] = "100"
    pages = {
        "explanation/pitfalls.md": pitfalls_by_severity((HERE / "pitfalls.md").read_text(encoding="utf-8")),
        "reference/names.md": public_names(),
        "reference/command-line.md": command_line(),
    }
    for notebook in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
        pages[f"tutorial/{notebook.name}"] = with_words(notebook.read_text(encoding="utf-8"))
    for stale in set((HERE / "tutorial").glob("*.ipynb")) - {HERE / name for name in pages}:
        stale.unlink()
    for name, text in pages.items():
        page = HERE / name
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def launchers(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, object], doctree: object
) -> None:
    """Put links that open a notebook in Binder and Colab on its page, once the repository has an address."""
    if REPOSITORY and pagename.startswith("tutorial/") and pagename != "tutorial/index":
        path = f"notebooks/{pagename.partition('/')[2]}.ipynb"
        binder = f"https://mybinder.org/v2/gh/{REPOSITORY}/HEAD?labpath={path}"
        colab = f"https://colab.research.google.com/github/{REPOSITORY}/blob/HEAD/{path}"
        links = f'<a href="{binder}">Open in Binder</a> · <a href="{colab}">Open in Colab</a>'
        context["body"] = f'<p class="launch">{links}</p>{context.get("body", "")}'


def addressed(app: Sphinx, docname: str, source: list[str]) -> None:
    """Say where the repository is on the page about launching, once that is known."""
    if REPOSITORY and docname == "how-to/launch":
        source[0] = source[0].replace("OWNER/NAME", REPOSITORY)


def of_this_package(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leave out what scikit-learn adds to every estimator by itself."""
    return True if re.fullmatch("set_[a-z]+_request", name) else None


def start_on_the_second_line(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Keep napoleon from taking what stands before the first colon of a property's docstring for its type."""
    if what in ("property", "attribute", "data"):
        lines.insert(0, "")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", start_on_the_second_line, priority=400)
    app.connect("autodoc-skip-member", of_this_package)
    app.connect("builder-inited", generate, priority=100)
    app.connect("source-read", addressed)
    app.connect("html-page-context", launchers)
