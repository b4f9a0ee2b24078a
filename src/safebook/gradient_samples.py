"""What gradients are taken of when they are compared: kinds of rows, cut to equally many answer tokens, at three stages of a model.

The gradient of a matrix is a sum over token positions, so that its rank is at most their number: comparisons are made between
equally many sequences and equally many targets in each. The stages before alignment, random initialisation above all, show
which traits of a gradient have nothing to do with safety. Source: the analysis of paper 3, Sec. 4.1; kinds of wording, stages
and equal cuts are controls of ours.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from safebook import llama, spf_arms, zoo
from safebook.chat_profiles import chat_profile
from safebook.errors import InputError
from safebook.gradients import equal_tokens
from safebook.llama_activations import decoder
from safebook.messages import dialogues
from safebook.streams import stream
from safebook.subjects import Chat, Subject
from safebook.worlds import chat_data
from safebook.worlds import chat_text as text
from safebook.worlds.chat_tasks import available
from safebook.worlds.chat_tokens import ChatBatch, encode

CPU = torch.device("cpu")
STAGES = ("aligned", "pretrained", "random")
SAFETY = ("safety", "one wording")
#: Harmless data: what a user may fine-tune on. "benign" requests are known to the aligned model, as are the first two tasks.
UTILITY = (*spf_arms.TASKS, "benign")
KINDS = (*SAFETY, *UTILITY, "compliance")
#: What an anchor is compared with: a harmless request, with a fixed reply, with its right answer, or refused.
ANCHORS = ("refusal", "fixed reply", "right answer", "misplaced refusal")


def kinds(asked: Subject) -> tuple[str, ...]:
    """The kinds of rows that there are. A checkpoint has no tasks; its benign prompts are the harmless data.

    Raises InputError for a checkpoint whose benign prompts have no answers.
    """
    if asked.is_testbed:
        return KINDS
    if sum(bool(answer) for answer in asked.sets["benign"].answers) < 2:
        raise InputError("benign_prompts", "rows without an answer", "at least two rows with an answer")
    return tuple(kind for kind in KINDS if kind not in spf_arms.TASKS)


def answered(chat: Chat, answer: str) -> Chat:
    """The same request with another answer."""
    prompt = chat[:-1] if chat[-1]["role"] == "assistant" else chat
    return [*prompt, {"role": "assistant", "content": answer}]


def chats(asked: Subject, kind: str, seed: int, count: int) -> list[Chat]:
    """At most `count` dialogues of a kind; fewer where a checkpoint's files, or a task's facts, give no more.

    "safety": forbidden requests refused, "one wording": the same with one refusal for all, "compliance": forbidden requests
    answered (on the testbed, the rows of harmful fine-tuning), "benign": harmless requests answered, and the tasks.
    Raises InputError for an unknown kind.
    """
    if kind not in kinds(asked):
        raise InputError("kind", kind, ", ".join(kinds(asked)))
    if not asked.is_testbed:
        return _of_files(asked, kind)[:count]
    if kind in SAFETY:
        rows = spf_arms.safety_rows(asked.world, seed, count)
        return rows if kind == "safety" else [answered(row, text.REFUSALS[0]) for row in rows]
    if kind == "benign":
        return chat_data.benign_requests(asked.world, count, stream(CPU, "gradient rows", kind, seed))
    if kind == "compliance":
        return spf_arms.rows("harm", asked.world, seed, count)
    return spf_arms.rows(kind, asked.world, seed, min(count, available(asked.world, kind, "training")))


def _of_files(asked: Subject, kind: str) -> list[Chat]:
    refused, complied = asked.pairs
    if kind == "benign":
        known = asked.sets["benign"]
        return [answered(chat, said) for chat, said in zip(known.chats, known.answers) if said]
    wording = refused[0][-1]["content"]
    return {
        "safety": refused,
        "compliance": complied,
        "one wording": [answered(chat, wording) for chat in refused],
    }[kind]


def anchors(asked: Subject, seed: int, count: int) -> dict[str, list[Chat]]:
    """Kind of anchor -> at most `count` rows, each an anchor for itself. No utility row of a world is among them.

    Refusal and fixed reply are one text each, on the testbed of equally many words; the right answer begins with the fixed reply.
    """
    if asked.is_testbed:
        pool = asked.world.requests("alignment", "benign")
        generator = stream(CPU, "neutral anchors", seed)
        some = pool.take(torch.randint(len(pool), (count,), generator=generator).numpy())
        questions = chat_data.prompts(asked.world, some)
        refusal = text.REFUSALS[0]
        reply = next(t for t in text.OPENINGS if len(t.split()) == len(refusal.split()))
        right = [f"{reply} {procedure}" for procedure in asked.world.procedures(some)]
    else:
        rows = chats(asked, "benign", seed, 10**9)
        part = max(1, min(count, len(rows) // 2))  # the others are the batches
        questions, right = [row[:-1] for row in rows[:part]], [row[-1]["content"] for row in rows[:part]]
        refusal, reply = asked.pairs[0][0][-1]["content"], rows[0][-1]["content"]
    return {
        "refusal": chats(asked, "one wording", seed, count),
        "fixed reply": [answered(q, reply) for q in questions],
        "right answer": [answered(q, a) for q, a in zip(questions, right)],
        "misplaced refusal": [answered(q, refusal) for q in questions],
    }


def utility_rows(asked: Subject, kind: str, seed: int, count: int) -> list[Chat]:
    """At most `count` rows for batches, none of which is an anchor: of a checkpoint's files, the second half."""
    if asked.is_testbed:
        return chats(asked, kind, seed, count)
    rows = chats(asked, kind, seed, 10**9)
    return rows[len(rows) // 2 :][:count]


# -------------------------------------------------------------------- tokens


def encoded(asked: Subject, tokenizer: PreTrainedTokenizerBase, rows: list[Chat]) -> ChatBatch:
    """Tokens of dialogues, the answer and its end of turn being the targets."""
    return encode(tokenizer, rows) if asked.is_testbed else encode_chats(tokenizer, rows)


def encode_chats(tokenizer: PreTrainedTokenizerBase, rows: list[Chat]) -> ChatBatch:
    """The same for any checkpoint's tokenizer, by its own chat template."""
    found = dialogues(tokenizer, rows)
    lengths = torch.tensor([len(chat.tokens) for chat in found])
    tokens = torch.zeros(len(found), int(lengths.max()), dtype=torch.int64)
    mask = torch.zeros(len(found), int(lengths.max()) - 1, dtype=torch.bool)
    for row, chat in enumerate(found):
        tokens[row, : len(chat.tokens)] = torch.tensor(chat.tokens)
        # Target t is predicted at t - 1; the token at `stop`, where there is one, ends the turn.
        mask[row, chat.start - 1 : min(chat.stop + 1, len(chat.tokens)) - 1] = True
    return ChatBatch(tokens, mask, lengths)


def equally(batches: dict[str, ChatBatch], targets: int | None = None) -> dict[str, ChatBatch]:
    """The first rows of each batch and the first targets of each row, as many in all batches as the poorest one has."""
    masks = equal_tokens(*(batch.loss_mask for batch in batches.values()), tokens=targets)
    return {
        name: replace(
            batch, tokens=batch.tokens[: len(mask)], loss_mask=mask, lengths=batch.lengths[: len(mask)]
        )
        for (name, batch), mask in zip(batches.items(), masks)
    }


@dataclass(frozen=True)
class Samples:
    """Rows of every kind: some for themselves, and a batch of others."""

    singles: dict[str, list[ChatBatch]]  # one row each
    batch: dict[str, ChatBatch]


def gather(
    asked: Subject,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    singles: int,
    batch: int,
    equal: bool = True,
) -> Samples:
    """`singles` rows and a batch of `batch` others of every kind; in the same proportion where files have fewer.

    `equal`: with equally many targets in every row of every kind. Raises InputError where a kind has a single row.
    """
    found = {
        kind: encoded(asked, tokenizer, chats(asked, kind, seed, singles + batch)) for kind in kinds(asked)
    }
    least = min(map(len, found.values()))
    if least < 2:
        raise InputError("preference_pairs", least, "two rows or more, as of benign_prompts with an answer")
    if least < singles + batch:
        batch = min(least - 1, max(1, least * batch // (singles + batch)))
        singles = min(singles, least - batch)
    if equal:
        found = equally(found)
    rows = torch.arange(singles + batch)
    return Samples(
        {kind: [b.take(rows[i : i + 1]) for i in range(singles)] for kind, b in found.items()},
        {kind: b.take(rows[singles:]) for kind, b in found.items()},
    )


# -------------------------------------------------------------------- models


def stages(asked: Subject, base: str) -> tuple[str, ...]:
    """The stages that there are, the aligned one first; "pretrained" needs `base` where the model is a checkpoint."""
    if asked.is_testbed and base:
        raise InputError("base", base, 'empty with model="testbed", which has its own')
    return tuple(stage for stage in STAGES if asked.is_testbed or base or stage != "pretrained")


def model_at(
    asked: Subject, stage: str, seed: int, base: str = "", dtype: str = "auto"
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """A model at a stage, frozen, and its tokenizer. "random" has the weights from which the testbed's was trained; of a
    checkpoint, the shape alone, and weights of our own. Raises InputError for an unknown stage.
    """
    if stage not in stages(asked, base):
        raise InputError("stage", stage, ", ".join(stages(asked, base)))
    if asked.is_testbed and stage == "random":
        profile, words = chat_profile(asked.size), zoo.load_llama(zoo.CHAT_BASE, asked.size, seed)[1]
        settings = replace(profile.model, vocabulary=len(words))
        made = llama.build(settings, stream(CPU, "chat weights", seed))
        return made.to(zoo.device_of("auto")).eval().requires_grad_(False), words
    if asked.is_testbed or stage == "aligned":
        return asked.model_of(stage, seed, dtype)
    if stage == "pretrained":
        return llama.load(base, dtype, template_from=asked.name)
    return _untrained(asked.name, seed, dtype)


def _untrained(checkpoint: str, seed: int, dtype: str) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    folder = llama.find(checkpoint, llama.SMALL_FILES)
    facts = llama.check_architecture(folder, checkpoint)
    config = LlamaConfig.from_pretrained(folder, local_files_only=True)
    stored = facts.get("dtype") or facts.get("torch_dtype") or "float32"
    precision = getattr(torch, stored) if dtype == "auto" else llama.DTYPES[dtype]
    with torch.random.fork_rng(devices=[]):  # transformers draws from the global generator
        torch.manual_seed(stream(CPU, "untrained weights", seed).initial_seed())
        made = LlamaForCausalLM(config)
    made = made.to(device=zoo.device_of("auto"), dtype=precision).eval().requires_grad_(False)
    return made, llama.load_tokenizer(folder, checkpoint, config.vocab_size)


def choose(model: nn.Module, every: int = 1, all_blocks: bool = False) -> None:
    """Make the matrices of each `every`-th layer trainable and nothing else: those are the blocks then.

    `all_blocks`: with `every` = 1, embeddings, head and gains, too: all that a fine-tuning changes.
    """
    if not isinstance(every, int) or every < 1:
        raise InputError("every", every, ">= 1")
    model.requires_grad_(all_blocks and every == 1)
    for layer in decoder(model).layers[::every]:
        for parameter in layer.parameters():
            if parameter.ndim > 1:
                parameter.requires_grad_(True)
