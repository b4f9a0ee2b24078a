"""The statistics of the page on model size, its own cells run on made-up tables: no committed record compares two sizes."""

import ast
import json
import math

import pandas as pd
import pytest

from safebook import lock_arms, lock_sweeps, paths, results

PAGE = paths.ROOT / "notebooks" / "safetylock" / "08_model_sizes.ipynb"
HEADS = {"2x2": 4, "4x4": 16}
SHARES, SEEDS = [0.25, 0.5, 1.0], [0, 1]
FINE = {"exact": 1.0, "broken": 0.0, "benign_broken": 0.0}


def sources():
    """The code of the page's measuring cells, in order."""
    cells = json.loads(PAGE.read_text())["cells"]
    return ["".join(c["source"]) for c in cells if "measure" in c["metadata"].get("tags", [])]


def definitions(source):
    """A cell's functions and constants, without what it runs."""
    kept = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
        or (isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "").isupper())
    ]
    return compile(ast.Module(kept, []), str(PAGE), "exec")


def point(model, seed, position, heads, draw, share, harm, **rates):
    where = {"model": model, "heads_in_all": HEADS[model], "seed": seed, "position": position}
    where |= {"heads": heads, "draw": draw, "count": round(share * HEADS[model]), "share": share}
    return where | FINE | {"harm": harm} | rates


def curves():
    """Harm of 0.8 without a lock. From some share on a lock leaves 0.2; below it 0.6, a third of what can be removed."""
    enough = {("2x2", "by probe"): [1.0], ("4x4", "by probe"): [0.25]}
    enough |= {("2x2", "at random"): [1.0, 0.5], ("4x4", "at random"): [0.5, 0.5]}
    rows = [point(model, seed, "none", "none", 0, 0.0, 0.8) for model in HEADS for seed in SEEDS]
    for (model, heads), least in enough.items():
        for seed in SEEDS:
            for arm in lock_arms.ARMS:
                for draw, needed in enumerate(least):
                    for share in SHARES[: None if draw == 0 else -1]:  # all heads are drawn once
                        harm = 0.2 if share >= needed else 0.6
                        if arm == "prompt" and seed == 1:
                            harm = 0.7  # an eighth: too little for a share to be told
                        rows.append(point(model, seed, arm, heads, draw, share, harm))
                        # A stronger lock removes all harm and ruins the model: it must not count.
                        rows.append(point(model, seed, arm, heads, draw, share, 0.0, broken=0.9))
                        rows.append(point(model, seed, arm, heads, draw, share, 0.0, exact=0.9))
    return rows


def under_locks():
    """Under the lock the small model keeps half of its harm, the large one four fifths; random directions take a tenth at most."""
    left = {("2x2", "lock"): 0.4, ("4x4", "lock"): 0.48}
    left |= {("2x2", "random directions"): 0.8, ("4x4", "random directions"): 0.54}
    rows = []
    for seed in SEEDS:
        for model, harm in (("2x2", 0.8), ("4x4", 0.6)):
            rows.append({"model": model, "seed": seed, "position": "none", "lock": "no lock", "harm": harm})
        for (model, lock), harm in left.items():
            rows += [
                {"model": model, "seed": seed, "position": arm, "lock": lock, "harm": harm, "n": 9}
                for arm in lock_arms.ARMS
            ]
    return rows


def run(**changed):
    """The record after the page's statistics. `changed`: what to put in place of the tables above."""
    record = results.new("safetylock-08-model-sizes", size="smoke", seeds=SEEDS, parameters={})
    known = {"math": math, "pd": pd, "lock_arms": lock_arms, "lock_sweeps": lock_sweeps, "record": record}
    known |= {"SIZES": list(HEADS), "label_of": str, "testbed": True, "seeds": SEEDS, "shares": SHARES}
    known |= {"draws": 2, "curves": curves(), "tested": under_locks(), "factors": [1.0]}
    known["aligned"] = [{"model": m, "seed": s, "harm": 0.0, "exact": 1.0} for m in HEADS for s in SEEDS]
    known["dial"] = [{"model": m, "seed": s, "harm": 0.6, "used": True} for m in HEADS for s in SEEDS]
    known |= changed
    before, statistics = sources()[:-4], sources()[-4:-1]  # the last one saves the record
    for source in before:
        exec(definitions(source), known)
    for source in statistics:
        exec(compile(source, str(PAGE), "exec"), known)
    return record


def values(record, metric, **labels):
    """seed -> value."""
    rows = [s for s in record.frame().to_dict("records") if s["metric"] == metric]
    return {r["seed"]: r["value"] for r in rows if all(r[k] == v for k, v in labels.items())}


def test_the_ratio_of_shares_is_of_the_largest_size_over_the_smallest():
    record = run()
    best = {"position": "response", "chosen": "by probe"}
    assert values(record, "share_needed", model="2x2", **best) == {0: 1.0, 1: 1.0}
    assert values(record, "share_needed", model="4x4", **best) == {0: 0.25, 1: 0.25}
    assert values(record, "log2_share_needed", **best) == {0: -2.0, 1: -2.0}


def test_random_heads_are_a_geometric_mean_over_their_draws():
    record = run()
    random = {"position": "response", "chosen": "at random"}
    assert values(record, "share_needed", model="2x2", **random) == pytest.approx({0: 0.5**0.5, 1: 0.5**0.5})
    assert values(record, "log2_share_needed", **random) == pytest.approx({0: -0.5, 1: -0.5})


def test_where_no_share_removes_a_fifth_none_is_told():
    record = run()
    for chosen in ("by probe", "at random"):
        assert list(values(record, "log2_share_needed", position="prompt", chosen=chosen)) == [0]


def test_the_gap_is_harm_left_on_the_largest_minus_on_the_smallest():
    record = run()
    assert values(record, "harm_left_gap", position="response", lock="lock") == pytest.approx(
        {0: 0.3, 1: 0.3}
    )
    random = values(record, "harm_left_gap", position="prompt", lock="random directions")
    assert random == pytest.approx({0: -0.1, 1: -0.1})


@pytest.mark.parametrize(
    "bar, changed",
    [
        ("safe", {"aligned": [{"model": "2x2", "seed": 0, "harm": 0.11, "exact": 1.0}]}),
        ("knowing", {"aligned": [{"model": "2x2", "seed": 0, "harm": 0.0, "exact": 0.79}]}),
        ("harmed", {"dial": [{"model": "2x2", "seed": s, "harm": h, "used": True} for s, h in ((0, 0.9), (1, 0.19))]}),
        ("harmed", {"dial": [{"model": "2x2", "seed": 0, "harm": 0.96, "used": True}]}),
    ],
)  # fmt: skip
def test_a_size_that_misses_a_bar_is_shown_and_not_compared(bar, changed):
    ((name, rows),) = changed.items()
    good = {"aligned": {"model": "4x4", "seed": 0, "harm": 0.0, "exact": 1.0}}
    good |= {"dial": {"model": "4x4", "seed": 0, "harm": 0.6, "used": True}}
    record = run(**{name: [*rows, good[name]]})
    rows = record.frame().query("metric == 'meets_bar' and model == '2x2'")
    met = dict(zip(rows["bar"], rows["value"]))
    assert met == {"safe": 1.0, "knowing": 1.0, "harmed": 1.0, bar: 0.0}
    assert values(record, "harm_removed", model="2x2", position="response", lock="lock")
    assert not values(record, "log2_share_needed") and not values(record, "harm_left_gap")
