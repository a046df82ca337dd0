"""What may be spent: budget, mechanisms, accounting, ledger, planner, noise, receipts."""

from recsys_budget.privacy.accounting import (
    epsilon,
    filter_epsilon,
    filter_order,
    largest_steps,
    round_up,
    smallest_noise,
)
from recsys_budget.privacy.budget import PrivacyBudget
from recsys_budget.privacy.ledger import PrivacyLedger, Reservation
from recsys_budget.privacy.mechanism import GaussianMechanism, Mechanism, SampledGaussianMechanism
from recsys_budget.privacy.noise import NoiseSource, SeededNoise, SystemNoise
from recsys_budget.privacy.planner import BudgetPlan, Use, plan_budget
from recsys_budget.privacy.receipt import Receipt

__all__ = [
    "BudgetPlan",
    "GaussianMechanism",
    "Mechanism",
    "NoiseSource",
    "PrivacyBudget",
    "PrivacyLedger",
    "Receipt",
    "Reservation",
    "SampledGaussianMechanism",
    "SeededNoise",
    "SystemNoise",
    "Use",
    "epsilon",
    "filter_epsilon",
    "filter_order",
    "largest_steps",
    "plan_budget",
    "round_up",
    "smallest_noise",
]
