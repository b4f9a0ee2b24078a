"""The template search: its loss from the text, what it tries, what it finds."""

import llamas
import pytest
import torch
import torch.nn.functional as F

from safebook import template_search as search
from safebook.errors import InputError
from safebook.messages import prompts
from safebook.template_search import EvolutionSettings, Template, evolve

PIECES = ("a", "b", "c", "d")


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def wanted(templates):
    """Lowest, -4, for the disguised form with b and d in front, in this order."""
    return [
        -2.0 * (t.form == "disguise") - (t.pieces[:1] == ("b",)) - (t.pieces[1:2] == ("d",)) + 0.1 * len(t.pieces)
        for t in templates
    ]  # fmt: skip


def test_it_finds_the_template_of_the_lowest_loss():
    found = evolve(wanted, ("plain", "disguise"), PIECES, EvolutionSettings(30, 12), draws())
    assert found.template == Template("disguise", ("b", "d"))
    assert found.losses[-1] == pytest.approx(-3.8)
    assert all(a >= b for a, b in zip(found.losses, found.losses[1:])) and len(found.losses) == 31


def test_bare_requests_come_first_and_nothing_is_tried_twice():
    tried = []

    def loss(templates):
        tried.append(list(templates))
        return wanted(templates)

    settings = EvolutionSettings(8, 10, longest=2)
    found = evolve(loss, ("plain", "disguise"), PIECES, settings, draws())
    assert tried[0][:2] == [Template("plain"), Template("disguise")]
    flat = [t for part in tried for t in part]
    assert len(flat) == len(set(flat)) and max(len(t.pieces) for t in flat) <= 2
    assert found.losses[-1] <= min(wanted(tried[0][:2]))
    again = evolve(wanted, ("plain", "disguise"), PIECES, settings, draws())
    assert again == found
    assert evolve(wanted, ("plain",), PIECES, EvolutionSettings(0, 3), draws()).template.form == "plain"


def test_the_loss_is_that_of_the_text():
    model, words = llamas.model().requires_grad_(False), llamas.tokenizer()
    chats = llamas.chats()
    forms = {"plain": chats, "twice": search.with_template(chats, Template("plain", ("w1 w1",)))}
    templates = [Template("plain"), Template("twice", ("w3 .", "w4"))]
    values = search.opening_loss(model, words, forms, "yes w2")(templates)
    for template, value in zip(templates, values):
        each = []
        for p in prompts(
            words, search.with_template(forms[template.form], template), ["yes w2"] * len(chats)
        ):
            logits = model(torch.tensor([p.tokens])).logits[0].double()
            losses = F.cross_entropy(logits[:-1], torch.tensor(p.tokens[1:]), reduction="none")
            each.append(losses[p.start - 1 : p.stop - 1].mean())
        assert value == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)
    said = search.with_template(chats, templates[1])[0][-1]["content"]
    assert said == "w3 . w4 " + chats[0][-1]["content"]


def test_pieces_are_texts_of_the_world():
    from safebook.chat_profiles import chat_profile
    from safebook.worlds.chat_tokens import tokenizer

    words = tokenizer(chat_profile("smoke").world)
    for piece in search.WORLD_PIECES:
        assert words.unk_token_id not in words(piece, add_special_tokens=False)["input_ids"], piece
    assert all(piece and "{" not in piece for piece in (*search.WORLD_PIECES, *search.ENGLISH_PIECES))


@pytest.mark.parametrize("name", ["generations", "population", "parents", "longest"])
def test_bad_settings_are_errors(name):
    with pytest.raises(InputError, match=name):
        EvolutionSettings(**{name: -1})
    with pytest.raises(InputError, match="forms"):
        evolve(wanted, (), PIECES, EvolutionSettings(), draws())
