from ._version import __version__ as __version__
from .privacy import PrivacyBudget as PrivacyBudget
from .privacy import PrivacyLedger as PrivacyLedger
