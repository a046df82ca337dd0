"""The language of rules about slates: what is asked, never how it is solved."""

from recsys_budget.constraints.amounts import (
    Cap,
    ExposureMaximum,
    ExposureMinimum,
    NoveltyMinimum,
    PopularityMaximum,
)
from recsys_budget.constraints.base import (
    TOLERANCE,
    Constraint,
    ConvexConstraint,
    ItemConstraint,
    LinearConstraint,
    PopulationConstraint,
    Soft,
    UserConstraint,
)
from recsys_budget.constraints.candidates import Candidates, Population
from recsys_budget.constraints.custom import Custom
from recsys_budget.constraints.engagement import Calibration, EngagementFloor
from recsys_budget.constraints.parity import ExposureParity
from recsys_budget.constraints.policy import Change, Policy
from recsys_budget.constraints.population import (
    CatalogueCoverage,
    GroupParity,
    ProviderMaximum,
    ProviderMinimum,
    StockMaximum,
    TotalMaximum,
)
from recsys_budget.constraints.slate import (
    Block,
    CategoryMaximum,
    CategoryMinimum,
    GroupMaximum,
    Pin,
    SlateSize,
)

__all__ = [
    "TOLERANCE",
    "Block",
    "Calibration",
    "Candidates",
    "Cap",
    "CatalogueCoverage",
    "CategoryMaximum",
    "CategoryMinimum",
    "Change",
    "Constraint",
    "ConvexConstraint",
    "Custom",
    "EngagementFloor",
    "ExposureMaximum",
    "ExposureMinimum",
    "ExposureParity",
    "GroupMaximum",
    "GroupParity",
    "ItemConstraint",
    "LinearConstraint",
    "NoveltyMinimum",
    "Pin",
    "Policy",
    "PopularityMaximum",
    "Population",
    "PopulationConstraint",
    "ProviderMaximum",
    "ProviderMinimum",
    "SlateSize",
    "Soft",
    "StockMaximum",
    "TotalMaximum",
    "UserConstraint",
]
