"""Rows whose gradients are compared: equal counts, disjoint samples, one encoding for the testbed and for any chat template."""

import llamas
import pytest
import torch

from safebook import gradient_samples as s
from safebook.chat_profiles import chat_profile
from safebook.errors import InputError
from safebook.llama_activations import decoder
from safebook.subjects import PromptSet, Subject, subject
from safebook.worlds import chat_text as text
from safebook.worlds.chat_tokens import encode, tokenizer


@pytest.fixture(scope="module")
def asked():
    return subject("testbed", "smoke", limit=11, pairs=4)


@pytest.fixture(scope="module")
def words():
    return tokenizer(chat_profile("smoke").world)


def said(rows):
    return [row[-1]["content"] for row in rows]


def test_kinds_are_what_they_say(asked):
    rows = {kind: s.chats(asked, kind, 0, 12) for kind in s.kinds(asked)}
    assert set(rows) == set(s.KINDS) and all(len(part) == 12 for part in rows.values())
    forms = text.REFUSALS
    assert all(any(a.startswith(form) for form in forms) for a in said(rows["safety"]))
    assert set(said(rows["one wording"])) == {forms[0]} and len(set(said(rows["safety"]))) > 1
    assert [r[:-1] for r in rows["safety"]] == [r[:-1] for r in rows["one wording"]]
    refused = any(any(a.startswith(form) for form in forms) for k in s.UTILITY for a in said(rows[k]))
    assert not refused and not any(a.startswith(f) for f in forms for a in said(rows["compliance"]))
    with pytest.raises(InputError, match="kind"):
        s.chats(asked, "poetry", 0, 3)


def test_anchors_have_equal_length_without_any_cut(asked, words):
    rows = s.anchors(asked, 0, 5)
    assert tuple(rows) == s.ANCHORS
    lengths = {kind: s.encoded(asked, words, part).loss_mask.sum(1) for kind, part in rows.items()}
    nine = len(text.REFUSALS[0].split()) + 1  # the end of the turn is a target, too
    for kind in ("refusal", "fixed reply", "misplaced refusal"):
        assert (lengths[kind] == nine).all()
    assert (lengths["right answer"] > nine).all()
    cut = s.equally({kind: s.encoded(asked, words, part) for kind, part in rows.items()})
    assert all((batch.loss_mask.sum(1) == nine).all() for batch in cut.values())
    requests = {kind: [row[:-1] for row in part] for kind, part in rows.items()}
    assert requests["fixed reply"] == requests["right answer"] == requests["misplaced refusal"]
    assert said(rows["right answer"])[0].startswith(said(rows["fixed reply"])[0])
    assert requests["refusal"] != requests["misplaced refusal"]


def test_any_chat_template_gives_the_testbeds_own_tokens_and_targets(asked, words):
    rows = [*s.chats(asked, "safety", 0, 3), *s.chats(asked, "compliance", 0, 3)]
    ours, any_template = encode(words, rows), s.encode_chats(words, rows)
    assert torch.equal(ours.tokens, any_template.tokens)
    assert torch.equal(ours.loss_mask, any_template.loss_mask)
    assert torch.equal(ours.lengths, any_template.lengths)


def test_singles_are_no_part_of_the_batch_and_all_have_as_many_targets(asked, words):
    found = s.gather(asked, words, 0, 3, 5)
    counts = {int(b.loss_mask.sum(1).min()) for b in found.batch.values()}
    counts |= {int(b.loss_mask.sum(1).max()) for b in found.batch.values()}
    counts |= {int(one.loss_mask.sum()) for part in found.singles.values() for one in part}
    assert len(counts) == 1
    for kind in s.kinds(asked):
        rows = s.chats(asked, kind, 0, 8)
        assert len(found.singles[kind]) == 3 and len(found.batch[kind]) == 5
        for i, one in enumerate(found.singles[kind]):
            whole = encode(words, rows[i : i + 1])
            assert torch.equal(one.tokens, whole.tokens)
            targets = whole.tokens[:, 1:][one.loss_mask]  # the first ones of the answer
            assert torch.equal(targets, whole.tokens[:, 1:][whole.loss_mask][: len(targets)])
    whole = s.gather(asked, words, 0, 3, 5, equal=False)
    assert int(whole.batch["compliance"].loss_mask.sum()) > int(found.batch["compliance"].loss_mask.sum())


def files(rows=6, answers=True):
    """A subject as a checkpoint has it."""
    chats = llamas.chats()[:1] * rows
    known = ["yes ." if answers else ""] * rows
    sets = {"benign": PromptSet("benign", chats, False, [""] * rows, known)}
    pairs = tuple([s.answered(c, a) for c in chats] for a in ("w1 w2 .", "yes w3 w4 ."))
    return Subject("somewhere", "smoke", None, sets, pairs, 8)


def test_few_rows_of_a_file_are_shared_out():
    found = s.gather(files(), llamas.tokenizer(), 0, 4, 8)
    assert set(found.batch) == {"safety", "one wording", "benign", "compliance"}
    assert len(found.batch["safety"]) == 4 and len(found.singles["safety"]) == 2
    rows = s.utility_rows(files(), "benign", 0, 100)
    assert len(rows) == 3 and len(s.anchors(files(), 0, 100)["right answer"]) == 3
    with pytest.raises(InputError, match="benign_prompts"):
        s.kinds(files(answers=False))
    with pytest.raises(InputError, match="preference_pairs"):
        s.gather(
            Subject("x", "smoke", None, files(2).sets, tuple(p[:1] for p in files().pairs), 8),
            llamas.tokenizer(), 0, 1, 1,
        )  # fmt: skip


def test_stages_and_blocks(asked):
    assert s.stages(asked, "") == s.STAGES and "pretrained" not in s.stages(files(), "")
    assert s.stages(files(), "elsewhere") == s.STAGES
    with pytest.raises(InputError, match="base"):
        s.stages(asked, "elsewhere")
    model = llamas.model("sharded").requires_grad_(False)  # three layers
    s.choose(model, 2)
    chosen = {name for name, p in model.named_parameters() if p.requires_grad}
    assert chosen and all(".0." in name or ".2." in name for name in chosen)
    assert all(p.ndim == 2 for p in model.parameters() if p.requires_grad)
    s.choose(model, all_blocks=True)
    assert all(p.requires_grad for p in model.parameters())
    s.choose(model, 2, all_blocks=True)
    assert not decoder(model).embed_tokens.weight.requires_grad
    with pytest.raises(InputError, match="every"):
        s.choose(model, 0)


def test_a_checkpoints_untrained_model_has_its_shape_and_a_seed(tmp_path):
    folder = llamas.checkpoint(tmp_path / "a", "grouped")
    asked = Subject(folder, "smoke", None, files().sets, files().pairs, 8)
    (first, words), (again, _), (other, _) = (s.model_at(asked, "random", seed) for seed in (0, 0, 1))
    aligned, _ = s.model_at(asked, "aligned", 0)
    pairs = zip(first.parameters(), again.parameters(), other.parameters(), aligned.parameters())
    assert all(torch.equal(a, b) and a.shape == d.shape and a.dtype == d.dtype for a, b, _, d in pairs)
    assert any(not torch.equal(a, c) for a, c in zip(first.parameters(), other.parameters()))
    assert words.chat_template
    with pytest.raises(InputError, match="stage"):
        s.model_at(asked, "pretrained", 0)
