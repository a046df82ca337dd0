"""What the doctor asks of a computer. Nothing here reaches for a network or imports a package until asked."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

_GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """This computer, as far as this package cares. Each answer can be overridden to see what would be said.

    Attributes:
        folder: Where work is going to be kept, ledgers above all.
        data_home: Where published datasets lie; None for the default.
        environment: Environment variables.
        python: Version of the running Python.
        bits: Width of its addresses.
    """

    folder: Path = field(default_factory=Path.cwd)
    data_home: Path | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    python: str = field(default_factory=platform.python_version)
    bits: int = 64 if sys.maxsize > 2**32 else 32

    def requires_python(self) -> str:
        """Versions of Python that this package runs on, such as ">=3.11"."""
        return str(metadata.metadata("recsys-budget")["Requires-Python"] or "")

    def requirements(self) -> Sequence[str]:
        """What this package requires, extras too, as its metadata has it."""
        return metadata.requires("recsys-budget") or ()

    def origin(self) -> str:
        """What pip would install this package from again: a name, a folder, or an address.

        Packages that came from an index say nothing about it (PEP 610), so those go by their name.
        """
        with suppress(metadata.PackageNotFoundError, ValueError, KeyError):
            said = json.loads(metadata.distribution("recsys-budget").read_text("direct_url.json") or "{}")
            folder = Path(url2pathname(urlsplit(said["url"]).path))
            if "dir_info" in said and folder.is_dir():
                return str(folder)
            if "vcs_info" in said:
                return f"{said['vcs_info']['vcs']}+{said['url']}"
        return "recsys-budget"

    def version(self, package: str) -> str | None:
        """Version of an installed package; None where it is not installed."""
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    def load(self, module: str) -> Any:
        """The module, imported."""
        return import_module(module)

    def run(self, code: str, *arguments: str) -> str:
        """What a Python program prints when run in a process of its own."""
        done = subprocess.run(
            [sys.executable, "-I", "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout.strip()

    def cores(self) -> int:
        """Cores that this process may use."""
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def memory_gib(self) -> tuple[float | None, float | None]:
        """Memory in all, and what is free of it, in GiB; None where the system does not tell.

        A container's limit counts as all there is.
        """
        total: float | None = None
        with suppress(ValueError, OSError, AttributeError):
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
        free: float | None = None
        with suppress(OSError):
            found = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
            free = int(found[1]) * 1024 / _GIB if found else None
        for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
            with suppress(OSError, ValueError):
                total = min(total or float("inf"), int(Path(limit).read_text(encoding="ascii")) / _GIB)
        if total is None:
            with suppress(ImportError):
                known = self.load("psutil").virtual_memory()
                return known.total / _GIB, known.available / _GIB
        return total, None if free is None or total is None else min(free, total)

    def lab_extensions(self) -> set[str]:
        """Names of the JupyterLab extensions that lie where JupyterLab looks."""
        folders = map(Path, self.load("jupyter_core.paths").jupyter_path("labextensions"))
        manifests = (path for folder in folders for path in _manifests(folder))
        return {str(path.parent.name if path.parent.parent.name[:1] != "@" else
                    f"{path.parent.parent.name}/{path.parent.name}") for path in manifests}  # fmt: skip

    def disabled_extensions(self) -> set[str]:
        """Names of the JupyterLab extensions that its settings switch off."""
        disabled: set[str] = set()
        for folder in self.load("jupyter_core.paths").jupyter_config_path():
            with suppress(OSError, ValueError):
                page = json.loads((Path(folder) / "labconfig" / "page_config.json").read_text("utf-8"))
                named = page.get("disabledExtensions", {})
                disabled |= set(named) if isinstance(named, list) else {n for n, off in named.items() if off}
        return disabled

    def kernel(self) -> str | None:
        """The program that Jupyter starts for a Python notebook; None where it knows none."""
        manager = self.load("jupyter_client.kernelspec")
        try:
            return str(manager.KernelSpecManager().get_kernel_spec("python3").argv[0])
        except manager.NoSuchKernel:
            return None


def _manifests(folder: Path) -> Iterator[Path]:
    yield from folder.glob("*/package.json")
    yield from folder.glob("@*/*/package.json")
