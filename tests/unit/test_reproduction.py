"""What this machine measured beside the committed record: the interval by simulation, the marks by construction."""

import json
import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from test_claims import ROW

from safebook import book_pages, book_state, book_tables, claims, registry, reproduction, results
from safebook.run import Status, planned_seeds
from safebook.run import state as run_state

VALUES = st.lists(st.integers(-1000, 1000).map(float), min_size=2, max_size=8, unique=True)


def test_the_interval_by_hand():
    # mean 2, s 1, n 3, k 3: half = t sqrt(2/3)
    half = stats.t.ppf(0.975, 2) * math.sqrt(2 / 3)
    assert reproduction.prediction_interval([1.0, 2.0, 3.0], 3) == pytest.approx([2 - half, 2 + half])
    # one new seed: the interval that the verdict `matches` uses
    known = claims.Interval.of([1.0, 2.0, 4.0])
    expected = [known.mean - known.spread, known.mean + known.spread]
    assert reproduction.prediction_interval([1.0, 2.0, 4.0], 1) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "k"), [(3, 3), (3, 1), (5, 3)])
def test_it_holds_95_of_100_new_means(n, k):
    draw = numpy.random.default_rng(0)
    trials, inside = 4000, 0
    for old, new in zip(draw.normal(3, 2, (trials, n)), draw.normal(3, 2, (trials, k)).mean(1)):
        low, high = reproduction.prediction_interval(list(old), k)
        inside += low <= new <= high
    assert abs(inside / trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)


@given(VALUES)
def test_the_same_numbers_are_bit_identical(values):
    seeds = dict(enumerate(values))
    assert reproduction.compare(seeds, dict(seeds))[0] == reproduction.IDENTICAL
    assert reproduction.compare(seeds, dict(seeds), same_control=False)[0] == reproduction.WITHIN


@given(VALUES, st.floats(1.01, 100), st.sampled_from([-1, 1]))
def test_a_mean_within_or_outside(values, far, sign):
    low, high = reproduction.prediction_interval(values, len(values))
    half = (high - low) / 2
    shift = {far: sign * far * half, 1 / far: sign * half / far}
    marks = [
        reproduction.compare(dict(enumerate(values)), {i: v + by for i, v in enumerate(values)})[0]
        for by in shift.values()
    ]
    assert marks == [reproduction.OUTSIDE, reproduction.WITHIN]


def test_one_bit_is_not_identical_and_one_seed_gives_no_interval():
    assert reproduction.compare({0: 1.0, 1: 2.0}, {0: 1.0, 1: math.nextafter(2, 3)})[0] == reproduction.WITHIN
    assert reproduction.compare({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0 + 1e-9})[0] == reproduction.OUTSIDE
    assert reproduction.compare({0: 1.0}, {0: math.nextafter(1, 2)}) == (reproduction.NO_INTERVAL, None)
    assert reproduction.compare({0: 1.0}, {0: 1.0}) == (reproduction.IDENTICAL, None)


@given(VALUES)
def test_some_of_the_seeds_are_bit_identical_where_each_is_its_own(values):
    committed = dict(enumerate(values))
    last = len(values) - 1
    assert reproduction.compare(committed, {last: values[last]})[0] == reproduction.IDENTICAL
    assert reproduction.compare(committed, {0: values[1]})[0] != reproduction.IDENTICAL  # of another seed
    assert reproduction.compare(committed, {last + 1: values[0]})[0] != reproduction.IDENTICAL
    half = reproduction.prediction_interval(values, 1)[1] - math.fsum(values) / len(values)
    assert reproduction.compare(committed, {0: values[0] + 3 * half})[0] == reproduction.OUTSIDE


# --- from records ---

CLAIM = claims.parse(ROW | {"run": "toy-01-first", "value": {"metric": "value"}, "control": {
    "description": "none", "metric": "control"}})  # fmt: skip


def record(folder, values, control=0.0, date="2026-01-01T00:00:00+00:00", seeds=(0, 1, 2)):
    rec = results.new("toy-01-first", size="laptop", seeds=list(seeds))
    group = registry.group(registry.get("toy-01-first"), "laptop") | {"seeds": list(seeds)}
    rec.inputs_hash = registry.inputs_hash(registry.get("toy-01-first"), "laptop", group)
    rec.folder = folder
    for seed, value in zip(seeds, values):
        rec.add("value", value, seed=seed)
        rec.add("control", control, seed=seed)
    rec.save()
    data = json.loads(rec.path.read_text())
    data["provenance"]["date"] = date
    rec.path.write_text(json.dumps(data))


def test_marks_of_records(toy_checkout, monkeypatch):
    run = registry.get("toy-01-first")
    monkeypatch.setattr(claims, "read", lambda: [CLAIM])
    local, committed = run.folder("laptop"), run.recorded("laptop")
    assert reproduction.column("laptop") == {}  # not run here
    record(local, (1.0, 2.0, 3.0))
    assert reproduction.column("laptop")["C1"]["agreement"] == reproduction.NOTHING
    record(committed, (1.0, 2.0, 3.0), date="2025-01-01T00:00:00+00:00")
    found = reproduction.column("laptop")["C1"]
    assert found["agreement"] == reproduction.IDENTICAL and found["committed"] == 2.0 and not found["stale"]
    record(committed, (1.0, 2.0, 3.0), control=0.5)
    assert reproduction.column("laptop")["C1"]["agreement"] == reproduction.WITHIN
    record(committed, (11.0, 12.0, 13.0))
    assert reproduction.column("laptop")["C1"]["agreement"] == reproduction.OUTSIDE
    (committed / results.FILE).write_bytes((local / results.FILE).read_bytes())
    assert reproduction.column("laptop")["C1"]["agreement"] == reproduction.ITSELF
    assert reproduction.column("smoke") == {}


def test_a_run_of_one_seed_stands_beside_all_of_them_and_judges_nothing(toy_checkout, monkeypatch):
    run = registry.get("toy-01-first")
    monkeypatch.setattr(claims, "read", lambda: [CLAIM])
    record(run.recorded("laptop"), (1.0, 2.0, 3.0))
    record(run.folder("laptop"), (2.0,), seeds=(1,))
    found = reproduction.column("laptop")["C1"]
    assert found["agreement"] == reproduction.IDENTICAL and not found["stale"]
    assert found["value"] == 2.0 and found["spread"] is None and found["some_seeds"] == [1]
    assert book_tables._yours(claims.row(CLAIM, "laptop"), claims.row(CLAIM, "laptop"), found).startswith("2")
    record(
        run.recorded("laptop"), (1.0, 5.0, 3.0)
    )  # beside the committed number of the same seed, not the mean of all
    assert reproduction.column("laptop")["C1"]["committed"] == 5.0
    record(run.recorded("laptop"), (1.0, 2.0, 3.0))
    record(run.folder("laptop"), (7.0,), seeds=(1,))
    status(run)
    monkeypatch.setenv("SAFEBOOK_SEEDS", "1")  # as the build had it; a page that is made later need not
    for _ in range(2):
        row = claims.row(CLAIM, "laptop")
        assert row["seeds"] == [0, 1, 2] and row["value"] == 2.0 and not row["stale"]
        monkeypatch.delenv("SAFEBOOK_SEEDS", raising=False)
    assert run_state(run, "laptop")[0] == "fewer seeds"
    record(run.folder("laptop"), (12.0,), seeds=(1,))
    assert reproduction.column("laptop")["C1"]["agreement"] == reproduction.OUTSIDE
    # all seeds: what this machine measured comes first, as ever
    record(run.folder("laptop"), (4.0, 5.0, 6.0))
    status(run)
    assert claims.row(CLAIM, "laptop")["value"] == 5.0


def test_where_nothing_is_committed_one_seed_shows_and_judges_nothing_larger(toy_checkout, monkeypatch):
    run = registry.get("toy-01-first")
    monkeypatch.setattr(claims, "read", lambda: [CLAIM])
    record(run.folder("laptop"), (2.0,), seeds=(1,))
    status(run)
    row = claims.row(CLAIM, "laptop")
    assert row["seeds"] == [1] and row["verdict"] == "not meaningful at this size"
    assert claims.row(CLAIM, None)["size"] is None  # the scorecard's verdicts do not come from it
    (view,) = [book_state.view(r, "laptop") for r in registry.RUNS if r.id == run.id]
    assert view.state == "ok" and view.some_seeds == [1] and book_state.elsewhere(run, "laptop") == []
    # beside a committed record: both are kept, in places of their own
    record(run.recorded("laptop"), (1.0, 2.0, 3.0))
    (other,) = book_state.elsewhere(run, "laptop")
    names = [book_pages.download_name(v, v.folder / results.FILE) for v in (view, other)]
    assert names == [f"records/laptop/{run.id}/{some}results.json" for some in ("seed-1/", "")]
    monkeypatch.setenv("SAFEBOOK_SEEDS", "1")  # which the smoke size does not have: that is no reason to fail
    assert book_state.elsewhere(run, "laptop") == [other] and run_state(run, "smoke")[0] == "not run"


def test_a_record_of_all_seeds_is_enough_for_a_build_of_some(toy_checkout, monkeypatch):
    run = registry.get("toy-01-first")
    record(run.folder("laptop"), (1.0, 2.0, 3.0))
    status(run)
    monkeypatch.setenv("SAFEBOOK_SEEDS", "1")
    assert run_state(run, "laptop")[0] == "succeeded" and planned_seeds(run, "laptop") == [0, 1, 2]
    record(run.folder("laptop"), (1.0, 3.0), seeds=(0, 2))
    assert run_state(run, "laptop")[0] == "fewer seeds" and planned_seeds(run, "laptop") == [1]
    monkeypatch.setenv("SAFEBOOK_SEEDS", "0,2")
    assert run_state(run, "laptop")[0] == "succeeded" and planned_seeds(run, "laptop") == [0, 2]
    record(run.folder("laptop"), (1.0, 3.0, 9.0), seeds=(0, 2, 7))  # a seed that the run no longer has
    assert run_state(run, "laptop")[0] == "stale"


def status(run):
    values = registry.group(run, "laptop")
    Status("succeeded", run.id, "laptop", run.template, values, "2026-01-01T00:00:00+00:00", 1.0).write(
        run.folder("laptop")
    )


def test_a_stale_record_says_so(toy_checkout, monkeypatch):
    run = registry.get("toy-01-first")
    for folder in (run.folder("laptop"), run.recorded("laptop")):
        record(folder, (1.0, 2.0, 3.0))
    monkeypatch.setattr(registry, "inputs_hash", lambda run, size, values=None: "changed")
    assert reproduction.marks([CLAIM], run, "laptop")["C1"]["stale"] == ["yours", "the committed one"]
