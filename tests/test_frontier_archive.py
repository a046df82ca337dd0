"""Archives of frontiers: what is read is what was written, and nothing else is believed."""

from __future__ import annotations

import io
import json
import pickle
import stat
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hostile import TEXTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from invented import fewer
from test_frontier_axes import Run

from recsys_budget.constraints import (
    Block,
    Calibration,
    CategoryMaximum,
    CategoryMinimum,
    Custom,
    ProviderMinimum,
    SlateSize,
    Soft,
)
from recsys_budget.data import ItemCatalogue
from recsys_budget.errors import DataError, SpecificationError
from recsys_budget.frontiers import Frontier, Point, frontier, read_frontiers, write_frontiers
from recsys_budget.frontiers.basis import StoredCandidates
from recsys_budget.models import Popularity
from recsys_budget.rerank import (
    Coverage,
    Diversity,
    Engagement,
    EngagementDiversity,
    HistoryMatch,
    Novelty,
    ObjectiveFloor,
    Reranker,
)
from recsys_budget.widgets import Explorer
from recsys_budget.widgets.operating import Choice, Operation

N = 30  # candidates a user


@pytest.fixture(scope="module")
def split():
    return fewer()


@pytest.fixture(scope="module")
def served(split):
    return split.fold_in.take_users(np.arange(12))


@pytest.fixture(scope="module")
def rules(split):
    first, second = split.train.catalogue.category_names[:2]
    return [SlateSize(5), CategoryMaximum(first, 2, reason="enough"), CategoryMinimum(second, 1)]


@pytest.fixture(scope="module")
def swept(split, served, rules):
    """Over epsilon with a band, over diversity, over a rule until it conflicts."""
    runs = [Run(Popularity().fit(split.train), seed) for seed in range(3)]
    held_out = split.held_out.take_users(np.arange(12))
    options = {"reranker": Reranker(constraints=rules, gap=0.01), "n_candidates": N, "progress": False}
    return (
        frontier(runs, served, "epsilon", held_out=held_out, metric="recall@5", **options),
        frontier(runs[0], served, "diversity", [0.0, 0.3, 0.6], **options),
        frontier(runs[0], served, rules[2].name, [0, 1, 3, 5, 6, 7], **options),
    )


@pytest.fixture(scope="module")
def written(swept, tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "frontiers.zip"
    write_frontiers(path, *swept)
    return path


def assert_same(ours, theirs, **seconds):
    """Everything that a frontier says, but for its models."""
    for name in ("x", "y", "x_better", "label", "error", "band", "note", "swept"):
        assert getattr(ours, name) == getattr(theirs, name)
    pd.testing.assert_frame_equal(ours.frame, theirs.frame)
    assert (ours.bound is None) == (theirs.bound is None)
    if ours.bound is not None:
        pd.testing.assert_frame_equal(ours.bound, theirs.bound)
    for a, b in zip(ours.points, theirs.points, strict=True):
        assert a.value == b.value
        assert str(a.conflict) == str(b.conflict)
        assert (a.slates is None) == (b.slates is None)
        if a.slates is not None:
            pd.testing.assert_frame_equal(a.slates.frame, b.slates.frame)
            pd.testing.assert_frame_equal(a.certificate.per_user, b.certificate.per_user)
            assert a.certificate.to_dict() | seconds == b.certificate.to_dict() | seconds
    if ours.basis is not None and ours.basis.reranker is not None:
        assert theirs.basis.reranker == ours.basis.reranker


def packed(path, **changed):
    """The archive with some files other than they were; None leaves one out."""
    file = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(file, "w") as new:
        files = {name: old.read(name) for name in old.namelist()}
        for name, content in {**files, **{n.replace("__", "."): c for n, c in changed.items()}}.items():
            if content is not None:
                new.writestr(name, content)
    return file.getvalue()


def edited(path, change):
    """The archive after a change of its main record."""
    with zipfile.ZipFile(path) as archive:
        main = json.loads(archive.read("frontiers.json"))
    change(main)
    return packed(path, frontiers__json=json.dumps(main))


def refused(tmp_path, content, match):
    path = tmp_path / "archive.zip"
    path.write_bytes(content)
    with pytest.raises(DataError, match=match) as caught:
        read_frontiers(path)
    assert caught.value.path == path
    assert list(tmp_path.iterdir()) == [path]


def read_or_refused(path):
    """The frontiers; None where they are refused as they should be."""
    try:
        return read_frontiers(path)
    except DataError as error:
        return None if error.path == path else pytest.fail("the error does not say where")


# What was written is read


def test_what_was_written_is_read(swept, written):
    read = read_frontiers(written)
    assert not swept[2].feasible().all()
    for ours, theirs in zip(swept, read, strict=True):
        assert_same(ours, theirs)
        assert (theirs.bound is None) == (ours.bound is None)
    models = [point.model for point in read[0].points]
    assert all(type(model) is StoredCandidates for model in models)
    conflicts = {id(point.conflict) for point in read[2].points if point.conflict is not None}
    assert len(conflicts) == 1
    conflict = read[2].points[-1].conflict
    original = swept[2].points[-1].conflict
    for name in original.names:
        assert conflict.without(name) == original.without(name)
    assert [conflict.relaxed(r.constraint.name) for r in conflict.relaxations if r.relaxed is not None] == [
        original.relaxed(r.constraint.name) for r in original.relaxations if r.relaxed is not None
    ]


def test_the_same_frontiers_give_the_same_bytes(swept, written, tmp_path):
    write_frontiers(tmp_path / "again.zip", *swept)
    assert (tmp_path / "again.zip").read_bytes() == written.read_bytes()
    write_frontiers(tmp_path / "read.zip", *read_frontiers(written))
    assert (tmp_path / "read.zip").read_bytes() == written.read_bytes()


def test_every_slider_moves_without_the_models(swept, written, rules):
    read = read_frontiers(written)
    ours, theirs = Operation(swept), Operation(read)
    assert theirs.epsilons == ours.epsilons
    assert theirs.start() == ours.start()
    for place, one in enumerate(read):
        for row, point in enumerate(one.points):
            answer = theirs.answer(theirs.at(one, row, theirs.start()))
            if one is not theirs.path and point.slates is not None:
                pd.testing.assert_frame_equal(answer.slates.frame, point.slates.frame)
            expected = ours.answer(ours.at(swept[place], row, ours.start()))
            assert (answer.slates is None) == (expected.slates is None)
            if answer.slates is not None:
                pd.testing.assert_frame_equal(answer.slates.frame, expected.slates.frame)
    new = Choice(ours.epsilons[0], 0.45, {rules[1].name: 1, rules[2].name: 2})
    pd.testing.assert_frame_equal(theirs.answer(new).slates.frame, ours.answer(new).slates.frame)
    user = ours.users(None)[3]
    assert theirs.reasons(theirs.answer(new), user) == ours.reasons(ours.answer(new), user)
    assert theirs.slack(theirs.answer(new), user) == ours.slack(ours.answer(new), user)


def test_the_slates_of_a_point_are_the_answer_there(written):
    # With the objective of the sweep: the path's slates are answers at the weight that it was made with.
    for one in read_frontiers(written):
        operation = Operation((one,))
        for row, point in enumerate(one.points):
            answer = operation.answer(operation.at(one, row, operation.start()))
            assert (answer.slates is None) == (point.slates is None)
            if point.slates is not None:
                pd.testing.assert_frame_equal(answer.slates.frame, point.slates.frame)
                assert answer.certificate.objective == pytest.approx(point.certificate.objective, abs=1e-12)
            else:
                assert answer.conflict is not None


def test_the_explorer_opens_it(written):
    explorer = Explorer(*read_frontiers(written))
    assert explorer.result.certificate.largest_violation == 0.0
    bundle, _ = explorer._repr_mimebundle_()
    assert "image/png" in bundle


def test_the_file_says_whose_it_is_and_holds_no_model(written):
    with zipfile.ZipFile(written) as archive:
        names = archive.namelist()
        assert "NOT PUBLIC" in archive.read("README.txt").decode()
        assert names == sorted(names)
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {name.rpartition(".")[2] for name in names} == {"txt", "csv", "json", "yaml"}
        assert not any(name.startswith("history") for name in names)
        assert not any(archive.read(name).startswith(pickle.PROTO) for name in names)
    assert "as private as" in write_frontiers.__doc__


def test_histories_are_kept_only_for_rules_that_compare_with_them(split, served, tmp_path):
    model = Popularity().fit(split.train)
    size, most = SlateSize(5), CategoryMaximum(served.catalogue.category_names[0], 3)
    for name, reranker in {
        "rule": Reranker(EngagementDiversity(0.2), [size, most, Soft(Calibration(0.4), 0.1)]),
        "objective": Reranker(0.5 * Engagement() + 0.5 * HistoryMatch(0.02), [size, most, Calibration(3.0)]),
        "neither": Reranker(EngagementDiversity(0.2), [size, most]),
    }.items():
        made = frontier(model, served, most.name, [2, 3], reranker=reranker, n_candidates=N, progress=False)
        write_frontiers(tmp_path / "f.zip", made)
        with zipfile.ZipFile(tmp_path / "f.zip") as archive:
            assert any(file.startswith("history") for file in archive.namelist()) == (name != "neither")
        (read,) = read_frontiers(tmp_path / "f.zip")
        assert_same(made, read)
        asked = Operation((made,)).start()
        ours, theirs = (Operation((f,)).answer(asked).slates.frame for f in (made, read))
        pd.testing.assert_frame_equal(ours, theirs)
    # A rule that came later finds no history, rather than an empty one.
    with pytest.raises(SpecificationError, match="history"):
        read.basis.prepare(Reranker(constraints=[size, Calibration(0.4)]), read.basis.candidates()).rerank(
            progress=False
        )


def test_rules_about_everybody_and_other_objectives(split, served, tmp_path):
    catalogue = replace(served.catalogue, attributes={"popularity": np.linspace(0.01, 1.0, 60)})
    candidates = Popularity().fit(split.train).recommend(served, N)
    provider = catalogue.provider_names[int(catalogue.provider_codes[0])]
    objective = 0.4 * Engagement("log") + 0.2 * Engagement((1.0, 0.5)) + 0.1 * Coverage() + 0.2 * Novelty()
    reranker = Reranker(
        objective + 0.1 * Diversity(),
        [SlateSize(3), Soft(ProviderMinimum(share=0.2, provider=provider), 0.5)],
    )
    made = frontier(
        candidates, catalogue, reranker.constraints[1].name, [0.0, 0.3], reranker=reranker, progress=False
    )
    write_frontiers(tmp_path / "f.zip", made)
    (read,) = read_frontiers(tmp_path / "f.zip")
    assert_same(made, read)
    assert read.points[0].certificate.privacy == "population_not_private"
    assert read.basis.catalogue.attributes["popularity"].tolist() == np.linspace(0.01, 1.0, 60).tolist()


def test_other_tables_are_read_back_as_pandas(split, served, rules, tmp_path):
    polars = pytest.importorskip("polars")
    frame = Popularity().fit(split.train).recommend(served, N)
    reranker = Reranker(constraints=rules)
    made = [
        frontier(table, served.catalogue, "diversity", [0.2], reranker=reranker, progress=False)
        for table in (polars.from_pandas(frame), frame)
    ]
    write_frontiers(tmp_path / "f.zip", made[0])
    (read,) = read_frontiers(tmp_path / "f.zip")
    assert_same(made[1], read, seconds=0.0)


def test_text_is_only_text(tmp_path):
    whole = [text for text in TEXTS.values() if text.encode("utf-8", "ignore").decode() == text]
    ids = [f"{n}{text}" for n, text in enumerate(whole)]
    items = pd.DataFrame(
        {
            "item": ids,
            "title": whole,
            "categories": [[text] for text in whole],
            "provider": [f"P{text}" for text in whole],
        }
    )
    catalogue = ItemCatalogue.from_frame(items)
    users = whole[:6]
    rng = np.random.default_rng(0)
    candidates = pd.DataFrame(
        [{"user": user, "item": item, "relevance": rng.normal()} for user in users for item in ids]
    )
    plain = [text for text in whole if text.isprintable()]
    rules = [SlateSize(3), *(CategoryMaximum(text, 1, name=f"rule {text}", reason=text) for text in plain)]
    made = frontier(
        candidates, catalogue, "diversity", [0.1, 0.2], reranker=Reranker(constraints=rules), progress=False
    )
    made = replace(made, note="".join(whole), frame=made.frame.assign(said=whole[:2]), label="said")
    write_frontiers(tmp_path / "f.zip", made)
    (read,) = read_frontiers(tmp_path / "f.zip")
    assert_same(made, replace(read, frame=read.frame.astype(made.frame.dtypes)))
    assert read.basis.catalogue.titles.tolist() == catalogue.titles.tolist()
    assert read.basis.catalogue.provider_names == catalogue.provider_names
    assert [list(c) for c in read.basis.catalogue.to_frame()["categories"]] == [[text] for text in whole]


def test_frontiers_without_slates_are_figures_alone(split, served, tmp_path):
    frame = pd.DataFrame(
        {"x": [1.0, np.nan, -np.inf], "y": [3.0, 2.0, 1.0], "n": [1, 2, 3], "t": ["a", "b", ""]}
    )
    by_hand = Frontier(frame, "x", "y", "less", label="t", bound=pd.DataFrame({"x": [0.0], "y": [4.0]}))
    run = Run(Popularity().fit(split.train), 0)
    held_out = split.held_out.take_users(np.arange(12))
    lists = frontier(run, served, "epsilon", held_out=held_out, progress=False)
    write_frontiers(tmp_path / "f.zip", by_hand, lists)
    read = read_frontiers(tmp_path / "f.zip")
    pd.testing.assert_frame_equal(read[0].frame, frame, check_dtype=False)
    assert read[0].basis is None
    assert_same(lists, read[1])
    assert read[1].points[0].model is None
    with zipfile.ZipFile(tmp_path / "f.zip") as archive:
        assert archive.namelist() == ["README.txt", "frontiers.json"]


def test_frontiers_of_different_users_stay_apart(split, served, rules, tmp_path):
    model, reranker = Popularity().fit(split.train), Reranker(constraints=rules)
    other = split.fold_in.take_users(np.arange(6))
    made = [
        frontier(model, over, "diversity", [0.2], reranker=reranker, n_candidates=N, progress=False)
        for over in (served, other, served)
    ]
    write_frontiers(tmp_path / "f.zip", *made)
    read = read_frontiers(tmp_path / "f.zip")
    Operation((read[0], read[2]))
    with pytest.raises(SpecificationError, match="different users"):
        Operation((read[0], read[1]))


def test_what_was_kept_stands_in_for_the_model(written, served, rules):
    path, weights, _ = read_frontiers(written)
    kept = path.points[-1].model
    assert repr(kept) == f"StoredCandidates(12 users, {12 * N} candidates)"
    again = frontier(
        kept, served, "diversity", [0.0, 0.3, 0.6], reranker=weights.basis.reranker, n_candidates=N,
        progress=False,
    )  # fmt: skip
    pd.testing.assert_frame_equal(again.frame, weights.frame)
    assert len(kept.recommend(served.take_users([1, 2]), 4)) == 8
    assert kept.recommend(served, 3)["rank"].max() == 3
    with pytest.raises(SpecificationError, match="30 candidates a user were kept"):
        kept.recommend(served, N + 1)
    with pytest.raises(SpecificationError, match="k=0"):
        kept.recommend(served, 0)
    with pytest.raises(DataError, match="no candidates of user 'stranger'"):
        kept.recommend(replace(served, users=pd.Index([*served.users[:-1], "stranger"], dtype="str")), 3)


# What cannot be written


class Own(Engagement):
    """An objective of one's own."""


@pytest.mark.parametrize(
    ("objective", "rules", "match"),
    [
        (Engagement(), [Custom(lambda x, c: np.ones(len(c)) @ x, 9.0, name="mine")], "'mine'"),
        (Engagement(), [ObjectiveFloor(Diversity(), 0.1)], r"'Diversity\(\) at least 0.1'"),
        (Engagement(), [Block("i1", name="half \ud83d")], "half"),
        (Own(), [], "kind of one's own"),
        (0.5 * Engagement() + 0.5 * Own(), [], "kind of one's own"),
    ],
)
def test_what_cannot_be_written_is_named_and_leaves_nothing(split, served, objective, rules, match, tmp_path):
    kept = tmp_path / "f.zip"
    kept.write_bytes(b"as it was")
    most = CategoryMaximum(served.catalogue.category_names[0], 3)
    reranker = Reranker(objective, [SlateSize(3), most, *rules])
    model = Popularity().fit(split.train)
    made = frontier(model, served, most.name, [3], reranker=reranker, n_candidates=N, progress=False)
    with pytest.raises(SpecificationError, match=match):
        write_frontiers(kept, made)
    assert kept.read_bytes() == b"as it was"
    assert list(tmp_path.iterdir()) == [kept]


def test_slates_of_other_candidates_are_refused(swept, tmp_path):
    weights = swept[1]
    other = weights.basis.candidates().assign(relevance=lambda frame: frame["relevance"] * 2)
    moved = replace(weights, basis=replace(weights.basis, source=other, over=weights.basis.catalogue))
    with pytest.raises(SpecificationError, match="point 0 are not of the candidates"):
        write_frontiers(tmp_path / "f.zip", moved)
    with pytest.raises(SpecificationError, match="no candidates are known"):
        write_frontiers(tmp_path / "f.zip", replace(weights, basis=None))
    with pytest.raises(SpecificationError, match="neither numbers nor text"):
        write_frontiers(
            tmp_path / "f.zip", replace(weights, frame=weights.frame.assign(other=[None, 1, "a"]))
        )
    with pytest.raises(SpecificationError, match="at least one"):
        write_frontiers(tmp_path / "f.zip")
    with pytest.raises(DataError, match="cannot be written"):
        write_frontiers(tmp_path / "no" / "such" / "f.zip", weights)
    assert list(tmp_path.iterdir()) == []


# What is not believed


def test_files_that_are_none(written, tmp_path):
    whole = written.read_bytes()
    refused(tmp_path, b"", "zip archive")
    refused(tmp_path, b"PK" + b"\0" * 100, "zip archive")
    refused(tmp_path, packed(written, frontiers__json=None), "no archive of frontiers")
    refused(tmp_path, packed(written, frontiers__json="[]"), "no archive of frontiers")
    refused(tmp_path, packed(written, frontiers__json='{"format": "else"}'), "no archive of frontiers")
    refused(tmp_path, packed(written, frontiers__json="{" * 100_000), "damaged")
    refused(tmp_path, packed(written, frontiers__json="[" * 100_000), "damaged")
    for name in ("candidates-1.csv", "slates-2.csv", "figures-3.csv", "policy-1.yaml", "users-1.json"):
        refused(tmp_path, packed(written, **{name: None}), "lacks")
    for size in range(1, len(whole), len(whole) // 20):
        refused(tmp_path, whole[:size], "zip archive")
    with pytest.raises(DataError, match="cannot be read"):
        read_frontiers(tmp_path / "absent.zip")


def test_other_versions_say_what_to_do(written, tmp_path):
    refused(tmp_path, edited(written, lambda main: main.update(version=2)), "version 2.*update recsys_budget")
    refused(tmp_path, edited(written, lambda main: main.update(version=0)), "version 0.*write the frontiers")
    refused(tmp_path, edited(written, lambda main: main.update(version="1")), "'version'")


def test_flipped_bits_are_found_or_change_nothing(swept, written, tmp_path):
    whole, found = written.read_bytes(), 0
    path = tmp_path / "flipped.zip"
    for at in np.random.default_rng(0).choice(len(whole), 120, replace=False):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(at) % 8
        path.write_bytes(bytes(damaged))
        read = read_or_refused(path)
        if read is None:
            found += 1
        else:
            for ours, theirs in zip(swept, read, strict=True):
                assert_same(ours, theirs)
    assert found > 100


def leaves(value, path=()):
    """Every place of a record."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))


WRONG = st.sampled_from(
    [None, True, -1, 3, 1e300, 10**400, 0.5, "", "x", "inf", [], [1], ["a"], [[1]], {}, {"a": 1}, [None] * 7]
)


@pytest.mark.parametrize("name", ["frontiers.json", "catalogue-1.json", "users-1.json"])
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_wrong_values_anywhere_are_refused_as_data(name, data, written, tmp_path):
    with zipfile.ZipFile(written) as archive:
        main = json.loads(archive.read(name))
    spots = [spot for spot in leaves(main) if spot]
    # Rare places as often as common ones.
    kinds = sorted({tuple(str(key) for key in spot if isinstance(key, str)) for spot in spots})
    kind = data.draw(st.sampled_from(kinds))
    spot = data.draw(
        st.sampled_from([s for s in spots if tuple(str(key) for key in s if isinstance(key, str)) == kind])
    )
    inner = main
    for key in spot[:-1]:
        inner = inner[key]
    if data.draw(st.booleans()):
        del inner[spot[-1]]
    else:
        inner[spot[-1]] = data.draw(WRONG)
    path = tmp_path / "wrong.zip"
    path.write_bytes(packed(written, **{name: json.dumps(main)}))
    read = read_or_refused(path)
    for one in read or ():
        assert len(one) == len(one.points)
        assert isinstance(one.to_frame(), pd.DataFrame)


def test_certificates_that_lie(written, tmp_path):
    def certificate(**said):
        return lambda main: main["frontiers"][1]["points"][0]["certificate"].update(said)

    for said in ({"objective": 0.99}, {"engagement": 0.5}, {"diversity": 0.9}, {"gap": 0.5}, {"soft": ["x"]}):
        refused(tmp_path, edited(written, certificate(**said)), "says something else")
    refused(tmp_path, edited(written, certificate(violations={})), "says something else")
    refused(tmp_path, edited(written, certificate(n_users=3)), "3 users")
    refused(tmp_path, edited(written, certificate(privacy="free")), "privacy")
    with zipfile.ZipFile(written) as archive:
        figures, slates, candidates = (
            pd.read_csv(archive.open(name)) for name in ("figures-2.csv", "slates-2.csv", "candidates-1.csv")
        )
    # A bound below the slates; slates that break a rule, that have an item twice, or a place.
    low = figures.assign(bound=figures["objective"] - 0.1).to_csv(index=False)
    refused(tmp_path, packed(written, **{"figures-2.csv": low}), "bound")
    for column, row, value, match in (
        ("candidate", 1, slates["candidate"][0], "twice"),
        ("rank", 1, 1, "twice"),
        ("rank", 1, 6, "outside"),
        ("candidate", 1, -1, "outside"),
        ("candidate", 1, len(candidates) * 3, "outside"),
    ):
        wrong = slates.copy()
        wrong.loc[row, column] = value
        refused(tmp_path, packed(written, **{"slates-2.csv": wrong.to_csv(index=False)}), match)
    best = slates.copy()
    best.loc[best["point"] == 0, "candidate"] = np.concatenate(
        [np.arange(5) + N * user for user in range(12)]
    )
    refused(tmp_path, packed(written, **{"slates-2.csv": best.to_csv(index=False)}), "violates|else than")
    fewer = slates.drop(index=3).to_csv(index=False)
    refused(tmp_path, packed(written, **{"slates-2.csv": fewer}), "violates|else than")


def test_tables_that_are_none(written, tmp_path):
    with zipfile.ZipFile(written) as archive:
        table = archive.read("candidates-1.csv").decode()
    header, first, second, *rest = table.splitlines(keepends=True)
    for content, match in (
        ("", "damaged"),
        (header, "no candidate"),
        (table.replace("relevance", "score"), "columns"),
        (header + first + first + "".join(rest), "twice|order"),
        (header + second + first + "".join(rest), "order"),
        (header + first.rpartition(",")[0] + ",nan\n" + second + "".join(rest), "finite|number"),
        (header + "0,60,1.0\n" + second + "".join(rest), "outside"),
        (header + "-1,1,1.0\n" + second + "".join(rest), "outside"),
        (header + "a,1,1.0\n" + second + "".join(rest), "damaged"),
        ("".join([header, first, second, *rest[: N * 3]]), "order"),
    ):
        refused(tmp_path, packed(written, **{"candidates-1.csv": content}), match)


def test_archives_made_to_do_harm(written, tmp_path):
    for name in ("../outside.json", "/outside.json", "a/../../b", "C:outside", "a\\b"):
        refused(tmp_path, packed(written, **{name: b"x"}), "leads out")
    file = io.BytesIO(written.read_bytes())
    with zipfile.ZipFile(file, "a") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    refused(tmp_path, file.getvalue(), "link")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("frontiers.json", b" " * (1 << 27))
    assert len(file.getvalue()) < 1 << 18
    refused(tmp_path, file.getvalue(), "more than the bytes allowed")
    file = io.BytesIO(written.read_bytes())
    with zipfile.ZipFile(file, "a") as archive:
        for n in range(1000):
            archive.writestr(f"{n}.txt", "")
    refused(tmp_path, file.getvalue(), "more than the 1000")
    path = tmp_path / "archive.zip"
    path.write_bytes(written.read_bytes())
    with pytest.raises(DataError, match="more than the bytes allowed"):
        read_frontiers(path, max_bytes=50_000)
    anchors = "policy: &a x\nconstraints: *a\n"
    refused(tmp_path, packed(written, **{"policy-1.yaml": anchors}), "anchors")
    tags = "policy: x\nconstraints: !!python/object/apply:os.system ['true']\n"
    refused(tmp_path, packed(written, **{"policy-1.yaml": tags}), "tags")


def test_points_may_be_of_values_alone(tmp_path):
    frame = pd.DataFrame({"x": [1.0], "y": [1.0]})
    write_frontiers(tmp_path / "f.zip", Frontier(frame, "x", "y", "more", points=(Point(1.0),)))
    (read,) = read_frontiers(tmp_path / "f.zip")
    assert [(point.value, point.slates) for point in read.points] == [(1.0, None)]
