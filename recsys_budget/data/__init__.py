"""Interactions, the item catalogue, datasets and splits."""

from recsys_budget.data.catalogue import ItemCatalogue
from recsys_budget.data.datasets import DATASETS, Dataset, find_dataset, load_dataset
from recsys_budget.data.files import read_catalogue, read_interactions
from recsys_budget.data.interactions import Interactions
from recsys_budget.data.split import RowSplit, UserSplit, hold_out_users, k_core, leave_last_out, time_split
from recsys_budget.data.synthetic import (
    BUNDLED,
    BUNDLED_SEED,
    SyntheticData,
    SyntheticSpec,
    make_interactions,
)

__all__ = [
    "BUNDLED",
    "BUNDLED_SEED",
    "DATASETS",
    "Dataset",
    "Interactions",
    "ItemCatalogue",
    "RowSplit",
    "SyntheticData",
    "SyntheticSpec",
    "UserSplit",
    "find_dataset",
    "hold_out_users",
    "k_core",
    "leave_last_out",
    "load_dataset",
    "make_interactions",
    "read_catalogue",
    "read_interactions",
    "time_split",
]
