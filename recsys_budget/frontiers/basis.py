"""What a sweep was made from: enough to ask the same question at other points."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import DataError, SpecificationError
from recsys_budget.rerank import EngagementDiversity, Prepared, Reranker
from recsys_budget.rerank.loosening import with_numbers

EPSILON, DIVERSITY = "epsilon", "diversity"


@dataclass(frozen=True, eq=False)
class StoredCandidates:
    """Candidates that a recommender once offered, kept in its place: no model, and nothing to score with.

    Attributes:
        frame: Columns user, item, rank (from 1) and relevance (float64), users in the order of their ids,
            best item first.
    """

    frame: pd.DataFrame

    def recommend(self, interactions: Interactions, k: int = 10) -> pd.DataFrame:
        """The k best of what was kept for these users; their histories are not looked at.

        Args:
            interactions: The users.
            k: Items a user, no more than were kept.

        Returns:
            Frame like ``frame``.

        Raises:
            DataError: Nothing was kept for some user.
            SpecificationError: Fewer than k were kept for some user.
        """
        if unknown := sorted(set(interactions.users) - set(self.frame["user"])):
            raise DataError(f"no candidates of user {unknown[0]!r} were kept; the model itself has more")
        mine = self.frame[self.frame["user"].isin(interactions.users)]
        fewest = int(mine.groupby("user", sort=False).size().min()) if len(mine) else k
        if not 1 <= k <= fewest:
            raise SpecificationError(
                f"k={k!r}; {fewest} candidates a user were kept, so ask for 1 to {fewest}"
            )
        return mine[mine["rank"] <= k].reset_index(drop=True)

    def __repr__(self) -> str:
        return f"StoredCandidates({self.frame['user'].nunique()} users, {len(self.frame)} candidates)"


@dataclass(frozen=True, eq=False)
class Basis:
    """Candidates, or the recommender that offers them, and the rules they are chosen under.

    Attributes:
        source: Scored candidates, or a fitted recommender, or what was kept of one.
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
        source = self.source if model is None else model
        if isinstance(self.over, Interactions):
            return source.recommend(self.over, self.n_candidates)
        return source.frame if isinstance(source, StoredCandidates) else source

    def asked(self, swept: str, value: float) -> Reranker:
        """The re-ranker at a point of a sweep.

        Args:
            swept: What was swept: ``EPSILON``, ``DIVERSITY`` or the name of a rule.
            value: What it was there.

        Raises:
            SpecificationError: There is no re-ranker, or a rule that does not allow this number.
        """
        if self.reranker is None:
            raise SpecificationError("lists were measured as they are, so there is no re-ranker")
        if swept == DIVERSITY:
            return replace(self.reranker, objective=EngagementDiversity(value))
        return replace(self.reranker, constraints=with_numbers(self.reranker.constraints, {swept: value}))

    def served_history(self) -> Interactions | None:
        """What the served users had used, where it is known."""
        if self.history is None and isinstance(self.over, Interactions):
            return self.over
        return self.history

    def prepare(self, reranker: Reranker, candidates: Any) -> Prepared:
        """The candidates, read once for every point."""
        return reranker.prepare(candidates, self.catalogue, history=self.served_history())
