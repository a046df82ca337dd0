"""The explorer in a real browser, as the dashboard and in JupyterLab; screenshots go to out/browser."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from servers import PATIENCE, free_port, served

from recsys_budget.cli import dashboard
from recsys_budget.constraints import CategoryMaximum, CategoryMinimum, Policy, SlateSize

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = Path(__file__).parents[1] / "out" / "browser"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# What axe calls these: what a page must do for readers who do not see, hear, point or tell colours apart.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
# ipywidgets gives the handle of its sliders no name, and no way to give it one. The box beside each slider
# has one, and does the same.
NOT_OURS = ".rb-explorer .noUi-handle"
OWN = ("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:", "about:")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.skipif(find_spec("axe_playwright_python") is None, reason="needs axe and playwright"),
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),  # servers' own
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Candidates, catalogue and policy, with titles that would like to be markup."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(5)
    kinds = ["Drama", "Crime", "Comedy", "History", "War", "Music"]
    items = pd.DataFrame(
        {
            "item": [f"i{n}" for n in range(30)],
            "title": [f"<b>Title</b> {n} $x_{{$" for n in range(30)],
            "categories": [kinds[n % 6] for n in range(30)],
        }
    )
    rows = [
        # Crime is liked best, so that more diversity changes every slate.
        {"user": f"u{user}", "item": f"i{n}", "relevance": value + (n % 6 == 1)}
        for user in range(8)
        for n, value in enumerate(rng.random(30).round(3))
    ]
    pd.DataFrame(rows).to_csv(folder / "candidates.csv", index=False)
    items.to_csv(folder / "catalogue.csv", index=False)
    rules = [SlateSize(5), CategoryMaximum("Drama", 2), CategoryMinimum("Drama", 1)]
    (folder / "policy.yaml").write_text(Policy("test", rules).to_yaml(), encoding="utf-8")
    return folder


@contextlib.contextmanager
def opened(url, without=None):
    """A page in a fresh profile; what it asked of other hosts and what went wrong must be nothing.

    Nothing whose address has ``without`` in it arrives, and then something may go wrong.
    """
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE * 1000)
    foreign, wrong = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1300, "height": 1300})
        page.set_default_timeout(PATIENCE * 1000)
        if without is not None:
            page.route(lambda address: without in address, lambda route: route.abort())
        page.on("request", lambda r: None if r.url.startswith(OWN) else foreign.append(r.url))
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(url, wait_until="domcontentloaded")
        try:
            yield page
        finally:
            browser.close()
    assert foreign == []
    assert without is not None or wrong == []


def barriers(page):
    """What keeps some readers out of the explorer: axe's serious and critical findings, in short."""
    from axe_playwright_python.sync_playwright import Axe

    context = {"include": [[".rb-explorer"]], "exclude": [[NOT_OURS]]}
    found = Axe().run(page, context, {"runOnly": RULES}).response
    assert len(found["passes"]) > 5
    return [
        f"{rule['id']}: {place['html'][:150]} {place.get('failureSummary', '')}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for place in rule["nodes"]
    ]


def shoot(page, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def status(page):
    return page.locator(".rb-explorer .widget-html [role=status]").first


def walk(page, name):
    """Move a slider, point at and click points, run into a conflict and settle it: what a person would do."""
    from playwright.sync_api import expect

    weight = page.get_by_label("weight on diversity, exactly")
    points = page.get_by_role("radiogroup").get_by_role("radio")
    readout = page.locator(".rb-readout")

    def slates():
        return page.locator(".rb-card", has_text="User u0").first.inner_text()

    def settled(number):
        """The kernel has answered this weight."""
        expect(weight).to_have_value(str(number))
        expect(status(page)).to_contain_text("Engagement")

    expect(points.first).to_be_visible()
    expect(status(page)).to_contain_text("Engagement")
    expect(page.locator(".rb-card", has_text="User u0").first).to_contain_text("<b>Title</b>")
    shoot(page, f"{name}-start")
    assert barriers(page) == []
    before = slates()

    page.locator(".widget-slider .noUi-handle").first.focus()
    for _ in range(60):  # the weight on diversity, to 0.6
        page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "before => [...document.querySelectorAll('.rb-card')].find(c => c.innerText.startsWith('User u0'))"
        ".innerText !== before",
        arg=before,
    )
    settled(0.6)
    expect(readout).to_contain_text("Chosen: diversity")
    # Said once more where a screen reader listens from the start.
    expect(page.locator(".rb-live")).to_have_text(status(page).inner_text())

    points.nth(1).hover()
    expect(readout).to_have_text(points.nth(1).get_attribute("aria-label"))
    expect(readout).to_contain_text("plus or minus")
    shoot(page, f"{name}-hover")
    page.mouse.move(0, 0)
    expect(readout).to_contain_text("Chosen: diversity")
    settled(0.6)

    points.last.click()
    expect(points.last).to_have_attribute("aria-checked", "true")
    settled(0.7)
    page.mouse.move(0, 0)
    points.last.press("ArrowLeft")
    settled(0.5)
    expect(readout).to_have_text(points.nth(4).get_attribute("aria-label"))
    assert slates() != before
    page.keyboard.press("Home")
    settled(0)
    assert slates() == before
    page.keyboard.press("End")
    settled(0.7)
    shoot(page, f"{name}-keys")

    page.get_by_label("at least 1 Drama, exactly").fill("4")
    least = page.get_by_label("at least 4 Drama, exactly")
    page.keyboard.press("Enter")
    expect(status(page)).to_contain_text("Impossible")
    expect(page.get_by_text("no slate satisfies together").first).to_be_visible()
    expect(least).to_have_value("4")
    shoot(page, f"{name}-conflict")
    assert barriers(page) == []
    page.get_by_role("button", name="at least 4 Drama").click()
    expect(status(page)).to_contain_text("Engagement")
    expect(page.get_by_label("at least 2 Drama, exactly")).to_have_value("2")


def choose_epsilon(page):
    """An epsilon and what it gives, a utility and what it takes; asking to spend spends nothing."""
    from playwright.sync_api import expect

    epsilon = page.get_by_label("epsilon (paid for), exactly")
    expect(status(page)).to_contain_text("Engagement")
    expect(page.get_by_role("radiogroup")).to_have_count(1)  # one frontier at a time
    least = epsilon.locator("option").first.inner_text()
    epsilon.select_option(least)
    expect(page.get_by_text(f"Epsilon {least} with delta 1e-06: Somebody who")).to_be_visible()
    expect(page.locator(".rb-readout:visible")).to_contain_text(f"Chosen: epsilon {float(least):.4g}"[:20])
    page.get_by_label("or wanted recall@10").fill("0.1")
    page.keyboard.press("Enter")
    expect(page.get_by_text("to have it in every run")).to_be_visible()
    page.get_by_role("button", name="Train with epsilon").click()
    page.get_by_role("button", name="for good").wait_for()
    shoot(page, "everything")
    assert barriers(page) == []
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("epsilon spent: 0.0000 of 8")).to_be_visible()


@contextlib.contextmanager
def dashboard_of(files, tmp_path, without=None, theme="light"):
    """The dashboard in a browser."""
    port = free_port()
    words, environment, folder = dashboard.command(
        files / "candidates.csv",
        catalogue=files / "catalogue.csv",
        policy=files / "policy.yaml",
        port=port,
        browser=False,
    )
    assert "--Voila.ip=127.0.0.1" in words
    address = f"http://127.0.0.1:{port}/?theme={theme}"
    with folder, served(words, environment, port, tmp_path / "log"), opened(address, without) as page:
        yield page


def test_dashboard(files, tmp_path):
    with dashboard_of(files, tmp_path) as page:
        walk(page, "dashboard")


def test_a_page_that_cannot_load_the_front_has_a_picture(files, tmp_path):
    from playwright.sync_api import expect

    with dashboard_of(files, tmp_path, without="anywidget") as page:
        picture = page.locator(".rb-explorer img")
        expect(picture).to_be_visible()
        expect(picture).to_have_attribute("alt", re.compile("6 points from .* Chosen: diversity"))
        assert page.get_by_role("radiogroup").count() == 0
        before, source = picture.get_attribute("alt"), picture.get_attribute("src")
        page.get_by_label("weight on diversity, exactly").fill("0.6")
        page.keyboard.press("Enter")
        expect(picture).not_to_have_attribute("alt", before)
        expect(status(page)).to_contain_text("Engagement")
        assert picture.get_attribute("src") != source
        shoot(page, "picture")
        assert barriers(page) == []


def test_jupyterlab(files, tmp_path):
    port, token, root = free_port(), secrets.token_hex(8), tmp_path / "root"
    root.mkdir()
    source = f"""
from pathlib import Path
from recsys_budget.cli.dashboard import explorer
folder = Path({str(files)!r})
explorer(*(str(folder / name) for name in ("candidates.csv", "catalogue.csv", "policy.yaml")))
"""
    # Another page, with everything that an explorer may have.
    everything = """
from recsys_budget import Explorer, PrivacyBudget, PrivacyLedger, bundled_frontiers
path, *others = bundled_frontiers()
Explorer(path, *others, ledger=PrivacyLedger(PrivacyBudget(8.0, 1e-6)), spend=lambda epsilon: path)
"""
    # Without its name JupyterLab would ask for the kernel.
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for name, code in (("page", source), ("everything", everything)):
        nbformat.write(new_notebook(cells=[new_code_cell(code)], metadata=kernel), root / f"{name}.ipynb")
    quiet = tmp_path / "settings" / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    (quiet / "notification.jupyterlab-settings").write_text('{"fetchNews":"false","checkForUpdates":false}')
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
    }
    words = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
    words += [f"--port={port}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}"]
    words += ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url=", "--ServerApp.port_retries=0"]
    words += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    url = f"http://127.0.0.1:{port}/lab/tree/page.ipynb?reset&token={token}"

    def run(page):
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.sessionContext")
        page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.ready")
        page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")

    def dark(page, name):
        page.evaluate(
            "() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"
        )
        page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")
        page.wait_for_selector("#jupyterlab-splash", state="detached")  # a curtain while the theme loads
        shoot(page, name)
        assert barriers(page) == []

    with served(words, environment, port, tmp_path / "log"):
        with opened(url) as page:
            run(page)
            walk(page, "lab")
            dark(page, "lab-dark")
        with opened(url.replace("page.ipynb", "everything.ipynb")) as page:
            run(page)
            choose_epsilon(page)
            dark(page, "everything-dark")
