"""Private training of torch modules; needs the extra ``train``."""

from recsys_budget.training._opacus import UnitRows
from recsys_budget.training.checkpoint import Checkpoint, has_checkpoint, load_checkpoint, save_checkpoint
from recsys_budget.training.linear import MultinomialLoss
from recsys_budget.training.loop import TrainingRun, TrainingState, train_private

__all__ = [
    "Checkpoint",
    "MultinomialLoss",
    "TrainingRun",
    "TrainingState",
    "UnitRows",
    "has_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
    "train_private",
]
