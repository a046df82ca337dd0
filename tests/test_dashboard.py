"""What a visitor of the dashboard can do: move sliders. Neither read files nor run code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
from servers import PATIENCE, free_port, served

from recsys_budget.cli import dashboard
from recsys_budget.constraints import CategoryMinimum, Policy, SlateSize

pytestmark = [
    pytest.mark.skipif(
        find_spec("voila") is None or find_spec("websocket") is None,
        reason="needs voila and websocket-client",
    ),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # the server's own
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of a dashboard that serves files of its own, beside others that it must not serve."""
    folder = tmp_path_factory.mktemp("files")
    pd.DataFrame(
        {
            "user": np.repeat(["u1", "u2"], 6),
            "item": [f"i{n}" for n in range(6)] * 2,
            "relevance": np.arange(12) / 12,
        }
    ).to_csv(folder / "candidates.csv", index=False)
    pd.DataFrame({"item": [f"i{n}" for n in range(6)], "categories": ["Drama", "News", "Music"] * 2}).to_csv(
        folder / "catalogue.csv", index=False
    )
    policy = Policy("test", [SlateSize(3), CategoryMinimum("Drama", 1)])
    (folder / "policy.yaml").write_text(policy.to_yaml(), encoding="utf-8")
    (folder / "secret.png").write_bytes(b"secret")
    port = free_port()
    words, environment, own = dashboard.command(
        folder / "candidates.csv",
        catalogue=folder / "catalogue.csv",
        policy=folder / "policy.yaml",
        port=port,
        browser=False,
    )
    with own, served(words, environment, port, folder / "log", folder):
        yield f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    "path",
    [
        "voila/files/secret.png", "voila/files/candidates.csv", "voila/files/dashboard.ipynb",
        "voila/files/..%2F..%2Fetc%2Fpasswd", "files/candidates.csv", "api/contents/", "api/kernels",
        "api/terminals", "tree", "lab", "edit/dashboard.ipynb",
    ],
)  # fmt: skip
def test_no_file_is_handed_out(site, path):
    try:
        with urllib.request.urlopen(f"http://{site}/{path}", timeout=PATIENCE) as answer:
            code, body = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        code, body = error.code, error.read()
    # Unknown addresses may be answered with the page itself, and with nothing else.
    assert code in (403, 404, 405) or (code == 200 and b"voila" in body.lower())
    assert b"secret" not in body.replace(b"secret.png", b"")
    assert b"relevance" not in body


def test_a_visitor_runs_no_code(site, tmp_path):
    import websocket

    with urllib.request.urlopen(f"http://{site}/", timeout=PATIENCE) as answer:
        page = answer.read().decode()
    kernel = re.search(r'"kernelId": ?"([0-9a-f-]{36})"', page)[1]
    channel = websocket.create_connection(
        f"ws://{site}/api/kernels/{kernel}/channels", timeout=5, http_proxy_host=None
    )

    def ask(kind: str, content: dict[str, object]) -> list[str]:
        """Kinds of the messages that come back until there is silence."""
        header = {"msg_id": kind, "username": "", "session": "visitor", "msg_type": kind, "version": "5.3"}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
        channel.send(json.dumps(message | {"channel": "shell", "buffers": []}))
        kinds = []
        while True:
            try:
                kinds.append(json.loads(channel.recv())["msg_type"])
            except websocket.WebSocketTimeoutException:
                return kinds

    # The line is open: what is allowed is answered ...
    assert "kernel_info_reply" in ask("kernel_info_request", {})
    # ... and code is not run.
    mark = tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w').close()"
    assert "execute_reply" not in ask("execute_request", {"code": code, "silent": False})
    assert not mark.exists()
    channel.close()


def test_the_first_look_needs_no_package_for_training():
    """What a newcomer installs first is ``.[notebook,fast]``; so the bundled frontiers open without torch."""
    code = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "opacus", "dp_accounting", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from recsys_budget.cli.dashboard import explorer
page = explorer()
page.value = {"diversity": 0.15}
print(page.result.certificate.largest_violation)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout) == 0.0
