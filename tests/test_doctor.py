"""The doctor names every fault that it knows, each one injected alone, and stops at none."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from recsys_budget.cli import doctor
from recsys_budget.cli.doctor import examine
from recsys_budget.cli.machine import Machine
from recsys_budget.cli.main import main
from recsys_budget.errors import DataError

REQUIREMENTS = (
    "numpy>=2.2",
    "scikit-learn>=1.7",
    "highspy!=1.16.0,>=1.11",
    "torch>=2.6; extra == 'train'",
    "numba>=0.61; extra == 'fast'",
    "ranx>=0.3; extra == 'metrics'",
    "jupyterlab>=4.4; extra == 'notebook'",
    "ruff; extra == 'dev'",
)
VERSIONS = {
    "numpy": "2.4.6",
    "scikit-learn": "1.9.1",
    "highspy": "1.15.1",
    "torch": "2.13.0",
    "numba": "0.68.1",
    "ranx": "0.3.21",
    "jupyterlab": "4.6.6",
    "jupyterlab-widgets": "3.0.17",
    "anywidget": "0.11.0",
}
# What really is imported; of other packages a name is enough here.
REAL = ("packaging", "pandas", "cvxpy", "recsys_budget")


class Product:
    """A stand-in for torch: ones(2) @ ones(2) is two, and so is the successor of one, compiled."""

    __version__ = "2.13.0"

    def ones(self, n):
        return self

    def __matmul__(self, other):
        return SimpleNamespace(numpy=lambda: 2.0)

    def get_num_threads(self):
        return 2


class Healthy(Machine):
    """A computer with all that is wanted, whatever the one that runs the tests has."""

    absent: tuple[str, ...] = ()
    versions: dict[str, str] = {}  # noqa: RUF012
    spoilt: dict[str, Exception] = {}  # noqa: RUF012
    modules: dict[str, object] = {}  # noqa: RUF012
    solvers: tuple[str, ...] | None = None
    extensions = frozenset({"@jupyter-widgets/jupyterlab-manager", "anywidget"})
    off: frozenset[str] = frozenset({"@jupyterlab/apputils-extension:announcements"})
    memory = (16.0, 8.0)
    n_cores = 4
    program: str | None = "python"
    second: str | None = None
    came_from = "recsys-budget"

    def requires_python(self):
        return ">=3.11"

    def requirements(self):
        return REQUIREMENTS

    def origin(self):
        return self.came_from

    def version(self, package):
        return None if package in self.absent else (VERSIONS | self.versions).get(package)

    def load(self, module):
        if module in self.spoilt:
            raise self.spoilt[module]
        if module in self.modules:
            return self.modules[module]
        if module.partition(".")[0] in REAL:
            return super().load(module)
        stand_ins = {"torch": Product(), "numba": SimpleNamespace(njit=lambda f: f)}
        return stand_ins.get(module, SimpleNamespace())

    def run(self, code, *arguments):
        return super().run(code, *arguments) if self.second is None else self.second

    def cores(self):
        return self.n_cores

    def memory_gib(self):
        return self.memory

    def lab_extensions(self):
        return set(self.extensions)

    def disabled_extensions(self):
        return set(self.off)

    def kernel(self):
        return self.program


def machine(tmp_path, *, environment=None, python="3.12.1", bits=64, **faults):
    kind = type("Injected", (Healthy,), faults)
    made = kind(folder=tmp_path, environment=environment or {}, python=python, bits=bits)
    return replace(made, data_home=None)


def findings(tmp_path, *names, **faults):
    """Of the checks with these names, or all of them."""
    patient = machine(tmp_path, **faults)
    checks = [check for check in doctor.CHECKS if not names or check.__name__.strip("_") in names]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "CHECKS", tuple(checks))
        return list(examine(patient))


def test_a_healthy_computer_has_no_fault(tmp_path):
    found = findings(tmp_path)
    assert {finding.status for finding in found} <= {"ok", "note"}
    assert {finding.check for finding in found} == {
        "python", "packages", "extras", "torch", "numba", "solvers", "re-ranker", "widgets", "kernel", "data",
        "ledger", "memory", "cores", "network",
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == []


FAULTS = [
    ("python", {"python": "3.10.4"}, "broken", "needed: >=3.11", "newer Python"),
    ("python", {"bits": 32}, "broken", "32 bits", "64-bit"),
    ("packages", {"absent": ("numpy",)}, "broken", "numpy is not installed", "pip install"),
    ("packages", {"versions": {"numpy": "1.26"}}, "broken", "numpy is 1.26, and >=2.2", "pip install"),
    ("packages", {"versions": {"highspy": "1.16.0"}}, "broken",
     "highspy is 1.16.0, and !=1.16.0", "pip install"),
    ("packages", {"spoilt": {"sklearn": OSError("no DLL")}}, "broken", "OSError: no DLL", "pip install"),
    ("extras", {"absent": ("torch",)}, "warning", "train (private training", 'recsys-budget[train]"'),
    ("extras", {"absent": ("numba",)}, "warning", "fast (the re-ranker", 'recsys-budget[fast]"'),
    ("extras", {"absent": ("ranx",)}, "warning", "metrics (ranking", 'recsys-budget[metrics]"'),
    ("extras", {"absent": ("jupyterlab",)}, "warning", "notebook (notebooks", 'recsys-budget[notebook]"'),
    ("extras", {"versions": {"torch": "2.5"}}, "warning", "torch is 2.5", "pip install"),
    ("torch", {"spoilt": {"torch": OSError("libgomp")}}, "warning", "does not compute: OSError", "reinstall"),
    ("numba", {"environment": {"NUMBA_DISABLE_JIT": "1"}}, "warning", "switched off", "unset"),
    ("numba", {"spoilt": {"numba": ImportError("llvm")}}, "warning", "does not compile", "reinstall"),
    ("solvers", {"modules": {"cvxpy": SimpleNamespace(installed_solvers=lambda: ["SCS"])}}, "broken",
     "HIGHS is not among ['SCS']", "highspy"),
    ("widgets", {"extensions": frozenset({"anywidget"})}, "warning",
     "does not see @jupyter-widgets", "reinstall"),
    ("widgets", {"extensions": frozenset({"@jupyter-widgets/jupyterlab-manager"})}, "warning",
     "does not see anywidget", "reinstall"),
    ("widgets", {"off": frozenset({"@jupyter-widgets/jupyterlab-manager:plugin"})}, "warning",
     "switched off", "labextension enable"),
    ("widgets", {"off": frozenset({"anywidget"})}, "warning",
     "anywidget is switched off", "enable anywidget"),
    ("kernel", {"program": None}, "warning", "no Python kernel", "ipykernel install"),
    ("kernel", {"program": "/opt/other/bin/python"}, "warning",
     "notebooks run /opt/other", "ipykernel install"),
    ("ledger", {"second": "taken"}, "broken", "two processes can write", "local disk"),
    ("memory", {"memory": (2.0, 1.9)}, "warning", "2.0 GiB", "run out"),
    ("memory", {"memory": (16.0, 0.5)}, "warning", "0.5 of them free", "close other"),
    ("memory", {"memory": (None, None)}, "note", "does not tell", "GiB are needed"),
    ("memory", {"n_cores": 1}, "note", "1", "more slowly"),
    ("network", {"environment": {"HTTPS_PROXY": "http://proxy:3128"}}, "warning",
     "https_proxy set", "no_proxy="),
    ("network", {"environment": {"http_proxy": "http://p", "no_proxy": "example.org"}}, "warning",
     "http_proxy", "no_proxy="),
    ("network", {"off": frozenset()}, "note", "asks its makers for news", "labextension disable"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "fault", "status", "found", "advice"), FAULTS)
def test_a_fault_is_named_with_what_to_do(tmp_path, check, fault, status, found, advice):
    hit = [finding for finding in findings(tmp_path, check, **fault) if finding.status not in ("ok",)]
    hit = [finding for finding in hit if found in finding.found]
    assert [finding.status for finding in hit] == [status]
    assert advice in hit[0].advice


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ("recsys-budget", '"recsys-budget[notebook]"'),
        ("/home/a b/copy", '"/home/a b/copy[notebook]"'),
        ("git+https://host/owner/name", '"recsys-budget[notebook] @ git+https://host/owner/name"'),
    ],
)
def test_advice_installs_from_where_the_package_came_with_the_same_python(tmp_path, origin, command):
    (hit,) = [
        finding
        for finding in findings(tmp_path, "extras", absent=("jupyterlab",), came_from=origin)
        if finding.status == "warning"
    ]
    assert hit.advice.endswith(f" -m pip install {command}")
    assert hit.advice.strip('"').startswith(sys.executable)


@pytest.mark.parametrize(
    ("record", "origin"),
    [
        (None, "recsys-budget"),
        ("", "recsys-budget"),
        ("{", "recsys-budget"),
        ({"url": "file://HERE/a%20b", "dir_info": {"editable": True}}, "HERE/a b"),
        ({"url": "file://HERE/gone", "dir_info": {}}, "recsys-budget"),
        ({"url": "file://HERE/x.whl", "archive_info": {}}, "recsys-budget"),
        ({"url": "https://host/owner/name", "vcs_info": {"vcs": "git"}}, "git+https://host/owner/name"),
    ],
)
def test_where_the_package_came_from_is_read_from_its_record(tmp_path, monkeypatch, record, origin):
    (tmp_path / "a b").mkdir()
    text = json.dumps(record).replace("HERE", tmp_path.as_posix()) if isinstance(record, dict) else record
    monkeypatch.setattr(
        "importlib.metadata.distribution", lambda name: SimpleNamespace(read_text=lambda file: text)
    )
    assert Machine().origin() == origin.replace("HERE", str(tmp_path))


def test_every_check_can_fail(tmp_path):
    """Each check has a fault above, or a test of its own below."""
    below = {"data", "solvers"}
    assert {check.__name__.strip("_") for check in doctor.CHECKS} == {f[0] for f in FAULTS} | below


def test_data_of_the_wrong_size_or_damaged_is_found(tmp_path):
    import recsys_budget.data as data

    short = SimpleNamespace(
        DATASETS=data.DATASETS,
        find_dataset=lambda name, data_home: None,
        load_dataset=lambda name, data_home: SimpleNamespace(n_users=3, n_items=2),
    )
    found = findings(tmp_path, "data", modules={"recsys_budget.data": short})
    assert found[0].status == "broken"
    assert "3 users instead of 4,000" in found[0].found
    assert "--force-reinstall" in found[0].advice
    assert "none" in found[-1].found
    assert "data fetch" in found[-1].advice
    (torn,) = findings(tmp_path, "data", spoilt={"recsys_budget.data": OSError("gone")})
    assert (torn.check, torn.status) == ("data", "broken")
    assert "gone" in torn.found


def test_published_data_is_found_where_it_lies(tmp_path):
    for name in ("ratings.dat", "movies.dat"):
        (tmp_path / "ml-1m").mkdir(exist_ok=True)
        (tmp_path / "ml-1m" / name).touch()
    (tmp_path / "ml-20m.zip").touch()
    patient = replace(machine(tmp_path), data_home=tmp_path)
    assert "published datasets: ml-1m, ml-20m;" in list(doctor._data(patient))[-1].found


def test_missing_frontiers_to_look_at_are_found(tmp_path):
    def gone():
        raise DataError("not there", path=tmp_path / "frontiers.zip")

    (hit,) = [
        finding
        for finding in findings(
            tmp_path, "data", modules={"recsys_budget.frontiers": SimpleNamespace(bundled_frontiers=gone)}
        )
        if finding.status == "warning"
    ]
    assert "frontiers to look at" in hit.found
    assert "--force-reinstall" in hit.advice


def test_a_package_that_is_there_and_broken_is_installed_again_and_a_missing_one_for_the_first_time(tmp_path):
    """Pip takes what is there for good, so that the same command would change nothing."""
    (spoilt,) = findings(tmp_path, "packages", spoilt={"sklearn": OSError("no DLL")})
    assert spoilt.advice.endswith("-m pip install --force-reinstall scikit-learn")
    (missing,) = findings(tmp_path, "packages", absent=("numpy",))
    assert missing.advice.endswith('-m pip install "recsys-budget"')
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "REQUIREMENTS", (*REQUIREMENTS, "opacus; extra == 'train'"))
        (both,) = [
            f
            for f in findings(tmp_path, "extras", spoilt={"torch": OSError("no DLL")})
            if f.status == "warning"
        ]
    first, second = both.advice.split("; then ")
    assert first.endswith("--force-reinstall torch")
    assert second.endswith('"recsys-budget[train]"')


def test_a_solver_that_answers_wrongly_is_found(tmp_path):
    import recsys_budget

    class Wrong(recsys_budget.Reranker):
        def rerank(self, candidates, catalogue, **options):
            slates = super().rerank(candidates, catalogue, **options)
            return replace(slates, frame=slates.frame.assign(item=["a", "b"]))

    names = ("ItemCatalogue", "EngagementDiversity", "SlateSize", "CategoryMinimum")
    budget = SimpleNamespace(Reranker=Wrong, **{name: getattr(recsys_budget, name) for name in names})
    found = findings(tmp_path, "solvers", modules={"recsys_budget": budget})
    assert [f.status for f in found] == ["ok", "broken"]
    assert "['a', 'b'] where a, c is best" in found[1].found


def test_a_folder_that_cannot_be_written_to_is_found(tmp_path):
    (tmp_path / "file").touch()
    (found,) = findings(tmp_path / "file", "ledger")
    assert found.status == "broken"
    assert "cannot be written to" in found.found


def test_the_lock_is_really_held_against_another_process(tmp_path):
    """The question has power: without the first process's lock the second one takes it."""
    asked = []

    class Unlocked(Healthy):
        def run(self, code, *arguments):
            copy = tmp_path / "copy.db"
            copy.write_bytes(Path(arguments[0]).read_bytes())
            asked.append(super().run(code, str(copy)))
            return asked[-1]

    (found,) = doctor._ledger(Unlocked(folder=tmp_path))
    assert asked == ["taken"]
    assert found.status == "broken"


def test_a_check_that_fails_itself_stops_no_other(tmp_path):
    found = findings(tmp_path, "solvers", "memory", spoilt={"cvxpy": RuntimeError("a\nb")})
    assert found[0].status == "broken"
    assert found[0].found == "cannot be looked at: RuntimeError: a b"
    assert {finding.check for finding in found[1:]} == {"memory", "cores"}


# --- the real computer ------------------------------------------------------------------------------------


def test_real_answers_have_their_kinds(tmp_path):
    real = Machine(folder=tmp_path)
    total, free = real.memory_gib()
    assert total is None or 0.1 < total < 1e5
    assert free is None or (total is not None and 0 < free <= total)
    assert real.cores() >= 1
    assert real.requires_python().startswith(">=3.")
    assert any(text.startswith("cvxpy") for text in real.requirements())
    assert real.version("numpy")
    assert real.version("no-such-package-anywhere") is None
    assert real.run("print(1 + 1)") == "2"


def test_lab_extensions_and_settings_are_read_from_files(tmp_path):
    for name in ("@scope/one", "two"):
        (tmp_path / "ext" / name).mkdir(parents=True)
        (tmp_path / "ext" / name / "package.json").touch()
    (tmp_path / "ext" / "no-manifest").mkdir()
    pages = {"a": {"disabledExtensions": ["two"]}, "b": {"disabledExtensions": {"x": True, "y": False}}}
    for folder, page in pages.items():
        (tmp_path / folder / "labconfig").mkdir(parents=True)
        (tmp_path / folder / "labconfig" / "page_config.json").write_text(json.dumps(page))
    paths = SimpleNamespace(
        jupyter_path=lambda what: [str(tmp_path / "ext"), str(tmp_path / "nowhere")],
        jupyter_config_path=lambda: [str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "nowhere")],
    )

    class Here(Machine):
        def load(self, module):
            assert module == "jupyter_core.paths"
            return paths

    assert Here().lab_extensions() == {"@scope/one", "two"}
    assert Here().disabled_extensions() == {"two", "x"}


# --- the command ------------------------------------------------------------------------------------------


def only(monkeypatch, *found):
    monkeypatch.setattr(doctor, "examine", lambda machine: iter(found))


GOOD = doctor.Finding("python", "ok", "3.12")
WARNING = doctor.Finding("memory", "warning", "2.0 GiB", "close other programs")
BROKEN = doctor.Finding("packages", "broken", "numpy is not installed", "pip install recsys-budget")


@pytest.mark.parametrize(
    ("found", "words", "code"),
    [
        ((GOOD,), [], 0),
        ((GOOD, WARNING), [], 0),
        ((GOOD, WARNING), ["--strict"], 1),
        ((GOOD, BROKEN), [], 1),
        ((GOOD,), ["--strict"], 0),
    ],
)
def test_exit_codes(monkeypatch, capsys, found, words, code):
    only(monkeypatch, *found)
    assert main(["doctor", *words]) == code
    said = capsys.readouterr().out
    assert said.splitlines()[-1].startswith("Ready" if code == 0 else "Not ready")
    for finding in found:
        assert finding.found in said
        assert finding.advice in said
    assert main(["doctor", *words, "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["ready"] == (code == 0)
    assert [one["status"] for one in told["findings"]] == [finding.status for finding in found]


def test_wrong_usage_exits_with_2(capsys):
    with pytest.raises(SystemExit) as done:
        main(["doctor", "--nothing"])
    assert done.value.code == 2
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "doctor" in capsys.readouterr().out


def test_the_doctor_runs_where_the_packages_are_missing(tmp_path):
    """Of what the core needs little is there, and nothing is asked of a network."""
    code = """
import socket, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numpy", "pandas", "cvxpy", "torch", "numba", "pyarrow"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def refuse(*arguments, **options):
    raise AssertionError("the network")

sys.meta_path.insert(0, Absent())
socket.socket.connect = socket.getaddrinfo = refuse
from recsys_budget.cli.main import main
from recsys_budget.errors import DataError
sys.exit(main(["doctor", "--json", "--folder", sys.argv[1]]))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    broken = [one["found"] for one in told["findings"] if one["status"] == "broken"]
    assert any("numpy" in words and "cannot be imported" in words for words in broken)
    assert "the network" not in done.stdout
    assert [one for one in told["findings"] if one["check"] == "memory"]


@pytest.mark.parametrize(
    ("seconds", "kept", "status", "said"),
    [
        (0.3, True, "ok", "kernels are ready"),
        (22.0, True, "ok", "compiled in 22 s, and kept"),
        (22.0, False, "warning", "compiled anew each time, which took 22 s"),
    ],
)
def test_kernels_are_compiled_before_the_lesson(tmp_path, seconds, kept, status, said):
    warm = SimpleNamespace(warm_kernels=lambda: seconds, kernels_kept=lambda: kept)
    (_, finding) = findings(tmp_path, "numba", modules={"recsys_budget.rerank.warm": warm})
    assert (finding.status, said in finding.found) == (status, True)
    assert ("NUMBA_CACHE_DIR" in finding.advice) == (not kept)
