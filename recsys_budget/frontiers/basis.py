"""What a sweep was made from: enough to ask the same question at other points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.rerank import Prepared, Reranker


@dataclass(frozen=True, eq=False)
class Basis:
    """Candidates, or the recommender that offers them, and the rules they are chosen under.

    Attributes:
        source: Scored candidates, or a fitted recommender.
        over: Their catalogue, or the histories of the users to serve.
        reranker: The rules and the objective; None where lists were measured as they are.
        history: What users had used, for rules that compare with it.
        n_candidates: Candidates a user, from a recommender.
    """

    source: Any
    over: ItemCatalogue | Interactions
    reranker: Reranker | None
    history: Interactions | None
    n_candidates: int

    @property
    def catalogue(self) -> ItemCatalogue:
        """The catalogue of the candidates."""
        return self.over.catalogue if isinstance(self.over, Interactions) else self.over

    def candidates(self, model: Any = None) -> Any:
        """The table of candidates; of another model where one is given."""
        if isinstance(self.over, Interactions):
            return (self.source if model is None else model).recommend(self.over, self.n_candidates)
        return self.source

    def served_history(self) -> Interactions | None:
        """What the served users had used, where it is known."""
        if self.history is None and isinstance(self.over, Interactions):
            return self.over
        return self.history

    def prepare(self, reranker: Reranker, candidates: Any) -> Prepared:
        """The candidates, read once for every point."""
        return reranker.prepare(candidates, self.catalogue, history=self.served_history())
