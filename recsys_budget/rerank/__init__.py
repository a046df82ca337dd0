"""Slates that satisfy every hard rule, each answer with a certificate."""

from recsys_budget.rerank.certificate import Certificate, PrivateCertificate
from recsys_budget.rerank.conflict import Conflict, Relaxation, Shortage
from recsys_budget.rerank.distributed import DistributedSlates, rerank_distributed
from recsys_budget.rerank.frames import top_k
from recsys_budget.rerank.mixture import Mixtures, ParityReranker
from recsys_budget.rerank.objective import (
    Coverage,
    Diversity,
    Engagement,
    EngagementDiversity,
    HistoryMatch,
    Novelty,
    Objective,
    ObjectiveFloor,
)
from recsys_budget.rerank.partitions import SLATES_SCHEMA, no_slates, rerank_part, rerank_parts
from recsys_budget.rerank.prepared import Prepared
from recsys_budget.rerank.private import PrivateReranker, PrivateSlates
from recsys_budget.rerank.reranker import Reranker, Slates
from recsys_budget.rerank.scores import Scores

__all__ = [
    "SLATES_SCHEMA",
    "Certificate",
    "Conflict",
    "Coverage",
    "DistributedSlates",
    "Diversity",
    "Engagement",
    "EngagementDiversity",
    "HistoryMatch",
    "Mixtures",
    "Novelty",
    "Objective",
    "ObjectiveFloor",
    "ParityReranker",
    "Prepared",
    "PrivateCertificate",
    "PrivateReranker",
    "PrivateSlates",
    "Relaxation",
    "Reranker",
    "Scores",
    "Shortage",
    "Slates",
    "no_slates",
    "rerank_distributed",
    "rerank_part",
    "rerank_parts",
    "top_k",
]
