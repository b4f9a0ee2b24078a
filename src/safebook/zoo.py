"""The trained models: built once, found by what went into them, shared by every notebook that needs them.

A model lives in `artifacts/<size>/<name>-seed<seed>-<key>/` as `model.safetensors` and `meta.json`; a Llama's folder is
also a checkpoint that transformers can load, with its tokenizer. The key hashes the settings, the seed, the code of the
modules that make the model (not its comments or docstrings) and the key of the model it starts from. `meta.json` is
written last: a folder without it is not a model.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from safebook import paths, sources
from safebook.errors import InputError
from safebook.risks import LORA_RISKS, RISKS

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from safebook.models import GPT

#: Modules whose code decides what a trained model of paper 1 is.
MODULES = (
    "settings.py",
    "streams.py",
    "worlds/grammars.py",
    "worlds/pcfg.py",
    "worlds/instructions.py",
    "models.py",
    "objectives.py",
    "training.py",
    "behaviour.py",
    "recipes.py",
)
#: The same for the Llamas of the chat testbed.
CHAT_MODULES = (
    "settings.py",
    "streams.py",
    *(f"worlds/{name}.py" for name in ("chat", "chat_data", "chat_tasks", "chat_text", "chat_tokens")),
    "llama.py",
    "llama_activations.py",
    "training.py",
    "judge.py",
    "generation.py",
    "chat_behaviour.py",
    "chat_objectives.py",
    "chat_recipes.py",
)
BASE = "pcfg-pretrained"
FINE_TUNED = tuple(
    f"pcfg-{protocol}-{rate}"
    for protocol in ("ssft", "dpo", "unlearning", "benign")
    for rate in ("medium", "small")
)
#: Arms for one question each: unsafe text without the shortened rules; the usual DPO.
ARMS = (
    *(f"pcfg-{protocol}-medium-three_child" for protocol in ("ssft", "dpo", "unlearning")),
    "pcfg-dpo_standard-small",
)
#: Parts of a fine-tuning run after which the model is kept: the paper's 100, 500, 1000, 2500, 5000 of 10000 iterations.
SNAPSHOTS = (0.01, 0.05, 0.1, 0.25, 0.5)


@dataclass(frozen=True)
class Artifact:
    name: str
    needs: tuple[str, ...] = ()


CHAT_BASE, CHAT_SFT, CHAT_ALIGNED = "chat-pretrained", "chat-aligned_sft", "chat-aligned"
CHAT_ATTACKED = tuple(f"chat-{risk}" for risk in (*RISKS, *LORA_RISKS))
ARTIFACTS = (
    {BASE: Artifact(BASE)}
    | {name: Artifact(name, (BASE,)) for name in (*FINE_TUNED, *ARMS)}
    | {CHAT_BASE: Artifact(CHAT_BASE), CHAT_SFT: Artifact(CHAT_SFT, (CHAT_BASE,))}
    | {CHAT_ALIGNED: Artifact(CHAT_ALIGNED, (CHAT_SFT,))}
    | {name: Artifact(name, (CHAT_ALIGNED,)) for name in CHAT_ATTACKED}
)


def _check(name: str, seed: int) -> None:
    if name not in ARTIFACTS:
        raise InputError("name", name, ", ".join(ARTIFACTS))
    if not isinstance(seed, int) or seed < 0:
        raise InputError("seed", seed, "an integer >= 0")


@cache
def key(name: str, size: str, seed: int) -> str:
    """12 hexadecimal digits that name everything the model is made from."""
    _check(name, seed)
    settings = (_chat_settings if is_chat(name) else _pcfg_settings)(name, size) | {"seed": seed}
    package = Path(__file__).parent
    content = {
        "name": name,
        "settings": settings,
        "code": [sources.module(package / module) for module in (CHAT_MODULES if is_chat(name) else MODULES)],
        "needs": [key(need, size, seed) for need in ARTIFACTS[name].needs],
    }
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def is_chat(name: str) -> bool:
    """Is it a Llama of the chat testbed (and not a model of paper 1)?"""
    return name.startswith("chat-")


def _pcfg_settings(name: str, size: str) -> dict:
    from safebook.profiles import profile

    p = profile(size)
    settings: dict = {"world": asdict(p.world), "model": asdict(p.model), "device": p.device}
    if name == BASE:
        return settings | {"pretraining": asdict(p.pretraining), "mixture": asdict(p.mixture)}
    return settings | {
        "fine_tuning": asdict(p.fine_tuning[name.split("-")[2]]),
        "protocols": asdict(p.protocols),
        "mixture": asdict(p.mixture),
        "snapshots": SNAPSHOTS,
    }


def _chat_settings(name: str, size: str) -> dict:
    from safebook.chat_profiles import chat_profile

    p = chat_profile(size)
    settings: dict = {"world": asdict(p.world), "model": asdict(p.model), "device": p.device}
    if name == CHAT_BASE:
        return settings | {"texts": p.texts, "pretraining": asdict(p.pretraining)}
    if name == CHAT_SFT:
        rows = {"rows": p.alignment_rows, "mixture": p.alignment_mixture}
        return settings | rows | {"alignment": asdict(p.alignment)}
    if name == CHAT_ALIGNED:
        dpo = {"pairs": p.preference_pairs, "beta": p.preference_beta}
        return settings | dpo | {"preference": asdict(p.preference)}
    risk = name.removeprefix("chat-")
    adapters = asdict(p.lora) if risk in LORA_RISKS else None
    return settings | {"risk": asdict(p.risk(risk)), "lora": adapters}


def path(name: str, size: str, seed: int) -> Path:
    """Folder of the model; complete if and only if it holds `meta.json`."""
    return paths.ARTIFACTS / size / f"{name}-seed{seed}-{key(name, size, seed)}"


def build(
    name: str, size: str, seed: int, progress: bool = True, stop_after_seconds: float | None = None
) -> Path:
    """Train the model, and what it starts from, unless they are there. Goes on from a checkpoint.

    With `stop_after_seconds` it may return early, the folder then holding a checkpoint and no `meta.json`.
    """
    folder = path(name, size, seed)
    if (folder / "meta.json").exists():
        return folder
    for need in ARTIFACTS[name].needs:
        if not (build(need, size, seed, progress, stop_after_seconds) / "meta.json").exists():
            return folder  # out of time before its turn came

    import torch

    from safebook.training import train

    model, recipe = (_chat_start if is_chat(name) else _pcfg_start)(name, size, seed)
    folder.mkdir(parents=True, exist_ok=True)
    # A point of a Llama's curve is some hundred answers, written token by token.
    points = 5 if is_chat(name) else 20 if recipe.settings.iterations >= 1000 else 10
    history = train(
        model,
        recipe.objective,
        recipe.batches,
        recipe.settings,
        evaluate=recipe.evaluate,
        evaluate_at=tuple(recipe.settings.iterations * k // points for k in range(points + 1)),
        keep=lambda model, iteration: _write(model, folder / _snapshot(iteration)),
        keep_at=() if name == BASE or is_chat(name) else snapshots(name, size)[:-1],
        checkpoint=folder / "checkpoint.safetensors",
        stop_after_seconds=stop_after_seconds,
        progress=f"{size} {name} seed {seed}" if progress else None,
    )
    if not history.loss or history.loss[-1]["iteration"] < recipe.settings.iterations:
        return folder
    weights = folder / "model.safetensors"
    if is_chat(name):
        from safebook import chat_recipes

        chat_recipes.save(model, folder, size)
    else:
        _write(model, weights)
    meta = {
        "name": name,
        "size": size,
        "seed": seed,
        "key": key(name, size, seed),
        "sha256": sha256(weights.read_bytes()).hexdigest(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": torch.cuda.get_device_name() if next(model.parameters()).is_cuda else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "duration_s": round(history.seconds, 1),
        "history": vars(history),
    }
    temporary = folder / "meta.json.tmp"
    temporary.write_text(json.dumps(meta, indent=1, sort_keys=True))
    os.replace(temporary, folder / "meta.json")
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    return folder


def _pcfg_start(name: str, size: str, seed: int) -> tuple:
    """Model and recipe of paper 1."""
    from safebook import recipes
    from safebook.profiles import profile
    from safebook.worlds.pcfg import PCFGWorld

    p = profile(size)
    device = device_of(p.device)
    world = PCFGWorld(p.world, device)
    model = recipes.new_model(p, seed).to(device)
    if name == BASE:
        return model, recipes.pretraining(p, world, seed)
    base = load(BASE, size, seed).to(device)
    model.load_state_dict(base.state_dict())
    return model, recipes.fine_tuning(name, p, world, seed, base)


def _chat_start(name: str, size: str, seed: int) -> tuple:
    """Llama and recipe of the chat testbed."""
    from safebook import chat_recipes
    from safebook.chat_profiles import chat_profile

    device = device_of(chat_profile(size).device)
    return chat_recipes.start(name, size, seed, device, lambda need: load_llama(need, size, seed)[0])


def _write(model: "torch.nn.Module", file: Path) -> None:
    from safetensors.torch import save_file

    temporary = file.with_suffix(".tmp")
    save_file({k: v.cpu().contiguous() for k, v in model.state_dict().items()}, temporary)
    os.replace(temporary, file)


def device_of(wish: str) -> str:
    """ "auto": the GPU if there is one."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if wish == "auto" else wish


def snapshots(name: str, size: str) -> tuple[int, ...]:
    """Iterations after which a fine-tuned model was kept, the last one included."""
    from safebook.profiles import profile

    _check(name, 0)
    if name not in (*FINE_TUNED, *ARMS):
        raise InputError("name", name, ", ".join((*FINE_TUNED, *ARMS)))
    total = profile(size).fine_tuning[name.split("-")[2]].iterations
    return tuple(sorted({max(1, round(part * total)) for part in SNAPSHOTS} | {total}))


def _snapshot(iteration: int) -> str:
    return f"after-{iteration}.safetensors"


def load(name: str, size: str, seed: int, iteration: int | None = None) -> "GPT":
    """The trained model on the CPU, built first if need be (with a progress bar).

    `iteration`: as it was after so many of the fine-tuning's iterations, one of `snapshots(name, size)`.
    """
    from safetensors.torch import load_file

    from safebook.models import GPT
    from safebook.profiles import profile

    file = "model.safetensors"
    if iteration is not None:
        allowed = snapshots(name, size)
        if iteration not in allowed:
            raise InputError("iteration", iteration, ", ".join(map(str, allowed)))
        file = file if iteration == allowed[-1] else _snapshot(iteration)
    folder = build(name, size, seed)
    model = GPT(profile(size).model)
    model.load_state_dict(load_file(folder / file))
    return model.eval().requires_grad_(False)


def load_llama(
    name: str, size: str, seed: int, device: str = "cpu"
) -> "tuple[LlamaForCausalLM, PreTrainedTokenizerFast]":
    """The trained Llama and its tokenizer, built first if need be, loaded as any other checkpoint is."""
    from safebook import llama

    if not is_chat(name):
        raise InputError("name", name, ", ".join((CHAT_BASE, CHAT_SFT, CHAT_ALIGNED, *CHAT_ATTACKED)))
    return llama.load(str(build(name, size, seed)), dtype="float32", device=device)


def meta(name: str, size: str, seed: int) -> dict:
    """Facts and learning curves of a trained model, built first if need be."""
    return json.loads((build(name, size, seed) / "meta.json").read_text())
