"""The record of a run: what enters it, what is refused, and that it comes back as it went in."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safebook import paths, provenance, registry, results
from safebook.errors import InputError
from safebook.results import RecordError

RUN = "toy-run"


@pytest.fixture
def rec(tmp_path, monkeypatch) -> results.Record:
    return new(tmp_path, monkeypatch)


def new(folder: Path, monkeypatch) -> results.Record:
    monkeypatch.setenv("SAFEBOOK_RUN", RUN)
    monkeypatch.setenv("SAFEBOOK_RECORD_DIR", str(folder / "record"))
    monkeypatch.setenv("SAFEBOOK_INPUTS_HASH", "a" * 64)
    return results.new(RUN, size="smoke", seeds=[0, 1], parameters={"samples": 20, "rates": [0.5, 1.0]})


def filled(rec: results.Record) -> results.Record:
    for seed in (1, 0):
        for layer in (2, 1):
            rec.add("tau", seed + layer / 3, seed=seed, n=20, unit="1", model="ssft", layer=layer)
    rec.add("entropy", 0.25)
    rec.table("tau", pd.DataFrame({"kind": ["null", "NA"], "share": [0.1, 1 / 3], "n": [3, 4]}))
    return rec


def test_comes_back_as_it_went_in(rec):
    assert filled(rec).save() == rec.folder / "results.json"
    back = results.load(rec.folder)
    assert (
        back.scalars("tau", layer=1) == {0: 1 / 3, 1: 1 + 1 / 3} == rec.scalars("tau", layer=1, model="ssft")
    )
    assert back.scalars("entropy") == {None: 0.25}
    assert back.parameters == {"size": "smoke", "seeds": [0, 1], "samples": 20, "rates": [0.5, 1.0]}
    assert back.provenance == rec.provenance and back.inputs_hash == "a" * 64
    pd.testing.assert_frame_equal(
        back.tables["tau"], rec.tables["tau"]
    )  # drawn from either, a figure is the same
    assert back.tables["tau"].share.tolist() == [0.1, 1 / 3] and back.tables["tau"].kind.tolist() == [
        "null",
        "NA",
    ]
    frame = back.frame("tau")
    assert frame.columns.tolist() == ["metric", "value", "unit", "seed", "n", "layer", "model"]
    assert frame[["layer", "seed"]].values.tolist() == [
        [1, 0],
        [1, 1],
        [2, 0],
        [2, 1],
    ]  # sorted, whatever the order
    assert len(back.frame()) == 5


def test_the_file_is_sorted_and_the_same_whatever_the_order(rec, tmp_path, monkeypatch):
    filled(rec).save()
    text = rec.path.read_text()
    data = json.loads(text)
    assert list(data) == sorted(data) and list(data["provenance"]) == sorted(data["provenance"])
    assert sum(line.startswith('  {"labels"') for line in text.splitlines()) == 5  # one line a scalar
    other = new(tmp_path / "other", monkeypatch)
    other.add("entropy", np.float64(0.25))
    other.table("tau", rec.tables["tau"])
    for seed in (0, 1):
        for layer in (1, 2):
            other.add("tau", seed + layer / 3, seed=seed, n=20, unit="1", layer=np.int64(layer), model="ssft")
    other.save()
    assert json.loads(other.path.read_text())["scalars"] == data["scalars"]
    assert json.loads(other.path.read_text())["tables"] == data["tables"]


def test_provenance_says_what_a_reader_needs(rec):
    filled(rec).save()
    facts = rec.provenance
    assert facts.peak_memory_bytes > 10_000_000 and facts.threads >= 1 and facts.cpu and facts.duration_s >= 0
    assert facts.versions["torch"].startswith("2.13.0") and facts.device and facts.date.endswith("+00:00")
    commit, dirty = provenance.commit()
    assert (facts.commit, facts.dirty) == (commit, dirty)
    assert str(paths.ROOT) not in rec.path.read_text()


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, np.float32("nan"), torch.tensor(math.nan), None, "3", True, [1.0], 1j,
     np.array([1.0, 2.0]), np.bool_(True)],
    ids=repr,
)  # fmt: skip
def test_what_is_no_finite_number_is_refused_at_once(rec, value):
    with pytest.raises(RecordError, match="tau"):
        rec.add("tau", value, seed=0)
    with pytest.raises(RecordError):  # and nothing of it was kept
        rec.save()


@pytest.mark.parametrize("value", [3, np.float32(3), np.int64(3), torch.tensor(3.0), np.array([3.0])])
def test_numbers_of_other_libraries_are_numbers(rec, value):
    rec.add("tau", value, seed=0)
    assert rec.scalars("tau") == {0: 3.0} and type(rec.scalars("tau")[0]) is float


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"seed": 2}, "seeds"),
        ({"seed": 0, "n": 0}, "n"),
        ({"seed": 0, "n": 2.5}, "n"),
        ({"seed": 0, "unit": None}, "unit"),
        ({"seed": 0, "layer": None}, "layer"),
        ({"seed": 0, "layer": math.nan}, "layer"),
    ],
)
def test_what_goes_with_a_number_is_checked_too(rec, more, word):
    with pytest.raises(RecordError, match=word):
        rec.add("tau", 1.0, **more)


def test_a_number_added_twice_is_refused(rec):
    rec.add("tau", 1.0, seed=0, layer=1)
    rec.add("tau", 1.0, seed=0, layer=2)
    with pytest.raises(RecordError, match="twice"):
        rec.add("tau", 2.0, seed=0, layer=1)


def test_asking_for_what_is_not_there_or_not_one(rec):
    filled(rec)
    with pytest.raises(RecordError, match="several"):
        rec.scalars("tau")
    with pytest.raises(RecordError, match="entropy, tau"):
        rec.scalars("sigma")
    with pytest.raises(RecordError, match="sigma"):
        rec.tables["sigma"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
@pytest.mark.parametrize("dtype", [float, object])
def test_a_hole_in_a_table_is_refused(rec, bad, dtype):
    frame = pd.DataFrame({"ok": [1, 2], "share": pd.Series([0.5, bad], dtype=dtype)})
    with pytest.raises(RecordError, match="'share', row 1"):
        rec.table("shares", frame)


def test_empty_tables_bad_names_and_empty_records_are_refused(rec):
    with pytest.raises(RecordError, match="no rows"):
        rec.table("shares", pd.DataFrame({"a": []}))
    with pytest.raises(RecordError, match="letters"):
        rec.table("../shares", pd.DataFrame({"a": [1]}))
    with pytest.raises(RecordError, match="at least one"):
        rec.save()
    assert not rec.folder.exists()


def test_saving_again_replaces_the_old_record_and_nothing_else(rec, tmp_path, monkeypatch):
    filled(rec).save()
    (rec.folder / "mine.csv").write_text("a\n1\n")
    again = new(tmp_path, monkeypatch)
    again.add("tau", 1.0, seed=0)
    again.save()
    assert sorted(p.name for p in rec.folder.iterdir()) == ["mine.csv", "results.json"]


BREAK = {
    "wrong type": (lambda d: d["scalars"][0].update(value="3"), "scalars.0.value"),
    "NaN": (lambda d: d["scalars"][0].update(value=math.nan), "scalars.0.value"),
    "a bool": (lambda d: d["scalars"][0].update(value=True), "scalars.0.value"),
    "missing": (lambda d: d["provenance"].pop("commit"), "provenance.commit"),
    "unknown": (lambda d: d.update(extra=1), "extra"),
    "other schema": (lambda d: d.update(schema_version=2), "schema_version"),
    "unknown size": (lambda d: d.update(size="huge"), "size"),
    "no hash": (lambda d: d["provenance"].update(inputs_hash="x"), "provenance.inputs_hash"),
    "seed of another run": (lambda d: d["scalars"][1].update(seed=7), "seed 7"),
    "a number twice": (lambda d: d["scalars"].append(d["scalars"][0]), "twice"),
    "other checksum": (lambda d: d["tables"]["tau"].update(sha256="b" * 64), "'tau'"),
}


@pytest.mark.parametrize(("edit", "word"), BREAK.values(), ids=BREAK)
def test_a_broken_file_is_refused_by_name(rec, edit, word):
    filled(rec).save()
    data = json.loads(rec.path.read_text())
    edit(data)
    rec.path.write_text(json.dumps(data))
    with pytest.raises(RecordError, match=word):
        results.load(rec.folder)


def test_changed_or_missing_files_are_refused(rec):
    filled(rec).save()
    csv = rec.folder / "tau.csv"
    csv.write_text(csv.read_text().replace("0.1", "0.2"))
    with pytest.raises(RecordError, match="changed"):
        results.load(rec.folder)
    csv.unlink()
    with pytest.raises(RecordError, match="missing"):
        results.load(rec.folder)
    rec.path.write_text("{")
    with pytest.raises(RecordError, match="not JSON"):
        results.load(rec.folder)
    rec.path.unlink()
    with pytest.raises(RecordError, match="no such file"):
        results.load(rec.folder)


def test_a_notebook_that_is_run_as_another_says_so(rec):
    with pytest.raises(RecordError, match="other-run"):
        results.new("other-run", size="smoke", seeds=[0])


def test_alone_a_record_lands_in_the_run_s_own_folder(monkeypatch):
    for name in ("SAFEBOOK_RUN", "SAFEBOOK_RECORD_DIR", "SAFEBOOK_INPUTS_HASH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(registry, "inputs_hash", lambda run, size, values=None: "c" * 64)
    run = registry.RUNS[0]
    rec = results.new(run.id, size="laptop", seeds=[0, 1, 2])
    assert rec.folder == paths.RESULTS / "laptop" / run.id and rec.inputs_hash == "c" * 64
    with pytest.raises(InputError, match="nonsense"):
        results.new("nonsense", size="laptop", seeds=[0])
    with pytest.raises(InputError, match="size"):
        results.new(run.id, size="huge", seeds=[0])


def test_committed_gives_the_best_size_above(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RECORDED", tmp_path / "recorded")
    run = registry.RUNS[0]
    assert results.committed(run.id) is None
    for size in registry.SIZES:
        monkeypatch.setenv("SAFEBOOK_RUN", run.id)
        monkeypatch.setenv("SAFEBOOK_RECORD_DIR", str(run.recorded(size)))
        monkeypatch.setenv("SAFEBOOK_INPUTS_HASH", "a" * 64)
        rec = results.new(run.id, size=size, seeds=[0])
        rec.add("tau", 1.0, seed=0)
        rec.save()
        best = results.committed(run.id)
        assert (best and best.size) == (None if size == "smoke" else size)
    assert results.committed(run.id, above="laptop").size == "paper"
    assert results.committed(run.id, above="paper") is None


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_tables_keep_every_bit(values):
    rec = results.Record(RUN, "smoke", [0], {}, Path("nowhere"), "a" * 64)
    rec.table("t", pd.DataFrame({"x": values}))
    assert rec.tables["t"].x.astype(float).tolist() == values


def test_the_part_of_one_seed_holds_its_numbers_and_those_of_no_seed(rec):
    rec.add("tau", 1.0, seed=0, layer=1)
    rec.add("tau", 2.0, seed=1, layer=1)
    rec.add("width", 128.0)
    rec.table("by_layer", pd.DataFrame({"seed": [0, 1, 1], "tau": [0.1, 0.2, 0.3]}))
    rec.table("grammar", pd.DataFrame({"rule": ["a", "b"]}))
    part = results.of_seed(rec, 1)
    assert part.scalars("tau") == {1: 2.0} and part.scalars("width") == {None: 128.0} and part.seeds == [1]
    assert part.tables["by_layer"].tau.tolist() == [0.2, 0.3] and len(part.tables["grammar"]) == 2
    assert len(rec.tables["by_layer"]) == 3 and rec.scalars("tau") == {0: 1.0, 1: 2.0}
    with pytest.raises(RecordError, match="seed 7"):
        results.of_seed(rec, 7)


def test_the_processor_is_named_with_its_generation(monkeypatch):
    told = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel\t\t: 2\n"
    monkeypatch.setattr(provenance.Path, "read_text", lambda _path: told)
    assert provenance.cpu() == "AMD EPYC, family 25, model 1"
    monkeypatch.setattr(provenance.Path, "read_text", lambda _path: "model name : Some processor\n")
    assert provenance.cpu() == "Some processor"
