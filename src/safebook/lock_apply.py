"""Two ways to apply a lock to a model: add its shifts while the model runs, or once and for all to a bias.

On all tokens the two are the same function: W_O (a + c) = W_O a + W_O c. Source: paper 2, "online" and "offline"; the released
code has the second one only.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from safebook.errors import InputError
from safebook.llama_activations import decoder
from safebook.locks import Lock

NOTE = "lock.json"


def check_fits(model: nn.Module, lock: Lock) -> None:
    """Every head of the lock is there, and as wide as its direction."""
    config = decoder(model).config
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    if lock.directions.shape[1] != config.head_dim:
        width = f"directions of {lock.directions.shape[1]} channels"
        raise InputError("lock", width, f"{config.head_dim}, the model's channels of a head")
    for layer, head in lock.heads:
        if layer >= layers or head >= heads:
            allowed = f"layers below {layers} and heads below {heads}, as the model has"
            raise InputError("lock", f"layer {layer}, head {head}", allowed)
    shape = lock.meta.get("shape")
    if shape is not None and shape != [layers, heads]:
        raise InputError(
            "lock", f"taken from {shape} layers and heads", f"{[layers, heads]}, as the model has"
        )


def shifts_by_layer(model: nn.Module, lock: Lock, alpha: float | None = None) -> dict[int, Tensor]:
    """layer -> (heads * head_dim,) float32: c of the paper, what is added to all heads' outputs; 0 for the others."""
    check_fits(model, lock)
    config = decoder(model).config
    found: dict[int, Tensor] = {}
    for (layer, head), shift in zip(lock.heads, lock.shifts(alpha)):
        whole = found.setdefault(layer, torch.zeros(config.num_attention_heads * config.head_dim))
        whole[head * config.head_dim : (head + 1) * config.head_dim] = shift
    return found


@contextmanager
def locked(
    model: nn.Module,
    lock: Lock,
    alpha: float | None = None,
    tokens: str = "all",
    starts: int | Sequence[int] = -1,
) -> Iterator[None]:
    """Within the block the locked heads' outputs are shifted ("online").

    Parameters
    ----------
    alpha : strength; None = the lock's own.
    tokens : "all" = every token, as the bias edit does. "response" = every token that is read from a key-value cache that
        already holds some, which in generation are the answer's; of a pass that starts from nothing (the prompt in
        generation, or a whole text at once) those from `starts` on.
    starts : for "response": index of the first shifted token of such a pass, counted from the end: -1 = the last one, whose
        output decides the answer's first token; -1 - n = the last n tokens too, say of an answer given in advance; 0 = none.
        One for all sequences, or one for each of the batch, which must then be padded on the left, as everywhere here.

    `generation.greedy` sorts its prompts into batches of its own, so give it one number for all.
    """
    if tokens not in ("all", "response"):
        raise InputError("tokens", tokens, "all | response")
    first = torch.as_tensor(starts)
    if first.ndim > 1 or first.is_floating_point() or (first > 0).any():
        raise InputError("starts", starts, "0 or negative integers: one, or one for each sequence")
    shifts = shifts_by_layer(model, lock, alpha)
    fresh = True  # does the running pass start from nothing?

    def begin(_module, _arguments, named):
        nonlocal fresh
        cache = named.get("past_key_values")
        fresh = cache is None or cache.get_seq_length() == 0

    def shift(layer: int) -> Callable:
        def hook(_module, arguments):
            x = arguments[0]  # (batch, time, heads * head_dim)
            shifts[layer] = shifts[layer].to(x)  # moves once
            added = shifts[layer]
            if tokens == "response" and fresh:
                added = added * _from(first, x)[..., None].to(x)
            return (x + added, *arguments[1:])

        return hook

    stack = decoder(model)
    handles = []
    try:
        handles.append(stack.register_forward_pre_hook(begin, with_kwargs=True))
        for layer in shifts:
            handles.append(stack.layers[layer].self_attn.o_proj.register_forward_pre_hook(shift(layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _from(first: Tensor, x: Tensor) -> Tensor:
    """(1 or batch, time) bool: the columns from `first` (negative) on."""
    batch, time = x.shape[:2]
    if (-first > time).any() or (first.ndim and len(first) != batch):
        allowed = f"one, or {batch} for this batch, from -{time} to 0"
        raise InputError("starts", first.tolist(), allowed)
    return torch.arange(time) >= time + first.reshape(-1, 1)


def bias_edit(model: nn.Module, lock: Lock, alpha: float | None = None) -> Callable[[], None]:
    """Add W_O c to the output projection's bias of every locked layer ("offline"), with the W_O of this very model.

    A bias that is already there stays and is added to; other layers are not touched. Acts on every token, the prompt's too.
    Returns a function that undoes it. Of several edits of one model, undo the last one first.
    """
    edits = []
    for layer, shift in shifts_by_layer(model, lock, alpha).items():
        projection = decoder(model).layers[layer].self_attn.o_proj
        if not isinstance(projection, nn.Linear) or not projection.weight.is_floating_point():
            raise InputError(
                "model", type(projection).__name__, "plain output projections: merge the adapter first"
            )
        if projection.weight.is_meta:
            raise InputError("model", "weights that are not in memory", "a model loaded on one device")
        edits.append((projection, shift))
    before = [(projection, projection.bias) for projection, _ in edits]
    with torch.no_grad():
        for projection, shift in edits:
            weight, old = projection.weight, projection.bias
            added = weight.float() @ shift.to(weight.device)
            whole = added if old is None else old.float() + added
            projection.bias = nn.Parameter(whole.to(weight.dtype), requires_grad=weight.requires_grad)

    def undo() -> None:
        for projection, old in before:
            projection.bias = old

    return undo


def save_locked(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    lock: Lock,
    folder: str | Path,
    alpha: float | None = None,
) -> Path:
    """Write the locked model as a checkpoint that `llama.load`, or transformers, reads like any other.

    transformers drops an output projection's bias on reading, unless the configuration says `attention_bias`: it is set, and
    the biases that come with it and are not there (of queries, keys, values, other layers' outputs) are written as zeros. In
    bfloat16 and float16 the bias is rounded, as all weights. `lock.json` beside the weights tells of the lock. The model itself
    stays as it was. The folder appears when it is complete.
    """
    out = Path(folder).expanduser()
    if out.exists():
        raise InputError("folder", str(folder), "a folder that is not there yet")
    undo = bias_edit(model, lock, alpha)
    note = {
        "alpha": lock.alpha if alpha is None else alpha,
        "displacement": lock.displacement(alpha),
        "heads": lock.heads,
        "meta": lock.meta,
    }
    config = decoder(model).config
    had, filled = config.attention_bias, []
    part = out.with_name(f".{out.name}.part")
    try:
        config.attention_bias = True
        for layer in decoder(model).layers:
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                projection = getattr(layer.self_attn, name)
                if projection.bias is None:
                    weight = projection.weight
                    projection.bias = nn.Parameter(weight.new_zeros(len(weight)), requires_grad=False)
                    filled.append(projection)
        shutil.rmtree(part, ignore_errors=True)  # of a run that was cut off
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        (part / NOTE).write_text(json.dumps(note, indent=1, sort_keys=True), encoding="utf-8")
        os.replace(part, out)
    finally:
        config.attention_bias = had
        for projection in filled:
            projection.bias = None
        undo()
        shutil.rmtree(part, ignore_errors=True)
    return out
