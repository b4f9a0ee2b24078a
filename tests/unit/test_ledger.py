"""The ledger takes verdicts apart without changing them, and says truly what would change them."""

import json
import math
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from safebook import claims, ledger, paths, registry

ROW = {
    "id": "toy-1",
    "paper": "pcfg",
    "source": "here",
    "statement": "It grows.",
    "statistic": "growth",
    "run": "pcfg-01-world",
    "page": "executed/pcfg/01_world",
    "direction": "greater",
    "null": 0.0,
    "value": {"metric": "growth", "labels": {}},
    "control": {"description": "nothing done", "metric": "growth", "labels": {"arm": "none"}},
    "reported": {"value": 1.0, "source": "Table 1", "trust": "high"},
}
READS = registry.get("synthesis-04-ledger").reads


def claim(**change) -> claims.Claim:
    return claims.parse(ROW | change)


def by_seed(values):
    return dict(enumerate(values))


floats = st.floats(-10, 10).map(lambda x: round(x, 3))
series = st.lists(floats, min_size=3, max_size=6)


@settings(max_examples=200, deadline=None)
@given(series, series, floats, st.none() | floats, st.sampled_from(["greater", "less"]), st.booleans())
def test_all_tests_hold_exactly_where_the_rule_says_so(
    values, controls, null, threshold, direction, controlled
):
    count = min(len(values), len(controls))
    values, controls = by_seed(values[:count]), by_seed(controls[:count])
    judged = claim(
        direction=direction, null=null, threshold=threshold, **({} if controlled else {"control": None})
    )
    controls = controls if controlled else None
    found = ledger.checks(judged, values, controls)
    parts = {part.kind: part.holds for part in found}
    # two tests of the rule are comparisons of nearly equal numbers, of which rounding may decide either way
    if any(math.isclose(part.margin, part.half, rel_tol=1e-9, abs_tol=1e-9) for part in found):
        return
    verdict = claims.judge(judged, "laptop", values, controls)["verdict"]
    first = parts["null"] and parts.get("threshold", True)
    expected = claims.DIFFERS if not first else claims.SAME if parts.get("control", True) else claims.CONTROL
    assert verdict == expected
    assert (ledger.why_not(found) == "") == (verdict == claims.SAME)
    assert ledger.why_not(found).startswith("control") == (verdict == claims.CONTROL)


@pytest.mark.parametrize(("margin", "spread"), [(0.5, 0.2), (0.1, 0.4), (1.0, 0.0), (0.02, 0.3)])
def test_seeds_needed_is_the_first_number_whose_interval_clears_the_bar(margin, spread):
    """Against scipy's own interval of n numbers of exactly this mean and this spread."""
    needed = ledger.seeds_needed(margin, spread)

    def low(n):
        noise = np.tile([1.0, -1.0], n)[:n] - (n % 2) / n  # mean 0
        values = margin + noise / noise.std(ddof=1) * spread
        return stats.ttest_1samp(values, 0).confidence_interval(0.95).low if spread else margin

    assert low(needed) > 0 and (needed == claims.MIN_SEEDS or low(needed - 1) <= 1e-12)


def test_no_number_of_seeds_helps_on_the_wrong_side_or_out_of_reach():
    assert ledger.seeds_needed(-0.1, 0.2) is None and ledger.seeds_needed(0.0, 0.2) is None
    assert ledger.seeds_needed(1e-6, 1.0) is None


@pytest.mark.parametrize("direction", ["greater", "less"])
def test_the_needed_mean_is_where_the_verdict_turns(direction):
    judged = claim(direction=direction, null=0.3, control=None)
    values = np.array([0.1, 0.5, 0.35])
    (part,) = ledger.checks(judged, by_seed(values), None)
    needed = part.mean_needed(direction)
    sign = 1 if direction == "greater" else -1
    for step, verdict in ((1e-6, claims.SAME), (-1e-6, claims.DIFFERS)):
        moved = values - values.mean() + needed + sign * step
        assert claims.judge(judged, "laptop", by_seed(moved), None)["verdict"] == verdict


def test_a_row_by_hand():
    """Values 1, 2, 3: spread 1, half-width t / sqrt(3) = 2.484; against a null of 0 four seeds lack little, five do."""
    e = ledger.Evidence(claim(), "laptop", by_seed([1.0, 2.0, 3.0]), by_seed([0.0, 0.0, 0.0]))
    row = ledger.row(e)
    assert row["verdict"] == claims.DIFFERS and row["why"] == ledger.WHY[2]
    assert row["null_margin"] == 2.0 and row["null_half"] == pytest.approx(2.484, abs=1e-3)
    assert row["null_beyond"] == 3 and row["needed"] == pytest.approx(2.484, abs=1e-3)
    assert row["more_seeds"] == 4 and ledger.half_width(1.0, 4) == pytest.approx(3.182 / 2, abs=1e-3)
    assert row["origin"] == "published" and row["tests"] == "null + control"


def test_a_control_that_shows_more_cannot_be_helped_by_seeds():
    e = ledger.Evidence(claim(), "laptop", by_seed([2.0, 2.1, 1.9]), by_seed([3.0, 3.1, 3.0]))
    row = ledger.row(e)
    assert row["verdict"] == claims.CONTROL and row["why"] == f"control: {ledger.WHY[0]}"
    assert row["more_seeds"] == "" and row["needed"] > row["control"] == pytest.approx(3.0333, abs=1e-3)


def test_the_spread_of_few_seeds_is_uncertain_by_the_factors_given():
    """Of many samples of three normal numbers, 95 % have a spread whose interval holds the true one."""
    low, high = ledger.spread_factors(3)
    measured = np.random.default_rng(0).normal(size=(20_000, 3)).std(1, ddof=1)
    assert np.mean((measured * low < 1) & (measured * high > 1)) == pytest.approx(0.95, abs=0.005)


# -------------------------------------------------------------------- the committed records


def test_no_run_reads_what_depends_on_it():
    for run in registry.RUNS:
        assert run.paper not in run.reads
    readers = {run.id for run in registry.RUNS if run.reads}
    assert not readers & {c.run for c in claims.read()}  # a ledger makes no claim


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the claims and of the committed records."""
    data = tmp_path / "data"
    shutil.copytree(paths.RECORDED, data / "results")
    shutil.copyfile(paths.DATA / claims.FILE, data / claims.FILE)
    monkeypatch.setattr(paths, "DATA", data)
    monkeypatch.setattr(paths, "RECORDED", data / "results")
    return data


def test_the_digest_follows_the_numbers_that_decide_and_nothing_else(copy):
    run = registry.get("synthesis-04-ledger")
    before, row = registry.inputs_hash(run, "smoke"), next(r for r in ledger.rows(READS) if r["value"] != "")
    deciding = next(c for c in claims.read() if c.id == row["claim"])
    file = copy / "results" / row["size"] / row["run"] / "results.json"
    content = json.loads(file.read_text())

    content["provenance"]["date"] = "2001-01-01T00:00:00+00:00"
    file.write_text(json.dumps(content))
    assert registry.inputs_hash(run, "smoke") == before

    labels = deciding.value.labels.items()
    for scalar in content["scalars"]:
        if scalar["metric"] == deciding.value.metric and labels <= scalar["labels"].items():
            scalar["value"] += 0.25
    file.write_text(json.dumps(content))
    assert registry.inputs_hash(run, "smoke") != before
    moved = next(r for r in ledger.rows(READS) if r["claim"] == row["claim"])
    assert moved["value"] == pytest.approx(row["value"] + 0.25, abs=1e-5)


def test_without_records_nothing_is_judged(copy):
    shutil.rmtree(copy / "results")
    rows = ledger.rows(READS)
    assert rows and {r["verdict"] for r in rows} == {claims.NOT_RUN}


def test_verdicts_are_those_of_the_scorecard(copy, monkeypatch):
    """At the same records: those of this machine are put out of sight."""
    monkeypatch.setattr(paths, "RESULTS", copy / "none")
    rows = ledger.rows(READS)
    scorecard = {r["id"]: r for r in claims.scorecard()}
    for row in rows:
        judged = scorecard[row["claim"]]
        assert row["verdict"] == judged["verdict"]
        if row["value"] != "":
            assert row["value"] == pytest.approx(judged["value"], rel=1e-5)
