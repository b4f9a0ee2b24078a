"""Llamas: small ones built from scratch, and real ones loaded from a folder or from the Hugging Face Hub.

Both are transformers' `LlamaForCausalLM`, so that everything that works on one works on the other. Only safetensors are
read and no code of a checkpoint is run.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

from safebook.errors import InputError
from safebook.llama_settings import LlamaSettings
from safebook.messages import dialogues, end_of_turn

SUPPORTED = (
    "LlamaForCausalLM (Llama 2, 3, 3.1, 3.2 and 3.3 text models, base or chat, and fine-tunes of them)"
)
DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALL_FILES = [
    "*.json",
    "*.jinja",
]  # configuration and tokenizer: fetched and checked before gigabytes of weights
WEIGHTS = ["*.safetensors"]
SLOW = 10**9  # bytes; what is larger loads with a progress bar
#: In old checkpoints; a constant, which is computed anew.
CONSTANT = "rotary_emb.inv_freq"


def build(settings: LlamaSettings, generator: torch.Generator) -> LlamaForCausalLM:
    """A Llama in float32 on the CPU. The same generator state gives the same weights.

    Every matrix is normal with `initial_std`, every gain 1, every bias 0, as in transformers. The generator must live on
    the CPU, so that the weights do not depend on the device of the run.
    """
    config = LlamaConfig(
        vocab_size=settings.vocabulary,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.key_value_heads,
        hidden_size=settings.width,
        intermediate_size=settings.hidden,
        max_position_embeddings=settings.context,
        tie_word_embeddings=settings.tied,
        attention_bias=settings.attention_bias,
        initializer_range=settings.initial_std,
        bos_token_id=None,  # the tokenizer knows its special tokens; the class's defaults are Llama 2's
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(
        devices=[]
    ):  # the constructor draws from the global generator; its draw is not used
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # a tied matrix comes once
            if parameter.ndim > 1:
                parameter.normal_(0.0, settings.initial_std, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
    return model


def load(
    model: str, dtype: str = "auto", device: str = "auto", template_from: str | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A checkpoint's model, in evaluation mode and frozen, and its tokenizer, which pads on the left.

    Parameters
    ----------
    model : a local folder written by `save_pretrained`, or a Hugging Face id `owner/name`, or `owner/name@revision`. An id
        is looked up in the local cache when there is no network.
    dtype : "auto" = as stored, "float32", "bfloat16", "float16".
    device : "auto" = the GPU if there is one, else the CPU; "cpu", "cuda", "cuda:1", ...; "spread" = over all GPUs, and the
        CPU's memory if they do not hold it.
    template_from : another checkpoint whose chat template to use. Base models have none.

    Raises
    ------
    InputError, naming the parameter and what to pass instead.
    """
    if dtype not in DTYPES:
        raise InputError("dtype", dtype, list(DTYPES))
    place = _place(device)
    folder = find(model, SMALL_FILES)
    config = check_architecture(folder, model)
    tokenizer = load_tokenizer(folder, model, config["vocab_size"], template_from)
    folder = find(model, SMALL_FILES + WEIGHTS)
    check_weights(folder, model)
    try:
        with progress_bars(sum(file.stat().st_size for file in folder.glob("*.safetensors")) > SLOW):
            network, report = LlamaForCausalLM.from_pretrained(
                folder,
                dtype=DTYPES[dtype],
                device_map=place,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # reported below, with the other differences
                output_loading_info=True,
            )
    except SafetensorError as error:
        raise InputError("model", model, f"readable safetensors files: {error}") from error
    # transformers fills what is missing with random numbers and drops what it does not know (a bias of a model saved
    # with attention_bias=False, say). Either would be another model than the one asked for.
    unknown = [key for key in report["unexpected_keys"] if not key.endswith(CONSTANT)]
    for what, keys in (
        ("missing", report["missing_keys"]),
        ("not in the architecture", unknown),
        ("of another shape", [key for key, *_ in report["mismatched_keys"]]),
    ):
        if keys:
            names = ", ".join(sorted(keys)[:3])
            raise InputError("model", model, f"weights that fit config.json; {len(keys)} {what}: {names}")
    return network.eval().requires_grad_(False), tokenizer


@contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """With or without transformers' own bars for reading and writing weights."""
    before = logging.is_progress_bar_enabled()
    try:
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
        yield
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


def _place(device: str) -> str | torch.device:
    """What transformers takes as `device_map`."""
    allowed = "auto | cpu | cuda | cuda:<number> | mps | spread, and the device must be there"
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "spread":
        return "auto"
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    kind, _, index = device.partition(":")
    if kind not in there or (index and not index.isdigit()) or int(index or 0) >= there[kind]:
        raise InputError("device", device, allowed)
    return torch.device(device)


def find(model: str, patterns: list[str]) -> Path:
    """The folder of a checkpoint; of a Hugging Face id, its files that match, downloaded or from the cache."""
    ways = "a folder with config.json, tokenizer.json and *.safetensors, or a Hugging Face id owner/name"
    if not isinstance(model, str) or not model:
        raise InputError("model", model, ways)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?", model):
        raise InputError("model", model, f"{ways}; there is no such folder")

    from huggingface_hub import errors, snapshot_download

    repository, _, revision = model.partition("@")
    page = f"https://huggingface.co/{repository}"
    try:
        # Subfolders hold other formats of the same weights.
        found = snapshot_download(
            repository, revision=revision or None, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
    except errors.GatedRepoError as error:
        how = f"accept its licence at {page}, then set HF_TOKEN or run `hf auth login`"
        raise InputError(
            "model", model, f"a model that you may use. This one is gated: {how}; or pass {ways}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError("model", model, f"a revision that {page}/commits lists") from error
    except errors.RepositoryNotFoundError as error:
        how = "a private one needs HF_TOKEN or `hf auth login`"
        raise InputError(
            "model", model, f"{ways}; there is no public model of this name, and {how}"
        ) from error
    except (errors.HFValidationError, errors.HfHubHTTPError) as error:
        raise InputError("model", model, f"{ways}; the Hub answered: {error}") from error
    except (
        OSError,
        errors.HTTPError,
    ) as error:  # no network, or HF_HUB_OFFLINE=1, and not (wholly) in the cache
        how = f"run `hf download {repository}` where there is one, and pass the folder that it prints"
        raise InputError(
            "model", model, f"{ways}; not in the local cache and no connection to the Hub: {how}"
        ) from error
    return Path(found)


def check_architecture(folder: Path, model: str) -> dict:
    """The content of config.json, if it is a Llama's. Read as data: no class named in it is looked up."""
    file = folder / "config.json"
    if not file.exists():
        adapter = (folder / "adapter_config.json").exists()
        hint = "this is an adapter: merge it into its model first" if adapter else "config.json is missing"
        raise InputError("model", model, f"a folder written by save_pretrained; {hint}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        found, kind = config.get("architectures") or ["none named"], config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise InputError("model", model, f"a config.json that holds one JSON object: {error}") from error
    if kind != "llama" or "LlamaForCausalLM" not in found:
        raise InputError("model", model, f"supported: {SUPPORTED}; this is {', '.join(found)} ({kind})")
    if config.get("quantization_config"):
        raise InputError("model", model, "weights in float32, bfloat16 or float16; these are quantised")
    return config


def load_tokenizer(
    folder: Path, model: str, vocabulary: int, template_from: str | None = None
) -> PreTrainedTokenizerFast:
    """The tokenizer of `tokenizer.json`, padding on the left, with a chat template and a pad token.

    `vocabulary`: rows of the model's embedding.
    """
    tokenizer = _tokenizer(folder, "model", model)
    if template_from is not None:
        _take_template(tokenizer, template_from)
    if not tokenizer.chat_template:
        allowed = "a chat model; this one has no chat template. For a base model, pass template_from=<its chat model>"
        raise InputError("model", model, allowed)
    beyond = {token for token, index in tokenizer.get_vocab().items() if index >= vocabulary}
    # The pad token never matters, padding is masked; some checkpoints name one that has no embedding.
    if tokenizer.pad_token is None or tokenizer.pad_token in beyond:
        beyond.discard(tokenizer.pad_token)
        if tokenizer.eos_token is None:
            raise InputError("model", model, "a tokenizer that names a pad or an end token")
        tokenizer.pad_token = tokenizer.eos_token
    if beyond:
        allowed = (
            f"a tokenizer whose ids are below {vocabulary}, the model's vocabulary; {len(beyond)} are not"
        )
        raise InputError("model", model, allowed)
    return tokenizer


def _take_template(tokenizer: PreTrainedTokenizerFast, template_from: str) -> None:
    """Give a base model's tokenizer the chat template of another one, if both would write it with the same ids."""
    other = _tokenizer(find(template_from, SMALL_FILES), "template_from", template_from)
    if not other.chat_template:
        raise InputError("template_from", template_from, "a checkpoint that has a chat template")
    tokenizer.chat_template = other.chat_template
    tokenizer.eos_token = other.eos_token  # a base model's text ends differently from a turn
    words = [
        {word: index for word, index in t.get_vocab().items() if word not in t.added_tokens_encoder}
        for t in (tokenizer, other)
    ]
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
    if words[0] != words[1] or dialogues(tokenizer, [chat]) != dialogues(other, [chat]):
        raise InputError("template_from", template_from, "a checkpoint with the same vocabulary as model's")


def _tokenizer(folder: Path, parameter: str, model: str) -> PreTrainedTokenizerFast:
    # The class that a checkpoint asks for may be code of its own; tokenizer.json says all of it as data.
    if not (folder / "tokenizer.json").exists():
        allowed = (
            "a checkpoint with its tokenizer: tokenizer.json and tokenizer_config.json, beside config.json"
        )
        raise InputError(parameter, model, allowed)
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, padding_side="left")
    except Exception as error:  # the Rust library raises bare Exceptions
        raise InputError(parameter, model, f"a readable tokenizer.json: {error}") from error


def check_weights(folder: Path, model: str) -> None:
    """Safetensors are there, all of them."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [shard for shard in shards if not (folder / shard).exists()]
        if missing:
            raise InputError("model", model, f"all {len(shards)} shards; missing: {', '.join(missing)}")
    elif not (folder / "model.safetensors").exists():
        pickled = [file.name for file in sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt*"))]
        hint = (
            f"; {pickled[0]} is a pickle, which can run code: convert it to safetensors first"
            if pickled
            else ""
        )
        raise InputError("model", model, f"a checkpoint with model.safetensors, or its shards{hint}")


def end_tokens(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that end an answer: all that the checkpoint declares, and the one that its chat template writes."""
    declared = [tokenizer.eos_token_id, model.config.eos_token_id, model.generation_config.eos_token_id]
    ends = {end_of_turn(tokenizer)}
    for ids in declared:  # one id, a list of ids, or None
        ends |= set(ids) if isinstance(ids, (list, tuple)) else {ids}
    ends.discard(None)
    if not ends:
        raise InputError("tokenizer", tokenizer.name_or_path, "one with an end token")
    return frozenset(ends)
