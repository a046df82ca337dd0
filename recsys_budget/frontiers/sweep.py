"""Sweeps that make frontiers: over epsilon, over the weight on diversity, over the number of a rule."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import InfeasibleError, SpecificationError
from recsys_budget.frontiers.basis import Basis
from recsys_budget.frontiers.bound import steps_bound, weights_bound
from recsys_budget.frontiers.frontier import Frontier, Point
from recsys_budget.metrics import ranking_metrics
from recsys_budget.privacy import round_up
from recsys_budget.rerank import Certificate, EngagementDiversity, Reranker
from recsys_budget.rerank.loosening import with_number

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
EPSILON, DIVERSITY = "epsilon", "diversity"


def frontier(
    source: Any,
    over: ItemCatalogue | Interactions,
    vary: str,
    values: Iterable[float] | None = None,
    *,
    reranker: Reranker | None = None,
    history: Interactions | None = None,
    held_out: Interactions | None = None,
    metric: str = "recall@20",
    n_candidates: int = 200,
    progress: bool = True,
) -> Frontier:
    """Sweep one quantity and measure what is gained and lost.

    Three things can be swept:

    * ``"epsilon"``: along the path that one private training run kept (its ``epsilons``), so the whole
      frontier costs what the run cost. Each point is the ``metric`` of the model's lists on held-out users,
      or of their slates where there is a re-ranker. It is **not private**: it reads those users' data without
      spending.
    * ``"diversity"``: the weight on diversity against engagement. The bounds of all points together bound
      every trade-off between the two, swept or not.
    * the name of a rule of the re-ranker: the number that says how much it asks. This is the
      epsilon-constraint form of a trade-off (Haimes, Lasdon and Wismer 1971,
      doi:10.1109/TSMC.1971.4308298). Numbers that conflict with the other rules make points without slates,
      that hold the conflict.

    Args:
        source: Scored candidates, as for :meth:`~recsys_budget.rerank.Reranker.rerank`; or a fitted
            recommender.
        over: The catalogue that the candidates are from; or the histories of the users to serve, for a
            recommender.
        vary: What to sweep, as above.
        values: Where to measure: weights in [0, 1], or numbers of the rule. None takes the whole path, or
            ``WEIGHTS``; a rule needs them.
        reranker: The rules that hold at every point, and the objective; needed unless epsilon is swept.
        history: As for ``Reranker.rerank``; by default what the served users used, for a recommender.
        held_out: What the served users used besides, to be predicted; for epsilon.
        metric: A name that :func:`~recsys_budget.metrics.ranking_metrics` knows, for epsilon.
        n_candidates: Candidates a user, from a recommender.
        progress: Show a progress bar.

    Returns:
        A frontier with a row a value, in the order given; engagement, diversity, objective, bound, gap and
        largest violation are those of the certificates, and standard errors are over users.

    Raises:
        SpecificationError: There is no such thing to sweep, or something that it needs is missing.
        InfeasibleError: The rules leave some user without a slate at every value.
        DataError: As for ``Reranker.rerank``, like other errors.

    Examples:
        >>> import pandas as pd
        >>> from recsys_budget.constraints import CategoryMinimum, SlateSize
        >>> from recsys_budget.data import ItemCatalogue
        >>> from recsys_budget.rerank import Engagement, Reranker
        >>> catalogue = ItemCatalogue.from_frame(
        ...     pd.DataFrame({"item": ["a", "b", "c"], "categories": ["Drama", "Drama", "Documentary"]})
        ... )
        >>> candidates = pd.DataFrame({"user": "u", "item": ["a", "b", "c"], "relevance": [3.0, 2.0, 1.0]})
        >>> rules = [SlateSize(2), CategoryMinimum("Documentary", 1)]
        >>> swept = frontier(
        ...     candidates,
        ...     catalogue,
        ...     "at least 1 Documentary",
        ...     range(3),
        ...     reranker=Reranker(Engagement(), rules),
        ...     progress=False,
        ... )
        >>> swept.to_frame()[["count", "engagement", "feasible"]].values.tolist()
        [[0, 1.0, True], [1, 0.8, True], [2, nan, False]]
        >>> list(swept.points[2].conflict)
        ['at least 2 Documentary']
    """
    basis = Basis(source, over, reranker, history, n_candidates)
    if vary == EPSILON:
        return _over_epsilon(basis, values, held_out, metric, progress)
    if reranker is None:
        raise SpecificationError("give reranker=, whose rules hold at every point")
    if vary == DIVERSITY:
        return _over_weights(basis, reranker, WEIGHTS if values is None else values, progress)
    return _over_numbers(basis, reranker, vary, values, progress)


def _over_weights(basis: Basis, reranker: Reranker, weights: Iterable[float], progress: bool) -> Frontier:
    if not isinstance(reranker.objective, EngagementDiversity):
        raise SpecificationError(
            f"the objective is {reranker.objective!r}; to sweep the weight on diversity, take "
            "EngagementDiversity()"
        )
    weights = _values(weights)
    asked = {weight: EngagementDiversity(weight) for weight in weights}
    prepared = basis.prepare(reranker, basis.candidates())
    points = [
        Point(weight, prepared.rerank(objective=asked[weight], progress=False))
        for weight in _shown(weights, progress)
    ]
    frame = pd.DataFrame([{"weight": point.value, **_figures(point.certificate)} for point in points])
    # A penalty lowers the objective: with soft rules its bound bounds engagement and diversity no more.
    bound = None
    if all(rule.hard for rule in reranker.constraints):
        x = frame["diversity"].to_numpy(np.float64)
        bound = weights_bound(
            np.array(weights), frame["bound"].to_numpy(np.float64), x, ("diversity", "engagement")
        )
    return Frontier(
        frame,
        x="diversity",
        y="engagement",
        x_better="more",
        label="weight",
        error="engagement_error",
        note="Points are labelled with the weight on diversity; hard rules hold at each",
        bound=bound,
        points=tuple(points),
        swept=DIVERSITY,
        basis=basis,
    )


def _over_numbers(
    basis: Basis,
    reranker: Reranker,
    name: str,
    values: Iterable[float] | None,
    progress: bool,
) -> Frontier:
    rule = next((rule for rule in reranker.constraints if rule.name == name), None)
    if rule is None:
        raise SpecificationError(
            f"vary={name!r} is neither 'epsilon' nor 'diversity' nor one of the rules, which are "
            f"{', '.join(repr(rule.name) for rule in reranker.constraints)}"
        )
    if values is None:
        raise SpecificationError(f"give the values to take {name!r} through")
    values = _values(values)
    asked = {value: with_number(rule, value) for value in values}
    _, field, sign = asked[values[0]]
    prepared = basis.prepare(reranker, basis.candidates())
    found: dict[float, Point] = {}
    blocked: InfeasibleError | None = None
    # From loose to tight: what is impossible stays so, and each answer starts from the one before.
    for value in _shown(sorted(asked, key=lambda value: sign * value), progress):
        if blocked is None:
            try:
                rules = [asked[value][0] if other is rule else other for other in reranker.constraints]
                found[value] = Point(value, prepared.rerank(constraints=rules, progress=False))
                continue
            except InfeasibleError as error:
                blocked = error
        found[value] = Point(value, conflict=blocked.conflict)
    if blocked is not None and all(point.conflict is not None for point in found.values()):
        raise blocked
    points = tuple(found[value] for value in values)
    frame = pd.DataFrame([{field: point.value, **_figures(point.certificate)} for point in points])
    if all(float(value).is_integer() for value in values):
        frame[field] = frame[field].astype(np.int64)
    there = frame["objective"].notna()
    alone = frame.loc[there, "objective"].equals(frame.loc[there, "engagement"])
    y = "engagement" if alone else "objective"
    swept = frame[there]
    return Frontier(
        frame,
        x=field,
        y=y,
        x_better="more" if sign > 0 else "less",
        error=f"{y}_error",
        note=f"The {field} of {name!r} is moved; all other hard rules hold at each point",
        bound=steps_bound(
            swept[field].to_numpy(np.float64), swept["bound"].to_numpy(np.float64), sign, (field, y)
        ),
        points=points,
        swept=name,
        basis=basis,
    )


def _over_epsilon(
    basis: Basis,
    values: Iterable[float] | None,
    held_out: Interactions | None,
    metric: str,
    progress: bool,
) -> Frontier:
    served, reranker, model = basis.over, basis.reranker, basis.source
    path = model.epsilon_path() if hasattr(model, "epsilon_path") else ()
    if not path:
        raise SpecificationError(
            "this model kept no path; fit it with epsilons=(...), each value within the cap"
        )
    if not isinstance(served, Interactions) or held_out is None:
        raise SpecificationError(
            "accuracy along epsilon needs the histories of users to serve, and held_out=, what they "
            "used besides"
        )
    if values is not None:
        # Of each value asked for, the point that spends most within it.
        path = tuple(
            max((p for p in path if p.epsilon <= value), key=lambda p: p.epsilon, default=path[0])
            for value in values
        )
    depth = int(metric.partition("@")[2] or 0)
    points, rows = [], []
    for point in _shown(path, progress):
        slates = None
        if reranker is None:
            lists = point.model.recommend(served, max(depth, 1))
        else:
            slates = basis.prepare(reranker, basis.candidates(point.model)).rerank(progress=False)
            lists = slates.frame
        measured = ranking_metrics(lists, held_out, (metric,))[metric].to_numpy(np.float64)
        figures = {} if slates is None else _figures(slates.certificate)
        rows.append(
            {
                "epsilon": round_up(point.epsilon),
                "steps": point.steps,
                metric: measured.mean(),
                "standard_error": _standard_error(measured),
                **figures,
            }
        )
        points.append(Point(point.epsilon, slates, model=point.model))
    return Frontier(
        pd.DataFrame(rows),
        x="epsilon",
        y=metric,
        x_better="less",
        error="standard_error",
        note="One private run; accuracy measured on held-out users (not private)",
        points=tuple(points),
        swept=EPSILON,
        basis=basis,
    )


def _values(values: Iterable[float]) -> list[float]:
    """As plain floats.

    Raises:
        SpecificationError: There are none, or one is no number.
    """
    found = list(values)
    if not found or not all(isinstance(v, float | int | np.number) and math.isfinite(v) for v in found):
        raise SpecificationError(f"values={found!r}; give at least one number, all finite")
    return [float(value) for value in found]


def _shown(values: Collection[Any], progress: bool) -> Iterable[Any]:
    return cast("Iterable[Any]", tqdm(values, desc="frontier", disable=not progress))


def _figures(certificate: Certificate | None) -> dict[str, float]:
    names = ("engagement", "diversity", "objective", "bound", "gap", "largest_violation")
    errors = ("engagement", "diversity", "objective")
    if certificate is None:
        return dict.fromkeys((*names, *(f"{name}_error" for name in errors)), math.nan)
    figures = {name: float(getattr(certificate, name)) for name in names}
    for name in errors:
        figures[f"{name}_error"] = _standard_error(certificate.per_user[name].to_numpy(np.float64))
    return figures


def _standard_error(values: NDArray[np.float64]) -> float:
    """Of the mean over users; NaN of one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
