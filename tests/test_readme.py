"""The README's example runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_python_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert re.search(r"epsilon (3\.99|4\.00)\d\d at delta 1\.0e-05", printed)
    assert "none violated" in printed
    assert len(names["slates"]) == 500
