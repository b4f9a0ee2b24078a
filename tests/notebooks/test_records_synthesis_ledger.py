"""Records of the ledger: every claim once, counted once, and drawn whatever is there."""

import pandas as pd
import pytest
from test_records import records

from safebook import claims, ledger, registry, results
from safebook.plots import ledger as figures

RUN = "synthesis-04-ledger"


@records(RUN)
def test_every_claim_of_the_other_parts_is_there_once(folder):
    r = results.load(folder)
    table = r.tables["ledger"]
    assert tuple(table.columns) == ledger.COLUMNS
    assert table["claim"].is_unique and set(table["paper"]) == set(registry.get(RUN).reads)
    assert "synthesis" not in set(table["paper"])
    for by in ("paper", "origin", "tests"):
        counts = r.frame("claims")
        counts = counts[counts["by"] == by].groupby("verdict")["value"].sum()
        expected = table["verdict"].value_counts()
        assert {v: int(n) for v, n in counts.items() if n} == expected.to_dict()


@records(RUN)
def test_margins_agree_with_verdicts(folder):
    found = figures.table(results.load(folder))
    judged = found[found["verdict"].isin(figures.JUDGED)]
    holds = judged["verdict"].isin(figures.REPLICATES)
    for kind in ("null", "control"):
        margins = judged[[f"{kind}_margin", f"{kind}_half"]].dropna()
        beyond = margins[f"{kind}_margin"] > margins[f"{kind}_half"]
        assert beyond[holds.reindex(beyond.index)].all()
    controls = judged[judged["verdict"] == claims.CONTROL]
    assert (controls["null_margin"] > controls["null_half"]).all()
    assert controls["why"].str.startswith("control").all()
    assert (judged[holds]["why"] == "").all() and (judged[~holds]["why"] != "").all()
    more = judged["more_seeds"].dropna()
    assert (more > judged["seeds"].reindex(more.index)).all()  # with as many as there are they fail


@records(RUN)
def test_what_is_not_judged_has_no_reason_to_change(folder):
    found = figures.table(results.load(folder))
    rest = found[~found["verdict"].isin(figures.JUDGED)]
    assert rest["needed"].isna().all() and rest["more_seeds"].isna().all() and (rest["why"] == "").all()


class Fake:
    """A record of these rows."""

    def __init__(self, rows):
        self.tables = {"ledger": pd.DataFrame(rows, columns=ledger.COLUMNS)}


@pytest.mark.parametrize("judged", [False, True])
def test_figures_and_tables_are_drawn_of_an_empty_ledger_too(judged):
    found = ledger.rows(registry.get(RUN).reads)
    rows = found if judged else [r | {"verdict": claims.NOT_RUN, "why": ""} for r in found]
    record = Fake(rows)
    for draw in (figures.verdicts, figures.margins, figures.more_seeds):
        assert draw(record).axes
    for paper in figures.PAPERS:
        whole = len(figures.changes(record, paper)) + len(figures.holding(record, paper))
        table = figures.table(record)
        assert whole == (table["paper"].eq(paper) & table["verdict"].isin(figures.JUDGED)).sum()
