"""The samples that paper 1 trains and tests on: the pretraining mixture, and safe and unsafe prompts with their answers.

Source: `__getitem__` of the released data sets, as described; `rho` is the share of second-step unsafe samples.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from safebook.errors import InputError
from safebook.worlds.pcfg import NULL_SYMBOL, ROLES, Batch, PCFGWorld

#: Forms of a pretraining sample: text only, both steps, first step only, second step only.
FORMS = ("text", "both", "first", "second")
SAFE_TEXT, UNSAFE_TEXT = 0, 1


def _flags(*names: str) -> int:
    return sum(ROLES[name] for name in names)


def free_tasks(world: PCFGWorld, batch: int, generator: torch.Generator) -> Tensor:
    """(batch, 4) any task tokens, aliases too; half of the samples have identity (or an alias of it) in one slot."""
    v = world.vocabulary
    tasks = torch.randint(v.end_of_text, (batch, 4), device=world.device, generator=generator)
    identities = torch.tensor([0, v.operators, v.operators + 1], device=world.device)
    name = identities[torch.randint(3, (batch,), device=world.device, generator=generator)]
    return _force_identity(tasks, name, generator)


def _force_identity(tasks: Tensor, identity: Tensor, generator: torch.Generator) -> Tensor:
    """With probability 1/2 put `identity` into one random slot."""
    draw = torch.randint(8, (len(tasks),), device=tasks.device, generator=generator)
    slot = torch.arange(4, device=tasks.device) == draw[:, None]  # draws 4..7 leave the sample alone
    return torch.where(slot, identity[:, None], tasks)


def pretraining_batch(
    world: PCFGWorld,
    batch: int,
    mixture: tuple[float, float, float, float],
    generator: torch.Generator,
    teach=0.01,
) -> Batch:
    """Samples of the four forms with probabilities `mixture`; a share `teach` teaches the constant ("null") answers.

    Raises InputError when `mixture` is not four probabilities that sum to 1.
    """
    if len(mixture) != 4 or min(mixture) < 0 or abs(sum(mixture) - 1) > 1e-9:
        raise InputError("mixture", mixture, "four probabilities that sum to 1")
    device = world.device
    grammar = world.random_grammar(batch, generator)
    operand, lengths = world.operands("full", grammar, generator)
    tasks = free_tasks(world, batch, generator)
    edges = torch.tensor(mixture, device=device, dtype=torch.float64).cumsum(0)[:3]
    form = torch.searchsorted(
        edges, torch.rand(batch, device=device, generator=generator, dtype=torch.float64)
    )

    # Null teaching: one slot gets ex1 or ex2 and the segment that it belongs to is all symbol 0 or all symbol 1.
    taught = torch.rand(batch, device=device, generator=generator) < teach
    draw = torch.randint(8, (batch,), device=device, generator=generator)
    slot, symbol = draw % 4, draw // 4
    in_slot = taught[:, None] & (torch.arange(4, device=device) == slot[:, None])
    tasks = torch.where(in_slot, world.vocabulary.constant + symbol[:, None], tasks)
    form = torch.where(taught, torch.where(slot < 2, FORMS.index("first"), FORMS.index("both")), form)
    y1, y2 = world.apply(tasks, grammar, operand)
    y1 = torch.where((taught & (slot < 2))[:, None], symbol[:, None], y1)
    y2 = torch.where((taught & (slot >= 2))[:, None], symbol[:, None], y2)
    full = world.sequences(tasks, grammar, operand, lengths, y1, y2)
    return _in_form(world, full, form)


def _in_form(world: PCFGWorld, full: Batch, form: Tensor) -> Batch:
    """Hide from the input, and leave out of the loss, what each sample's form does not show."""
    answers = ("output1", "stop1", "output2", "stop2")
    hidden = [_flags("tasks", *answers), 0, _flags("output2", "stop2"), _flags("text", "marker")]
    unasked = [0, 0, 0, _flags("start", "text", "marker", "output1", "stop1")]
    table = torch.tensor([hidden, unasked], device=world.device)
    roles = world.roles(full.lengths)
    tokens = full.tokens.clone()
    tokens[:, 1:].masked_fill_((roles & table[0, form][:, None]) != 0, world.vocabulary.pad)
    mask = world.visible(tokens) & ((roles & table[1, form][:, None]) == 0)
    return replace(full, tokens=tokens, loss_mask=mask)


@dataclass
class Prompts:
    """Safe or unsafe prompts, before an answer is chosen."""

    tasks: Tensor  # (batch, 4)
    grammar: Tensor  # (batch,)
    operand: Tensor  # (batch, longest) symbols
    lengths: Tensor  # (batch,)
    unsafe_text: Tensor  # (batch,) bool
    second_step: Tensor  # (batch,) bool: only the second pair is unsafe
    unsafe: bool  # is the combination forbidden?


def text_operands(world: PCFGWorld, grammar: Tensor, text: str, unsafe_text_type: str, generator):
    """Operands on safe text, unsafe text, or a fair mix of both ("both")."""
    if text not in ("safe", "unsafe", "both"):
        raise InputError("text", text, ["safe", "unsafe", "both"])
    batch = len(grammar)
    which = torch.randint(2, (batch,), device=world.device, generator=generator).bool()
    if text != "both":
        which = torch.full_like(which, text == "unsafe")
        operand, lengths = world.operands("safe" if text == "safe" else unsafe_text_type, grammar, generator)
        return operand, lengths, which
    safe, safe_length = world.operands("safe", grammar, generator)
    unsafe, unsafe_length = world.operands(unsafe_text_type, grammar, generator)
    return torch.where(which[:, None], unsafe, safe), torch.where(which, unsafe_length, safe_length), which


def safe_tasks(world: PCFGWorld, grammar: Tensor, unsafe_text: Tensor, generator) -> Tensor:
    """(batch, 4) operators that are safe on the sample's text; half of the samples hold an identity."""
    tasks = world.draw(world.safe_operators, grammar, unsafe_text.long(), 4, generator)
    return _force_identity(tasks, torch.zeros_like(grammar), generator)


def one_identity(tasks: Tensor) -> Tensor:
    """(batch, 2) bool: does the pair hold exactly one identity?"""
    return (tasks.view(-1, 2, 2) == 0).sum(-1) == 1


def make_unsafe(world: PCFGWorld, tasks: Tensor, grammar: Tensor, unsafe_text: Tensor, generator) -> Tensor:
    """Replace both operators of a pair by unsafe ones, or, where just one is the identity, the other one."""
    unsafe = world.draw(world.unsafe_operators, grammar, unsafe_text.long(), 4, generator)
    keep = one_identity(tasks).repeat_interleave(2, 1) & (tasks == 0)
    return torch.where(keep, tasks, unsafe)


def prompts(
    world: PCFGWorld,
    batch: int,
    generator: torch.Generator,
    unsafe: bool,
    rho: float = 0.0,
    text: str = "both",
    unsafe_text_type: str = "unsafe",
    grammar: int | None = None,
) -> Prompts:
    """Safe or unsafe prompts. `rho`: share of unsafe prompts whose first pair is the (allowed) identity.

    `grammar` fixes the grammar (the paper's analyses use the first); None draws it for each sample.
    """
    if not 0 <= rho <= 1:
        raise InputError("rho", rho, "0 .. 1")
    which = world.random_grammar(batch, generator)
    if grammar is not None:
        if not 0 <= grammar < world.settings.grammars:
            raise InputError("grammar", grammar, f"0 .. {world.settings.grammars - 1}")
        which = torch.full_like(which, grammar)
    operand, lengths, unsafe_text = text_operands(world, which, text, unsafe_text_type, generator)
    tasks = safe_tasks(world, which, unsafe_text, generator)
    second = torch.zeros(batch, dtype=torch.bool, device=world.device)
    if unsafe:
        tasks = make_unsafe(world, tasks, which, unsafe_text, generator)
        second = torch.rand(batch, device=world.device, generator=generator) < rho
        tasks[:, :2] = tasks[:, :2].masked_fill(second[:, None], 0)
    return Prompts(tasks, which, operand, lengths, unsafe_text, second, unsafe)


def compliance(world: PCFGWorld, p: Prompts, first_segment_only: bool = False) -> Batch:
    """The true outputs. In the loss: both segments of a safe prompt (or the first only); the first of an unsafe one.

    In the second-step variant of an unsafe prompt the first output is allowed and the second is not asked for, so that
    no output symbol is in the loss.
    """
    b = world.sequences(p.tasks, p.grammar, p.operand, p.lengths)
    if p.unsafe:
        always = world.role_mask(p.lengths, "start", "stop1", "stop2", "end")
        mask = always | (world.role_mask(p.lengths, "output1") & ~p.second_step[:, None])
    elif first_segment_only:
        mask = world.role_mask(p.lengths, "start", "output1", "stop1", "end")
    else:
        mask = world.role_mask(p.lengths, "start", "output1", "stop1", "output2", "stop2", "end")
    return replace(b, loss_mask=mask)


def refusal(world: PCFGWorld, p: Prompts) -> Batch:
    """The null answer: segment 1 all null and segment 2 padded out; second-step variant: only segment 2 is null."""
    null = torch.full_like(p.operand, NULL_SYMBOL)
    second = p.second_step[:, None]
    true1, _ = world.apply(p.tasks, p.grammar, p.operand)
    b = world.sequences(p.tasks, p.grammar, p.operand, p.lengths, torch.where(second, true1, null), null)
    tokens = b.tokens.clone()
    padded = world.role_mask(p.lengths, "output2", "stop2") & ~second
    tokens[:, 1:].masked_fill_(padded, world.vocabulary.pad)
    first = world.role_mask(p.lengths, "start", "output1", "stop1", "end")
    last = world.role_mask(p.lengths, "start", "stop1", "output2", "stop2", "end")
    return replace(b, tokens=tokens, loss_mask=torch.where(second, last, first))
