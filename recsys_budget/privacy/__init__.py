"""What may be spent: budget, mechanisms, accounting, ledger, noise, receipts."""

from recsys_budget.privacy.accounting import (
    epsilon,
    filter_epsilon,
    largest_steps,
    round_up,
    smallest_noise,
)
from recsys_budget.privacy.budget import PrivacyBudget
from recsys_budget.privacy.ledger import PrivacyLedger, Reservation
from recsys_budget.privacy.mechanism import GaussianMechanism, Mechanism, SampledGaussianMechanism
from recsys_budget.privacy.noise import NoiseSource, SeededNoise, SystemNoise, release_sum
from recsys_budget.privacy.noisy import NoisyGram, NoisyValues
from recsys_budget.privacy.queries import PrivateQueries
from recsys_budget.privacy.receipt import Receipt

__all__ = [
    "GaussianMechanism",
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
    "epsilon",
    "filter_epsilon",
    "largest_steps",
    "release_sum",
    "round_up",
    "smallest_noise",
]
