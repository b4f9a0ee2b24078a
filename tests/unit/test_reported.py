"""The papers' numbers that the book carries: each with its source, and agreeing with each other where they overlap."""

import pandas as pd
import pytest

from safebook import paths

TABLES = sorted((paths.DATA / "paper").rglob("*.csv"))


@pytest.mark.parametrize("path", TABLES, ids=lambda p: p.stem)
def test_every_number_has_a_source_and_a_trust(path):
    table = pd.read_csv(path)
    assert len(table) and not table[["source", "trust"]].isna().any().any()
    assert path.name in (path.parent / "README.md").read_text()


def test_llama_arrays_are_whole_and_hold_the_published_gap():
    table = pd.read_csv(paths.DATA / "paper/pcfg/llama_tau.csv")
    curves = table.groupby(["model", "variant", "prompts", "measure"])["layer"].apply(list)
    assert len(curves) == 14 and all(layers == list(range(1, 33)) for layers in curves)
    at = table[(table["model"] == "llama-3-8b") & (table["measure"] == "euclidean")].set_index(
        ["variant", "prompts", "layer"]
    )["mean"]
    at = at.sort_index()
    gap = {v: at[v, "safe"] - at[v, "unsafe"] for v in ("base", "chat")}
    assert gap["chat"].idxmax() == 14 and gap["chat"].max() == pytest.approx(4.06)
    assert gap["base"].abs().max() < 0.75 < gap["chat"].mean()
    cosine = table[(table["measure"] == "cosine") & (table["variant"] == "chat")].set_index(
        ["prompts", "layer"]
    )["mean"]
    assert (cosine["safe"] < 0).all() and (
        cosine["unsafe"] > 0
    ).all()  # the published sign is the other way round


def test_figure_3_holds_the_published_order_of_separation():
    table = pd.read_csv(paths.DATA / "paper/pcfg/figure3_top.csv").query("layer == 6").set_index("model")
    separation = table["safe_mean"] - table["unsafe_mean"]
    order = ["pretrained", "ssft-small", "ssft-medium", "dpo-small", "dpo-medium", "unlearning-medium"]
    assert list(separation.sort_values().index) == order
    assert separation["unlearning-medium"] == pytest.approx(95.9)
