"""The verdict rule, against intervals worked out by hand and by scipy's own one-sample interval."""

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from safebook import claims, cli, paths, registry, results, run
from safebook.errors import InputError

RUN = registry.RUNS[0].id
ROW = {
    "id": "C1",
    "paper": "pcfg",
    "source": "Fig. 3",
    "statement": "Fine-tuning separates the clusters.",
    "statistic": "separation of the last layer",
    "run": RUN,
    "page": "executed/pcfg/01_world",
    "direction": "greater",
    "null": 1.0,
    "threshold": None,
    "value": {"metric": "separation", "labels": {"model": "ssft"}},
    "control": {"description": "benign fine-tuning", "metric": "separation", "labels": {"model": "benign"}},
    "reported": {"value": 9.0, "source": "Fig. 3", "trust": "read off"},
    "unit": "1",
}
WEAK = (0.5, 0.6, 0.4)  # a control well below the values
T2 = 4.302652729911275  # 97.5% point of Student's t with 2 degrees of freedom


def claim(**change) -> claims.Claim:
    return claims.parse(ROW | change)


def verdict(values, controls=WEAK, size="laptop", **change) -> dict:
    judged = claim(**change)
    pairs = dict(enumerate(controls)) if judged.control is not None else None
    return claims.judge(judged, size, dict(enumerate(values)), pairs)


def test_interval_by_hand():
    # mean 2, s 1, n 3: half = t / sqrt(3), the next seed within t sqrt(4/3)
    interval = claims.Interval.of([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert math.isclose(interval.half, T2 / math.sqrt(3)) and math.isclose(
        interval.spread, T2 * math.sqrt(4 / 3)
    )


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=8, unique=True))
def test_interval_as_scipy_has_it(values):
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert claims.Interval.of(values).ends == pytest.approx([low, high], rel=1e-6, abs=1e-6)


def test_same_direction_gives_value_interval_and_control():
    result = verdict((5.0, 6.0, 7.0))
    assert result["verdict"] == "same direction" and result["reason"] is None
    assert result["value"] == 6.0
    assert result["interval"] == pytest.approx([6 - T2 / math.sqrt(3), 6 + T2 / math.sqrt(3)])
    assert result["control"]["value"] == pytest.approx(0.5) and len(result["control"]["interval"]) == 2


@pytest.mark.parametrize(
    ("values", "controls", "change", "expected"),
    [
        # the interval of (5, 6, 7) is 3.52 .. 8.48
        ((5, 6, 7), WEAK, {"null": 3.5}, "same direction"),
        ((5, 6, 7), WEAK, {"null": 3.6}, "differs"),
        ((5, 6, 7), WEAK, {"direction": "less"}, "differs"),
        ((-5, -6, -7), (0, 0, 0), {"direction": "less", "null": 0.0}, "same direction"),
        ((-5, -6, -7), (0, 0, 0), {"direction": "less", "null": -3.6}, "differs"),
        # the mean must reach a threshold, the interval need not
        ((5, 6, 7), WEAK, {"threshold": 6.0}, "same direction"),
        ((5, 6, 7), WEAK, {"threshold": 6.01}, "differs"),
        ((-5, -6, -7), (0, 0, 0), {"direction": "less", "null": 0.0, "threshold": -6.0}, "same direction"),
        ((-5, -6, -7), (0, 0, 0), {"direction": "less", "null": 0.0, "threshold": -6.5}, "differs"),
        # the control is compared seed by seed: a large spread that both share does not matter
        ((10, 20, 30), (9, 18.9, 29.1), {"null": -20.0}, "same direction"),
        ((10, 20, 30), (11, 18.9, 29.1), {"null": -20.0}, "not distinguishable from control"),
        ((5, 6, 7), (5, 6, 7), {}, "not distinguishable from control"),
        ((5, 6, 7), (8, 9, 10.1), {}, "not distinguishable from control"),  # the control shows more
        ((1, 1.1, 0.9), (5, 6, 7), {}, "differs"),  # the value part is judged first
        ((5, 6, 7), WEAK, {"control": None}, "same direction"),
        # no variance: the interval is a point
        ((2, 2, 2), (0, 0, 0), {}, "same direction"),
        ((0.1, 0.1, 0.1), (0, 0, 0), {"null": 0.1}, "differs"),  # a point on the null does not exclude it
        ((2, 2, 2), (2, 2, 2), {}, "not distinguishable from control"),
    ],
)
def test_verdicts(values, controls, change, expected):
    assert verdict(values, controls, **change)["verdict"] == expected


def test_matches_only_at_paper_size_and_within_the_prediction_interval():
    # mean 6, s 1: the next seed lies within 6 +- 4.97
    reported = {"value": 10.9, "source": "Fig. 3", "trust": "read off"}
    assert verdict((5, 6, 7), size="paper", reported=reported)["verdict"] == "matches"
    other_setting = reported | {"comparable": False}
    assert verdict((5, 6, 7), size="paper", reported=other_setting)["verdict"] != "matches"
    assert verdict((5, 6, 7), size="laptop", reported=reported)["verdict"] == "same direction"
    assert (
        verdict((5, 6, 7), size="paper", reported=reported | {"value": 11.0})["verdict"] == "same direction"
    )
    assert (
        verdict((5, 6, 7), size="paper", reported=reported | {"value": None})["verdict"] == "same direction"
    )
    assert verdict((2, 2, 2), size="paper", reported=reported | {"value": 2.0})["verdict"] == "matches"


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_seeds_have_no_verdict(n):
    result = verdict((5, 6, 7)[:n], WEAK[:n])
    assert result["verdict"] == "not meaningful at this size"
    assert result["reason"].startswith(f"{n} seed") and "needs 3" in result["reason"]
    assert (result["interval"] is None) == (n < 2) and (result["value"] is None) == (n == 0)


def test_too_few_paired_controls_have_no_verdict():
    result = claims.judge(claim(), "laptop", {0: 5.0, 1: 6.0, 2: 7.0}, {0: 0.5, 1: 0.5, 3: 0.5})
    assert result["verdict"] == "not meaningful at this size" and "2 seeds with a control" in result["reason"]


def test_a_size_where_the_claim_means_nothing():
    why = {"smoke": "the model has learned nothing yet"}
    assert verdict((5, 6, 7), size="smoke", meaningful=why)["reason"] == why["smoke"]
    assert verdict((5, 6, 7), size="smoke", meaningful=why)["verdict"] == "not meaningful at this size"
    assert verdict((5, 6, 7), size="laptop", meaningful=why)["verdict"] == "same direction"


@given(
    st.lists(st.floats(-9, 9), min_size=3, max_size=6), st.floats(-9, 9), st.sampled_from(["greater", "less"])
)
def test_mirrored_numbers_have_the_mirrored_verdict(values, null, direction):
    other = {"greater": "less", "less": "greater"}[direction]
    zero = [0.0] * len(values)
    plain = verdict(values, zero, direction=direction, null=null)
    mirrored = verdict([-v for v in values], zero, direction=other, null=-null)
    assert plain["verdict"] == mirrored["verdict"]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"direction": "up"}, "direction"),
        ({"null": math.nan}, "null"),
        ({"reported": {"value": 1.0}}, "reported.source"),
        ({"value": {"metric": "a", "label": {}}}, "value.label"),
        ({"meaningful": {"huge": "why"}}, "meaningful.huge"),
        ({"comment": "x"}, "comment"),
    ],
)
def test_a_wrong_row_is_named(change, where):
    with pytest.raises(InputError, match=rf"claims.yaml: C1: {where}"):
        claim(**change)


def test_an_unquoted_null_is_the_field_not_nothing():
    import yaml

    row = yaml.safe_load(json.dumps(ROW).replace('"null": 1.0', "null: 2.5"))
    assert None in row and claims.parse(row).null == 2.5


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Empty folders for data and results, and records that count as fresh if their hash is a..a."""
    for name in ("DATA", "RESULTS", "RECORDED"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    monkeypatch.setattr(registry, "inputs_hash", lambda *_: "a" * 64)
    (tmp_path / "data").mkdir()
    rows = [
        ROW,
        ROW | {"id": "C2", "implemented": False},
        ROW | {"id": "C3", "value": {"metric": "absent"}},
    ]
    (tmp_path / "data" / "claims.yaml").write_text(json.dumps(rows))  # JSON is YAML

    def save(size: str, shift: float, local: bool, hash_: str = "a" * 64) -> None:
        registered = registry.get(RUN)
        folder = registered.folder(size) if local else registered.recorded(size)
        monkeypatch.setenv("SAFEBOOK_RUN", RUN)
        monkeypatch.setenv("SAFEBOOK_RECORD_DIR", str(folder))
        monkeypatch.setenv("SAFEBOOK_INPUTS_HASH", hash_)
        rec = results.new(RUN, size=size, seeds=[0, 1, 2])
        for seed in rec.seeds:
            rec.add("separation", shift + seed, seed=seed, model="ssft")
            rec.add("separation", 0.1 * seed, seed=seed, model="benign")
        rec.save()
        if local:
            run.Status(run.SUCCEEDED, RUN, size, "t", {}, "2026-01-01T00:00:00+00:00", 1.0).write(folder)

    return save


def test_scorecard_takes_the_largest_size_and_local_before_committed(checkout):
    def now(size=None) -> tuple:
        first = claims.scorecard(size)[0]
        return first["verdict"], first["size"], first["value"], first["stale"]

    assert now() == ("not run at this size", None, None, False)
    assert now("smoke") == ("not run at this size", "smoke", None, False)
    checkout("smoke", 5.0, local=True)
    assert now() == ("same direction", "smoke", 6.0, False)
    checkout("laptop", 7.0, local=False)
    assert now() == ("same direction", "laptop", 8.0, False)
    checkout("laptop", 9.0, local=True, hash_="b" * 64)
    assert now() == ("same direction", "laptop", 10.0, True)
    assert now("smoke") == ("same direction", "smoke", 6.0, False)
    checkout("paper", 8.0, local=False)
    assert now() == ("matches", "paper", 9.0, False)


def test_json_has_the_keys_others_build_on(checkout, capsys):
    checkout("laptop", 5.0, local=False)
    assert cli.main(["claims", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    wanted = (
        "id paper statement implemented size seeds value interval control reported verdict reason run page"
    )
    assert [row["id"] for row in rows] == ["C1", "C2", "C3"] and all(
        set(wanted.split()) <= set(row) for row in rows
    )
    assert rows[0]["seeds"] == [0, 1, 2] and rows[0]["size"] == "laptop"
    assert rows[1]["verdict"] == "not run at this size" and rows[1]["reason"] == "not implemented yet"
    assert rows[2]["verdict"] == "not run at this size" and "absent" in rows[2]["reason"]
    assert cli.main(["claims", "--size", "laptop"]) == 0
    assert "same direction" in capsys.readouterr().out


def test_where_a_claim_means_nothing_the_record_need_not_hold_it(checkout):
    rows = [ROW | {"value": {"metric": "absent"}, "meaningful": {"smoke": "hardly trained"}}]
    (paths.DATA / "claims.yaml").write_text(json.dumps(rows))
    for size, expected in (("smoke", "not meaningful at this size"), ("laptop", "not run at this size")):
        checkout(size, 5.0, local=False)
        (first,) = claims.scorecard(size)
        assert first["verdict"] == expected
        assert (first["reason"] == "hardly trained") == (size == "smoke")


def test_a_claim_that_may_be_undefined_is_judged_where_it_is_defined(checkout):
    for metric, expected in (("absent", "not meaningful at this size"), ("separation", "same direction")):
        value = {"metric": metric, "labels": {"model": "ssft"}}
        (paths.DATA / "claims.yaml").write_text(
            json.dumps([ROW | {"value": value, "undefined": "no two sizes"}])
        )
        checkout("laptop", 5.0, local=False)
        (first,) = claims.scorecard("laptop")
        assert first["verdict"] == expected and (first["reason"] == "no two sizes") == (metric == "absent")


def test_a_broken_record_is_told_not_hidden(checkout):
    checkout("laptop", 5.0, local=False)
    path = registry.get(RUN).recorded("laptop") / results.FILE
    path.write_text(path.read_text().replace('"value": 5.0', '"value": NaN'))
    first = claims.scorecard()[0]
    assert first["verdict"] == "not run at this size" and "scalars.3.value" in first["reason"]


def test_ids_are_unique_and_runs_known(checkout):
    path = paths.DATA / "claims.yaml"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([rows[0], rows[0]]))
    with pytest.raises(InputError, match="each id once"):
        claims.read()
    path.write_text(json.dumps([rows[0] | {"run": "nonsense"}]))
    with pytest.raises(InputError, match="nonsense"):
        claims.read()


def test_the_rows_of_the_project_are_well_formed():
    for row in claims.read():
        assert row.statement and row.statistic


def test_a_logarithm_is_judged_as_it_is_and_shown_as_its_factor():
    result = verdict((2, 3, 4), (1, 1, 1), unit="log2", null=0.0, threshold=5.0, direction="greater")
    # mean 3, half 2.484: the interval of the logarithm, not that of the factors
    assert result["value"] == 3.0 and result["reason"] == "the mean does not reach 32 times"
    row = result | {"unit": "log2", "reported": {"value": 4.0}}
    low, high = (2 ** (3 + sign * T2 / math.sqrt(3)) for sign in (-1, 1))
    assert claims.shown(row) == (f"8 [{low:.3g}, {high:.3g}] times", "2", "16")
    assert claims.shown(row | {"unit": "nat"})[0].endswith("] nat") and claims.plain(3.0, "nat") == 3.0
    assert claims.shown(row | {"value": None, "interval": None, "control": None}) == ("-", "none", "16")


def test_every_claim_on_a_logarithm_has_it_as_its_unit():
    for row in claims.read():
        logarithm = re.match(r"(log\d+) of ", row.statistic)
        assert (row.unit in claims.LOGARITHMS) == bool(logarithm), row.id
        assert not logarithm or row.unit == logarithm[1], row.id
