"""Shape of a Llama that is trained here, from scratch: plain values, checked when they are made, without torch."""

from dataclasses import dataclass

from safebook.errors import InputError


@dataclass(frozen=True)
class LlamaSettings:
    """The defaults are `T`: 8 layers x 8 heads, width 128, 1.6 M parameters without embeddings.

    Source: scale-down of paper 2 (spec 6.3). The paper's own size is a real checkpoint, see `llama.load`.
    """

    vocabulary: int
    layers: int = 8
    heads: int = 8  # query heads of a layer
    key_value_heads: int = 8  # fewer than `heads` = grouped-query attention
    width: int = 128  # of the residual stream; a head has width / heads channels
    hidden: int = 344  # units of the MLP, about 8/3 of the width as in Llama
    context: int = 256  # longest sequence, tokens
    tied: bool = False  # does the head share the token embedding's weights?
    attention_bias: bool = False  # biases on the four projections of the attention
    initial_std: float = 0.02  # of every matrix at initialisation

    def __post_init__(self):
        for name in ("vocabulary", "layers", "heads", "key_value_heads", "width", "hidden", "context"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(name, value, "a positive integer")
        if self.width % (2 * self.heads):  # rotary positions turn pairs of channels
            raise InputError("width", self.width, f"a multiple of 2 * heads = {2 * self.heads}")
        if self.heads % self.key_value_heads:
            raise InputError("key_value_heads", self.key_value_heads, f"a divisor of heads = {self.heads}")
        if not self.initial_std > 0:
            raise InputError("initial_std", self.initial_std, "> 0")


def laptop(vocabulary: int) -> LlamaSettings:
    """`T` of the spec."""
    return LlamaSettings(vocabulary)


def smoke(vocabulary: int) -> LlamaSettings:
    """Runs in seconds; too small to show an effect."""
    return LlamaSettings(vocabulary, layers=2, heads=4, key_value_heads=4, width=32, hidden=88)
