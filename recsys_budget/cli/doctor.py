"""``recsys-budget doctor``: what a computer lacks, in words, before a room full of people finds out.

Nothing is requested from a network and no budget is spent. Each check names what it found and what to do.
"""

from __future__ import annotations

import argparse
import json
import re
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from recsys_budget.cli.machine import Machine

Status = Literal["ok", "note", "warning", "broken"]

# What each extra brings, in words; extras that are not for users are not listed.
_FOR = {
    "train": "private training and the accounting of its cost",
    "fast": "the re-ranker's compiled routes",
    "metrics": "ranking metrics",
    "notebook": "notebooks and widgets",
}
_MODULES = {"scikit-learn": "sklearn", "pyyaml": "yaml"}
# Lab extensions by the package that brings them.
_EXTENSIONS = {"jupyterlab-widgets": "@jupyter-widgets/jupyterlab-manager", "anywidget": "anywidget"}
_SPOILT = "cannot be imported"
_NEWS = "@jupyterlab/apputils-extension:announcements"
_SOON = 3.0  # seconds in which nothing of note was compiled
_LEAST_GIB, _LEAST_FREE_GIB = 3.5, 1.5

# A second process tries to lock the ledger's file while the first one holds the lock.
_SECOND = """
import sqlite3, sys
other = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
try:
    other.execute("BEGIN IMMEDIATE")
    print("taken")
except sqlite3.OperationalError as error:
    print(error)
"""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: What was looked at.
        status: ``"ok"``; ``"note"`` is worth knowing; ``"warning"`` means that something does not work or is
            slow; ``"broken"`` that nothing much does.
        found: What was found.
        advice: What to do about it; empty where nothing need be done.
    """

    check: str
    status: Status
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.status:<8} {self.check:<10} {self.found}" + (
            f"\n{'':<20}-> {self.advice}" if self.advice else ""
        )


def examine(machine: Machine) -> Iterator[Finding]:
    """Every check, one after the other; a check that fails itself is a finding and stops no other."""
    for check in CHECKS:
        try:
            yield from check(machine)
        except Exception as error:
            what = f"cannot be looked at: {_line(error)}"
            yield Finding(check.__name__.strip("_"), "broken", what, "see the findings before this one")


def main(words: Sequence[str]) -> int:
    """Run the doctor on the words after its name.

    Returns:
        0 when all is well, warnings apart; 1 when something is broken, or with ``--strict`` when anything is.
    """
    options = parser().parse_args(words)
    machine = Machine(folder=options.folder.absolute(), data_home=options.data_home)
    findings = []
    for finding in examine(machine):
        findings.append(finding)
        if not options.json:
            print(finding, flush=True)
    bad = {"broken", "warning"} if options.strict else {"broken"}
    ready = not any(finding.status in bad for finding in findings)
    if options.json:
        print(json.dumps({"ready": ready, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        print(_summary(findings, ready))
    return 0 if ready else 1


def parser() -> argparse.ArgumentParser:
    """The doctor's options."""
    made = argparse.ArgumentParser(
        prog="recsys-budget doctor", description="Say what this computer lacks. Nothing is sent anywhere."
    )
    made.add_argument("--json", action="store_true", help="one JSON object")
    made.add_argument("--strict", action="store_true", help="warnings count as broken")
    made.add_argument(
        "--folder", type=Path, default=Path(), help="where ledgers will be kept (default: here)"
    )
    made.add_argument("--data-home", type=Path, help="folder with published datasets")
    return made


def _python(machine: Machine) -> Iterator[Finding]:
    wanted, have = machine.requires_python(), f"{machine.python}, {machine.bits} bits, {sys.executable}"
    if (
        not machine.load("packaging.specifiers")
        .SpecifierSet(wanted)
        .contains(machine.python, prereleases=True)
    ):
        yield Finding("python", "broken", f"{have}; needed: {wanted}", "install a newer Python")
    elif machine.bits != 64:
        yield Finding("python", "broken", have, "install a 64-bit Python: packages come for no other")
    else:
        yield Finding("python", "ok", have)


def _packages(machine: Machine) -> Iterator[Finding]:
    needed = [r for r in _required(machine) if r.marker is None]
    faults = {r.name: fault for r in needed if (fault := _fault(machine, r))}
    for name, fault in faults.items():
        yield Finding("packages", "broken", fault, _cure(machine, {name: fault}))
    if not faults:
        yield Finding("packages", "ok", f"{len(needed)} packages, in the versions needed")


def _extras(machine: Machine) -> Iterator[Finding]:
    for name, purpose in _FOR.items():
        needed = [
            r for r in _required(machine) if r.marker is not None and r.marker.evaluate({"extra": name})
        ]
        faults = {r.name: fault for r in needed if (fault := _fault(machine, r))}
        if faults:
            said = f"{name} ({purpose}): {'; '.join(faults.values())}"
            yield Finding("extras", "warning", said, _cure(machine, faults, name))
        else:
            yield Finding("extras", "ok", f"{name}: {purpose}")


def _torch(machine: Machine) -> Iterator[Finding]:
    if machine.version("torch") is None:
        return
    try:
        torch = machine.load("torch")
        two = float((torch.ones(2) @ torch.ones(2)).numpy())
    except Exception as error:
        advice = f"{_pip()} --force-reinstall torch"
        yield Finding("torch", "warning", f"does not compute: {_line(error)}", advice)
        return
    threads = int(torch.get_num_threads())
    said = f"{torch.__version__}, {_counted(threads, 'thread')} on the CPU; no GPU is needed"
    yield Finding("torch", "ok" if two == 2.0 else "warning", said)


def _numba(machine: Machine) -> Iterator[Finding]:
    if machine.version("numba") is None:
        return
    if machine.environment.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        yield Finding("numba", "warning", "switched off: re-ranking is slower", "unset NUMBA_DISABLE_JIT")
        return
    try:
        compiled = machine.load("numba").njit(_successor)(1)
    except Exception as error:
        advice = f"{_pip()} --force-reinstall numba"
        yield Finding("numba", "warning", f"does not compile: {_line(error)}", advice)
        return
    yield Finding("numba", "ok" if compiled == 2 else "warning", f"{machine.version('numba')} compiles")
    warm = machine.load("recsys_budget.rerank.warm")
    seconds = warm.warm_kernels()
    if warm.kernels_kept():
        said = "ready" if seconds < _SOON else f"compiled in {seconds:.0f} s, and kept"
        yield Finding("numba", "ok", f"the re-ranker's kernels are {said}")
    else:
        said = f"kernels are compiled anew each time, which took {seconds:.0f} s: no folder keeps them"
        yield Finding("numba", "warning", said, "set NUMBA_CACHE_DIR to a folder that can be written to")


def _solvers(machine: Machine) -> Iterator[Finding]:
    installed = sorted(machine.load("cvxpy").installed_solvers())
    if "HIGHS" not in installed:
        yield Finding("solvers", "broken", f"HIGHS is not among {installed}", f"{_pip()} highspy")
        return
    yield Finding("solvers", "ok", ", ".join(installed))
    pandas, budget = machine.load("pandas"), machine.load("recsys_budget")
    catalogue = budget.ItemCatalogue.from_frame(
        pandas.DataFrame({"item": ["a", "b", "c"], "categories": ["Drama", "Drama", "News"]})
    )
    candidates = pandas.DataFrame({"user": "u", "item": ["a", "b", "c"], "relevance": [3.0, 2.0, 1.0]})
    reranker = budget.Reranker(
        budget.EngagementDiversity(0.5), [budget.SlateSize(2), budget.CategoryMinimum("News", 1)]
    )
    for route in (None, "general"):
        slates = type(reranker)(reranker.objective, reranker.constraints, route=route)
        chosen = slates.rerank(candidates, catalogue, progress=False).frame["item"].tolist()
        if chosen != ["a", "c"]:
            yield Finding("solvers", "broken", f"a slate of {chosen} where a, c is best", "reinstall highspy")
            return
    yield Finding("re-ranker", "ok", "the best slate of a small problem is found, with and without a route")


def _widgets(machine: Machine) -> Iterator[Finding]:
    if machine.version("jupyterlab") is None:
        return
    there, off = machine.lab_extensions(), machine.disabled_extensions()
    for package, extension in _EXTENSIONS.items():
        if machine.version(package) is None:
            continue
        if extension not in there:
            advice = f"{_pip()} --force-reinstall {package}"
            yield Finding("widgets", "warning", f"JupyterLab does not see {extension}", advice)
        elif any(name == extension or name.startswith(f"{extension}:") for name in off):
            advice = f"jupyter labextension enable {extension}"
            yield Finding("widgets", "warning", f"{extension} is switched off in JupyterLab", advice)
        else:
            yield Finding("widgets", "ok", f"{package} {machine.version(package)}, seen by JupyterLab")


def _kernel(machine: Machine) -> Iterator[Finding]:
    if machine.version("jupyterlab") is None:
        return
    program = machine.kernel()
    again = f"{sys.executable} -m ipykernel install --sys-prefix"
    if program is None:
        yield Finding("kernel", "warning", "Jupyter has no Python kernel", again)
    elif Path(program).is_absolute() and Path(program).resolve() != Path(sys.executable).resolve():
        yield Finding("kernel", "warning", f"notebooks run {program}, not {sys.executable}", again)
    else:
        yield Finding("kernel", "ok", f"notebooks run {sys.executable}")


def _data(machine: Machine) -> Iterator[Finding]:
    data = machine.load("recsys_budget.data")
    bundled = data.load_dataset("bundled", data_home=machine.data_home)
    expected = data.DATASETS["bundled"].n_users
    again = f"{_install(machine)} --force-reinstall --no-deps"
    if bundled.n_users == expected:
        yield Finding("data", "ok", f"bundled data: {bundled.n_users:,} users, {bundled.n_items:,} items")
    else:
        said = f"bundled data with {bundled.n_users:,} users instead of {expected:,}"
        yield Finding("data", "broken", said, again)
    try:
        swept = machine.load("recsys_budget.frontiers").bundled_frontiers()
    except machine.load("recsys_budget.errors").DataError as error:
        yield Finding("data", "warning", f"no frontiers to look at: {_line(error)}", again)
    else:
        yield Finding("data", "ok", f"{len(swept)} frontiers to look at, without training")
    names = [name for name in data.DATASETS if name != "bundled"]
    there = [name for name in names if data.find_dataset(name, data_home=machine.data_home) is not None]
    yield Finding(
        "data",
        "note",
        f"published datasets: {', '.join(there) or 'none'}; the bundled data does without them",
        ""
        if there
        else "fetch what you want to show while there is a network: recsys-budget data fetch NAME",
    )


def _ledger(machine: Machine) -> Iterator[Finding]:
    try:
        scratch = tempfile.TemporaryDirectory(
            prefix=".recsys-budget-", dir=machine.folder, ignore_cleanup_errors=True
        )
    except OSError as error:
        said = f"{machine.folder} cannot be written to: {error.strerror}"
        yield Finding("ledger", "broken", said, "work in a folder of your own")
        return
    with scratch as name:
        path = str(Path(name) / "lock.db")
        first = sqlite3.connect(path, isolation_level=None)
        try:
            first.execute("CREATE TABLE t (x)")
            first.execute("BEGIN IMMEDIATE")
            answer = machine.run(_SECOND, path)
        finally:
            first.close()
        if "locked" not in answer:
            said = f"two processes can write one file in {machine.folder} at once ({answer})"
            yield Finding("ledger", "broken", said, "keep ledgers on a local disk, not on a network folder")
            return
        privacy = machine.load("recsys_budget.privacy")
        budget, where = privacy.PrivacyBudget(epsilon=1.0, delta=1e-6), Path(name) / "budget.db"
        privacy.PrivacyLedger(budget, where, population="doctor")
        again = privacy.PrivacyLedger(path=where, population="doctor")
        yield Finding(
            "ledger",
            "ok" if again.cap == budget else "broken",
            f"files in {machine.folder} are kept and locked; SQLite {sqlite3.sqlite_version}",
        )


def _memory(machine: Machine) -> Iterator[Finding]:
    total, free = machine.memory_gib()
    if total is None:
        yield Finding("memory", "note", "this system does not tell", f"{_LEAST_GIB:g} GiB are needed")
        return
    said = f"{total:.1f} GiB" + ("" if free is None else f", {free:.1f} of them free")
    if total < _LEAST_GIB:
        advice = "private training may run out: take the bundled data, and one notebook at a time"
        yield Finding("memory", "warning", said, advice)
    elif free is not None and free < _LEAST_FREE_GIB:
        yield Finding("memory", "warning", said, "close other programs and notebooks")
    else:
        yield Finding("memory", "ok", said)
    cores = machine.cores()
    slow = "" if cores > 1 else "all works, more slowly"
    yield Finding("cores", "ok" if cores > 1 else "note", str(cores), slow)


def _network(machine: Machine) -> Iterator[Finding]:
    given = {name.lower(): value for name, value in machine.environment.items() if value}
    proxies = [name for name in ("http_proxy", "https_proxy", "all_proxy") if name in given]
    spared = re.split(r"[\s,]+", given.get("no_proxy", ""))
    if proxies and not {"*", "localhost", "127.0.0.1"} & set(spared):
        said = f"{', '.join(proxies)} set, and localhost not spared: notebooks may not reach their kernels"
        yield Finding("network", "warning", said, "set no_proxy=localhost,127.0.0.1")
    else:
        yield Finding("network", "ok", "none is needed, and none was tried")
    if machine.version("jupyterlab") is not None and _NEWS not in machine.disabled_extensions():
        advice = f"jupyter labextension disable {_NEWS}"
        yield Finding("network", "note", "JupyterLab asks its makers for news, and works without", advice)


CHECKS: tuple[Callable[[Machine], Iterator[Finding]], ...] = (
    _python, _packages, _extras, _torch, _numba, _solvers, _widgets, _kernel, _data, _ledger, _memory,
    _network,
)  # fmt: skip


def _required(machine: Machine) -> list[Any]:
    requirement = machine.load("packaging.requirements").Requirement
    return [requirement(text) for text in machine.requirements()]


def _fault(machine: Machine, requirement: Any) -> str:
    """Why a required package will not do; empty when it will."""
    have = machine.version(requirement.name)
    if have is None:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(have, prereleases=True):
        return f"{requirement.name} is {have}, and {requirement.specifier} is needed"
    name = requirement.name.lower()
    try:
        machine.load(_MODULES.get(name, name.replace("-", "_")))
    except Exception as error:
        return f"{requirement.name} {have} {_SPOILT}: {_line(error)}"
    return ""


def _cure(machine: Machine, faults: Mapping[str, str], extra: str = "") -> str:
    """The commands against faults by package: unless forced, pip takes what is there for good."""
    spoilt = [name for name, fault in faults.items() if _SPOILT in fault]
    commands = [f"{_pip()} --force-reinstall {' '.join(spoilt)}"] if spoilt else []
    if len(spoilt) < len(faults):
        commands.append(_install(machine, extra))
    return "; then ".join(commands)


def _pip() -> str:
    """Pip of the Python that was looked at, which need not be the first on the path."""
    program = f'"{sys.executable}"' if " " in sys.executable else sys.executable
    return f"{program} -m pip install"


def _install(machine: Machine, extra: str = "") -> str:
    """The command that installs this package, from where it came from, with an extra."""
    origin, wanted = machine.origin(), f"[{extra}]" if extra else ""
    asked = f"recsys-budget{wanted} @ {origin}" if "://" in origin else f"{origin}{wanted}"
    return f'{_pip()} "{asked}"'


def _successor(x: int) -> int:
    return x + 1


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _line(error: Exception) -> str:
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:200]}" if said else type(error).__name__


def _summary(findings: Sequence[Finding], ready: bool) -> str:
    broken, warned = (sum(f.status == status for f in findings) for status in ("broken", "warning"))
    return f"\n{'Ready' if ready else 'Not ready'}: {broken} broken, {_counted(warned, 'warning')}."
