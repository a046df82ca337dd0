"""Named datasets: official layouts from folders and archives, and what to do when they are absent."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import pytest

from recsys_budget.data import datasets
from recsys_budget.data.datasets import DATASETS, load_dataset
from recsys_budget.data.interactions import Interactions
from recsys_budget.errors import DataError, SpecificationError

Files = dict[str, bytes]


def _flags(*positions: int) -> str:
    return "|".join(str(int(n in positions)) for n in range(19))


BUNDLED: Files = {
    "interactions.csv": b"user,item,rating,timestamp\n007,i1,4,100\n7,i2,3.5,200\nNA,i1,1,300\n",
    "items.csv": b'item,title,categories,provider\ni1,"One, two",a|b,P\ni2,Two,b,\ni3,Three,,Q\n',
}
ML_100K: Files = {
    "u.data": b"1\t20\t5\t881250949\n10\t3\t1\t881250950\n2\t3\t4\t881250951\n",
    "u.item": (
        f"3|Misérables, Les (1995)|01-Jan-1995||http://x|{_flags(8, 12)}\n"
        f"20|unknown||||{_flags(0)}\n"
        f'100|"Quoted" (1995)|||http://x|{_flags()}\n'
    ).encode("latin-1"),
    "u.genre": b"".join(f"{g}|{n}\n".encode() for n, g in enumerate(datasets._GENRES_100K)) + b"\n",
}
ML_1M: Files = {
    "ratings.dat": b"1::20::5::978300760\n10::3::1::978300761\n2::3::4::978300762\n",
    "movies.dat": (
        "3::Misérables, Les: Part 1 (1995)::Drama|Musical\n20::Heat (1995)::Action\n100::X::Drama\n"
    ).encode("latin-1"),
}
ML_10M: Files = {
    "ratings.dat": ML_1M["ratings.dat"].replace(b"::1::", b"::0.5::"),
    "movies.dat": ML_1M["movies.dat"].decode("latin-1").replace("::Action", "::(no genres listed)").encode(),
}
ML_25M: Files = {
    "ratings.csv": b"userId,movieId,rating,timestamp\r\n1,20,5.0,1\r\n10,3,0.5,2\r\n2,3,4.0,3\r\n",
    "movies.csv": (
        'movieId,title,genres\r\n3,"Misérables, Les (""1995"")",Drama|Musical\r\n'
        "20,Heat,(no genres listed)\r\n100,X,Drama\r\n"
    ).encode(),
}
GOODBOOKS: Files = {
    "to_read.csv": b"user_id,book_id\n1,20\n10,3\n2,3\n",
    "books.csv": (
        "book_id,goodreads_book_id,authors,title\n"
        '3,1,"J.K. Rowling, Mary GrandPré","Harry Potter, #1"\n20,2,Zoë Y,Dune\n100,3,,X\n'
    ).encode(),
    "book_genres_derived.csv.gz": gzip.compress(
        b"book_id,genre,share\n3,fantasy,0.6\n3,classics,0.1\n100,x,1\n"
    ),
}
LAYOUTS = {
    "bundled": ("bundled", BUNDLED),
    "ml-100k": ("ml-100k", ML_100K),
    "ml-1m": ("ml-1m", ML_1M),
    "ml-10m": ("ml-10M100K", ML_10M),
    "ml-20m": ("ml-20m", ML_25M),
    "ml-25m": ("ml-25m", ML_25M),
    "ml-latest-small": ("ml-latest-small", ML_25M),
    "goodbooks-10k": ("goodbooks-10k", GOODBOOKS),
}


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the datasets of whoever runs it, except through ``data_home``."""
    monkeypatch.delenv("RECSYS_BUDGET_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "recsys_budget"


def put(folder: Path, files: Files) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def pack(path: Path, files: Files, folder: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**files, "README.html": b"read me"}.items():
            archive.writestr(folder + name, content)
    return path


def check(name: str, table: Interactions) -> None:
    catalogue = table.catalogue.to_frame()
    assert table.unaccounted == ()
    if name == "bundled":
        assert list(table.users) == ["7", "NA", "007"]
        assert catalogue["title"].tolist() == ["One, two", "Two", "Three"]
        assert catalogue["categories"].tolist() == [["a", "b"], ["b"], []]
        assert catalogue["provider"].tolist() == ["P", None, "Q"]
        return
    pairs = table.to_frame()
    assert pairs["user"].tolist() == ["1", "2", "10"]
    assert pairs["item"].tolist() == ["20", "3", "3"]
    assert catalogue["item"].tolist() == (["3", "20", "100"])
    if name == "goodbooks-10k":
        assert list(pairs) == ["user", "item"]
        assert catalogue["title"].tolist() == ["Harry Potter, #1", "Dune", "X"]
        assert catalogue["provider"].tolist() == ["J.K. Rowling", "Zoë Y", None]
        assert catalogue["categories"].tolist() == [["classics", "fantasy"], [], ["x"]]
        return
    assert table.timestamps is not None
    assert (table.timestamps > 0).all()
    half_stars = name not in ("ml-100k", "ml-1m")
    assert pairs["rating"].tolist() == [5.0, 4.0, 0.5 if half_stars else 1.0]
    assert catalogue["title"][0].startswith("Misérables, Les")
    assert catalogue["categories"][0] == ["Drama", "Musical"]
    assert catalogue["categories"][1] == {"ml-100k": ["unknown"], "ml-1m": ["Action"]}.get(name, [])


# Where datasets are found


@pytest.mark.parametrize("name", DATASETS)
def test_every_layout_from_a_folder(name: str, tmp_path: Path) -> None:
    folder, files = LAYOUTS[name]
    put(tmp_path / folder, files)
    check(name, load_dataset(name, data_home=tmp_path))


@pytest.mark.parametrize("name", DATASETS)
def test_every_layout_from_the_very_folder(name: str, tmp_path: Path) -> None:
    check(name, load_dataset(name, data_home=put(tmp_path / "mine", LAYOUTS[name][1])))


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"bundled"}))
def test_every_layout_from_an_archive(name: str, tmp_path: Path) -> None:
    folder, files = LAYOUTS[name]
    archive = pack(tmp_path / f"{name}.zip", files, f"{folder}/")
    check(name, load_dataset(name, data_home=str(tmp_path)))
    assert {path.name for path in (tmp_path / name).iterdir()} == set(files)
    archive.unlink()
    check(name, load_dataset(name, data_home=tmp_path))


def test_the_home_is_the_variable_or_else_the_cache(
    tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(own_home / "ml-1m", ML_1M)
    check("ml-1m", load_dataset("ml-1m"))
    monkeypatch.setenv("RECSYS_BUDGET_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError):
        load_dataset("ml-1m")
    put(tmp_path / "elsewhere" / "ml-1m", ML_1M)
    check("ml-1m", load_dataset("ml-1m"))
    monkeypatch.delenv("RECSYS_BUDGET_DATA")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / ".cache" / "recsys_budget" / "ml-100k", ML_100K)
    check("ml-100k", load_dataset("ml-100k"))


def test_files_of_one_dataset_are_not_taken_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_BUDGET_DATA", str(put(tmp_path / "ml-latest-small", ML_25M)))
    with pytest.raises(DataError):
        load_dataset("ml-25m")


def test_an_archive_in_a_place_that_is_not_writable(
    tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "read-only"
    archive = pack(home / "ml-1m.zip", ML_1M, "ml-1m/")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != home)
    check("ml-1m", load_dataset("ml-1m", data_home=home))
    assert list(home.iterdir()) == [archive]
    assert {path.name for path in (own_home / "ml-1m").iterdir()} == set(ML_1M)
    archive.unlink()
    check("ml-1m", load_dataset("ml-1m", data_home=home))


def test_no_file_of_genres_means_the_official_ones(tmp_path: Path) -> None:
    put(tmp_path / "ml-100k", {name: ML_100K[name] for name in ("u.data", "u.item")})
    table = load_dataset("ml-100k", data_home=tmp_path)
    check("ml-100k", table)
    assert table.catalogue.category_names == datasets._GENRES_100K


def test_goodbooks_without_genres(tmp_path: Path) -> None:
    put(tmp_path / "goodbooks-10k", {name: GOODBOOKS[name] for name in ("to_read.csv", "books.csv")})
    assert load_dataset("goodbooks-10k", data_home=tmp_path).catalogue.category_names == ()


def test_the_bundled_data_needs_no_home() -> None:
    table = load_dataset("bundled")
    assert table.n_users > 0
    assert table.unaccounted == ()


# What is absent or broken


def test_absent_and_offline_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset("ml-100k", data_home=tmp_path)
    message = str(caught.value)
    assert caught.value.path == tmp_path
    for part in (
        f"u.data, u.item into {tmp_path}/ml-100k",
        f"https://files.grouplens.org/datasets/movielens/ml-100k.zip at {tmp_path}/ml-100k.zip",
        "load_dataset('ml-100k', download=True)",
        "recsys-budget data fetch ml-100k",
    ):
        assert part in message
    assert list(tmp_path.iterdir()) == []


def test_unknown_name() -> None:
    with pytest.raises(SpecificationError, match="'netflix'; there are bundled, ml-100k"):
        load_dataset("netflix")


def test_half_a_folder_is_not_a_dataset(tmp_path: Path) -> None:
    put(tmp_path / "ml-1m", {"movies.dat": ML_1M["movies.dat"]})
    with pytest.raises(DataError, match=r"put ratings\.dat, movies\.dat into"):
        load_dataset("ml-1m", data_home=tmp_path)
    pack(tmp_path / "ml-1m.zip", ML_1M)
    with pytest.raises(DataError, match="is in the way"):
        load_dataset("ml-1m", data_home=tmp_path)


def test_a_truncated_archive_leaves_nothing(tmp_path: Path) -> None:
    archive = pack(tmp_path / "ml-1m.zip", ML_1M)
    archive.write_bytes(archive.read_bytes()[:-50])
    with pytest.raises(DataError) as caught:
        load_dataset("ml-1m", data_home=tmp_path)
    assert caught.value.path == archive
    assert list(tmp_path.iterdir()) == [archive]


MALFORMED = [
    ("ml-100k", "u.data", b"1\t20\t5\t881250949\n\n1\t20\tnan\t1\n", 3, "rating"),
    ("ml-100k", "u.data", b"1\t20\t5\t881250949\n1\t20\tinf\t1\n", 2, "rating"),
    ("ml-100k", "u.data", b"1,20,5,881250949\n", 1, "movieId"),
    ("ml-100k", "u.data", b"1\t20\t5\n", 1, "timestamp"),
    ("ml-100k", "u.data", b"1\t20\t5\tnoon\n", 1, "timestamp"),
    ("ml-100k", "u.data", b"1\t20\t5\t1\n1\t21\t5\t1\n", 2, "movieId"),
    ("ml-100k", "u.data", b"", None, None),
    (
        "ml-100k",
        "u.item",
        ML_100K["u.item"].replace(b"|1\n", b"|2\n").replace(b"|0\n", b"|x\n"),
        1,
        "Western",
    ),
    ("ml-100k", "u.item", ML_100K["u.item"].replace(b"20|unknown|", b"20|un|known|"), 2, None),
    ("ml-100k", "u.item", ML_100K["u.item"].replace(b"20|unknown", b"|unknown"), 2, "movieId"),
    ("ml-1m", "ratings.dat", b"1::20::5::978300760\n1::3::five::1\n", 2, "rating"),
    ("ml-1m", "ratings.dat", b"1:20:5:978300760\n", 1, "movieId"),
    ("ml-1m", "ratings.dat", b"1::20::5::978300760\n::3::5::1\n", 2, "userId"),
    ("ml-1m", "movies.dat", ML_1M["movies.dat"].replace(b"Heat", b"He::at"), 2, None),
    ("ml-10m", "movies.dat", ML_1M["movies.dat"], 1, "title"),
    ("ml-25m", "ratings.csv", ML_25M["ratings.csv"].replace(b",rating", b",stars"), 1, "rating"),
    ("ml-25m", "ratings.csv", ML_25M["ratings.csv"].replace(b",", b";"), 1, "userId"),
    ("ml-25m", "ratings.csv", ML_25M["ratings.csv"].replace(b"0.5", b"-inf"), 3, "rating"),
    ("ml-25m", "movies.csv", ML_25M["movies.csv"].decode().encode("latin-1"), 2, "title"),
    ("ml-25m", "movies.csv", b"movieId,title\n3,X\n", 1, "genres"),
    ("goodbooks-10k", "to_read.csv", b"user_id,book\n1,3\n", 1, "book_id"),
    ("goodbooks-10k", "to_read.csv", b"user_id,book_id\n1,3\n\n1,4\n", 4, "book_id"),
    ("goodbooks-10k", "books.csv", b"book_id,title\n3,X\n", 1, "authors"),
    ("bundled", "interactions.csv", b"user,item,rating\nu,i1,NaN\n", 2, "rating"),
    ("bundled", "items.csv", b"title\nX\n", 1, "item"),
]


@pytest.mark.parametrize(("name", "file", "content", "line", "column"), MALFORMED)
def test_malformed_files_are_named_with_line_and_column(
    name: str, file: str, content: bytes, line: int | None, column: str | None, tmp_path: Path
) -> None:
    folder = put(tmp_path / name, {**LAYOUTS[name][1], file: content})
    with pytest.raises(DataError) as caught:
        load_dataset(name, data_home=tmp_path)
    assert (caught.value.path, caught.value.line, caught.value.column) == (folder / file, line, column)


# Fetching


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The archive of ml-1m, published by a server on this machine in place of the official one."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    archive = pack(tmp_path / "server" / "ml-1m.zip", ML_1M, "ml-1m/")
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(archive.parent)))
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    ours = replace(
        DATASETS["ml-1m"],
        url=f"http://127.0.0.1:{httpd.server_port}/ml-1m.zip",
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
    )
    monkeypatch.setattr(datasets, "DATASETS", MappingProxyType({**DATASETS, "ml-1m": ours}))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield archive
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_fetched_only_when_asked_and_kept(published: Path, own_home: Path) -> None:
    with pytest.raises(DataError):
        load_dataset("ml-1m")
    check("ml-1m", load_dataset("ml-1m", download=True))
    assert [path.name for path in own_home.iterdir()] == ["ml-1m"]
    published.unlink()
    check("ml-1m", load_dataset("ml-1m"))


def test_a_fetched_archive_with_another_hash_is_not_kept(published: Path, own_home: Path) -> None:
    pack(published, {**ML_1M, "ratings.dat": b"forged"}, "ml-1m/")
    with pytest.raises(DataError, match="has SHA-256"):
        load_dataset("ml-1m", download=True)
    assert list(own_home.iterdir()) == []
    theirs = hashlib.sha256(published.read_bytes()).hexdigest()
    with pytest.raises(DataError, match="1 fields, but 4 are expected"):
        load_dataset("ml-1m", download=True, sha256=theirs)


def test_nothing_is_fetched_without_a_hash(
    published: Path, monkeypatch: pytest.MonkeyPatch, own_home: Path
) -> None:
    unknown = replace(datasets.DATASETS["ml-1m"], sha256=None)
    monkeypatch.setattr(datasets, "DATASETS", MappingProxyType({"ml-1m": unknown}))
    with pytest.raises(DataError, match=r"sha256=\.\.\."):
        load_dataset("ml-1m")
    with pytest.raises(SpecificationError, match="pass sha256="):
        load_dataset("ml-1m", download=True)
    assert not own_home.exists()
    known = hashlib.sha256(published.read_bytes()).hexdigest()
    check("ml-1m", load_dataset("ml-1m", download=True, sha256=known))


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"bundled"}))
def test_what_is_published_has_an_https_address_and_a_cap(name: str) -> None:
    dataset = DATASETS[name]
    assert dataset.name == name
    assert dataset.url is not None
    assert dataset.url.startswith("https://")
    assert dataset.max_archive_bytes > 0
    assert dataset.sha256 is None or len(bytes.fromhex(dataset.sha256)) == 32
    assert dataset.licence
    assert dataset.citation


# The published files themselves

PUBLISHED = [
    ("ml-100k", (943, 1682, 100_000, 19), "543", "Misérables, Les (1995)", None),
    ("ml-1m", (6040, 3883, 1_000_209, 18), "73", "Misérables, Les (1995)", None),
    ("goodbooks-10k", (48_871, 10_000, 912_705, 28), "3", "Twilight (Twilight, #1)", "Stephenie Meyer"),
]


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "counts", "item", "title", "provider"), PUBLISHED)
def test_published_files(
    name: str,
    counts: tuple[int, int, int, int],
    item: str,
    title: str,
    provider: str | None,
    data_home: Path,
) -> None:
    table = load_dataset(name, data_home=data_home)
    assert (table.n_users, table.n_items, len(table), len(table.catalogue.category_names)) == counts
    assert table.unaccounted == ()
    row = table.catalogue.to_frame().set_index("item").loc[item]
    assert (row["title"], row["provider"]) == (title, provider)


@pytest.mark.real_data
def test_published_files_from_an_archive(data_home: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "ml-100k"), "zip", data_home, "ml-100k")
    assert len(load_dataset("ml-100k", data_home=tmp_path)) == 100_000
