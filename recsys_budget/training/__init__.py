"""Private training of torch modules; needs the extra ``train``."""

from recsys_budget.training.allowed import UnitRows
from recsys_budget.training.checkpoint import Checkpoint, has_checkpoint, load_checkpoint, save_checkpoint
from recsys_budget.training.loop import TrainingRun, TrainingState, train_private

__all__ = [
    "Checkpoint",
    "TrainingRun",
    "TrainingState",
    "UnitRows",
    "has_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
    "train_private",
]
