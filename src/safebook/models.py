"""The small decoder of paper 1. Its block is unusual, and the analyses depend on how.

`x <- LN(x);  x <- x + Attention(x);  x <- x + W_proj GELU(W_fc x + b) + b'`

The LayerNorm *replaces* the residual stream, and there is no LayerNorm before the MLP. Positions are fixed sinusoids, the
head is untied and has no bias. Source: released `model.py`, configuration `wrn2-cfg-mini`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safebook.errors import InputError
from safebook.settings import ModelSettings


def sinusoids(context: int, width: int) -> Tensor:
    """(context, width) fixed position code: sines in the even columns, cosines in the odd ones."""
    position = torch.arange(context, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10_000.0) / width))
    code = torch.empty(context, width)
    code[:, 0::2], code[:, 1::2] = torch.sin(position * rate), torch.cos(position * rate)
    return code


class Attention(nn.Module):
    """Causal self-attention; queries, keys and values in one matrix."""

    def __init__(self, s: ModelSettings):
        super().__init__()
        self.heads = s.heads
        self.c_attn = nn.Linear(s.width, 3 * s.width)
        self.c_proj = nn.Linear(s.width, s.width)

    def forward(self, x: Tensor, cache: dict | None = None) -> Tensor:
        batch, time, width = x.shape
        q, k, v = self.c_attn(x).view(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        causal = True
        if cache is not None:
            if "k" in cache:
                k, v = torch.cat([cache["k"], k], 2), torch.cat([cache["v"], v], 2)
                causal = False  # a single new token sees everything before it
            cache["k"], cache["v"] = k, v
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.c_proj(y.transpose(1, 2).reshape(batch, time, width))


class MLP(nn.Module):
    """`act` is a module so that a hook can read the hidden units that paper 1 analyses."""

    def __init__(self, s: ModelSettings):
        super().__init__()
        self.c_fc = nn.Linear(s.width, s.hidden)
        self.act = nn.GELU(approximate="tanh")
        self.c_proj = nn.Linear(s.hidden, s.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.act(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, s: ModelSettings):
        super().__init__()
        self.ln_1 = nn.LayerNorm(s.width)
        self.attn = Attention(s)
        self.mlp = MLP(s)

    def forward(self, x: Tensor, cache: dict | None = None) -> Tensor:
        x = self.ln_1(x)
        x = x + self.attn(x, cache)
        return x + self.mlp(x)


class GPT(nn.Module):
    """Decoder of paper 1. `generator` initialises it; the same generator state gives the same weights."""

    def __init__(self, settings: ModelSettings, generator: torch.Generator | None = None):
        super().__init__()
        self.settings = s = settings
        self.wte = nn.Embedding(s.vocabulary, s.width)
        self.register_buffer("wpe", sinusoids(s.context, s.width), persistent=False)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.ln_f = nn.LayerNorm(s.width)
        self.head = nn.Linear(s.width, s.vocabulary, bias=False)
        self._initialise(generator)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator | None) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                # Residual branches start smaller, so that the stream's variance does not grow with depth.
                std = 0.02 / math.sqrt(2 * self.settings.layers) if "c_proj" in name else 0.02
                std = self.settings.embedding_std if name == "wte.weight" else std
                parameter.normal_(0.0, std, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()

    def hidden(self, tokens: Tensor, caches: list[dict] | None = None) -> Tensor:
        """(batch, time) ids -> (batch, time, width) states after the final LayerNorm.

        `caches` (one dict a layer, empty at first) makes generation linear: pass the prompt once, then one token a call.
        """
        past = caches[0]["k"].shape[2] if caches and "k" in caches[0] else 0
        time = past + tokens.shape[1]
        if time > self.settings.context:
            raise InputError("tokens", f"{time} positions", f"at most {self.settings.context}")
        return self.states(self.wte(tokens), past, caches)

    def states(self, embeddings: Tensor, past: int = 0, caches: list[dict] | None = None) -> Tensor:
        """Like `hidden`, from token embeddings (batch, time, width): for gradients and for soft prompts."""
        x = embeddings + self.wpe[past : past + embeddings.shape[1]]
        for i, block in enumerate(self.blocks):
            x = block(x, caches[i] if caches else None)
        return self.ln_f(x)

    def forward(self, tokens: Tensor, caches: list[dict] | None = None) -> Tensor:
        """(batch, time) ids -> (batch, time, vocabulary) logits."""
        return self.head(self.hidden(tokens, caches))
