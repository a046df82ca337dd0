"""Policies: written down, read back, hashed and compared, whoever wrote the file."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_budget.constraints import (
    Block,
    Calibration,
    Cap,
    CategoryMaximum,
    CategoryMinimum,
    Constraint,
    Custom,
    EngagementFloor,
    ExposureMinimum,
    GroupMaximum,
    GroupParity,
    Pin,
    Policy,
    ProviderMaximum,
    ProviderMinimum,
    SlateSize,
    Soft,
    StockMaximum,
)
from recsys_budget.constraints.policy import KINDS
from recsys_budget.errors import DataError, SpecificationError
from recsys_budget.rerank import Reranker

SPRING = Policy(
    "spring: <b>& more</b>",
    [
        SlateSize(10),
        CategoryMinimum("Documentary", 2, reason="our remit"),
        Soft(CategoryMaximum("Drama", 4, name="not too sad"), 0.05),
        ExposureMinimum("Enfants à l'écran: 子供", 1.5, (1.0, 0.5, 0.25)),
        ProviderMinimum(share=0.005),
        Pin("007", 1),
        Block("null"),
        StockMaximum("stock"),
    ],
)


def words() -> st.SearchStrategy[str]:
    return st.text(min_size=1, max_size=12)


def rules() -> st.SearchStrategy[Constraint]:
    number = st.floats(0.0, 1e6, allow_nan=False)
    kinds = [
        st.builds(CategoryMinimum, words(), st.integers(0, 9), reason=words()),
        st.builds(CategoryMaximum, words(), st.integers(0, 9)),
        st.builds(GroupMaximum, st.integers(1, 9), words()),
        st.builds(Pin, words(), st.none() | st.integers(1, 9)),
        st.builds(Cap, words(), number),
        st.builds(Calibration, number, st.floats(0.01, 0.9)),
        st.builds(EngagementFloor, st.floats(0.0, 1.0), st.sampled_from(["none", "log", (2.0, 1.0)])),
        st.builds(ProviderMaximum, exposure=number, provider=st.none() | words()),
        st.builds(GroupParity, words(), st.none() | words(), number),
    ]
    plain = st.one_of(*kinds)
    return plain | st.builds(Soft, plain, st.floats(1e-3, 1e3))


@settings(max_examples=100, deadline=None)
@given(words(), st.lists(rules(), max_size=4, unique_by=lambda rule: rule.name))
def test_what_is_written_is_read_back(name: str, constraints: list[Constraint]) -> None:
    policy = Policy(name, constraints)
    for text in (policy.to_yaml(), policy.to_json()):
        again = Policy.from_yaml(text)
        assert again == policy
        assert again.sha256 == policy.sha256
    assert policy.diff(again) == ()


def test_json_by_others_is_read() -> None:
    policy = Policy("\U0001f600\x85\u2028", [SlateSize(3)])
    assert Policy.from_json(json.dumps(policy.to_dict(), indent=2)) == policy
    with pytest.raises(DataError, match="this is no value"):
        Policy.from_json('{"policy": "\\ud83d", "constraints": []}')


def test_a_policy_is_a_value() -> None:
    assert Policy.from_yaml(SPRING.to_yaml()) == SPRING
    assert json.loads(SPRING.to_json()) == SPRING.to_dict() == yaml.safe_load(SPRING.to_yaml())
    assert len(SPRING) == len(list(SPRING)) == 8
    assert hash(SPRING) == hash(Policy(SPRING.name, list(SPRING)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        SPRING.name = "summer"  # type: ignore[misc]


def test_the_hash_is_of_the_canonical_json() -> None:
    small = Policy("p", [SlateSize(3), CategoryMinimum("é", 1)])
    expected = (
        '{"constraints":[{"k":3,"kind":"SlateSize"},{"category":"é","count":1,"kind":"CategoryMinimum"}],'
        '"policy":"p"}'
    )
    assert small.to_json() == expected
    assert small.sha256 == hashlib.sha256(expected.encode()).hexdigest()
    assert Policy("q", list(small)).sha256 != small.sha256


def test_a_policy_goes_where_constraints_go() -> None:
    assert Reranker(constraints=Policy("p", [SlateSize(3)])).slate_size == 3


def test_what_cannot_be_written_down_is_refused_by_name() -> None:
    policy = Policy("p", [Custom(lambda x, c: x, 1.0, name="mine")])
    for write in (policy.to_dict, policy.to_yaml, policy.to_json, lambda: policy.sha256):
        with pytest.raises(SpecificationError, match="'mine' is a Custom, which cannot be written down"):
            write()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Policy(""), "needs a name"),
        (lambda: Policy("p", [SlateSize(1), SlateSize(1)]), "share the name 'exactly 1 items'"),
        (lambda: Policy("p", ["rule"]), "'rule' is not a constraint"),  # type: ignore[list-item]
    ],
)
def test_bad_policies_are_refused(make: object, message: str) -> None:
    with pytest.raises(SpecificationError, match=message):
        make()  # type: ignore[operator]


HEAD = "policy: p\nconstraints:\n- kind: SlateSize\n  k: 3\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", None, "nothing in it"),
        ("- a\n- b\n", 1, "expected names with values.*'- a'"),
        ("policy: p\n", 1, "'constraints' is missing"),
        ("policy: p\nconstraints: 3\n", 2, "must be a list.*'constraints: 3'"),
        ("policy: p\nconstraints: []\nowner: me\n", 3, "'owner' is not part of a policy.*'owner: me'"),
        ("policy: 3\nconstraints: []\n", 2, "needs a name, not 3"),
        (
            HEAD + "- kind: Western\n",
            5,
            "no constraint of kind 'Western'.*CategoryMinimum.*'- kind: Western'",
        ),
        (HEAD + "- kind: [Western]\n", 5, "no constraint of kind"),
        (HEAD + "- kind: Custom\n", 5, "no constraint of kind 'Custom'"),
        (HEAD + "- category: Drama\n", 5, "needs 'kind'"),
        (HEAD + "- 3\n", 5, "expected names with values"),
        (HEAD + "- kind: Pin\n  itm: a\n", 6, "Pin has no 'itm'; it has .*item.*'itm: a'"),
        (HEAD + "- kind: Pin\n", 5, "Pin missing 1 required positional argument: 'item'"),
        (HEAD + "- kind: Pin\n  item: 7\n", 5, "needs the name of a item, not 7"),
        (HEAD + "- kind: Pin\n  item: a\n  position: 0\n", 5, "position=0"),
        (HEAD + "- kind: Pin\n  item: a\n  soft: -1\n", 5, "weight=-1"),
        (HEAD + "- kind: Pin\n  item: a\n  soft: .nan\n", 5, "weight=nan"),
        (HEAD + "- kind: Cap\n  attribute: {a: b}\n  total: 1\n", 5, "name of a attribute"),
        (HEAD + "- kind: Pin\n  item: a\n  item: b\n", 7, "'item' is given twice"),
        (HEAD + "- kind: SlateSize\n  k: 3\n", 2, "share the name"),
        (HEAD + "- kind: Pin\n  item: 2024-99-99\n", 6, "this is no value"),
        ("policy: p\nconstraints: [}\n", 2, r"this is not YAML.*constraints: \[\}"),
        ("policy: !!python/object/apply:os.system [true]\nconstraints: []\n", 1, "tags, anchors"),
        ("policy: &a p\nconstraints: []\n", 1, "tags, anchors"),
        ("policy: p\nconstraints: *a\n", 2, "tags, anchors"),
        ("policy: p\nconstraints: " + "[" * 2000 + "\n", 2, "nests as deep"),
        ("policy: p\n---\nconstraints: []\n", 2, "this is not YAML"),
        ("policy: 'a\x00b'\nconstraints: []\n", None, "this is not YAML"),
        ("x" * 1_000_001, None, "longer than any policy"),
    ],
)
def test_hostile_and_mistaken_files_are_refused_by_line(text: str, line: int | None, message: str) -> None:
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        Policy.from_yaml(text, path="policy.yaml")
    assert caught.value.line == line
    assert str(caught.value.path) == "policy.yaml"


def test_files(tmp_path: object) -> None:
    path = tmp_path / "policy.yaml"  # type: ignore[operator]
    path.write_text(SPRING.to_yaml(), encoding="utf-8")
    assert Policy.read(path) == SPRING
    path.write_bytes(b"\xff\xfe\x00")
    for bad in (path, path.with_name("absent.yaml")):
        with pytest.raises(DataError, match="cannot be read as text"):
            Policy.read(bad)


def one(before: Constraint | None, after: Constraint | None) -> list[str]:
    old, new = (Policy("p", [SlateSize(5), *([rule] if rule else [])]) for rule in (before, after))
    return [change.verdict for change in old.diff(new)]


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (None, Pin("a"), "added"),
        (Pin("a"), None, "removed"),
        (CategoryMinimum("A", 1), CategoryMinimum("A", 2), "tightened"),
        (CategoryMinimum("A", 2), CategoryMinimum("A", 1), "loosened"),
        (CategoryMaximum("A", 1), CategoryMaximum("A", 2), "loosened"),
        (EngagementFloor(0.8), EngagementFloor(0.9), "tightened"),
        (Calibration(0.8), Calibration(0.9), "loosened"),
        (ProviderMinimum(share=0.1), ProviderMinimum(share=0.2), "tightened"),
        (GroupParity("A", tolerance=0.1), GroupParity("A", tolerance=0.2), "loosened"),
        (Pin("a"), Soft(Pin("a"), 1.0), "loosened"),
        (Soft(Pin("a"), 1.0), Pin("a"), "tightened"),
        (Soft(Pin("a"), 1.0), Soft(Pin("a"), 2.0), "tightened"),
        (CategoryMinimum("A", 1), Soft(CategoryMinimum("A", 2), 1.0), "changed"),
        (CategoryMinimum("A", 1), CategoryMinimum("A", 1, reason="law"), "changed"),
        (StockMaximum(3), StockMaximum("stock"), "changed"),
    ],
)
def test_a_change_is_one_verdict(before: Constraint | None, after: Constraint | None, verdict: str) -> None:
    assert one(before, after) == [verdict]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (CategoryMinimum("A", 1), CategoryMinimum("B", 1)),
        (ProviderMinimum(share=0.1), ProviderMinimum(exposure=10)),
        (EngagementFloor(0.8), EngagementFloor(0.8, "log")),
        (Pin("a"), Pin("a", 1)),
        (Pin("a"), Block("a")),
    ],
)
def test_rules_about_different_things_are_not_one_change(before: Constraint, after: Constraint) -> None:
    assert one(before, after) == ["removed", "added"]


def test_the_slate_size_changes_and_order_does_not_count() -> None:
    old = Policy("old", [SlateSize(5), Pin("a"), Pin("b")])
    new = Policy("new", [Pin("b"), Pin("a"), SlateSize(6)])
    (change,) = old.diff(new)
    assert change.verdict == "changed"
    assert str(change) == "changed: exactly 5 items -> exactly 6 items"
    assert [str(c) for c in Policy("x").diff(Policy("y", [Soft(Pin("a"), 2.0)]))] == [
        "added: 'a' in the slate (soft, 2 a unit)"
    ]


def test_rules_about_one_thing_are_matched_by_name() -> None:
    old = Policy("old", [CategoryMinimum("A", 1, name="law"), CategoryMinimum("A", 3, name="wish")])
    new = Policy("new", [CategoryMinimum("A", 2, name="wish"), CategoryMinimum("A", 2, name="law")])
    assert [(c.before.name, c.after.name, c.verdict) for c in old.diff(new) if c.before and c.after] == [
        ("law", "law", "tightened"),
        ("wish", "wish", "loosened"),
    ]


def test_every_kind_says_which_way_its_numbers_point() -> None:
    for name, kind in KINDS.items():
        if name not in ("SlateSize", "Pin", "Block"):
            assert kind.tighter, name


@pytest.mark.parametrize(
    ("text", "said", "row"),
    [
        ("policy: x\nconstraints:\n- kind: [1,\n", "- kind: [1,", 3),
        ("policy: 'x\n\n\n", "policy: 'x", 1),
    ],
)
def test_a_file_that_ends_too_early_is_quoted_where_it_last_says_something(text, said, row):
    with pytest.raises(DataError) as caught:
        Policy.from_yaml(text)
    assert repr(said) in str(caught.value)
    assert f"row {row}" in str(caught.value)
