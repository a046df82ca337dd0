"""Interactions, the item catalogue, datasets and splits."""

from recsys_budget.data.catalogue import ItemCatalogue
from recsys_budget.data.interactions import Interactions
from recsys_budget.data.split import RowSplit, UserSplit, hold_out_users, k_core, leave_last_out, time_split

__all__ = [
    "Interactions",
    "ItemCatalogue",
    "RowSplit",
    "UserSplit",
    "hold_out_users",
    "k_core",
    "leave_last_out",
    "time_split",
]
