"""Importing is light, names resolve, and a missing extra names the command that brings it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import recsys_budget
from recsys_budget._extras import extra
from recsys_budget.errors import MissingExtraError, RecsysBudgetError


def in_fresh_process(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import recsys_budget", ("torch", "cvxpy", "matplotlib", "numpy", "pandas", "sklearn")),
        ("import recsys_budget.data, recsys_budget.metrics", ("torch", "cvxpy", "matplotlib", "ranx")),
        ("import recsys_budget.constraints", ("torch", "cvxpy", "matplotlib")),
        ("import recsys_budget.privacy", ("torch", "cvxpy", "matplotlib", "opacus", "dp_accounting")),
        ("from recsys_budget import Reranker, SlateSize", ("torch", "opacus", "matplotlib")),
        ("from recsys_budget import Popularity, EASE", ("torch", "opacus", "cvxpy")),
        ("from recsys_budget.models import PrivateALS, ImplicitALS", ("torch", "cvxpy", "implicit")),
        ("from recsys_budget import Frontier", ("torch", "opacus", "matplotlib.pyplot")),
        ("import recsys_budget.cli.main", ("torch", "cvxpy", "matplotlib")),
    ],
)
def test_importing_loads_no_more_than_needed(statement, absent):
    done = in_fresh_process(f"{statement}\nimport sys\nprint(*(m for m in {absent!r} if m in sys.modules))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_every_public_name_resolves_and_the_rest_is_refused():
    for name in recsys_budget.__all__:
        assert getattr(recsys_budget, name) is not None
    assert set(recsys_budget.__all__) <= set(dir(recsys_budget))
    with pytest.raises(AttributeError):
        recsys_budget.Manager  # noqa: B018


@pytest.mark.parametrize(
    ("blocked", "code", "name"),
    [
        ("torch", "from recsys_budget import PrivateAutoencoder", "train"),
        ("opacus", "import recsys_budget.training", "train"),
        (
            "dp_accounting",
            "from recsys_budget.privacy import *\n"
            "PrivacyLedger(PrivacyBudget(1, 1e-6)).fits([SampledGaussianMechanism(9, 0.1, 5)])",
            "train",
        ),
        (
            "ranx",
            "import pandas as pd; from recsys_budget import Interactions\n"
            "from recsys_budget.metrics import ranking_metrics\n"
            "f = pd.DataFrame({'user': ['u'], 'item': ['i']})\n"
            "ranking_metrics(f.assign(rank=1), Interactions.from_frame(f))",
            "metrics",
        ),
        (
            "implicit",
            "import pandas as pd; from recsys_budget import Interactions\n"
            "from recsys_budget.models import ImplicitALS\n"
            "ImplicitALS().fit(Interactions.from_frame(pd.DataFrame({'user': ['u'], 'item': ['i']})))",
            "compare",
        ),
    ],
)
def test_a_missing_extra_names_the_command(blocked, code, name):
    done = in_fresh_process(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {blocked!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"try:\n    exec({code!r})\nexcept ImportError as error:\n    print(type(error).__name__, error)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("MissingExtraError"), done.stdout + done.stderr
    assert f'pip install "recsys-budget[{name}]"' in done.stdout
    assert repr(blocked) in done.stdout


def test_other_missing_modules_are_bugs_and_stay_what_they_are():
    with pytest.raises(ModuleNotFoundError, match="no_such_module") as caught, extra("train"):
        import no_such_module  # noqa: F401
    assert not isinstance(caught.value, RecsysBudgetError)
    assert issubclass(MissingExtraError, ImportError)
