"""What may be spent: budget, mechanisms, accounting, ledger, planner, noise, receipts."""

from recsys_budget.privacy.accounting import (
    epsilon,
    filter_epsilon,
    filter_order,
    largest_steps,
    renyi,
    renyi_cap,
    renyi_epsilon,
    round_up,
    smallest_noise,
)
from recsys_budget.privacy.budget import PrivacyBudget
from recsys_budget.privacy.ledger import LedgerHead, PrivacyLedger
from recsys_budget.privacy.mechanism import GaussianMechanism, Mechanism, SampledGaussianMechanism
from recsys_budget.privacy.noise import (
    NoiseSource,
    SeededNoise,
    SystemNoise,
    drawn_ahead,
    noise_deviation,
    release_sum,
)
from recsys_budget.privacy.noisy import NoisyGram, NoisyValues
from recsys_budget.privacy.planner import BudgetPlan, Use, plan_budget
from recsys_budget.privacy.queries import PrivateQueries
from recsys_budget.privacy.receipt import Receipt
from recsys_budget.privacy.reservation import Reservation

__all__ = [
    "BudgetPlan",
    "GaussianMechanism",
    "LedgerHead",
    "Mechanism",
    "NoiseSource",
    "NoisyGram",
    "NoisyValues",
    "PrivacyBudget",
    "PrivacyLedger",
    "PrivateQueries",
    "Receipt",
    "Reservation",
    "SampledGaussianMechanism",
    "SeededNoise",
    "SystemNoise",
    "Use",
    "drawn_ahead",
    "epsilon",
    "filter_epsilon",
    "filter_order",
    "largest_steps",
    "noise_deviation",
    "plan_budget",
    "release_sum",
    "renyi",
    "renyi_cap",
    "renyi_epsilon",
    "round_up",
    "smallest_noise",
]
