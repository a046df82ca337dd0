from .autoencoder import PathPoint as PathPoint
from .autoencoder import PrivateAutoencoder as PrivateAutoencoder
from .base import Recommender as Recommender
from .baselines import EASE as EASE
from .baselines import Popularity as Popularity
from .item_model import PrivateItemModel as PrivateItemModel
from .item_model import head_size as head_size
from .private_popularity import PrivatePopularity as PrivatePopularity
