"""Turn a missing optional package into an error that names the command which brings it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from recsys_budget.errors import MissingExtraError

_PACKAGES = {
    "train": ("torch", "opacus", "dp_accounting"),
    "metrics": ("ranx",),
    "notebook": ("ipywidgets", "anywidget"),
    "compare": ("implicit",),
}


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import optional packages inside this block.

    Args:
        name: The extra that the imported packages belong to, such as ``"train"``.

    Raises:
        MissingExtraError: One of the extra's packages is not installed. Any other missing module is a bug
            and passes through unchanged.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _PACKAGES[name]:
            raise
        raise MissingExtraError(package, name) from error
