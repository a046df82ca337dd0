"""Archives from elsewhere: the right bytes land whole, anything else leaves nothing behind."""

from __future__ import annotations

import hashlib
import stat
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_budget.data.archive import extract, fetch
from recsys_budget.errors import DataError

BODY = bytes(range(256)) * 10_000
SHA256 = hashlib.sha256(BODY).hexdigest()


class _Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        if self.path == "/absent":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path != "/unannounced":
            self.send_header("Content-Length", str(len(BODY) + (self.path == "/short")))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def refused(call: Callable[[], object], folder: Path) -> DataError:
    """The DataError of a call, which leaves the folder as it was."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(DataError) as caught:
        call()
    assert sorted(folder.rglob("*")) == before
    return caught.value


# Fetching


@pytest.mark.parametrize("page", ["file", "unannounced", "to//file"])
def test_fetches_what_has_the_right_hash(server: str, page: str, tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.zip"
    fetch(f"{server}/{page}", sha256=SHA256.upper(), target=target, max_bytes=len(BODY))
    assert target.read_bytes() == BODY
    assert list(target.parent.iterdir()) == [target]


def test_a_wrong_hash_names_both_and_keeps_nothing(server: str, tmp_path: Path) -> None:
    target = tmp_path / "a.zip"
    target.write_bytes(b"old")
    other = hashlib.sha256(b"other").hexdigest()
    error = refused(
        lambda: fetch(f"{server}/file", sha256=other, target=target, max_bytes=len(BODY)), tmp_path
    )
    assert SHA256 in str(error)
    assert other in str(error)
    assert error.path == target
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("page", ["file", "unannounced"])
def test_too_large(server: str, page: str, tmp_path: Path) -> None:
    error = refused(
        lambda: fetch(f"{server}/{page}", sha256=SHA256, target=tmp_path / "a", max_bytes=len(BODY) - 1),
        tmp_path,
    )
    assert f"more than the {len(BODY) - 1} bytes allowed" in str(error)


def test_fewer_bytes_than_announced(server: str, tmp_path: Path) -> None:
    error = refused(
        lambda: fetch(f"{server}/short", sha256=SHA256, target=tmp_path / "a", max_bytes=10**9), tmp_path
    )
    assert f"{len(BODY)} of {len(BODY) + 1} bytes" in str(error) or "IncompleteRead" in str(error)


def test_no_such_page(server: str, tmp_path: Path) -> None:
    error = refused(
        lambda: fetch(f"{server}/absent", sha256=SHA256, target=tmp_path / "a", max_bytes=10**9), tmp_path
    )
    assert "404" in str(error)


def test_nobody_answers(tmp_path: Path) -> None:
    error = refused(
        lambda: fetch("http://127.0.0.1:9/a", sha256=SHA256, target=tmp_path / "a", max_bytes=1), tmp_path
    )
    assert "cannot fetch http://127.0.0.1:9/a" in str(error)


@pytest.mark.parametrize(
    "url",
    ["http://example.org/a", "file:///etc/hostname", "ftp://example.org/a", "http://127.0.0.1.example.org/"],
)
def test_only_https(server: str, url: str, tmp_path: Path) -> None:
    error = refused(lambda: fetch(url, sha256=SHA256, target=tmp_path / "a", max_bytes=9), tmp_path)
    assert f"{url} is not an https address" in str(error)
    error = refused(
        lambda: fetch(f"{server}/to/{url}", sha256=SHA256, target=tmp_path / "a", max_bytes=9), tmp_path
    )
    assert "not allowed" in str(error)
    assert url in str(error)


# Unpacking


def archive(folder: Path, entries: dict[str | zipfile.ZipInfo, bytes]) -> Path:
    path = folder / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in entries.items():
            opened.writestr(name, content)
    return path


def unpack(path: Path, into: Path | None = None, **limits: int) -> Path:
    into = path.parent / "out" if into is None else into
    extract(path, into, members=["u.data", "u.item"], optional=["u.genre"], **{"max_bytes": 10**6, **limits})
    return into


WANTED: dict[str | zipfile.ZipInfo, bytes] = {"ml/u.data": b"1" * 5000, "ml/u.item": b"2" * 5000}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_the_wanted_files_are_unpacked(tmp_path: Path) -> None:
    path = archive(
        tmp_path, {"ml/": b"", **WANTED, "ml/u.genre": b"g", "ml/mku.sh": b"rm", "u.data": b"decoy"}
    )
    assert contents(unpack(path)) == {"u.data": b"1" * 5000, "u.item": b"2" * 5000, "u.genre": b"g"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "out"]


def test_files_at_the_top_come_before_those_deeper_down(tmp_path: Path) -> None:
    path = archive(tmp_path, {"u.data": b"d", "u.item": b"i", "samples/u.data": b"x", "samples/u.item": b"x"})
    assert contents(unpack(path)) == {"u.data": b"d", "u.item": b"i"}


def test_two_folders_with_the_files(tmp_path: Path) -> None:
    path = archive(tmp_path, {f"{folder}/{name}": b"" for folder in "ab" for name in ("u.data", "u.item")})
    assert "several folders (a/, b/)" in str(refused(lambda: unpack(path), tmp_path))


def test_a_member_is_missing(tmp_path: Path) -> None:
    path = archive(tmp_path, {"ml/u.data": b"d", "other/u.item": b"i"})
    error = refused(lambda: unpack(path), tmp_path)
    assert error.path == path
    assert "no folder with u.data, u.item" in str(error)


@pytest.mark.parametrize(
    "name",
    ["../u.data", "ml/../../u.genre", "/etc/u.data", "C:/u.data", "c:u.data", "..\\u.data", "\\\\h\\u"],
)
def test_names_that_lead_out(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path, {**WANTED, name: b"evil"})
    error = refused(lambda: unpack(path), tmp_path.parent)
    assert error.path == path
    assert repr(name) in str(error)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices(tmp_path: Path, kind: int) -> None:
    link = zipfile.ZipInfo("ml/u.genre")
    link.external_attr = (kind | 0o777) << 16
    path = archive(tmp_path, {**WANTED, link: b"/etc/passwd"})
    assert "'ml/u.genre', which is a link or a device" in str(refused(lambda: unpack(path), tmp_path))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_listed_twice(tmp_path: Path) -> None:
    path = archive(tmp_path, WANTED)
    with zipfile.ZipFile(path, "a") as opened:
        opened.writestr("ml/u.data", b"other")
    assert "'ml/u.data' twice" in str(refused(lambda: unpack(path), tmp_path))


def test_too_many_entries(tmp_path: Path) -> None:
    path = archive(tmp_path, WANTED)
    assert "more than the 1 entries" in str(refused(lambda: unpack(path, max_files=1), tmp_path))


def test_too_many_bytes_over_all_members(tmp_path: Path) -> None:
    path = archive(tmp_path, WANTED)
    error = refused(lambda: unpack(path, max_bytes=9_999), tmp_path)
    assert error.path == path
    assert "'ml/u.item' unpacks to more than the bytes allowed (4999 left)" in str(error)
    assert len(contents(unpack(path, max_bytes=10_000))) == 2


def lie_about_size(path: Path, name: bytes, size: int) -> None:
    """Overwrite the unpacked size of an entry in both headers."""
    data = bytearray(path.read_bytes())
    local, central = data.index(name) - 30, data.rindex(name) - 46
    assert data[local : local + 4] == b"PK\x03\x04"
    assert data[central : central + 4] == b"PK\x01\x02"
    struct.pack_into("<I", data, local + 22, size)
    struct.pack_into("<I", data, central + 24, size)
    path.write_bytes(data)


def test_a_bomb_whose_headers_say_it_is_small(tmp_path: Path) -> None:
    path = archive(tmp_path, {**WANTED, "ml/u.genre": b"\0" * 10**8})
    lie_about_size(path, b"ml/u.genre", 10)
    assert path.stat().st_size < 200_000
    error = refused(lambda: unpack(path), tmp_path)
    assert "'ml/u.genre' cannot be unpacked" in str(error)


def test_a_bomb_that_says_so(tmp_path: Path) -> None:
    path = archive(tmp_path, {**WANTED, "ml/u.genre": b"\0" * 10**8})
    assert "'ml/u.genre' unpacks to more" in str(refused(lambda: unpack(path), tmp_path))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_without_bound(tmp_path: Path, method: int) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as opened:
        for name, content in WANTED.items():
            opened.writestr(name, content)
    assert "not deflated" in str(refused(lambda: unpack(path), tmp_path))


@pytest.mark.parametrize("keep", [0, 10, 100, -1])
def test_truncated(tmp_path: Path, keep: int) -> None:
    path = archive(tmp_path, WANTED)
    path.write_bytes(path.read_bytes()[:keep])
    error = refused(lambda: unpack(path), tmp_path)
    assert error.path == path
    assert "cannot be read as a zip archive" in str(error)


def test_bytes_that_disagree_with_their_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as opened:
        for name, content in WANTED.items():
            opened.writestr(name, content)
    path.write_bytes(path.read_bytes().replace(b"22222", b"22322", 1))
    error = refused(lambda: unpack(path), tmp_path)
    assert error.path == path
    assert "'ml/u.item' cannot be unpacked: Bad CRC-32" in str(error)


def test_a_name_that_is_not_text(tmp_path: Path) -> None:
    path = archive(tmp_path, {**WANTED, "ml/u.gîn": b""})
    path.write_bytes(path.read_bytes().replace("gîn".encode(), b"g\xff\xffn"))
    assert "'utf-8' codec can't decode" in str(refused(lambda: unpack(path), tmp_path))


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (6, 0xFF, "zip file version 25.5"),
        (8, 0x01, "is encrypted or not deflated"),
        (8, 0x20, "compressed patched data"),
        (10, 0x63, "is encrypted or not deflated"),
    ],
)
def test_entries_that_ask_for_more_than_a_plain_zip(
    tmp_path: Path, offset: int, value: int, reason: str
) -> None:
    path = archive(tmp_path, WANTED)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + offset] = value  # version, flags or method of the first entry
    path.write_bytes(data)
    assert reason in str(refused(lambda: unpack(path), tmp_path))


def test_no_such_archive(tmp_path: Path) -> None:
    assert "No such file" in str(refused(lambda: unpack(tmp_path / "a.zip"), tmp_path))


@settings(deadline=None, max_examples=300)
@given(
    damage=st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 255)), max_size=4), cut=st.integers(0, 9)
)
def test_damage_is_noticed_or_harmless(
    damage: list[tuple[int, int]], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    path = archive(folder, {**WANTED, "ml/u.genre": b"genre"})
    data = bytearray(path.read_bytes())
    for position, value in damage:
        data[position % len(data)] = value
    path.write_bytes(data[: len(data) - cut])
    try:
        out = contents(unpack(path))
    except DataError:
        assert list(folder.iterdir()) == [path]
    else:
        whole = {"u.data": b"1" * 5000, "u.item": b"2" * 5000, "u.genre": b"genre"}
        assert {"u.data", "u.item"} <= out.keys()
        assert all(whole[name] == content for name, content in out.items())


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    path = archive(tmp_path, WANTED)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_bytes(b"!")
    error = refused(lambda: unpack(path), tmp_path)
    assert error.path == out
    assert "in the way" in str(error)


def test_another_process_was_faster(tmp_path: Path) -> None:
    path = archive(tmp_path, WANTED)
    assert contents(unpack(path)) == contents(unpack(path))


def test_a_crash_half_way_leaves_no_dataset(tmp_path: Path) -> None:
    path = archive(tmp_path, WANTED)
    program = f"""
import os, pathlib
from recsys_budget.data import archive
unpack = archive._unpack
def crash(opened, info, target, room, path):
    size = unpack(opened, info, target, room, path)
    if target.name == "u.item":
        os._exit(7)
    return size
archive._unpack = crash
archive.extract(
    pathlib.Path({str(path)!r}),
    pathlib.Path({str(tmp_path / "out")!r}),
    members=["u.data", "u.item"],
    max_bytes=10**6,
)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 7
    assert not (tmp_path / "out").exists()
    assert len(contents(unpack(path))) == 2
