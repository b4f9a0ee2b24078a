"""What the runs recorded: relations that hold whatever the numbers are, and the bars that the laptop record must meet."""

import numpy as np
import pandas as pd
import pytest

from safebook import claims, paths, readme, registry, results
from safebook.behaviour import Answers

RECORDS = [
    (run, size, folder)
    for run in registry.RUNS
    for size in registry.SIZES
    for folder in (run.folder(size), run.recorded(size))
    if (folder / results.FILE).exists()
]


def records(run_id):
    found = [
        pytest.param(folder, id=str(folder.relative_to(paths.ROOT)))
        for run, _, folder in RECORDS
        if run.id == run_id
    ]
    return pytest.mark.parametrize(
        "folder", found or [pytest.param(None, marks=pytest.mark.skip("no record yet"))]
    )


def rates(folder, key):
    """A record's table `rates` with a column a metric, a row for each combination of the columns `key`."""
    table = results.load(folder).tables["rates"]
    assert not table.duplicated([*key, "metric"]).any()
    return table.pivot(index=key, columns="metric", values="value")


def test_the_book_has_records_to_check():
    """`make test` builds the smoke book before it runs the tests."""
    assert {run.id for run, size, _ in RECORDS if size == "smoke"} == {run.id for run in registry.RUNS}


@records("pcfg-01-world")
def test_the_classifier_reads_the_shortened_rules(folder):
    r = results.load(folder)
    at = {
        t: r.scalars("called_unsafe", world="paper", ngram=6, text=t, against="unsafe")
        for t in ("safe", "unsafe", "mixed", "unsafe_three_child")
    }
    for seed in r.seeds:
        assert at["unsafe"][seed] > at["mixed"][seed] + 0.5
        assert at["unsafe"][seed] > at["unsafe_three_child"][seed] + 0.5


@records("pcfg-01-world")
def test_yield_lengths_agree_with_the_reference(folder):
    table = results.load(folder).tables["yield_lengths"]
    assert (table["mean"] - table["reference_mean"]).abs().max() < 2.5


@records("pcfg-02-pretraining")
def test_final_accuracy_agrees_with_the_curve_and_meets_the_bar(folder):
    r = results.load(folder)
    curves = r.tables["curves"]
    for step, what in ((1, "first output"), (2, "second output")):
        measured = r.scalars("token_accuracy", step=step)
        for seed in r.seeds:
            line = curves[
                (curves["seed"] == seed) & (curves["what"] == what) & (curves["mode"] == "true prefix given")
            ]
            last = line.sort_values("iteration")["accuracy"].iloc[-1]
            assert abs(last - measured[seed]) < 0.05  # validation and test samples of the same model
            if r.size != "smoke":
                assert measured[seed] >= 0.98


@records("pcfg-03-safety-finetuning")
def test_outcomes_sum_to_one_and_benign_training_never_refuses(folder):
    r = results.load(folder)
    frame = r.frame("outcome_share")
    total = frame.groupby(["model", "condition", "seed"])["value"].sum()
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    assert set(frame["outcome"]) == {"comply", "null", "other"}
    refusing = frame[frame["model"].str.startswith("benign") & (frame["outcome"] == "null")]["value"]
    assert refusing.max() < 0.05
    if r.size != "smoke":
        assert frame["n"].min() >= 2000


@records("pcfg-04-feature-space")
def test_separation_is_the_difference_of_the_mean_distances(folder):
    r = results.load(folder)
    table = r.tables["tau_by_layer"].pivot_table("mean", ["model", "variant", "layer", "seed"], "prompts")
    expected = table["safe"] - table["unsafe"]
    found = r.frame("separation_index").set_index(["model", "variant", "layer", "seed"])["value"]
    pd.testing.assert_series_equal(
        found.sort_index(), expected.sort_index(), check_names=False, rtol=1e-6, atol=1e-9
    )
    assert r.frame("nearest_mean_accuracy")["value"].between(0, 1).all()


@records("pcfg-04-feature-space")
def test_histograms_hold_every_prompt(folder):
    r = results.load(folder)
    counts = r.tables["tau_histogram"].groupby(["model", "layer", "prompts"])["count"].sum()
    assert (counts == r.parameters["samples"] * len(r.seeds)).all()


def test_every_claim_names_metrics_that_its_record_holds():
    for claim in claims.read():
        if not claim.implemented:  # its statistic needs what no run has, such as models of several sizes
            continue
        run = registry.get(claim.run)
        r = results.load(run.folder("smoke"))
        if "smoke" in claim.meaningful:  # untrained models may leave a statistic undefined
            if not (run.recorded("laptop") / results.FILE).exists():
                continue
            r = results.load(run.recorded("laptop"))
        for series in claims.measured(claim, r):
            if series is not None:
                assert set(series) == set(r.seeds) or (claim.undefined and set(series) < set(r.seeds))


def test_answers_are_exclusive_by_construction():
    import torch

    comply, refuse = torch.tensor([True, False, False]), torch.tensor([False, True, False])
    assert Answers(0, 0, 0, comply, refuse, comply).other.tolist() == [False, False, True]


def test_the_results_in_the_readme_are_those_of_the_committed_records():
    _, table, _ = readme.split((paths.ROOT / "README.md").read_text(encoding="utf-8"))
    if not any(run.recorded("laptop").exists() for run in registry.RUNS):
        pytest.skip("no laptop record is committed")
    assert table == readme.table("laptop")
