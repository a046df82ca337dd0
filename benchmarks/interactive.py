"""How long the explorer keeps a person waiting, beside a pyplot figure that is drawn again.

    python benchmarks/interactive.py [--json] [--small] [--no-browser]

Generated users with 200 candidates in 18 categories and slates of 10; see ``peers/generated.py``. Figures:

- ``slider_p50_ms``, ``slider_p95_ms``: one move of a slider to a choice not seen before, from the change of
  its value to everything said anew, in Python, with 1,000 users: slates and certificates of all of them, one
  user's reasons, rules, providers, and the picture. Moves take turns between two explorers with the same
  quotas: one with a weight on diversity (moves of the weight and of a quota), one with a floor on a
  provider's places (moves of the floor and of a quota). ``slider_ms`` has the median and the 95th percentile
  of each kind, and of two that are harder: ``weight_overlapping`` and ``quota_overlapping``, where items have
  several categories so that quotas overlap, and ``weight_beside_floor``, where there are both.
- ``picture_ms``: the picture of the frontier with its mark moved; ``pyplot_ms``: the frontier drawn by pyplot
  and written as PNG, which is what drawing into ``ipywidgets.Output`` does; ``pyplot_over_picture``: how many
  times longer.
- ``browser_p50_ms``: in Chromium with Voila, from a key press on a point of the front to the frame that shows
  the mark there; ``browser_slider_p50_ms``: from a key press on the slider of the weight, by way of the
  kernel, to the same; ``browser_pyplot_p50_ms``: from a key press on a slider to the new image of a pyplot
  figure in ``ipywidgets.Output``, on the same page; ``pyplot_over_slider``: how many times longer that is.
  Null where there is no browser, and ``browser_note`` says why.
- ``frontier_1k_s``, ``frontier_10k_s``: a frontier over 30 weights with quotas, for so many users;
  ``frontier_1k_overlapping_s``, ``frontier_10k_overlapping_s``: the same where quotas overlap.
- ``conflict_s``: from a floor that cannot be met, beside quotas that overlap, to the least that would settle
  it, for 1,000 users.
- ``import_s``: a fresh process that imports ``Explorer`` and ``frontier``; ``first_plot_s``: one that
  has made all that a notebook shows of an explorer of the bundled frontiers. Both are whole processes, the
  least of three.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from peers.generated import MAXIMUMS, MINIMUMS, NAMES, K, generate

from recsys_budget.constraints import CategoryMaximum, CategoryMinimum, Constraint, ProviderMinimum, SlateSize
from recsys_budget.errors import InfeasibleError
from recsys_budget.frontiers import Frontier, frontier
from recsys_budget.rerank import Engagement, EngagementDiversity, Reranker
from recsys_budget.widgets import Explorer

GAP = 0.01
IMPORTS = "from recsys_budget import Explorer, frontier"
FIRST_PLOT = """
from recsys_budget import Explorer, bundled_frontiers
Explorer(*bundled_frontiers())._repr_mimebundle_()
"""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def rules(floor: int | None = None) -> list[Constraint]:
    found: list[Constraint] = [
        SlateSize(K),
        CategoryMinimum(NAMES[3], MINIMUMS[3]),  # the others are beyond some of 10,000 users
        *(CategoryMaximum(NAMES[c], count) for c, count in MAXIMUMS.items()),
    ]
    return found if floor is None else [*found, ProviderMinimum(floor, provider="p10")]


def users(n: int, *, overlapping: bool = False) -> Any:
    """Candidates of so many, and their catalogue."""
    data = generate(n)
    catalogue = data.catalogue(primary=not overlapping)
    return data.frame(catalogue, np.arange(n)), catalogue


def swept(table: Any, catalogue: Any, weights: Any, floor: int | None = None) -> Frontier:
    """Over the weight on diversity; or over the floor where there is one and no weight."""
    constraints = rules(floor)
    if weights is None:
        assert floor is not None
        base = Reranker(Engagement(), constraints, gap=GAP)
        values = [0, floor // 2, floor]
        return frontier(table, catalogue, constraints[-1].name, values, reranker=base, progress=False)
    base = Reranker(EngagementDiversity(0.2), constraints, gap=GAP)
    return frontier(table, catalogue, "diversity", weights, reranker=base, progress=False)


def took(run: Callable[[], Any]) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def sliders(n_users: int, moves: int) -> dict[str, Any]:
    """A move in turn of each of four sliders; then of those that are harder."""
    served, low = users(n_users), n_users // 10
    diverse = Explorer(swept(*served, [0.0, 0.2, 0.5]))
    floored = Explorer(swept(*served, None, low))
    quota, floor = rules()[1].name, rules(low)[-1].name
    counts = [int(count) for count in np.resize([0, 1, 3, 4], moves)]
    plan = [
        ("weight", diverse._sliders.weight, np.linspace(0.05, 0.75, moves)),
        ("quota_with_diversity", diverse._sliders.rules[quota], counts),
        ("floor", floored._sliders.rules[floor], [low + 3 * step for step in range(1, moves + 1)]),
        ("quota_with_floor", floored._sliders.rules[quota], counts),
    ]
    found: dict[str, list[float]] = {name: [] for name, *_ in plan}
    for step in range(-1, moves - 1):  # the first, at the far end, warms up
        for name, slider, values in plan:
            spent = took(lambda slider=slider, value=values[step]: setattr(slider, "value", value))
            if step >= 0:
                found[name].append(spent)
    every = np.concatenate(list(found.values()))
    both = Explorer(swept(*served, [0.2], low))
    crossed = Explorer(swept(*users(n_users, overlapping=True), [0.0, 0.2, 0.5]))
    for name, slider, values in (
        ("weight_beside_floor", both._sliders.weight, np.linspace(0.1, 0.5, moves)),
        ("weight_overlapping", crossed._sliders.weight, np.linspace(0.05, 0.75, moves)),
        ("quota_overlapping", crossed._sliders.rules[quota], counts),
    ):
        found[name] = [
            took(lambda slider=slider, value=value: setattr(slider, "value", value)) for value in values
        ][1:]
    each = {
        name: {"p50": float(np.median(times)), "p95": float(np.percentile(times, 95))}
        for name, times in found.items()
    }
    return {
        "slider_p50_ms": float(np.percentile(every, 50)),
        "slider_p95_ms": float(np.percentile(every, 95)),
        "slider_moves": len(every),
        "slider_ms": each,
        **pictures(diverse),
    }


def conflict(n_users: int) -> float:
    """Seconds until it is known what a floor that cannot be met would have to give."""
    table, catalogue = users(n_users, overlapping=True)
    places, providers = K * n_users, len(set(catalogue.to_frame()["provider"]))
    impossible = ProviderMinimum(places // providers + 1)
    reranker = Reranker(EngagementDiversity(0.2), [*rules(), impossible], gap=GAP)

    found: list[InfeasibleError] = []

    def ask() -> None:
        try:
            reranker.rerank(table, catalogue, progress=False)
        except InfeasibleError as error:
            found.append(error)

    spent = took(ask) / 1000
    (move,) = [each for each in found[0].conflict.relaxations if each.constraint == impossible]
    assert move.exact, "prices did not prove that this is the least that settles it"
    return spent


def pictures(explorer: Explorer) -> dict[str, float]:
    """The picture against pyplot, turn by turn."""
    import matplotlib

    matplotlib.use("agg")
    view = explorer._views[0]
    ours = min(took(view.png) for _ in range(5))
    theirs = min(took(lambda: pyplot(view.frontier)) for _ in range(5))
    return {"picture_ms": ours, "pyplot_ms": theirs, "pyplot_over_picture": theirs / ours}


def pyplot(frontier: Frontier) -> bytes:
    """What the inline backend of Jupyter would show: a new figure, as PNG, closed again."""
    import matplotlib.pyplot as plt

    axes = frontier.plot()
    file = io.BytesIO()
    axes.figure.savefig(file, format="png", dpi=100)
    plt.close(axes.figure)
    return base64.b64encode(file.getvalue())


def fresh(code: str, repeats: int = 3) -> float:
    """Seconds of a process that does this and ends, the least."""
    words = [sys.executable, "-c", code]
    return min(took(lambda: subprocess.run(words, check=True)) for _ in range(repeats)) / 1000


def page() -> Any:
    """What the browser shows: an explorer, and a slider with a pyplot figure below."""
    import ipywidgets
    from IPython.display import Image, display

    frontiers = swept(*users(20), np.arange(8) / 10)
    peer = ipywidgets.IntSlider(0, 0, 7, description="pyplot")
    output = ipywidgets.Output()

    def draw(_: Any = None) -> None:
        with output:
            output.clear_output(wait=True)
            file = io.BytesIO()
            axes = frontiers.plot(selected=peer.value)
            axes.figure.savefig(file, format="png", dpi=100)
            display(Image(file.getvalue()))
            import matplotlib.pyplot as plt

            plt.close(axes.figure)

    peer.observe(draw, "value")
    draw()
    peer.add_class("peer")
    output.add_class("peer-figure")
    return ipywidgets.VBox([Explorer(frontiers), peer, output])


@contextlib.contextmanager
def voila() -> Iterator[str]:
    """The page, served to this computer; its address."""
    import nbformat

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import interactive; interactive.page()"
    with tempfile.TemporaryDirectory() as folder:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        notebook.metadata["kernelspec"] = {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        }
        path = Path(folder) / "page.ipynb"
        nbformat.write(notebook, path)
        words = [sys.executable, "-m", "voila", str(path), "--no-browser", "--Voila.ip=127.0.0.1"]
        server = subprocess.Popen(
            [*words, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()
            server.wait(15)


# From the key press to the frame after which something on the page is another.
WATCH = """([key, what, which]) => new Promise((resolve) => {
  const target = document.querySelector(key), seen = () => document.querySelector(what)?.getAttribute(which);
  const before = seen();
  target.focus();
  target.addEventListener("keydown", () => {
    const start = performance.now();
    const look = () => {
      const spent = performance.now() - start;
      const moved = seen() !== before && seen() != null;
      if (moved) requestAnimationFrame(() => resolve(performance.now() - start));
      else if (spent > 5000) resolve(null);
      else requestAnimationFrame(look);
    };
    look();
  }, { once: true, capture: true });
})"""


def browser(presses: int) -> dict[str, Any]:
    """Key presses in Chromium."""
    names = ("browser_p50_ms", "browser_slider_p50_ms", "browser_pyplot_p50_ms", "pyplot_over_slider")
    found: dict[str, Any] = dict.fromkeys(names)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None or find_spec("playwright") is None:
        return {**found, "browser_note": "there is no Chromium, or no playwright to drive it"}
    from playwright.sync_api import sync_playwright

    with voila() as address, sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        shown = window.new_page(viewport={"width": 1300, "height": 1300})
        shown.set_default_timeout(90_000)
        shown.goto(address, wait_until="domcontentloaded")
        shown.wait_for_selector(".rb-front [role=radio]")
        shown.wait_for_selector(".peer-figure img")
        mark = (".rb-front > div > svg > .now", "cx")
        watched = {
            names[0]: ("Arrow", ".rb-front [role=radio][tabindex='0']", *mark),
            names[1]: ("Page", ".rb-explorer .noUi-handle", *mark),
            names[2]: ("Arrow", ".peer .noUi-handle", ".peer-figure img", "src"),
        }
        for name, (key, *what) in watched.items():
            shown.locator(".rb-front [role=radio][tabindex='0']").press("Home")  # a weight of 0
            shown.wait_for_timeout(2000)
            up, down = ("ArrowRight", "ArrowLeft") if key == "Arrow" else ("PageUp", "PageDown")
            times = []
            for press in range(presses):
                shown.wait_for_timeout(120)
                shown.evaluate(f"window.waited = ({WATCH})({json.dumps(what)}); 0")
                # Up for seven presses and down for seven: there are eight points.
                shown.keyboard.press(up if press // 7 % 2 == 0 else down)
                times.append(shown.evaluate("window.waited"))
            seen = [spent for spent in times if spent is not None]
            assert len(seen) > presses // 2, f"{name}: too few presses moved anything"
            found[name] = float(np.median(seen))
        window.close()
    return {**found, "pyplot_over_slider": found[names[2]] / found[names[1]], "browser_presses": presses}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--small", action="store_true", help="a tenth of everything, to see that it works")
    parser.add_argument("--no-browser", action="store_true", help="leave the browser out")
    asked = parser.parse_args()
    scale = 10 if asked.small else 1
    weights = np.linspace(0.0, 0.7, 30)
    found = sliders(1000 // scale, 4 if asked.small else 16)
    for name, n in (("frontier_1k_s", 1000), ("frontier_10k_s", 10_000)):
        served = users(n // scale)
        found[name] = took(lambda served=served: swept(*served, weights)) / 1000
        crossed = users(n // scale, overlapping=True)
        key = name.replace("_s", "_overlapping_s")
        found[key] = took(lambda crossed=crossed: swept(*crossed, weights)) / 1000
    found["conflict_s"] = conflict(1000 // scale)
    found |= {"import_s": fresh(IMPORTS), "first_plot_s": fresh(FIRST_PLOT)}
    if asked.no_browser:
        found |= {"browser_p50_ms": None, "browser_note": "left out"}
    else:
        found |= browser(4 if asked.small else 35)
    if asked.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
