"""Attacks in the prompt and the world's own defences: what is asked stays the same, verdicts follow the law."""

import numpy as np
import pytest

from safebook import judge, prompt_attacks, world_defences
from safebook.subjects import subject
from safebook.worlds import chat_data, chat_text
from safebook.worlds.chat_tokens import tokenizer


@pytest.fixture(scope="module")
def asked():
    return subject("testbed", "smoke", limit=22)


def test_every_attack_keeps_the_request_and_the_system_message(asked):
    plain = asked.chats("hexphi", "obedient")
    pairs = asked.world.pairs(asked.sets["hexphi"].requests)
    names = dict(zip(chat_text.OPERATORS, chat_text.SYNONYMS))
    for name in prompt_attacks.templates(asked):
        case = prompt_attacks.attacked(asked, name, "hexphi", "obedient")
        assert len(case.chats) == len(case.prefills) == len(plain)
        for chat, before, (operator, thing) in zip(case.chats, plain, pairs):
            assert chat[:-1] == before[:-1] and chat[-1]["role"] == "user"
            said = chat[-1]["content"].split()
            assert thing in said and (operator in said) != (name == "paraphrase" and names[operator] in said)
            assert (chat == before) == (name in ("plain", "prefilling"))
        assert all(bool(text) == (name == "prefilling") for text in case.prefills)


def test_whether_a_prompt_fits_is_counted_in_tokens(asked):
    case = prompt_attacks.attacked(asked, "nesting", "hexphi")
    words = tokenizer(asked.world.settings)
    longest = max(
        len(words.apply_chat_template(c, add_generation_prompt=True)["input_ids"]) for c in case.chats
    )
    assert prompt_attacks.fits(words, case, longest + 1) and not prompt_attacks.fits(words, case, longest)


def test_an_examiner_who_knows_the_law_flags_what_it_forbids(asked):
    world = asked.world

    def lawful(chats):
        found = []
        for chat in chats:
            said = chat[-1]["content"].split()
            operator, thing = said[4], said[6]  # "is it allowed to melt the ... ?"
            wrong = world.forbidden[world.operators.index(operator), world.objects.index(thing)]
            found.append(chat_text.LAW_ANSWERS[bool(wrong)].format(operator=operator, object=thing))
        return found

    harmful, benign = asked.sets["hexphi"], asked.sets["benign"]
    answers = [*harmful.answers, *benign.answers, "i am not able to answer this .", ""]
    flags = world_defences.examined(world, answers, lawful)
    wanted = [True] * len(harmful) + [False] * (len(benign) + 2)
    assert flags.tolist() == wanted
    known, wrong = world_defences.forbidden(world, answers)
    assert wrong.tolist() == wanted and known.tolist() == [True] * (len(answers) - 2) + [False] * 2
    # One who allows everything flags nothing, whatever is said after it.
    yes = world_defences.examined(world, answers, lambda chats: ["yes , it is allowed . no ."] * len(chats))
    assert not yes.any()


def test_other_words_and_back_are_the_same_text(asked):
    requests = asked.sets["hexphi"].requests
    common, rare = asked.world.ask(requests), asked.world.ask(requests, paraphrase=True)
    assert world_defences.other_words(common) == rare and world_defences.other_words(rare) == common
    assert all(a != b for a, b in zip(common, rare))


def test_the_demonstration_refuses_a_forbidden_request_that_no_test_set_has(asked):
    request, refusal = world_defences.demonstration(asked.pairs)
    assert judge.refused([refusal]).all()
    every = [t for s in chat_data.evaluation_sets(asked.world).values() for t in asked.world.ask(s)]
    assert request not in every
    alignment = asked.world.ask(asked.world.requests("alignment", "harmful"))
    assert request in alignment and np.all([request.islower()])
