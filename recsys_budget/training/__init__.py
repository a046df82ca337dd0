"""Private training of torch modules; needs the extra ``train``."""

from recsys_budget.training.allowed import UnitRows
from recsys_budget.training.checkpoint import Checkpoint, has_checkpoint, load_checkpoint, save_checkpoint
from recsys_budget.training.distributed import train_private_distributed
from recsys_budget.training.linear import MultinomialLoss
from recsys_budget.training.loop import TrainingRun, TrainingState, train_private
from recsys_budget.training.sensitivity import adversarial_rows, check_sensitivity, neighbour_sensitivity

__all__ = [
    "Checkpoint",
    "MultinomialLoss",
    "TrainingRun",
    "TrainingState",
    "UnitRows",
    "adversarial_rows",
    "check_sensitivity",
    "has_checkpoint",
    "load_checkpoint",
    "neighbour_sensitivity",
    "save_checkpoint",
    "train_private",
    "train_private_distributed",
]
