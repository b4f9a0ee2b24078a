"""Small random Llama checkpoints of many shapes, as `save_pretrained` writes them, with a word-level tokenizer."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from safebook.llama import build
from safebook.llama_settings import LlamaSettings

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
WORDS = [f"w{i}" for i in range(24)]
TEMPLATE = (
    "<s>{% for m in messages %} <|{{ m['role'] }}|> {{ m['content'] }} <|end|>{% endfor %}"
    "{% if add_generation_prompt %} <|assistant|>{% endif %}"
)
SMALL = {
    "layers": 2,
    "heads": 4,
    "key_value_heads": 4,
    "width": 32,
    "hidden": 40,
    "context": 64,
    "initial_std": 0.3,
}
#: name -> settings; what else differs is in `model`.
SHAPES = {
    "plain": {},
    "grouped": {"key_value_heads": 2},
    "tied": {"tied": True},
    "bias": {"attention_bias": True},
    "bf16": {},
    "sharded": {"layers": 3},
    "vocabulary": {},  # other words, and more rows in the embedding than there are tokens
    "llama3": {},  # heads wider than width / heads, Llama 3.1's scaled rotary positions
}


def words(shape: str = "plain") -> list[str]:
    return [f"x{i}" for i in range(31)] + [".", "yes"] if shape == "vocabulary" else [*WORDS, ".", "yes"]


def tokenizer(shape: str = "plain", template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words(shape)])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=template,
    )


def model(shape: str = "plain", seed: int = 0) -> LlamaForCausalLM:
    generator = torch.Generator().manual_seed(seed)
    size = len(SPECIAL) + len(words(shape)) + 7 * (shape == "vocabulary")
    if shape == "llama3":
        rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 16}  # fmt: skip
        config = LlamaConfig(
            vocab_size=size, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            hidden_size=32, head_dim=16, intermediate_size=40, max_position_embeddings=64,
            rope_parameters=rope, eos_token_id=[2, 7],
        )  # fmt: skip
        made = LlamaForCausalLM(config)
    else:
        made = build(LlamaSettings(size, **SMALL | SHAPES[shape]), generator)
    with torch.no_grad():
        for parameter in made.parameters():  # gains and biases too: a lost one must show
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            elif shape == "llama3":
                parameter.normal_(0, 0.3, generator=generator)
    return made.eval()


def checkpoint(folder: Path, shape: str = "plain", template: str | None = TEMPLATE) -> str:
    """Folder of a saved checkpoint, as text: what a reader passes as `model`."""
    made = model(shape)
    if shape == "bf16":
        made = made.to(torch.bfloat16)
    made.save_pretrained(folder, **({"max_shard_size": "15KB"} if shape == "sharded" else {}))
    tokenizer(shape, template).save_pretrained(folder)
    return str(folder)


def chats(shape: str = "plain") -> list[list[dict]]:
    """Requests of different lengths, some with a system message or with a turn before."""
    w = words(shape)
    lengths = (1, 7, 3, 3, 12, 5)
    found = [[{"role": "user", "content": " ".join(w[n : 2 * n])}] for n in lengths]
    found[1].insert(0, {"role": "system", "content": f"{w[2]} {w[5]}"})
    found[3] = [*found[0], {"role": "assistant", "content": "yes ."}, *found[3]]
    return found
