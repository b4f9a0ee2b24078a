"""What a step costs: versions do what they are named for, memory is counted, ratios are taken round by round."""

import llamas
import pandas as pd
import pytest
import torch

from safebook import spf_cost as cost
from safebook.errors import InputError
from safebook.llama_settings import LlamaSettings
from safebook.tensor_peak import TensorPeak
from safebook.tokenized import answered

WORDS = llamas.tokenizer()
SHAPES = {
    "vocab_size": 40,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
}


def dialogues(count, start, answer):
    said = [f"w{(start + i) % 20} w{(start + 3 * i) % 20}" for i in range(count)]
    return [[{"role": "user", "content": s}, {"role": "assistant", "content": answer}] for s in said]


def steps(rank=2):
    batch, anchor = (answered(WORDS, dialogues(*x)) for x in ((3, 9, "yes w2 w2 ."), (1, 2, "w5 w6 .")))
    return cost.Steps(llamas.model(), batch, anchor, rank)


def test_conflict_is_made_to_order_and_the_model_stays():
    found = steps()
    before = [p.detach().clone() for p in found.model.parameters()]
    for version in cost.VERSIONS:
        transform = found.step(version)
        if version in cost.SPF_VERSIONS:
            assert transform.records[0]["acted"] == (version != "spf, no conflict")
            assert transform.settings.method == (cost.SPF_VERSIONS[version] or "exact")
    for old, new in zip(before, found.model.parameters()):
        assert float((old - new.detach()).abs().max()) < 1e-6
    with pytest.raises(InputError, match="version"):
        found.step("nothing")


def test_rounds_take_every_version_in_turn():
    found = steps()
    seen = []
    step = found.step
    found.step = lambda version: (seen.append(version), step(version))[1]
    table = found.rounds(2, ("sft", "mixing", "spf, full SVD"))
    assert seen == ["sft", "mixing", "spf, full SVD", "mixing", "spf, full SVD", "sft",
                    "spf, full SVD", "sft", "mixing"]  # fmt: skip
    assert len(table) == 6 and (table["seconds"] > 0).all() and set(table["round"]) == {1, 2}
    parts = found.parts(2)
    assert set(parts["part"]) == set(cost.PARTS) and (parts["seconds"] > 0).all()
    with pytest.raises(InputError, match="count"):
        found.rounds(0)


def test_ratios_are_medians_of_rounds():
    rows = [("sft", 1, 1.0), ("spf, no conflict", 1, 1.2), ("spf, full SVD", 1, 2.0),
            ("sft", 2, 2.0), ("spf, no conflict", 2, 2.4), ("spf, full SVD", 2, 3.0),
            ("sft", 3, 1.0), ("spf, no conflict", 3, 1.2), ("spf, full SVD", 3, 9.0)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["version", "round", "seconds"])
    assert cost.time_ratio(table, "spf, full SVD") == 2.0
    assert cost.time_ratio(table, "spf, full SVD", 0.5) == pytest.approx(1.6)
    assert cost.time_ratio(table, "spf, full SVD", 0.0) == pytest.approx(1.2)
    assert cost.time_ratio(table, "spf, no conflict", 0.5) == pytest.approx(1.2)


def test_tensors_are_counted_while_they_live():
    with TensorPeak() as peak:
        a = torch.zeros(1000)  # 4,000 bytes
        b = a + 1
        assert peak.now == 8000
        b.mul_(2)  # in place
        c = b.view(10, 100)  # a view
        assert peak.now == 8000
        del b
        assert peak.now == 8000  # the view holds it
        del c
        assert peak.now == 4000
        d = torch.ones(500, dtype=torch.float64)
    assert peak.most == 8000 and len(a) + len(d) == 1500
    outside = torch.zeros(1000)
    with TensorPeak() as peak:
        outside.add_(1)
    assert peak.most == 0


def test_spf_holds_one_gradient_more():
    found = steps()
    weights = sum(4 * p.numel() for p in found.model.parameters())
    plain = found.peak("sft")
    assert plain >= weights and found.peak("sft") == plain <= found.peak("spf, full SVD")
    held = {version: found.added(version) for version in cost.VERSIONS}
    assert held["sft"] == held["mixing"] == 0
    for version in ("surgery", *cost.SPF_VERSIONS):
        assert weights <= held[version] <= 4 * weights, version


def test_the_whole_is_one_layer_and_what_each_adds():
    assert cost.whole(5.0, 7.0, 4) == 11.0 and cost.whole(5.0, 7.0, 1) == 5.0


def test_true_shapes_on_small_ones():
    found = cost.true_shapes(
        2, rank=3, rows=2, tokens=12, anchor_tokens=8, device="cpu", dtype=torch.float32, shapes=SHAPES
    )
    table = found["steps"]
    assert set(table["layers"]) == {1, 2} and set(table["version"]) == {
        "sft", "spf, no conflict", "spf, randomised SVD",
    }  # fmt: skip
    assert len(table) == 2 * 3 * 2 and (table["seconds"] > 0).all()
    svd = found["svd"]
    assert set(zip(svd["outputs"], svd["inputs"])) == {(40, 16), (16, 16), (8, 16), (24, 16), (16, 24)}
    assert not ((svd["outputs"] == 40) & (svd["method"] == "full SVD")).any()
    assert found["device"] == "cpu" and min(found["peaks"].values()) > 0


def test_batches_and_widths():
    batch = cost.random_batch(40, 2, 10, 4, torch.Generator().manual_seed(0))
    assert batch.loss_mask.sum(1).tolist() == [4, 4] and batch.tokens.shape == (2, 10)
    with pytest.raises(InputError, match="targets"):
        cost.random_batch(40, 2, 10, 10, torch.Generator())
    wide = cost.widened(LlamaSettings(1), 64, 99)
    assert (wide.layers, wide.width, wide.hidden, wide.vocabulary) == (2, 64, 172, 99)
