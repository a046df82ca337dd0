"""Numbers known about items: read from tables and files, carried along, never infinite."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recsys_budget.data import ItemCatalogue, read_catalogue
from recsys_budget.errors import DataError, SpecificationError

FRAME = pd.DataFrame({"item": ["a", "b", "c"], "cost": [1.5, None, 0.0], "stock": [3, 2, 1]})


def test_attributes_are_float64_and_stay_with_their_items() -> None:
    catalogue = ItemCatalogue.from_frame(FRAME, attributes=["cost", "stock"])
    assert catalogue.attribute("stock").tolist() == [3.0, 2.0, 1.0]
    assert np.isnan(catalogue.attribute("cost")[1])
    assert catalogue.take(np.array([2, 0])).attribute("cost").tolist() == [0.0, 1.5]
    assert list(catalogue.to_frame().columns) == ["item", "title", "categories", "provider", "cost", "stock"]
    for same in (pickle.loads(pickle.dumps(catalogue)), copy.deepcopy(catalogue)):  # noqa: S301
        assert same.attribute("stock").tolist() == [3.0, 2.0, 1.0]


def test_attributes_cannot_be_changed() -> None:
    catalogue = ItemCatalogue.from_frame(FRAME, attributes=["stock"])
    with pytest.raises(ValueError, match="read-only"):
        catalogue.attribute("stock")[0] = 9.0
    with pytest.raises(TypeError):
        catalogue.attributes["stock"] = np.zeros(3)  # type: ignore[index]


def test_files_carry_attributes(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item,cost\na,1.5\nb,\nc,free\n")
    with pytest.raises(DataError, match=r"line 4, column 'cost': 'free' is not a finite number"):
        read_catalogue(path, attributes=["cost"])
    path.write_text("item,cost\na,1.5\nb,\n")
    assert read_catalogue(path, attributes=["cost"]).attribute("cost")[0] == 1.5


@pytest.mark.parametrize("bad", [np.inf, -np.inf, "dear"])
def test_what_is_no_number_is_refused_by_row(bad: object) -> None:
    frame = FRAME.assign(cost=pd.Series([1.0, bad, 2.0], dtype=object))
    with pytest.raises(DataError, match="row 2, column 'cost'"):
        ItemCatalogue.from_frame(frame, attributes=["cost"])


def test_attributes_of_another_length_or_name_are_refused() -> None:
    catalogue = ItemCatalogue.from_frame(FRAME)
    with pytest.raises(SpecificationError, match="no attribute 'cost'; it has none at all"):
        catalogue.attribute("cost")
    with pytest.raises(DataError, match="no such column"):
        ItemCatalogue.from_frame(FRAME, attributes=["price"])
    facts = {name: value for name, value in vars(catalogue).items() if name != "attributes"}
    with pytest.raises(
        SpecificationError, match=r"'cost' must be one number an item.*shape \(2,\) for 3 items"
    ):
        ItemCatalogue(**facts, attributes={"cost": np.zeros(2)})
