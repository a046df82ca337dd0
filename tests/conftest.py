"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")


@pytest.fixture(scope="session")
def data_home() -> Path:
    """Folder with the published datasets; tests that need it skip, visibly, where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    home = Path(os.environ.get("RECSYS_BUDGET_DATA", beside))
    if not home.is_dir():
        pytest.skip(f"published datasets not found in {home}; set RECSYS_BUDGET_DATA")
    return home
