"""Llamas built from a generator, checkpoints of every shape, and errors that say what to pass."""

import json
import shutil

import llamas
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from safebook.errors import InputError
from safebook.llama import build, end_tokens, load
from safebook.llama_settings import LlamaSettings, laptop, smoke

EVERY_SHAPE = pytest.mark.parametrize("shape", llamas.SHAPES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small(**changes):
    return LlamaSettings(20, **llamas.SMALL | changes)


def test_the_same_generator_state_gives_the_same_weights():
    first, same, other = (build(small(), generator(seed)).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert not any(torch.equal(first[k], other[k]) for k in first if first[k].ndim > 1)
    advanced = generator(1)
    build(small(), advanced)
    assert not torch.equal(build(small(), advanced).lm_head.weight, first["lm_head.weight"])


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    build(small(), generator())
    assert torch.equal(torch.rand(2), expected)


def test_initial_weights_have_the_distribution_asked_for():
    model = build(LlamaSettings(500, layers=2, initial_std=0.05, attention_bias=True), generator())
    for name, p in model.state_dict().items():
        if p.ndim > 1:
            assert abs(float(p.std()) - 0.05) < 0.002 and abs(float(p.mean())) < 0.002
        else:
            assert (p == (0 if name.endswith("bias") else 1)).all()


def test_sizes():
    """Parameters counted by hand: 4 w^2 + 3 w h + 2 w a layer, two vocabulary matrices, one last gain."""
    s = laptop(280)
    count = s.layers * (4 * s.width**2 + 3 * s.width * s.hidden + 2 * s.width) + 2 * 280 * s.width + s.width
    assert sum(p.numel() for p in build(s, generator()).parameters()) == count == 1_654_912
    grouped, tied = build(small(key_value_heads=1), generator()), build(small(tied=True), generator())
    assert grouped.model.layers[0].self_attn.k_proj.weight.shape == (8, 32)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert smoke(280).layers < s.layers and smoke(280).width < s.width


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"layers": 0}, "layers"),
        ({"heads": 2.0}, "heads"),
        ({"context": True}, "context"),
        ({"width": 36}, "width"),
        ({"key_value_heads": 3}, "key_value_heads"),
        ({"initial_std": 0}, "initial_std"),
    ],
)
def test_bad_settings_name_the_parameter(change, parameter):
    with pytest.raises(InputError) as caught:
        small(**change)
    assert caught.value.parameter == parameter


@EVERY_SHAPE
def test_a_checkpoint_of_every_shape_comes_back_as_it_was(shape, tmp_path):
    folder = llamas.checkpoint(tmp_path, shape)
    model, tokenizer = load(folder, device="cpu")
    original = llamas.model(shape)
    stored = torch.bfloat16 if shape == "bf16" else torch.float32
    assert (
        model.dtype == stored and not model.training and not any(p.requires_grad for p in model.parameters())
    )
    expected, found = original.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k].to(stored)) for k in expected)
    tokens = torch.arange(8, 28)[None]
    for parameter in original.parameters():  # not original.to(): that would round the rotary constants, too
        parameter.data = parameter.data.to(stored)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, original(tokens).logits)
    assert tokenizer.padding_side == "left" and tokenizer.pad_token_id is not None
    assert tokenizer.decode(tokenizer("yes .")["input_ids"]) == "yes ."
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shape == "sharded")
    assert end_tokens(model, tokenizer) == {2, 7}  # </s> is declared, <|end|> is what the template writes


def test_dtype_is_what_was_asked_for(tmp_path):
    folder = llamas.checkpoint(tmp_path, "bf16")
    for dtype in ("float32", "bfloat16", "float16"):
        model, _ = load(folder, dtype=dtype, device="cpu")
        assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


def test_a_checkpoints_code_is_not_run(tmp_path):
    folder = llamas.checkpoint(tmp_path / "model")
    marker = tmp_path / "was-run"
    (tmp_path / "model" / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nLlama = Config = None\n")
    for name, entry in (("config", {"AutoModelForCausalLM": "evil.Llama", "AutoConfig": "evil.Config"}),
                        ("tokenizer_config", {"AutoTokenizer": ["evil.Llama", None]})):  # fmt: skip
        edit(tmp_path / "model" / f"{name}.json", auto_map=entry)
    load(folder, device="cpu")
    assert not marker.exists()


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders that tests may copy and must not change."""
    root = tmp_path_factory.mktemp("llamas")
    return {shape: llamas.checkpoint(root / shape, shape) for shape in ("plain", "sharded", "bias")}


@pytest.fixture
def copied(saved, tmp_path):
    def copy(shape="plain"):
        return shutil.copytree(saved[shape], tmp_path / shape)

    return copy


def rejected(model, *parts, parameter="model", **options):
    """The load fails, and its message has all the parts."""
    with pytest.raises(InputError) as caught:
        load(str(model), **{"device": "cpu"} | options)
    assert caught.value.parameter == parameter
    for part in parts:
        assert part in str(caught.value)


def test_another_architecture_names_what_is_supported(tmp_path):
    config = GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    llamas.tokenizer().save_pretrained(tmp_path)
    rejected(tmp_path, "LlamaForCausalLM (Llama 2, 3", "this is GPT2LMHeadModel (gpt2)")


def test_a_classifier_of_the_right_type_is_not_supported(copied):
    folder = copied()
    edit(folder / "config.json", architectures=["LlamaForSequenceClassification"])
    rejected(folder, "LlamaForSequenceClassification")


def test_pickled_weights_are_not_read(copied):
    folder = copied()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    rejected(folder, "model.safetensors", "pytorch_model.bin is a pickle")


@pytest.mark.parametrize(
    ("lost", "part"),
    [
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "tokenizer.json and tokenizer_config.json"),
        ("model.safetensors", "model.safetensors, or its shards"),
        ("chat_template.jinja", "pass template_from="),
    ],
)
def test_a_file_is_missing(copied, lost, part):
    folder = copied()
    (folder / lost).unlink()
    rejected(folder, part)


def test_broken_files(copied):
    folder = copied()
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    rejected(folder, "readable safetensors")
    (folder / "tokenizer.json").write_text("{}")
    rejected(folder, "readable tokenizer.json")
    (folder / "config.json").write_text("[]")
    rejected(folder, "one JSON object")


def test_a_shard_is_missing(copied):
    folder = copied("sharded")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    rejected(folder, "missing: " + shard.name)


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_do_not_fit_are_never_filled_in_or_dropped(copied):
    folder = copied()
    change_weights(folder, lambda w: w.pop("model.layers.1.mlp.up_proj.weight"))
    rejected(folder, "1 missing: model.layers.1.mlp.up_proj.weight")
    change_weights(folder, lambda w: w.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(3, 3)}))
    rejected(folder, "1 of another shape: model.layers.1.mlp.up_proj.weight")


def test_a_bias_that_the_configuration_denies_is_not_dropped(copied):
    folder = copied("bias")
    edit(folder / "config.json", attention_bias=False)
    rejected(folder, "8 not in the architecture", "self_attn.k_proj.bias")


def test_old_checkpoints_hold_a_constant_that_is_not_a_weight(copied):
    folder = copied()
    constant = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    change_weights(folder, lambda w: w.update(constant))
    load(str(folder), device="cpu")


def test_more_tokens_than_embeddings(copied):
    folder = copied()
    tokenizer = llamas.tokenizer()
    tokenizer.add_tokens(["one", "too"])
    tokenizer.save_pretrained(folder)
    rejected(folder, "below 34", "2 are not")


def test_a_pad_token_without_an_embedding_is_replaced(copied):
    folder = copied()
    tokenizer = llamas.tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<new pad>"})
    assert tokenizer.pad_token_id == 34
    tokenizer.save_pretrained(folder)
    assert load(str(folder), device="cpu")[1].pad_token == "</s>"


def test_an_adapter_and_quantised_weights_are_refused(copied):
    folder = copied()
    edit(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    rejected(folder, "quantised")
    (folder / "config.json").rename(folder / "adapter_config.json")
    rejected(folder, "merge it into its model first")


def test_a_base_model_takes_the_template_of_its_chat_model(tmp_path, saved):
    base = llamas.checkpoint(tmp_path / "base", template=None)
    rejected(base, "no chat template")
    _, tokenizer = load(base, device="cpu", template_from=saved["plain"])
    assert tokenizer.chat_template == llamas.TEMPLATE
    rejected(base, "has a chat template", parameter="template_from", template_from=base)
    other = llamas.checkpoint(tmp_path / "other", "vocabulary")
    later = llamas.tokenizer()
    later.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    later.chat_template = llamas.TEMPLATE.replace("<|user|>", "<|turn|>").replace("<|end|>", "<|turn|>")
    (tmp_path / "later").mkdir()
    later.save_pretrained(tmp_path / "later")
    rejected(base, "the same vocabulary", parameter="template_from", template_from=str(tmp_path / "later"))
    rejected(base, "the same vocabulary", parameter="template_from", template_from=other)


def test_a_tokenizer_without_a_pad_token_pads_with_its_end(saved):
    _, tokenizer = load(saved["plain"], device="cpu")
    assert tokenizer.pad_token == "</s>"


@pytest.mark.parametrize("name", ["", "no-such-folder", "./a/b", "/nowhere/at/all", "a/b/c", "owner/na me"])
def test_neither_folder_nor_id(name):
    rejected(name, "a folder with config.json", "a Hugging Face id owner/name")


@pytest.mark.parametrize(
    ("options", "parameter"),
    [({"dtype": "int8"}, "dtype"), ({"device": "cuda:99"}, "device"), ({"device": "tpu"}, "device")],
)
def test_bad_options_name_the_parameter(saved, options, parameter):
    rejected(saved["plain"], parameter=parameter, **options)


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (errors.GatedRepoError, ["gated", "https://huggingface.co/owner/name", "HF_TOKEN", "a folder with"]),
        (errors.RepositoryNotFoundError, ["no public model of this name", "HF_TOKEN"]),
        (errors.RevisionNotFoundError, ["https://huggingface.co/owner/name/commits"]),
        (errors.LocalEntryNotFoundError, ["not in the local cache", "hf download owner/name"]),
        (errors.OfflineModeIsEnabled, ["not in the local cache", "hf download owner/name"]),
    ],
)
def test_the_hub_refuses(monkeypatch, error, parts):
    asked = []

    def refuse(repository, **options):
        asked.append((repository, options["revision"]))
        raise error.__new__(error)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    rejected("owner/name@v1", *parts)
    assert asked == [("owner/name", "v1")]


def test_an_id_is_checked_before_its_weights_are_fetched(monkeypatch, saved, tmp_path):
    fetched = []

    def answer(repository, allow_patterns, **options):
        fetched.append("*.safetensors" in allow_patterns)
        return saved["plain"] if repository == "owner/llama" else str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", answer)
    load("owner/llama", device="cpu")
    assert fetched == [False, True]
    edited = tmp_path / "config.json"
    edited.write_text(json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}))
    rejected("owner/qwen", "Qwen2ForCausalLM")
    assert fetched == [False, True, False]
