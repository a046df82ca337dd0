"""Recommenders under a user-level privacy budget and hard business rules."""

import lazy_loader

from recsys_budget._version import __version__ as __version__

# The names are listed once, in __init__.pyi; each is imported on first use, so that neither torch nor cvxpy
# nor matplotlib is loaded by importing the package.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
