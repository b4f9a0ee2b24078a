"""What flows through a Llama at chosen tokens: per-head attention outputs, MLP inputs, the residual stream.

Values are picked out while the model runs, so that only the chosen tokens are ever stored. Sequences of any lengths run
together, padded on the left, with the same result as alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import LlamaModel

from safebook.errors import InputError
from safebook.messages import by_length, left_padded

At = int | Sequence[int] | Tensor | Sequence[range]


def decoder(model: nn.Module) -> LlamaModel:
    """The stack of layers, without the head; also of a model that LoRA adapters wrap."""
    for module in model.modules():
        if isinstance(module, LlamaModel):
            return module
    raise InputError("model", type(model).__name__, "a LlamaForCausalLM")


def input_device(model: nn.Module) -> torch.device:
    """Where token ids must be: the model may be spread over several devices."""
    return decoder(model).embed_tokens.weight.device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout; the mode it was in comes back."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextmanager
def watching(
    modules: Sequence[nn.Module], see: Callable[[int, Tensor], None], inputs: bool
) -> Iterator[None]:
    """Call `see(index, tensor)` with what enters (or leaves) each module, at every forward pass."""

    def before(index: int):
        def hook(_module, arguments):
            see(index, arguments[0].detach())

        return hook

    def after(index: int):
        def hook(_module, _arguments, output):
            see(index, output.detach())

        return hook

    handles = []
    try:
        for index, module in enumerate(modules):
            if inputs:
                handles.append(module.register_forward_pre_hook(before(index)))
            else:
                handles.append(module.register_forward_hook(after(index)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def head_outputs(
    model: nn.Module, sequences: Sequence[Sequence[int]], at: At = -1, batch: int = 16
) -> Tensor:
    """(layers, batch, heads, head_dim) output of every attention head, before the output projection mixes the heads.

    Parameters
    ----------
    sequences : token ids of each sequence.
    at : which tokens. An int: the same index in every sequence; a list of n ints, or a (batch, n) tensor of indices for each
        sequence: the result gets an axis of n after `batch`; one `range` for each sequence: the mean over its tokens.
        Indices count from the sequence's first token, negative ones from its end.
    batch : sequences a forward pass.

    Returns float32 on the CPU. Source: paper 2, x of Eq. 1-3, "the last response tokens" in its code.
    """
    layers = decoder(model).layers
    flat = _read(model, sequences, [layer.self_attn.o_proj for layer in layers], True, at, batch)
    return flat.unflatten(-1, (model.config.num_attention_heads, -1))


def mlp_inputs(model: nn.Module, sequences: Sequence[Sequence[int]], at: At = -1, batch: int = 16) -> Tensor:
    """(layers, batch, width) what each MLP reads: the stream after the post-attention norm. Arguments: `head_outputs`.

    Source: the Llama experiments of paper 1.
    """
    return _read(model, sequences, [layer.mlp for layer in decoder(model).layers], True, at, batch)


def residuals(model: nn.Module, sequences: Sequence[Sequence[int]], at: At = -1, batch: int = 16) -> Tensor:
    """(layers, batch, width) residual stream that leaves each layer, before any final norm. Arguments: `head_outputs`."""
    return _read(model, sequences, list(decoder(model).layers), False, at, batch)


def _read(model, sequences, modules, inputs: bool, at: At, batch: int) -> Tensor:
    if not len(sequences):
        raise InputError("sequences", [], "at least one sequence")
    choices, single = _choices([len(s) for s in sequences], at)
    order = by_length(sequences, batch)
    parts: list[list[Tensor]] = [[] for _ in modules]
    with evaluating(model):
        for rows in order:
            padded = left_padded([sequences[i] for i in rows], 0, input_device(model))
            pick = _picker([choices[i] for i in rows], [len(sequences[i]) for i in rows])
            with watching(modules, lambda i, x, pick=pick: parts[i].append(pick(x)), inputs):
                decoder(model)(
                    input_ids=padded.tokens,
                    attention_mask=padded.mask,
                    position_ids=padded.positions,
                    use_cache=False,
                )
    found = torch.stack([torch.cat(layer) for layer in parts])
    back = torch.tensor([i for rows in order for i in rows]).argsort()
    found = found[:, back]
    if not found.isfinite().all():
        raise FloatingPointError("activations are not finite")
    return found[:, :, 0] if single else found


def _choices(lengths: list[int], at: At) -> tuple[list[list[int] | range], bool]:
    """Chosen indices (from the first token) or the range of each sequence; and: does the axis of chosen tokens go?"""
    if isinstance(at, int):
        chosen, single = [[at]] * len(lengths), True
    elif isinstance(at, Tensor):
        if at.ndim != 2 or len(at) != len(lengths) or at.is_floating_point():
            raise InputError("at", tuple(at.shape), f"integers of shape ({len(lengths)}, n)")
        chosen, single = at.tolist(), False
    elif len(at) and isinstance(at[0], range):
        if len(at) != len(lengths):
            raise InputError("at", len(at), f"one range for each of {len(lengths)} sequences")
        chosen, single = list(at), True
    else:
        chosen, single = [list(at)] * len(lengths), False
    for number, (length, indices) in enumerate(zip(lengths, chosen)):
        if not len(indices) or min(indices) < -length or max(indices) >= length:
            allowed = f"token indices of sequence {number}, which has {length} tokens"
            raise InputError("at", indices, allowed)
    return chosen, single


def _picker(chosen: list[list[int] | range], lengths: list[int]) -> Callable[[Tensor], Tensor]:
    """(batch, time, width) -> (batch, n, width) float32 on the CPU, of one batch padded on the left."""
    longest = max(lengths)
    columns = [[longest + i if i < 0 else longest - n + i for i in own] for own, n in zip(chosen, lengths)]
    if isinstance(chosen[0], range):
        weights = torch.zeros(len(columns), longest)
        for row, own in enumerate(columns):
            weights[row, own] = 1 / len(own)
        return lambda x: (weights.to(x.device)[:, None] @ x.float()).cpu()
    index = torch.tensor(columns)
    rows = torch.arange(len(columns))[:, None]
    return lambda x: x[rows.to(x.device), index.to(x.device)].float().cpu()
