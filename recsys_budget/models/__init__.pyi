from .autoencoder import PathPoint as PathPoint
from .autoencoder import PrivateAutoencoder as PrivateAutoencoder
from .base import Recommender as Recommender
from .baselines import EASE as EASE
from .baselines import Popularity as Popularity
from .trainer import PrivateTrainer as PrivateTrainer
