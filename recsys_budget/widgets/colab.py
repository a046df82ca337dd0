"""Colab shows widgets from elsewhere only after it has been asked to."""

from __future__ import annotations

import sys


def allow_widgets() -> None:
    """Where this kernel is Colab's, let its pages load the front; elsewhere nothing.

    Colab's kernels have imported ``google.colab`` by the time they run a cell.
    """
    if (colab := sys.modules.get("google.colab")) is not None:
        colab.output.enable_custom_widget_manager()
