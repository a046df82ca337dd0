"""Recommenders: private ones, and baselines labelled not private."""

import lazy_loader

# PrivateAutoencoder needs torch, the others do not: see __init__.pyi for the names.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
