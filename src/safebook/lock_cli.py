"""`safebook lock extract | apply | inspect`: locks of a reader's own models. Nothing heavy is imported before a command runs."""

import argparse
import json
from hashlib import sha256
from pathlib import Path

from safebook.errors import InputError

OK = 0


def add(commands) -> None:
    """Add `lock` and its commands to what `ArgumentParser.add_subparsers` returns."""
    text = (
        "Take a safety lock from an aligned model, apply it to a fine-tuned one, look into it (SafetyLock)."
    )
    lock = commands.add_parser("lock", help=text, description=text)
    kinds = lock.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function, text: str) -> argparse.ArgumentParser:
        parser = kinds.add_parser(name, help=text, description=text)
        parser.set_defaults(command=function)
        return parser

    def add_model(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--model", required=True, help="a checkpoint's folder, or a Hugging Face id")
        parser.add_argument(
            "--dtype", default="auto", help="auto | float32 | bfloat16 | float16 (default: auto)"
        )
        parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 ... (default: auto)")
        parser.add_argument("--template-from", help="checkpoint whose chat template to use, for a base model")

    parser = command("extract", _extract, "Take a lock from an aligned model and preference pairs.")
    add_model(parser)
    parser.add_argument("--position", default="response", help="response | prompt (default: response)")
    parser.add_argument("--pairs", help="for response: CSV, JSON or JSONL with prompt, chosen, rejected")
    parser.add_argument("--harmful-prompts", help="for prompt: CSV, JSON or JSONL with requests to refuse")
    parser.add_argument("--benign-prompts", help="for prompt: the same with requests to answer")
    parser.add_argument("--heads", type=int, help="how many (default: 24 in 1,024)")
    parser.add_argument("--alpha", type=float, default=6.0, help="strength noted in the lock (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="of the split into training and validation")
    parser.add_argument("--out", required=True, help="the lock's file, ending in .safetensors")

    parser = command("apply", _apply, "Write a copy of a model with a lock in its biases.")
    add_model(parser)
    parser.add_argument("--lock", required=True, help="a .safetensors lock, or a released .safelock")
    parser.add_argument("--alpha", type=float, help="strength (default: the lock's); negative unlocks")
    parser.add_argument("--out", required=True, help="the new checkpoint's folder")

    parser = command("inspect", _inspect, "Show a lock's heads and where it comes from.")
    parser.add_argument("lock", help="a .safetensors lock, or a released .safelock")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _chats(options: argparse.Namespace) -> tuple[list, list, dict]:
    """Chosen chats, rejected chats, file -> sha256 of its content."""
    from safebook.prompts_io import Prompt, read_pairs, read_prompts

    needed = {"response": ("pairs",), "prompt": ("harmful_prompts", "benign_prompts")}
    if options.position not in needed:
        raise InputError("--position", options.position, " | ".join(needed))
    for position, names in needed.items():
        for name in names:
            if (getattr(options, name) is not None) != (position == options.position):
                allowed = f"a file with --position {position}, and nothing otherwise"
                raise InputError(f"--{name.replace('_', '-')}", getattr(options, name), allowed)
    files = [getattr(options, name) for name in needed[options.position]]
    if options.position == "response":
        pairs = read_pairs(options.pairs, "--pairs")
        answers = [[(pair, getattr(pair, side)) for pair in pairs] for side in ("chosen", "rejected")]
        found = [
            [Prompt(pair.prompt, answer, system=pair.system).chat(answered=True) for pair, answer in side]
            for side in answers
        ]
    else:
        names = ("--harmful-prompts", "--benign-prompts")
        found = [[row.chat() for row in read_prompts(file, name)] for file, name in zip(files, names)]
    digests = {Path(f).name: sha256(Path(f).expanduser().read_bytes()).hexdigest() for f in files}
    return found[0], found[1], digests


def _extract(options: argparse.Namespace) -> int:
    from safebook import provenance
    from safebook.lock_files import OURS, write_lock
    from safebook.locks import strength

    strength(options.alpha)
    if Path(options.out).suffix != OURS:
        raise InputError("--out", options.out, f"a file name that ends in {OURS}")
    if options.heads is not None and options.heads < 1:
        raise InputError("--heads", options.heads, "1 or more")
    chosen, rejected, files = _chats(options)

    from safebook.llama import load
    from safebook.safetylock import LockSettings, extract
    from safebook.streams import stream

    model, tokenizer = load(options.model, options.dtype, options.device, options.template_from)
    commit, dirty = provenance.commit()
    source = {
        "model": options.model,
        "template_from": options.template_from,
        "dtype": str(model.dtype).removeprefix("torch."),
        "files": files,
        "seed": options.seed,
        "commit": commit,
        "dirty": dirty,
        "versions": provenance.versions(),
    }
    lock, probes = extract(
        model,
        tokenizer,
        chosen,
        rejected,
        LockSettings(position=options.position),
        options.heads,
        options.alpha,
        generator=stream("cpu", "lock", options.seed),
        meta={"source": source},
    )
    path = write_lock(lock, options.out)
    mean = float(probes.validation_accuracy.mean())
    best = float(probes.validation_accuracy.max())
    print(f"lock: {path}")
    print(f"heads {len(lock.heads)} of {probes.scores.numel()}, alpha {lock.alpha:g}")
    print(f"validation accuracy: best head {best:.3f}, mean of all heads {mean:.3f}")
    return OK


def _apply(options: argparse.Namespace) -> int:
    from safebook.lock_files import read_lock
    from safebook.locks import strength

    if options.alpha is not None:
        strength(options.alpha)
    if Path(options.out).expanduser().exists():
        raise InputError("--out", options.out, "a folder that is not there yet")
    lock = read_lock(options.lock)

    from safebook.llama import load
    from safebook.lock_apply import save_locked

    model, tokenizer = load(options.model, options.dtype, options.device, options.template_from)
    folder = save_locked(model, tokenizer, lock, options.out, options.alpha)
    alpha = lock.alpha if options.alpha is None else options.alpha
    print(f"locked model: {folder}")
    print(f"heads {len(lock.heads)}, alpha {alpha:g}, length of all shifts {lock.displacement(alpha):.4g}")
    return OK


def _inspect(options: argparse.Namespace) -> int:
    from safebook.lock_files import read_lock
    from safebook.terminal import table

    lock = read_lock(options.lock)
    if options.json:
        content = {
            "heads": lock.heads,
            "head_dim": lock.directions.shape[1],
            "sigma": lock.sigma.tolist(),
            "alpha": lock.alpha,
            "displacement": lock.displacement(),
            "meta": lock.meta,
        }
        print(json.dumps(content, indent=1, sort_keys=True, allow_nan=False))
        return OK
    rows = [(layer, head, f"{sigma:.4g}", f"{abs(lock.alpha) * sigma:.4g}")
            for (layer, head), sigma in zip(lock.heads, lock.sigma.tolist())]  # fmt: skip
    print(f"heads {len(lock.heads)}, channels of a head {lock.directions.shape[1]}, alpha {lock.alpha:g}, "
          f"length of all shifts {lock.displacement():.4g}")  # fmt: skip
    print(table(("layer", "head", "sigma", "shift"), rows))
    print(json.dumps(lock.meta, indent=1, sort_keys=True))
    return OK
