"""What the prompt-level defences say in the chat world, whose models know no English: its law, its other names.

The defences themselves are in `prompt_defences`.
"""

from collections.abc import Sequence

import numpy as np

from safebook.prompt_defences import Answer, by_synonyms, judged_harmful
from safebook.subjects import Chat
from safebook.worlds import chat_text as text
from safebook.worlds.chat import ChatWorld


def spoken_of(world: ChatWorld, answer: str) -> tuple[str, str] | None:
    """The operator and the object of an answer: the first of either that it names; None where it names no pair."""
    words = answer.split()
    operator = next((w for w in words if w in world.operators), None)
    thing = next((w for w in words if w in world.objects), None)
    return None if operator is None or thing is None else (operator, thing)


def examined(world: ChatWorld, answers: Sequence[str], answer: Answer) -> np.ndarray:
    """(n,) bool: the model, asked whether what its own answer explains is allowed, says no. Self-examination.

    The world has no word for harm; its law is asked about in one form, which pretraining taught. An answer that names no
    operator and object passes unasked.
    """
    pairs = [spoken_of(world, a) for a in answers]
    some = [i for i, pair in enumerate(pairs) if pair]
    flags = np.zeros(len(answers), bool)
    if some:
        questions = {answers[i]: _question(*pairs[i]) for i in some}
        read = [answers[i] for i in some]
        flags[some] = judged_harmful(read, answer, questions.get, harmful="no", harmless="yes")
    return flags


def _question(operator: str, thing: str) -> str:
    return text.LAW_QUESTION.format(operator=operator, object=thing)


def forbidden(world: ChatWorld, answers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) bool twice: does the answer name a pair, and does the law forbid it? What `examined` should say."""
    pairs = [spoken_of(world, a) for a in answers]
    known = np.array([pair is not None for pair in pairs], bool)
    wrong = [
        bool(pair) and bool(world.forbidden[world.operators.index(pair[0]), world.objects.index(pair[1])])
        for pair in pairs
    ]
    return known, np.array(wrong, bool)


def other_words(texts: list[str]) -> list[str]:
    """A rewriter for `prompt_defences.paraphrased`: every operator by its other name, common for rare and rare for common.

    A model of this world cannot be asked to rephrase. All other words stay, so an adversarial suffix does, too.
    """
    names = (*text.OPERATORS, *text.SYNONYMS), (*text.SYNONYMS, *text.OPERATORS)
    return by_synonyms(*names)(texts)


def demonstration(pairs: tuple[list[Chat], list[Chat]]) -> tuple[str, str]:
    """(request, refusal) of the first preference pair, for `prompt_defences.with_demonstrations`."""
    chosen = pairs[0][0]
    return chosen[-2]["content"], chosen[-1]["content"]
