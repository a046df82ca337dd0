"""The frontiers that come with the package: something to see before anything is trained."""

from __future__ import annotations

from recsys_budget.data.datasets import bundled_folder
from recsys_budget.frontiers.frontier import Frontier
from recsys_budget.frontiers.reader import read_frontiers

FILE = "frontiers.zip"


def bundled_frontiers() -> tuple[Frontier, ...]:
    """Frontiers of the bundled data: over epsilon with a band, over diversity, over a provider's floor.

    All are of the same 100 users, 150 candidates each, under the rules of ``recsys-budget demo`` and a floor
    of exposure for each provider that starts at nothing; the explorer opens them together. The model is
    :class:`~recsys_budget.models.PrivateItemModel` with five epsilons from one run, repeated five times.
    People, films and companies are invented, and the noise is repeatable, so that
    ``recsys-budget data frontiers`` makes the file again: nothing in it is private, and nothing needs to be.

    Returns:
        Three frontiers, as :func:`~recsys_budget.frontiers.read_frontiers` reads them.

    Raises:
        DataError: The package was installed without its data.

    Examples:
        >>> [(swept.x, swept.y, len(swept)) for swept in bundled_frontiers()]
        [('epsilon', 'recall@10', 5), ('diversity', 'engagement', 6), ('exposure', 'engagement', 9)]
    """
    return read_frontiers(bundled_folder() / FILE)
