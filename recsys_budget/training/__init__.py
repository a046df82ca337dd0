"""Private training of torch modules; needs the extra ``train``."""

from recsys_budget.training._opacus import UnitRows
from recsys_budget.training.loop import TrainingRun, train_private

__all__ = ["TrainingRun", "UnitRows", "train_private"]
