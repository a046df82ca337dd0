"""Sweeps that make frontiers: over epsilon, over the weight on diversity, over the number of a rule."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any, cast

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from recsys_budget.data import Interactions, ItemCatalogue
from recsys_budget.errors import InfeasibleError, SpecificationError
from recsys_budget.frontiers.basis import DIVERSITY, EPSILON, Basis
from recsys_budget.frontiers.bound import steps_bound, weights_bound
from recsys_budget.frontiers.figures import figures, provider_figures, standard_error
from recsys_budget.frontiers.frontier import Frontier, Point
from recsys_budget.metrics import ranking_metrics
from recsys_budget.privacy import round_up
from recsys_budget.rerank import EngagementDiversity, Reranker, Slates
from recsys_budget.rerank.loosening import with_number

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)


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
      spending. With repetitions of the training, each with noise of its own, it is the mean over runs, with
      a band from the lowest run to the highest. The band is what was seen, and no interval of confidence.
      Each run that reads the same people's data is paid for on its own, and together they cost at most the
      sum.
    * ``"diversity"``: the weight on diversity against engagement. The bounds of all points together bound
      every trade-off between the two, swept or not.
    * the name of a rule of the re-ranker: the number that says how much it asks. This is the
      epsilon-constraint form of a trade-off (Haimes, Lasdon and Wismer 1971,
      doi:10.1109/TSMC.1971.4308298). Numbers that conflict with the other rules make points without slates,
      that hold the conflict.

    Args:
        source: Scored candidates, as for :meth:`~recsys_budget.rerank.Reranker.rerank`; or a fitted
            recommender; or, for epsilon, a list or tuple of repetitions of one training.
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
        A frontier with a row a value, in the order given. Its columns are those of
        :func:`~recsys_budget.frontiers.figures`; lists without a re-ranker have those of providers alone.
        Standard errors are over users. With several runs points and figures of slates are the first run's.

    Raises:
        SpecificationError: There is no such thing to sweep, or something that it needs is missing, or runs
            differ in more than their noise.
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
    runs = tuple(source) if isinstance(source, list | tuple) else (source,)
    if not runs or (len(runs) > 1 and vary != EPSILON):
        raise SpecificationError(
            f"these are {len(runs)} runs; give one, or, for 'epsilon' alone, repetitions of one training"
        )
    basis = Basis(runs[0], over, reranker, history, n_candidates)
    if vary == EPSILON:
        return _over_epsilon(basis, runs, values, held_out, metric, progress)
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
    frame = pd.DataFrame(
        [{"weight": point.value, **figures(point.slates, basis.catalogue)} for point in points]
    )
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
    frame = pd.DataFrame([{field: point.value, **figures(point.slates, basis.catalogue)} for point in points])
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
    runs: tuple[Any, ...],
    values: Iterable[float] | None,
    held_out: Interactions | None,
    metric: str,
    progress: bool,
) -> Frontier:
    served, reranker = basis.over, basis.reranker
    path = _paths(runs)
    if not isinstance(served, Interactions) or held_out is None:
        raise SpecificationError(
            "accuracy along epsilon needs the histories of users to serve, and held_out=, what they "
            "used besides"
        )
    if values is not None:
        # Of each value asked for, the point that spends most within it.
        path = [
            max((p for p in path if p[0].epsilon <= value), key=lambda p: p[0].epsilon, default=path[0])
            for value in values
        ]
    depth = max(int(metric.partition("@")[2] or 0), 1)
    points, rows = [], []
    for repeated in _shown(path, progress):
        made: list[tuple[Slates | None, Any]] = []
        for kept in repeated:
            if reranker is None:
                made.append((None, kept.model.recommend(served, depth)))
            else:
                slates = basis.prepare(reranker, basis.candidates(kept.model)).rerank(progress=False)
                made.append((slates, slates.frame))
        # Users by runs.
        measured = pd.concat(
            [ranking_metrics(lists, held_out, (metric,))[metric] for _, lists in made], axis=1
        )
        of_runs = measured.mean(axis=0)
        first, lists = made[0]
        rows.append(
            {
                "epsilon": round_up(repeated[0].epsilon),
                "steps": repeated[0].steps,
                metric: of_runs.mean(),
                "standard_error": standard_error(measured.mean(axis=1).to_numpy(np.float64)),
                **({} if len(runs) == 1 else {"low": of_runs.min(), "high": of_runs.max()}),
                **(
                    provider_figures(lists, basis.catalogue)
                    if first is None
                    else figures(first, basis.catalogue)
                ),
            }
        )
        points.append(Point(repeated[0].epsilon, first, model=repeated[0].model))
    note = "One private run; accuracy measured on held-out users (not private)"
    if len(runs) > 1:
        note = (
            f"Mean of {len(runs)} private runs, and a band from the lowest to the highest; runs on the same "
            "people's data are paid for one by one, and cost up to their sum. Accuracy measured on held-out "
            "users (not private). Slates are those of the first run"
        )
    return Frontier(
        pd.DataFrame(rows),
        x="epsilon",
        y=metric,
        x_better="less",
        error="standard_error",
        band=None if len(runs) == 1 else ("low", "high"),
        note=note,
        points=tuple(points),
        swept=EPSILON,
        basis=basis,
    )


def _paths(runs: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Point by point along epsilon, what each run kept there.

    Raises:
        SpecificationError: A run kept no path, or they are not of the same training.
    """
    paths = [model.epsilon_path() if hasattr(model, "epsilon_path") else () for model in runs]
    if not paths or not all(paths):
        raise SpecificationError(
            "this model kept no path; fit it with epsilons=(...), each value within the cap"
        )
    asked = [[round_up(point.epsilon) for point in path] for path in paths]
    for run, model in enumerate(runs):
        if asked[run] != asked[0] or type(model) is not type(runs[0]):
            raise SpecificationError(
                f"run {run + 1} is a {type(model).__name__} at epsilon {asked[run]}, the first a "
                f"{type(runs[0]).__name__} at {asked[0]}; give repetitions of one training, that differ in "
                "their noise alone"
            )
    return list(zip(*paths, strict=True))


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
