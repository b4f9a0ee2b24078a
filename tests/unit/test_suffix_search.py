"""The suffix search: its loss against a plain computation, its gradient against finite differences, its course."""

import llamas
import pytest
import torch
import torch.nn.functional as F

from safebook import suffix_search
from safebook.errors import InputError
from safebook.lock_apply import locked
from safebook.locks import Lock, unit
from safebook.messages import prompts
from safebook.suffix_search import SearchSettings, find_suffix, gradient, losses, slots, with_suffix

START = "w3 w3 w9 w9"
OPENINGS = ["yes w1 .", "yes .", "yes w1 w2 .", "w4", "yes .", "w2 w2"]
SEARCH = SearchSettings(steps=6, candidates=24, best=12, batch=7)


@pytest.fixture(scope="module")
def model():
    return llamas.model().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer():
    return llamas.tokenizer()


def search(model, tokenizer, seed=0, settings=SEARCH):
    generator = torch.Generator().manual_seed(seed)
    return find_suffix(model, tokenizer, llamas.chats(), OPENINGS, START, settings, generator)


def plain_loss(model, tokenizer, suffix):
    """One chat at a time, from the text, through the whole model."""
    found = []
    for p in prompts(tokenizer, with_suffix(llamas.chats(), suffix), OPENINGS):
        logits = model(torch.tensor([p.tokens])).logits[0].double()
        each = F.cross_entropy(logits[:-1], torch.tensor(p.tokens[1:]), reduction="none")
        found.append(each[p.start - 1 : p.stop - 1].mean())
    return float(torch.stack(found).mean())


def test_the_loss_is_that_of_the_text_whatever_the_batch(model, tokenizer):
    found, tokens = slots(tokenizer, llamas.chats(), OPENINGS, START)
    other = [*tokens[1:], tokenizer.convert_tokens_to_ids("w20")]
    many = torch.tensor([tokens, other])
    texts = (START, "w3 w9 w9 w20")
    wanted = [plain_loss(model, tokenizer, text) for text in texts]
    for batch in (1, 5, 100):
        assert losses(model, found, many, batch).tolist() == pytest.approx(wanted, abs=2e-5)


def test_gradient_of_the_one_hot_vectors_against_finite_differences(tokenizer):
    model = llamas.model().double().requires_grad_(False)
    found, tokens = slots(tokenizer, llamas.chats(), OPENINGS, START)
    suffix = torch.tensor(tokens)
    slope = gradient(model, found, suffix)
    table = model.model.embed_tokens.weight
    rows, targets = suffix_search._rows(found, suffix[None])

    def loss(place, token, step):
        embedded = table[rows].clone()
        for row, slot in enumerate(found):
            embedded[row, len(slot.before) + place] += step * table[token]
        return float(suffix_search._nll(model, embedded, targets).double().mean())

    for place, token in ((0, 11), (1, 30), (3, 9), (2, 20)):
        difference = (loss(place, token, 1e-2) - loss(place, token, -1e-2)) / 2e-2
        assert float(slope[place, token]) == pytest.approx(difference, rel=2e-3, abs=2e-4)


def test_the_loss_of_the_kept_suffix_never_rises_and_is_its_own(model, tokenizer):
    found = search(model, tokenizer)
    assert len(found.losses) == SEARCH.steps + 1
    assert all(b <= a for a, b in zip(found.losses, found.losses[1:]))
    assert found.losses[-1] < found.losses[0] - 0.05
    assert plain_loss(model, tokenizer, found.text) == pytest.approx(found.losses[-1], abs=2e-5)
    assert not set(found.text.split()) & set(llamas.SPECIAL) and len(found.text.split()) == 4


def test_same_seed_same_suffix_other_seed_another(model, tokenizer):
    first = search(model, tokenizer)
    torch.rand(3)  # the global generator has no say
    assert search(model, tokenizer) == first
    assert search(model, tokenizer, seed=1).text != first.text


def test_a_wide_step_finds_the_best_exchange_of_one_token(model, tokenizer):
    """With every token allowed and many candidates, one step ends where trying all exchanges ends."""
    settings = SearchSettings(steps=1, candidates=600, best=1000)
    found, tokens = slots(tokenizer, llamas.chats(), OPENINGS, START)
    words = [tokenizer.convert_tokens_to_ids(word) for word in llamas.words()]
    every = [[*tokens[:i], w, *tokens[i + 1 :]] for i in range(4) for w in words]
    assert search(model, tokenizer, 3, settings).losses[1] == pytest.approx(
        float(losses(model, found, torch.tensor(every)).min()), abs=2e-5
    )


def test_a_search_under_a_lock_is_a_search_against_it(model, tokenizer):
    directions = unit(torch.randn(2, 8, generator=torch.Generator().manual_seed(4)))
    lock = Lock([(0, 1), (1, 2)], directions, torch.tensor([1.0, 2.0]))
    with locked(model, lock):
        found = search(model, tokenizer)
        assert plain_loss(model, tokenizer, found.text) == pytest.approx(found.losses[-1], abs=2e-5)
    assert found != search(model, tokenizer)
    assert plain_loss(model, tokenizer, found.text) != pytest.approx(found.losses[-1], abs=1e-3)


def test_weights_get_no_gradient(tokenizer):
    model = llamas.model().requires_grad_(True)
    search(model, tokenizer, settings=SearchSettings(steps=1, candidates=2))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "value"), [("steps", -1), ("candidates", 0), ("best", 1.5), ("batch", True)]
)
def test_settings_are_checked(name, value):
    with pytest.raises(InputError) as caught:
        SearchSettings(**{name: value})
    assert caught.value.parameter == name


def test_nothing_to_search_is_an_error(tokenizer):
    with pytest.raises(InputError):
        slots(tokenizer, [], [], START)
    with pytest.raises(InputError):
        slots(tokenizer, llamas.chats(), OPENINGS, "")
