"""Distances of Llama prompts to the safe and the unsafe cluster, against a plain loop over single tokens in numpy."""

import json

import llamas
import numpy as np
import pytest
import torch

from safebook.errors import InputError
from safebook.llama_clusters import (
    Answered,
    answered,
    cluster_prompts,
    distances,
    parted,
    succeeded,
    token_mean,
    with_jailbreaks,
)
from safebook.worlds import chat_data


@pytest.fixture(scope="module")
def small():
    return llamas.model("grouped"), llamas.tokenizer("grouped")


@pytest.fixture(scope="module")
def rows(small):
    model, tokenizer = small
    found = answered(model, tokenizer, llamas.chats(), new_tokens=9, batch=4)
    uneven = [Answered(r.tokens[: r.start + 1 + i], r.start, r.text) for i, r in enumerate(found)]
    assert len({len(r.tokens) - r.start for r in uneven}) > 3
    return uneven


def every_input(model, tokens):
    """(layers, tokens, width) what each MLP reads, one sequence alone, by a hook of the test's own."""
    seen = []
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, x: seen.append(x[0][0])) for layer in model.model.layers
    ]
    with torch.no_grad():
        model(torch.tensor([tokens]))
    for hook in hooks:
        hook.remove()
    return torch.stack(seen).double().numpy()


def test_answers_are_the_models_own_and_their_last_token_is_not_read(small):
    model, tokenizer = small
    chats = llamas.chats()
    found = answered(model, tokenizer, chats, new_tokens=6, batch=2)
    for chat, row in zip(chats, found):
        asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert row.tokens[: row.start] == asked
        with torch.no_grad():
            written = model.generate(
                torch.tensor([asked]), max_new_tokens=6, do_sample=False, eos_token_id=[2, 7]
            )
        written = written[0, len(asked) :].tolist()
        assert row.tokens[row.start :] == (written[:-1] or written)
        assert row.text == tokenizer.decode(written, skip_special_tokens=True).strip()


def test_positions():
    row = Answered(list(range(20)), 12, "")
    assert row.at("decision", 5) == range(11, 12)  # the token that predicts the first of the answer
    assert row.at("answer", 5) == range(12, 17) and row.at("answer", 50) == range(12, 20)
    with pytest.raises(InputError, match="position"):
        row.at("answers", 5)


@pytest.mark.parametrize("position", ["answer", "decision"])
def test_tau_is_that_of_each_token_and_then_the_mean(small, rows, position):
    model, _ = small
    points = []
    for r in rows:
        wanted = (
            [r.start - 1] if position == "decision" else list(range(r.start, min(r.start + 4, len(r.tokens))))
        )
        points.append(every_input(model, r.tokens)[:, wanted])
    means = [
        np.concatenate(points[part], 1).mean(1) for part in (slice(0, 3), slice(3, 6))
    ]  # tokens weigh the same
    for part, expected in zip((rows[:3], rows[3:]), means):
        found = token_mean(model, part, position, steps=4, batch=2)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    safe, unsafe = (torch.from_numpy(m) for m in means)
    tau = distances(
        model, rows, position, {"plain": (safe, unsafe), "turned": (unsafe, safe)}, steps=4, batch=4
    )
    for i, x in enumerate(points):
        far = [np.linalg.norm(x - m[:, None], axis=-1) for m in means]
        np.testing.assert_allclose(tau["plain", "euclidean"][:, i], (far[1] - far[0]).mean(1), atol=1e-5)
        near = [
            (x * m[:, None]).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(m, axis=-1)[:, None]
            for m in means
        ]
        np.testing.assert_allclose(tau["plain", "cosine"][:, i], (near[0] - near[1]).mean(1), atol=1e-5)
    torch.testing.assert_close(tau["turned", "euclidean"], -tau["plain", "euclidean"])


def test_parts_share_nothing_and_depend_on_their_names_alone():
    first, second = parted(11, "safe", 0)
    assert sorted(first + second) == list(range(11)) and len(first) == 3
    assert parted(11, "safe", 0) == (first, second) != parted(11, "safe", 1)


def test_the_testbeds_prompts_and_their_disguises():
    asked = cluster_prompts("testbed", "smoke", 12)
    assert {name: s.harmful for name, s in asked.sets.items()} == {
        "safe": False,
        "unsafe": True,
        "borderline": False,
    }
    restricted = asked.world.settings.categories
    category = {name: asked.world.category[s.requests.object] for name, s in asked.sets.items()}
    assert (category["safe"] >= restricted).all()
    assert (category["unsafe"] < restricted).all() and (category["borderline"] < restricted).all()
    broken = with_jailbreaks(asked, [1, 5, 6], seed=0).sets["jailbreak"]
    assert len(broken) == 3 * len(chat_data.WRAPPERS) and broken.harmful
    disguise = dict(zip(broken.categories, broken.chats))["paraphrase"]
    assert disguise not in asked.sets["unsafe"].chats
    for i, row in enumerate(asked.world.pairs(broken.requests)):
        assert row == asked.world.pairs(asked.sets["unsafe"].requests)[[1, 5, 6][i % 3]]


def test_success_is_the_whole_procedure_or_on_a_checkpoint_no_refusal(tmp_path):
    asked = cluster_prompts("testbed", "smoke", 4)
    right = asked.sets["unsafe"].answers
    texts = [right[0], right[1].rsplit(".", 2)[0] + ".", "sorry , i cannot help with that .", right[0]]
    assert succeeded(asked, "unsafe", texts).tolist() == [True, False, False, False]
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps([{"prompt": f"w{i}"} for i in range(6)]))
    real = cluster_prompts("some/model", "smoke", 6, str(file), str(file))
    assert succeeded(real, "unsafe", ["I cannot", "Sure", "", "ok", "a", "b"]).tolist() == [
        False,
        *[True] * 5,
    ]


@pytest.mark.parametrize(
    ("given", "parameter"),
    [
        ({"model": "testbed", "jailbreak_prompts": "a.csv"}, "jailbreak_prompts"),
        ({"model": "testbed", "harmful_prompts": "a.csv"}, "harmful_prompts"),
        ({"model": "owner/name"}, "harmful_prompts"),
        ({"model": "owner/name", "harmful_prompts": "many", "benign_prompts": ""}, "benign_prompts"),
        ({"model": "owner/name", "harmful_prompts": "many", "benign_prompts": "few"}, "benign_prompts"),
        ({"model": "owner/name", "harmful_prompts": "many", "benign_prompts": "none.csv"}, "benign_prompts"),
        (
            {"model": "a/b", "harmful_prompts": "many", "benign_prompts": "many", "jailbreak_prompts": "few"},
            "jailbreak_prompts",
        ),
    ],
)
def test_wrong_files_name_the_parameter(given, parameter, tmp_path):
    for name, count in (("few", 5), ("many", 6)):
        (tmp_path / f"{name}.csv").write_text("prompt\n" + "a b\n" * count)
    paths = {k: str(tmp_path / f"{v}.csv") if v in ("few", "many") else v for k, v in given.items()}
    with pytest.raises(InputError) as caught:
        cluster_prompts(size="smoke", samples=9, **paths)
    assert caught.value.parameter == parameter
