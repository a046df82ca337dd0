"""A floor of 0 about all slates asks nothing: it must neither slow an answer nor couple users."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from invented import fewer

from recsys_budget.constraints import (
    CatalogueCoverage,
    CategoryMaximum,
    CategoryMinimum,
    ProviderMaximum,
    ProviderMinimum,
    SlateSize,
    Soft,
)
from recsys_budget.errors import SpecificationError
from recsys_budget.models import Popularity
from recsys_budget.rerank import EngagementDiversity, Reranker


@pytest.fixture(scope="module")
def split():
    return fewer()


@pytest.fixture(scope="module")
def candidates(split):
    return Popularity().fit(split.train).recommend(split.fold_in.take_users(np.arange(8)), 25)


@pytest.fixture(scope="module")
def rules(split):
    first, second = split.train.catalogue.category_names[:2]
    return [SlateSize(5), CategoryMaximum(first, 2), CategoryMinimum(second, 1)]


@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("floor", [ProviderMinimum(exposure=0), ProviderMinimum(share=0.0)])
def test_a_floor_of_nothing_changes_nothing(split, candidates, rules, weight, floor):
    catalogue = split.train.catalogue
    without = Reranker(EngagementDiversity(weight), rules).rerank(candidates, catalogue, progress=False)
    asked = Reranker(EngagementDiversity(weight), [*rules, floor])
    with_floor = asked.rerank(candidates, catalogue, progress=False)
    pd.testing.assert_frame_equal(with_floor.frame, without.frame)
    assert with_floor.certificate.route == without.certificate.route
    assert with_floor.certificate.privacy == "per_user"
    assert with_floor.certificate.violations == {**without.certificate.violations, floor.name: 0.0}
    assert with_floor.certificate.shadow_prices == {**without.certificate.shadow_prices, floor.name: 0.0}
    # What the re-ranker promises beforehand, and what it does under a ledger, stays careful.
    assert asked.privacy == "population_not_private"
    with pytest.raises(SpecificationError, match="ledger"):
        asked.rerank(candidates, catalogue, ledger=object(), progress=False)


@pytest.mark.parametrize(
    "rule",
    [
        ProviderMinimum(exposure=1e-9),
        ProviderMaximum(share=1.0),
        Soft(ProviderMinimum(exposure=0), 0.1),
        CatalogueCoverage(0),
    ],
)
def test_what_may_bind_is_asked_of_everybody(split, candidates, rule):
    asked = Reranker(constraints=[SlateSize(5), rule], gap=0.05)
    found = asked.rerank(candidates, split.train.catalogue, progress=False)
    assert found.certificate.privacy == "population_not_private"


def test_a_prepared_floor_comes_and_goes(split, candidates, rules):
    catalogue = split.train.catalogue
    prepared = Reranker(constraints=[*rules, ProviderMinimum(exposure=0)]).prepare(candidates, catalogue)
    provider = catalogue.provider_names[int(catalogue.provider_codes[catalogue.positions(["i1"])[0]])]
    for places in (0, 3, 0):
        floor = ProviderMinimum(exposure=places, provider=provider)
        slates = prepared.rerank(constraints=[*rules, floor], progress=False)
        assert slates.certificate.violations[floor.name] == 0.0
        assert slates.certificate.privacy == ("per_user" if places == 0 else "population_not_private")


def test_a_named_route_gets_every_rule(split, candidates, rules):
    floor = ProviderMinimum(exposure=0)
    asked = Reranker(constraints=[*rules, floor], route="general")
    slates = asked.rerank(candidates, split.train.catalogue, progress=False)
    assert slates.certificate.privacy == "population_not_private"
