"""Published datasets in their official layouts, from a local folder or archive, or fetched with a check."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import pandas as pd

from recsys_budget.data.archive import extract, fetch
from recsys_budget.data.catalogue import ItemCatalogue
from recsys_budget.data.files import DelimitedFile, read_catalogue, read_interactions
from recsys_budget.data.interactions import Interactions
from recsys_budget.data.synthetic import BUNDLED
from recsys_budget.errors import DataError, SpecificationError

_RATINGS = ("userId", "movieId", "rating", "timestamp")
_MOVIES = ("movieId", "title", "genres")
_YEAR = r"\((\d{4})\)\s*$"  # titles end in the year, but for a few
_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
# An installed wheel carries the folder inside the package, a checkout keeps it in data/.
_BUNDLED = (Path(__file__).parent / "bundled", Path(__file__).parents[2] / "data" / "bundled")


@dataclass(frozen=True)
class Dataset:
    """What is known of a dataset before it is read.

    Attributes:
        name: Its name here.
        n_users: Number of users that its publisher states: public, unlike a count of the rows.
        files: Files that its folder must hold.
        read: Reads such a folder.
        licence: What may be done with it, in a sentence.
        citation: What to cite.
        optional_files: Files that are used where present.
        folders: Names its folder goes by in a data home.
        places: Folders to look in whatever the data home.
        url: Official archive, or None.
        sha256: Hash of that archive, or None where no trustworthy source gives one.
        max_archive_bytes: Most bytes the archive may have; unpacked, ten times as many.
    """

    name: str
    n_users: int
    files: tuple[str, ...]
    read: Callable[[Path], Interactions]
    licence: str
    citation: str
    optional_files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    places: tuple[Path, ...] = ()
    url: str | None = None
    sha256: str | None = None
    max_archive_bytes: int = 0

    def is_in(self, folder: Path) -> bool:
        """Whether a folder holds all the files."""
        return all((folder / name).is_file() for name in self.files)

    def unpack(self, archive: Path, folder: Path) -> None:
        """Unpack the files of an archive into a new folder, all or nothing."""
        extract(
            archive,
            folder,
            members=self.files,
            optional=self.optional_files,
            max_bytes=10 * self.max_archive_bytes,
        )


def load_dataset(
    name: str,
    *,
    data_home: str | os.PathLike[str] | None = None,
    download: bool = False,
    sha256: str | None = None,
) -> Interactions:
    """Load a dataset by name, with its public catalogue, and ratings and times where it has them.

    Looks for the folder ``<data_home>/<name>`` (or under its official name), then for the files in
    ``data_home`` itself if that is given, then for the archive ``<data_home>/<name>.zip``, which is unpacked
    beside itself, or into the default home if that place cannot be written to. What is found is taken as it
    is; only what is fetched is held against a hash.

    Args:
        name: One of :data:`DATASETS`.
        data_home: Folder of datasets; None means the environment variable RECSYS_BUDGET_DATA, or else
            ``recsys_budget`` in the user's cache folder (XDG_CACHE_HOME, ``~/.cache``).
        download: Whether to fetch the official archive if the dataset is not there. Nothing is ever fetched
            otherwise.
        sha256: Hash that a fetched archive must have, in hexadecimal, in place of the known one.

    Returns:
        The interactions. Items are those that the dataset lists, rated or not, so ``unaccounted`` is empty.

    Raises:
        SpecificationError: An unknown name, or a download of what has no known hash without ``sha256``.
        DataError: The dataset is not there (the message says where to put it), cannot be fetched, or is
            malformed.
    """
    if name not in DATASETS:
        raise SpecificationError(f"no dataset is called {name!r}; there are {', '.join(DATASETS)}")
    dataset = DATASETS[name]
    home = _default_home() if data_home is None else Path(data_home).expanduser()
    store = _store(name, home)
    found = find_dataset(name, data_home=data_home)
    if found is not None and found.is_dir():
        return dataset.read(found)
    if found is not None:
        dataset.unpack(found, store)
    elif download and dataset.url is not None:
        _fetch(dataset, dataset.url, sha256, store)
    else:
        raise DataError(_how_to_get(dataset, home), path=home)
    return dataset.read(store)


def find_dataset(name: str, *, data_home: str | os.PathLike[str] | None = None) -> Path | None:
    """Where :func:`load_dataset` would find a dataset, without reading it.

    Args:
        name: One of :data:`DATASETS`.
        data_home: As for :func:`load_dataset`.

    Returns:
        Its folder, or its archive; None where it is not there.
    """
    dataset = DATASETS[name]
    home = _default_home() if data_home is None else Path(data_home).expanduser()
    places = [*(home / folder for folder in dataset.folders), _store(name, home)]
    if data_home is not None:
        places.append(home)
    for place in (*places, *dataset.places):
        if dataset.is_in(place):
            return place
    archive = home / f"{name}.zip"
    return archive if archive.is_file() else None


def _store(name: str, home: Path) -> Path:
    """Where a dataset is unpacked to."""
    return (home if os.access(home, os.W_OK) or not home.exists() else _cache()) / name


def _default_home() -> Path:
    given = os.environ.get("RECSYS_BUDGET_DATA")
    return Path(given).expanduser() if given else _cache()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recsys_budget"


def _fetch(dataset: Dataset, url: str, sha256: str | None, folder: Path) -> None:
    expected = sha256 or dataset.sha256
    if expected is None:
        raise SpecificationError(
            f"no trustworthy source gives a SHA-256 of {url}, and nothing is fetched unchecked; pass "
            "sha256= with that of a copy you trust"
        )
    archive = folder.with_name(f"{dataset.name}.zip")
    fetch(url, sha256=expected, target=archive, max_bytes=dataset.max_archive_bytes)
    dataset.unpack(archive, folder)
    archive.unlink()


def _how_to_get(dataset: Dataset, home: Path) -> str:
    ways = [f"put {', '.join(dataset.files)} into {home / dataset.name}"]
    if dataset.url is not None:
        hash_too = "" if dataset.sha256 else ", sha256=..."
        ways += [
            f"or the archive {dataset.url} at {home / dataset.name}.zip",
            f"or let load_dataset({dataset.name!r}, download=True{hash_too}) or the command "
            f"`recsys-budget data fetch {dataset.name}` fetch it",
        ]
    return f"the dataset {dataset.name!r} is not there; {', '.join(ways)}"


def bundled_folder() -> Path:
    """Where the data lies that comes with the package.

    Raises:
        DataError: It is not there: the package was installed without its data.
    """
    for folder in _BUNDLED:
        if folder.is_dir():
            return folder
    raise DataError("the data that comes with the package is not there; install it again", path=_BUNDLED[0])


def _read_bundled(folder: Path) -> Interactions:
    return read_interactions(folder / "interactions.csv", catalogue=read_catalogue(folder / "items.csv"))


def _read_100k(folder: Path) -> Interactions:
    bars = partial(DelimitedFile, separator="|", header=False, encoding="latin-1", quoted=False)
    genres = _GENRES_100K
    if (folder / "u.genre").is_file():
        named = bars(folder / "u.genre", columns=("genre", "number")).read()
        genres = tuple(named["genre"].to_pylist())
    items = bars(
        folder / "u.item", columns=("movieId", "title", "release", "video release", "address", *genres)
    )
    table = items.read()
    flags = np.column_stack([table[genre].to_numpy() for genre in genres])
    wrong = ~np.isin(flags, ("0", "1"))
    frame = table.select(["movieId", "title"]).to_pandas()
    with items.located():
        if wrong.any():
            row, genre = np.argwhere(wrong)[0]
            reason = f"{flags[row, genre]!r} is neither 0 nor 1"
            raise DataError(reason, line=int(row) + 1, column=genres[genre])
    frame["genres"] = [
        [genre for genre, flag in zip(genres, row, strict=True) if flag == "1"] for row in flags
    ]
    ratings = DelimitedFile(folder / "u.data", "\t", _RATINGS, header=False, quoted=False)
    return _movielens(ratings, items, frame, genres)


def _read_dat(folder: Path, *, encoding: Literal["utf-8", "latin-1"]) -> Interactions:
    movies = DelimitedFile(folder / "movies.dat", "::", _MOVIES, False, encoding, quoted=False)
    ratings = DelimitedFile(folder / "ratings.dat", "::", _RATINGS, False, quoted=False)
    return _movielens(ratings, movies, movies.read().to_pandas())


def _read_csv(folder: Path) -> Interactions:
    movies = DelimitedFile(folder / "movies.csv", columns=_MOVIES)
    ratings = DelimitedFile(folder / "ratings.csv", columns=_RATINGS)
    return _movielens(ratings, movies, movies.read().to_pandas())


def _movielens(
    ratings: DelimitedFile, movies: DelimitedFile, frame: pd.DataFrame, genres: Sequence[str] | None = None
) -> Interactions:
    frame["genres"] = frame["genres"].replace("(no genres listed)", "")
    frame["year"] = frame["title"].str.extract(_YEAR, expand=False).astype(np.float64)
    with movies.located():
        catalogue = ItemCatalogue.from_frame(
            frame,
            item="movieId",
            categories="genres",
            provider=None,
            category_names=genres,
            attributes=("year",),
        )
    table = ratings.read()
    with ratings.located():
        return Interactions.from_frame(table, user="userId", item="movieId", catalogue=catalogue)


def _read_goodbooks(folder: Path) -> Interactions:
    books = DelimitedFile(folder / "books.csv", columns=("book_id", "authors", "title"))
    frame = books.read().select(["book_id", "authors", "title"]).to_pandas()
    frame["author"] = frame["authors"].str.split(",").str[0].str.strip()
    shelves = folder / "book_genres_derived.csv.gz"
    if shelves.is_file():
        of_books = DelimitedFile(shelves, columns=("book_id", "genre")).read().to_pandas()
        genres = of_books.groupby("book_id")["genre"].agg(list)
        frame["genres"] = [genres.get(book, []) for book in frame["book_id"]]
    else:
        frame["genres"] = ""
    with books.located():
        catalogue = ItemCatalogue.from_frame(frame, item="book_id", categories="genres", provider="author")
    wishes = DelimitedFile(folder / "to_read.csv", columns=("user_id", "book_id"))
    table = wishes.read()
    with wishes.located():
        return Interactions.from_frame(table, user="user_id", item="book_id", catalogue=catalogue)


def _movielens_dataset(
    name: str,
    n_users: int,
    files: tuple[str, str],
    read: Callable[[Path], Interactions],
    max_archive_bytes: int,
    sha256: str,
    *,
    optional_files: tuple[str, ...] = (),
    folders: tuple[str, ...] = (),
    licence: str = "Research use; redistribution and commercial use only with permission from GroupLens.",
) -> Dataset:
    return Dataset(
        name=name,
        n_users=n_users,
        files=files,
        read=read,
        licence=licence,
        citation=(
            "F. Maxwell Harper and Joseph A. Konstan (2015), The MovieLens Datasets: History and Context, "
            "ACM TiiS 5(4), article 19, doi:10.1145/2827872"
        ),
        optional_files=optional_files,
        folders=(name, *folders),
        url=f"https://files.grouplens.org/datasets/movielens/{name}.zip",
        sha256=sha256,
        max_archive_bytes=max_archive_bytes,
    )


# Sizes and hashes: TensorFlow Datasets, url_checksums/movielens.txt; those of ml-10m: OmniRec,
# data_loaders/movielens_small.py, which agrees with the size and MD5 that GroupLens gives.
_KNOWN = (
    Dataset(
        name="bundled",
        n_users=BUNDLED.n_users,
        files=("interactions.csv", "items.csv"),
        read=_read_bundled,
        licence="Apache-2.0, as this package, of which it is a part.",
        citation="recsys_budget, bundled data",
        folders=("bundled",),
        places=_BUNDLED,
    ),
    _movielens_dataset(
        "ml-100k",
        943,
        ("u.data", "u.item"),
        _read_100k,
        4_924_029,
        "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        optional_files=("u.genre",),
    ),
    _movielens_dataset(
        "ml-1m",
        6_040,
        ("ratings.dat", "movies.dat"),
        partial(_read_dat, encoding="latin-1"),
        5_917_549,
        "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    ),
    _movielens_dataset(
        "ml-10m",
        71_567,
        ("ratings.dat", "movies.dat"),
        partial(_read_dat, encoding="utf-8"),
        65_566_137,
        "813c411ccb6122564edfe752e7f80c4dcc5aa25fa94c93622f6877a7ba252862",
        folders=("ml-10M100K",),
    ),
    _movielens_dataset(
        "ml-20m",
        138_493,
        ("ratings.csv", "movies.csv"),
        _read_csv,
        198_702_078,
        "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
    ),
    _movielens_dataset(
        "ml-25m",
        162_541,
        ("ratings.csv", "movies.csv"),
        _read_csv,
        261_978_986,
        "8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa",
    ),
    _movielens_dataset(
        "ml-latest-small",
        610,
        ("ratings.csv", "movies.csv"),
        _read_csv,
        978_202,
        "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
        licence="Research use; redistribution on the same terms; commercial use only with permission.",
    ),
    Dataset(
        name="goodbooks-10k",
        n_users=53_424,
        files=("to_read.csv", "books.csv"),
        read=_read_goodbooks,
        licence="CC BY-SA 4.0: name the author, share alike.",
        citation="Zygmunt Zając (2017), Goodbooks-10k: a new dataset for book recommendations, FastML",
        optional_files=("book_genres_derived.csv.gz",),
        folders=("goodbooks-10k", "goodbooks-10k-master"),
        url="https://github.com/zygmuntz/goodbooks-10k/releases/download/v1.0/goodbooks-10k.zip",
        max_archive_bytes=100_000_000,
    ),
)

DATASETS: Mapping[str, Dataset] = MappingProxyType({dataset.name: dataset for dataset in _KNOWN})
"""The datasets that :func:`load_dataset` knows, by name."""
