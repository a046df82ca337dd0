"""Archives from elsewhere: trusted only once their hash, their names and their true sizes are checked."""

from __future__ import annotations

import hashlib
import re
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPMessage
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm.auto import tqdm

from recsys_budget.errors import DataError

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60


def fetch(url: str, *, sha256: str, target: Path, max_bytes: int) -> None:
    """Download a file and put it in place only if it is the expected one.

    Args:
        url: An https address; plain http only to this machine.
        sha256: The hash it must have, in hexadecimal.
        target: Where the file goes; its folder is made if need be.
        max_bytes: Most bytes to accept.

    Guarantees:
        ``target`` is either untouched or the whole file with this hash.

    Raises:
        DataError: The address is not https, the file cannot be had, is too large or incomplete, or has
            another hash.
    """
    if not _is_safe(url):
        raise DataError(f"{url} is not an https address; nothing was fetched", path=target)
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    size = 0
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        partial = Path(scratch, target.name)
        try:
            with (
                build_opener(_HttpsRedirects).open(url, timeout=_TIMEOUT_SECONDS) as response,
                partial.open("wb") as file,
                tqdm(total=response.length, unit="B", unit_scale=True, desc=target.name) as progress,
            ):
                announced = response.length
                while chunk := response.read(_CHUNK):
                    size += len(chunk)
                    if size > max_bytes:
                        raise DataError(f"{url} sends more than the {max_bytes} bytes allowed", path=target)
                    digest.update(chunk)
                    file.write(chunk)
                    progress.update(len(chunk))
        except (OSError, HTTPException) as error:
            if isinstance(error, HTTPError):
                error.close()  # it holds the connection
            raise DataError(f"cannot fetch {url}: {error}", path=target) from error
        if announced is not None and size < announced:
            reason = f"{url} sent {size} of {announced} bytes before the connection ended; try again"
            raise DataError(reason, path=target)
        if digest.hexdigest() != sha256.lower():
            raise DataError(
                f"{url} has SHA-256 {digest.hexdigest()}, but {sha256.lower()} is expected; nothing was kept",
                path=target,
            )
        partial.replace(target)


def extract(
    archive: Path,
    into: Path,
    *,
    members: Collection[str],
    optional: Collection[str] = (),
    max_bytes: int,
    max_files: int = 1000,
) -> None:
    """Unpack named files of a zip archive into a new folder.

    Args:
        archive: The zip archive.
        into: The folder to make. Files land directly in it, whatever folder of the archive holds them.
        members: File names that must be there, together in one folder of the archive.
        optional: File names to take from the same folder if they are there.
        max_bytes: Most bytes to write, counted as they are written: sizes in headers are not believed.
        max_files: Most entries that the archive may list, wanted or not.

    Guarantees:
        ``into`` appears whole or not at all, and nothing is written outside it.

    Raises:
        DataError: The archive is truncated or corrupt, lists a name that is absolute or climbs out of its
            folder, a link or a name twice, lacks a member, or is too large; or ``into`` is in the way.
    """
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=".extract-") as scratch:
        folder = Path(scratch, into.name)
        folder.mkdir()
        with opened_zip(archive, max_files) as (opened, entries):
            home = _folder_holding(members, entries, archive)
            room = max_bytes
            for name in (*members, *optional):
                if home + name in entries:
                    room -= _unpack(opened, entries[home + name], folder / name, room, archive)
        try:
            folder.replace(into)
        except OSError as error:
            # Another process may have finished the same work a moment earlier.
            if not all((into / name).is_file() for name in members):
                reason = f"is in the way: it exists without {', '.join(members)}; move it away"
                raise DataError(reason, path=into) from error


@contextmanager
def opened_zip(archive: Path, max_files: int) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """A zip archive and its entries by name, whose names were checked.

    Raises:
        DataError: As for :func:`extract`.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            if len(opened.infolist()) > max_files:
                raise DataError(f"lists more than the {max_files} entries allowed", path=archive)
            yield opened, _checked_entries(opened, archive)
    except (zipfile.BadZipFile, OSError, UnicodeDecodeError, NotImplementedError) as error:
        raise DataError(f"cannot be read as a zip archive: {error}", path=archive) from error


def unpacked(opened: zipfile.ZipFile, info: zipfile.ZipInfo, room: int, archive: Path) -> Iterator[bytes]:
    """An entry, piece by piece, of at most ``room`` bytes in all, whatever its header says.

    Raises:
        DataError: It is longer, encrypted, packed in an unusual way or damaged.
    """
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{info.filename!r} is encrypted or not deflated; refused", path=archive)
    size = 0
    try:
        with opened.open(info) as source:
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                if size > room:
                    reason = f"{info.filename!r} unpacks to more than the bytes allowed ({room} left)"
                    raise DataError(reason, path=archive)
                yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise DataError(f"{info.filename!r} cannot be unpacked: {error}", path=archive) from error


class _HttpsRedirects(HTTPRedirectHandler):
    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if not _is_safe(newurl):
            raise HTTPError(newurl, code, f"it redirects to {newurl}, which is not allowed", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_safe(url: str) -> bool:
    parts = urlsplit(url)
    local = parts.hostname in ("127.0.0.1", "::1", "localhost")
    return parts.scheme == "https" or (parts.scheme == "http" and local)


def _checked_entries(opened: zipfile.ZipFile, archive: Path) -> dict[str, zipfile.ZipInfo]:
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in opened.infolist():
        name, mode = info.filename, info.external_attr >> 16
        if name.startswith("/") or ".." in PurePosixPath(name).parts or re.search(r"\\|^[A-Za-z]:", name):
            raise DataError(f"lists {name!r}, which leads out of its folder; refused", path=archive)
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"lists {name!r}, which is a link or a device; refused", path=archive)
        if name in entries:
            raise DataError(f"lists {name!r} twice; refused", path=archive)
        entries[name] = info
    return entries


def _folder_holding(members: Collection[str], entries: Collection[str], archive: Path) -> str:
    folders = {str(entry).rpartition("/")[0] for entry in entries}
    homes = [f"{folder}/" if folder else "" for folder in folders]
    homes = [home for home in homes if all(home + name in entries for name in members)]
    depth = min((home.count("/") for home in homes), default=0)
    homes = [home for home in homes if home.count("/") == depth]
    if len(homes) != 1:
        several = f"several folders ({', '.join(sorted(homes))})" if homes else "no folder"
        raise DataError(f"has {several} with {', '.join(members)}", path=archive)
    return homes[0]


def _unpack(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, room: int, archive: Path) -> int:
    with target.open("wb") as file:
        for chunk in unpacked(opened, info, room, archive):
            file.write(chunk)
        return file.tell()
