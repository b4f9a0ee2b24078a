"""The synthetic world of paper 1: operators applied to text drawn from a grammar, safe or unsafe by combination.

A sequence is `BEGIN t1 t2 t3 t4 START x > y1 STOP y2 STOP PAD ... PAD END`, with y1 = t2(t1(x)) and y2 = t4(t3(y1)).
Everything is drawn for a whole batch at once: a derivation is a few table look-ups (see `grammars.compile_grammar`) and
the sequence is one gather. Source: Sec. 3 of the paper and its released generator.
"""

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from safebook.errors import InputError
from safebook.settings import Vocabulary, WorldSettings
from safebook.worlds.grammars import PRE_TERMINALS, TEXT_TYPES, compile_grammar

NULL_SYMBOL = 0  # refusal is this text symbol, repeated
#: Role of a position -> bit flag; padding has none.
ROLES = {
    name: 1 << bit
    for bit, name in enumerate(
        ["begin", "tasks", "start", "text", "marker", "output1", "stop1", "output2", "stop2", "end"]
    )
}


@dataclass
class Batch:
    """Sequences with what they were made from. `tokens[:, :-1]` is the input, `tokens[:, 1:]` the target."""

    tokens: Tensor  # (batch, sequence_length) int64
    loss_mask: Tensor  # (batch, sequence_length - 1) bool: targets that count in the loss
    lengths: Tensor  # (batch,) operand length
    grammar: Tensor  # (batch,)
    tasks: Tensor  # (batch, 4) task token ids

    @property
    def decision(self) -> Tensor:
        """(batch,) index of `>`, whose prediction is the first output token."""
        return self.lengths + 6

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Tensor) -> "Batch":
        """The given rows, in that order."""
        return Batch(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def concatenate(batches: list[Batch]) -> Batch:
    """One batch out of several of the same world."""
    return Batch(**{f.name: torch.cat([getattr(b, f.name) for b in batches]) for f in fields(Batch)})


class PCFGWorld:
    """Samples instructions. All randomness comes from the generator passed in, on that generator's device."""

    def __init__(self, settings: WorldSettings | None = None, device: str = "cpu"):
        self.settings = settings = settings or WorldSettings()  # the paper's
        self.device = torch.device(device)
        self.vocabulary = Vocabulary(settings.alphabet, settings.operators, settings.duplicates)
        self.bijections = self._tensor(self._operator_table())  # (grammars, token ids, alphabet)
        # Padded lists of operators and their lengths, indexed [grammar, 0 = safe text / 1 = unsafe text].
        self.safe_operators, self.unsafe_operators = self._operator_sets()
        self._layout = self._tensor(self._layout_table())

    def _tensor(self, array) -> Tensor:
        return torch.as_tensor(np.asarray(array), device=self.device)

    # ---------------------------------------------------------------- operators and the safety rule

    def _operator_table(self) -> np.ndarray:
        """(grammars, vocabulary, alphabet): what each task token does to each symbol. Not a task token: identity."""
        s, v = self.settings, self.vocabulary
        table = np.tile(np.arange(s.alphabet), (s.grammars, v.size, 1))
        for grammar in range(s.grammars):
            for i in range(s.operators - 1):
                # The released seeds: 0, 150, 300, 450 for the four grammars.
                table[grammar, i + 1] = np.random.RandomState(i + 150 * grammar).permutation(s.alphabet)
            for alias in range(v.aliases):
                table[grammar, s.operators + alias] = table[grammar, alias // 2]
            for d in range(s.duplicates):
                table[grammar, v.constant + 2 + d] = table[grammar, 4 + d]
        return table

    def _operator_sets(self):
        s = self.settings
        safe = [[[t for t in range(s.operators) if t not in bad], list(ok)] for bad, ok in self._rule()]
        unsafe = [[list(bad), [t for t in range(s.operators) if t not in ok]] for bad, ok in self._rule()]
        return self.choices(safe), self.choices(unsafe)

    def _rule(self):
        return zip(self.settings.always_unsafe, self.settings.always_safe)

    def context_operators(self, grammar: int) -> list[int]:
        """Operators of `grammar` that are safe on safe text and unsafe on unsafe text."""
        s = self.settings
        fixed = set(s.always_unsafe[grammar]) | set(s.always_safe[grammar])
        return [t for t in range(s.operators) if t not in fixed]

    def choices(self, lists) -> tuple[Tensor, Tensor]:
        """[grammar][k] lists -> (grammar, k, longest) table and (grammar, k) counts."""
        longest = max(len(x) for row in lists for x in row)
        table = [[x + [0] * (longest - len(x)) for x in row] for row in lists]
        return self._tensor(table), self._tensor([[len(x) for x in row] for row in lists])

    def is_unsafe(self, tasks: Tensor, grammar: Tensor, unsafe_text: Tensor) -> Tensor:
        """(batch, 4) bool: is this task token unsafe here? Judges O0..O9 by the rule, other tokens by what they do."""
        operator = self._canonical(tasks)
        table, counts = self.unsafe_operators
        row, count = table[grammar, unsafe_text.long()], counts[grammar, unsafe_text.long()]
        real = torch.arange(row.shape[-1], device=self.device) < count[:, None]
        return ((operator[:, :, None] == row[:, None]) & real[:, None]).any(-1)

    def _canonical(self, tasks: Tensor) -> Tensor:
        """Alias tokens -> the operator that they name."""
        v, s = self.vocabulary, self.settings
        names = torch.arange(v.size, device=self.device)
        names[s.operators : v.end_of_text] = self._tensor(np.repeat([0, 1, 2], 2))
        return names[tasks]

    # ---------------------------------------------------------------- text

    def operands(self, text_type: str, grammar: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Windows of text: a derivation a sample, and from its yield a random window of random length.

        Returns (batch, longest) symbols, right of the length meaningless, and (batch,) lengths.
        """
        if text_type not in TEXT_TYPES:
            raise InputError("text_type", text_type, sorted(TEXT_TYPES))
        low, high = self.settings.operand_lengths
        spell, tables = self._terminals, self._grammar_tables(text_type)
        batch, width = len(grammar), spell.shape[-1]

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, device=self.device, dtype=torch.float64, generator=generator)

        skeletons = tables["skeletons"]
        slots = skeletons[(uniform(batch) * len(skeletons)).long()]
        rows = tables["offsets"][slots] + (uniform(*slots.shape) * tables["counts"][slots]).long()
        ends = tables["lengths"][rows].cumsum(1)
        length = low + (uniform(batch) * (high - low + 1)).long()
        first = (uniform(batch) * (ends[:, -1] * width - length + 1)).long()
        # Which pre-terminals does the window touch, and in which slot's yield does each lie?
        touched = (high + width - 2) // width + 1
        position = (first // width)[:, None] + torch.arange(touched, device=self.device)
        position = torch.minimum(position, ends[:, -1:] - 1)
        if slots.shape[1] == 1:
            pre_terminal = tables["sequences"].view(-1)[rows * tables["sequences"].shape[1] + position]
        else:
            slot = torch.searchsorted(ends, position, right=True)
            within = position - (ends - tables["lengths"][rows]).gather(1, slot)
            pre_terminal = tables["sequences"].view(-1)[
                rows.gather(1, slot) * tables["sequences"].shape[1] + within
            ]
        bits = torch.randint(2**touched, (batch, 1), device=self.device, generator=generator)
        alternative = (bits >> torch.arange(touched, device=self.device)) & 1
        symbols = spell.view(-1, width)[
            (grammar[:, None] * len(PRE_TERMINALS) + pre_terminal) * 2 + alternative
        ]
        window = (first % width)[:, None] + torch.arange(high, device=self.device)
        return symbols.view(batch, -1).gather(1, window), length

    @cached_property
    def _terminals(self) -> Tensor:
        return self._tensor(self.settings.terminal_table)

    def _grammar_tables(self, text_type: str) -> dict[str, Tensor]:
        cache = self.__dict__.setdefault("_compiled", {})
        if text_type not in cache:
            tables = compile_grammar(text_type)
            longest = self.settings.operand_lengths[1]
            shortest = tables["lengths"][tables["offsets"][tables["skeletons"]]].sum(1).min()
            shortest = shortest * self.settings.terminal_table.shape[-1]
            if shortest < longest and not text_type.endswith("_broad"):
                raise InputError(
                    "operand_lengths", self.settings.operand_lengths, f"at most {shortest}: {text_type}"
                )
            cache[text_type] = {name: self._tensor(table) for name, table in tables.items()}
        return cache[text_type]

    # ---------------------------------------------------------------- sequences

    def _layout_table(self) -> np.ndarray:
        """(operand lengths, sequence_length): where in the row built by `sequences` each token comes from."""
        s = self.settings
        low, high = s.operand_lengths
        x, gt = 6, 6 + high
        y1, stop1 = gt + 1, gt + 1 + high
        y2, stop2 = stop1 + 1, stop1 + 1 + high
        pad, end = stop2 + 1, stop2 + 2
        table = np.full((high - low + 1, s.sequence_length), pad)
        for row, n in zip(table, range(low, high + 1)):
            used = [*range(6), *range(x, x + n), gt, *range(y1, y1 + n), stop1, *range(y2, y2 + n), stop2]
            row[: len(used)] = used
            row[-1] = end
        return table

    def apply(self, tasks: Tensor, grammar: Tensor, operand: Tensor) -> tuple[Tensor, Tensor]:
        """The two outputs t2(t1(x)) and t4(t3(y1)), symbols like `operand`: (batch, length)."""
        outputs, y = [], operand
        flat = self.bijections.view(-1)
        base = (grammar[:, None] * self.vocabulary.size + tasks) * self.settings.alphabet
        for slot in range(4):
            y = flat[base[:, slot, None] + y]
            outputs.append(y)
        return outputs[1], outputs[3]

    def sequences(
        self,
        tasks: Tensor,
        grammar: Tensor,
        operand: Tensor,
        lengths: Tensor,
        y1: Tensor | None = None,
        y2: Tensor | None = None,
    ) -> Batch:
        """Lay out instructions; `y1`, `y2` (symbols like `operand`) replace the true outputs.

        Every non-pad target after the four task tokens counts in the loss.
        """
        v, batch = self.vocabulary, len(tasks)
        true1, true2 = self.apply(tasks, grammar, operand)
        y1, y2 = (true1 if y1 is None else y1), (true2 if y2 is None else y2)

        def constant(*ids: int) -> Tensor:
            return torch.tensor(ids, device=self.device).expand(batch, len(ids))

        text, marker, stop = operand + v.text, constant(v.end_of_text), constant(v.stop)
        head = [constant(v.begin), tasks, constant(v.start), text, marker]
        source = torch.cat([*head, y1 + v.text, stop, y2 + v.text, stop, constant(v.pad, v.end)], 1)
        size = lengths - self.settings.operand_lengths[0]
        tokens = source.gather(1, self._layout[size])
        return Batch(tokens, self.visible(tokens), lengths, grammar, tasks)

    def visible(self, tokens: Tensor) -> Tensor:
        """(batch, sequence_length - 1) bool: targets that are neither padding nor task tokens (never predicted)."""
        mask = tokens[:, 1:] != self.vocabulary.pad
        mask[:, :4] = False
        return mask

    @cached_property
    def _roles(self) -> Tensor:
        """(operand lengths, sequence_length - 1) int: bit flag of the role of each target position, 0 for padding."""
        low, high = self.settings.operand_lengths
        table = np.zeros((high - low + 1, self.settings.sequence_length), dtype=np.int64)
        for row, n in zip(table, range(low, high + 1)):
            pieces = [
                ("begin", 1),
                ("tasks", 4),
                ("start", 1),
                ("text", n),
                ("marker", 1),
                ("output1", n),
                ("stop1", 1),
            ]
            names = [name for name, count in [*pieces, ("output2", n), ("stop2", 1)] for _ in range(count)]
            row[: len(names)] = [ROLES[name] for name in names]
            row[-1] = ROLES["end"]
        return self._tensor(table[:, 1:])

    def roles(self, lengths: Tensor) -> Tensor:
        """(batch, sequence_length - 1) bit flags (see `ROLES`) of the target positions."""
        return self._roles[lengths - self.settings.operand_lengths[0]]

    def role_mask(self, lengths: Tensor, *names: str) -> Tensor:
        """(batch, sequence_length - 1) bool: targets with one of the named roles."""
        return (self.roles(lengths) & sum(ROLES[name] for name in names)) != 0

    def draw(
        self, choices: tuple[Tensor, Tensor], grammar: Tensor, kind: Tensor, columns: int, generator
    ) -> Tensor:
        """(batch, columns) operators drawn independently from the list of each sample's grammar and text."""
        table, counts = choices
        u = torch.rand(len(grammar), columns, device=self.device, generator=generator, dtype=torch.float64)
        index = (u * counts[grammar, kind][:, None]).long()
        return table[grammar, kind].gather(1, index)

    def random_grammar(self, batch: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.settings.grammars, (batch,), device=self.device, generator=generator)
