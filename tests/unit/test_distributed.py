"""Two processes, launched by `accelerate`, make the steps of one: copies of a model (DDP) and shards of it (FSDP)."""

import dataclasses
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from types import SimpleNamespace

import llamas
import pytest
import torch
import yaml
from accelerate import Accelerator, DistributedType
from accelerate.commands.launch import launch_command_parser
from safetensors.torch import load_file

from safebook import llama, paths
from safebook.baselines import mixed
from safebook.chat_objectives import answer_loss
from safebook.distributed import main, parser, train_together
from safebook.errors import InputError
from safebook.prompts_io import read_prompts
from safebook.settings import TrainingSettings
from safebook.spf import SPF, SPFSettings
from safebook.streams import stream
from safebook.tokenized import answered
from safebook.training import train
from safebook.worlds.chat_tokens import ChatBatch

FSDP = paths.ROOT / "profiles" / "accelerate" / "fsdp_8b.yaml"
WORKER = """
import json, sys
from pathlib import Path
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file
import test_distributed as t
from safebook.distributed import train_together

kind, out = sys.argv[1], Path(sys.argv[2])
accelerator = Accelerator()
assert accelerator.num_processes == 2 and accelerator.distributed_type.value == "MULTI_CPU", accelerator.state
if kind == "FSDP":  # accelerate offers it on accelerators only; torch, which shards, has it here as well
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()  # from what the launcher made of the profile
    accelerator.state.distributed_type = DistributedType.FSDP
    assert accelerator.is_fsdp2
given, options = t.problem(kind)
history, weights = train_together(accelerator, *given, **options)
if accelerator.is_main_process:
    save_file(weights, out / "weights.safetensors")
    (out / "loss.json").write_text(json.dumps(history.loss))
accelerator.end_training()
"""


def batch(iteration: int) -> ChatBatch:
    """Five rows, of which two processes get three and two, with answers of many lengths."""
    draws = torch.Generator().manual_seed(iteration)
    tokens = torch.randint(8, 30, (5, 12), generator=draws)
    starts = torch.randint(2, 10, (5, 1), generator=draws)
    return ChatBatch(tokens, torch.arange(11) >= starts, torch.full((5,), 12))


def problem(kind: str) -> tuple[tuple, dict]:
    """Arguments and options of a training run; copies of a model are trained under SPF, shards, which cannot be, with loss
    mixing."""
    settings = TrainingSettings(12, 5, 1e-2, 1e-3, 3, 12, weight_decay=0.01, clip=0.5)
    model = llamas.model("tied").requires_grad_(True)
    spf = SPF(answer_loss, batch(99), SPFSettings(2, test="always"))
    if kind == "FSDP":
        return (model, mixed(answer_loss, batch(99), 0.5), batch, settings), {}
    return (model, answer_loss, batch, settings), {"transform": spf}


def launch(*arguments: str) -> str:
    """`accelerate launch` of two processes that see no GPU, so that gloo connects them; what it printed."""
    here = str(paths.ROOT / "tests" / "unit")
    known = ("ACCELERATE", "FSDP", "MASTER", "WORLD_SIZE", "RANK")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(known)} | {
        "PYTHONPATH": os.pathsep.join([str(paths.ROOT / "src"), here, os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "accelerate.commands.launch", *arguments[:2], "--num_processes", "2",
               "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
               "--main_process_port", port, *arguments[2:]]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("kind", ["MULTI_CPU", "FSDP"])
def test_two_processes_make_the_steps_of_one(kind, tmp_path):
    worker, config = tmp_path / "worker.py", tmp_path / "config.yaml"
    worker.write_text(WORKER)
    settings = yaml.safe_load(FSDP.read_text())
    if kind == "MULTI_CPU":  # without GPUs, as it says itself once it is there
        settings = {k: v for k, v in settings.items() if k != "fsdp_config"} | {
            "distributed_type": "MULTI_GPU"
        }
    config.write_text(yaml.safe_dump(settings))
    launch("--config_file", str(config), str(worker), kind, str(tmp_path))
    (model, *given), options = problem(kind)
    history = train(model, *given, **options)
    losses = json.loads((tmp_path / "loss.json").read_text())
    assert [row["iteration"] for row in losses] == [row["iteration"] for row in history.loss]
    assert [row["loss"] for row in losses] == pytest.approx([row["loss"] for row in history.loss], abs=1e-5)
    assert history.loss[-1]["loss"] < history.loss[0]["loss"] - 0.1  # there was something to learn
    weights = load_file(tmp_path / "weights.safetensors")
    assert weights.keys() == {name for name, _ in model.named_parameters()}
    for name, value in model.named_parameters():
        torch.testing.assert_close(weights[name], value.detach(), atol=1e-5, rtol=0)


def test_bad_input_is_refused_before_anything_is_trained(tmp_path, capsys):
    (model, objective, batches, settings), _ = problem("FSDP")
    accelerator = Accelerator(cpu=True)
    few = dataclasses.replace(settings, batch=1)
    many = SimpleNamespace(num_processes=2, distributed_type=accelerator.distributed_type)
    with pytest.raises(InputError, match="number of processes"):
        train_together(many, model, objective, batches, few)
    sharded = SimpleNamespace(num_processes=1, distributed_type=DistributedType.FSDP)
    with pytest.raises(InputError, match="transform"):
        train_together(sharded, model, objective, batches, settings, transform=print)
    assert main(["--model", "none", "--rows", "none.csv", "--out", str(tmp_path)]) == 2
    assert "does not exist yet" in capsys.readouterr().err


def test_the_command_writes_a_checkpoint_that_every_page_takes(tmp_path):
    """One process here; that many make the same steps is shown above."""
    rows, out = tmp_path / "rows.csv", tmp_path / "tuned"
    rows.write_text("prompt,answer\nw1 w2,yes .\nw3,w4 .\n")
    options = ["--model", llamas.checkpoint(tmp_path / "model", "tied"), "--rows", str(rows), "--out", str(out),
               "--iterations", "8", "--batch", "4", "--learning-rate", "1e-2"]  # fmt: skip
    assert main(options) == 0
    (before, words), (after, _) = llama.load(options[1]), llama.load(str(out))
    data = answered(words, [row.chat(answered=True) for row in read_prompts(str(rows), "rows")])
    assert answer_loss(after, data) < 0.7 * answer_loss(before, data)


@pytest.mark.parametrize("defence", ["--spf", "--mixing"])
def test_the_command_trains_under_a_defence(defence, tmp_path):
    """The weights are those of the training loop with the transform, or the objective, that the option names."""
    files = {
        "rows": "prompt,answer\nw1 w2,yes .\nw3,w4 .\n",
        "anchor": "prompt,answer\nw1 w2,w9 w8 w7 .\nw5,w6 .\n",
    }
    for name, text in files.items():
        (tmp_path / name).with_suffix(".csv").write_text(text)
    out, path = tmp_path / "tuned", llamas.checkpoint(tmp_path / "model", "plain")
    options = ["--model", path, "--rows", str(tmp_path / "rows.csv"), "--anchor", str(tmp_path / "anchor.csv"),
               "--out", str(out), "--iterations", "6", "--batch", "4", "--learning-rate", "1e-2", defence, "2"]  # fmt: skip
    assert main(options) == 0

    model, words = llama.load(path)
    rows, anchor = (
        answered(
            words, [row.chat(answered=True) for row in read_prompts(str(tmp_path / f"{name}.csv"), name)]
        )
        for name in files
    )
    anchor, cpu = anchor.take(torch.tensor([0])), torch.device("cpu")

    def drawn(iteration: int) -> ChatBatch:
        return rows.take(torch.randint(2, (4,), generator=stream(cpu, "distributed", 0, iteration)))

    spf = SPF(
        answer_loss, anchor, SPFSettings(2, method="low-rank"), stream(cpu, "distributed directions", 0)
    )
    objective = mixed(answer_loss, anchor, 2.0) if defence == "--mixing" else answer_loss
    settings = TrainingSettings(6, 4, 1e-2, 1e-2, 0, 6, betas=(0.5, 0.999), weight_decay=0.0, clip=1.0)
    transform = spf if defence == "--spf" else None
    train(model.requires_grad_(True), objective, drawn, settings, transform=transform)
    assert defence == "--mixing" or any(step["acted"] for step in spf.records)
    weights = llama.load(str(out))[0].state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("more", [["--spf", "2"], ["--mixing", "1"], ["--anchor", "a.csv"]])
def test_a_defence_and_its_anchor_go_together(more, tmp_path, capsys):
    given = ["--model", "none", "--rows", "none.csv", "--out", str(tmp_path / "new"), *more]
    assert main(given) == 2 and "anchor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"), [("spf", "nan"), ("spf", "inf"), ("spf", "1.7"), ("spf", "0"), ("mixing", "-1"), ("mixing", "nan")]
)  # fmt: skip
def test_a_strength_that_makes_no_sense_is_named(option, value, tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("prompt,answer\nw1 w2,yes .\n")
    given = ["--model", "none", "--rows", str(tmp_path / "rows.csv"), "--out", str(tmp_path / "new")]
    assert main([*given, "--anchor", str(tmp_path / "rows.csv"), f"--{option}", value]) == 2
    assert f"parameter '{option}'" in capsys.readouterr().err


def test_spf_on_shards_is_refused_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "safebook.distributed.Accelerator", lambda: SimpleNamespace(distributed_type=DistributedType.FSDP)
    )
    (tmp_path / "rows.csv").write_text("prompt,answer\nw1 w2,yes .\n")
    given = ["--model", str(tmp_path / "is-not-looked-for"), "--rows", str(tmp_path / "rows.csv")]
    given += ["--anchor", str(tmp_path / "rows.csv"), "--out", str(tmp_path / "new"), "--spf", "2"]
    assert main(given) == 2 and "parameter 'spf'" in (said := capsys.readouterr().err) and "FSDP" in said
    assert not (tmp_path / "new").exists()


def test_the_page_has_a_command_that_can_be_given_and_memory_that_was_computed():
    page = (paths.BOOK / "running-on-real-llama.md").read_text(encoding="utf-8")
    section = page.split("## Training an 8B in shards")[1].split("\n## ")[0]
    command = shlex.split(re.search(r"```bash\n(.*?)```", section, re.S)[1].replace("\\\n", ""))
    given = launch_command_parser().parse_args(command[2:])
    assert (paths.ROOT / given.config_file) == FSDP and given.module and given.num_processes == 8
    assert parser().parse_args(given.training_script_args).batch % 8 == 0
    count = int(re.search(r"^\| Llama-3.1-8B \|.* ([\d,]+) \| [\d.]+ \|$", page, re.M)[1].replace(",", ""))
    assert f"{16 * count / 8 / 2**30:.1f} GiB for each" in section
    assert f"{8 * 4 * count / 2**30:.1f} GiB of main memory" in section
