"""The training loop on several processes, through `accelerate`: copies of the model, or one model in shards (FSDP).

    accelerate launch --config_file profiles/accelerate/fsdp_8b.yaml -m safebook.distributed --model ... --rows ... --out ...

Every process knows the whole batch of an iteration and computes on its own rows of it, so that one process and many see
the same data in the same order and make the same steps, but for the order of sums.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from safebook.errors import InputError
from safebook.settings import TrainingSettings
from safebook.training import History, Objective, train
from safebook.worlds.chat_tokens import ChatBatch


class Step(nn.Module):
    """Model and objective as one module: what wraps it sees its forward pass, also of an objective that uses parts.

    DDP averages gradients over processes. This process's loss, a mean over its own targets, is weighted so that this
    average is the gradient of the mean over all targets of the batch.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, objective: Objective):
        super().__init__()
        self.model = model
        self._all = accelerator, objective

    def forward(self, batch: ChatBatch) -> Tensor:
        """The whole batch's mean loss, in every process; its gradient is this process's part. Shape ()."""
        accelerator, objective = self._all
        mine = batch.take(torch.arange(accelerator.process_index, len(batch), accelerator.num_processes))
        share = mine.loss_mask.sum() / batch.loss_mask.sum()
        loss = objective(self.model, mine) * share.item()
        whole = accelerator.reduce(loss.detach(), "sum")
        return loss * accelerator.num_processes + (whole - loss.detach() * accelerator.num_processes)


def train_together(
    accelerator: Accelerator,
    model: nn.Module,
    objective: Objective,
    batches: Callable[[int], ChatBatch],
    settings: TrainingSettings,
    *,
    transform: Callable[[nn.Module], None] | None = None,
    progress: str | None = None,
) -> tuple[History, dict[str, Tensor]]:
    """`training.train` on all processes; returns its history and the whole model's weights, on the main process only.

    Parameters
    ----------
    objective : (model, batch) -> mean over the batch's targets.
    batches : iteration -> the whole batch, the same in every process, with at least one row for each.
    transform : as of `train`, given `model` itself; sees gradients of the whole batch. Not with FSDP, which shards them.

    Raises InputError for a batch with fewer rows than processes, and for a transform under FSDP.
    """
    sharded = accelerator.distributed_type.value == "FSDP"
    if sharded and transform:
        raise InputError("transform", "with FSDP", "none: it would see shards of the gradients only")
    if settings.batch < accelerator.num_processes:
        raise InputError("batch", settings.batch, f">= {accelerator.num_processes}, the number of processes")
    # a tied weight comes under its first name alone, as safetensors wants it
    names = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    step: nn.Module = Step(accelerator, model, objective)
    if accelerator.is_fsdp2:  # wants an optimiser beside the model; the loop makes its own of the shards
        step, _ = accelerator.prepare(step, torch.optim.SGD(step.parameters(), 0.0))
    else:
        step = accelerator.prepare_model(step)
    history = train(
        step,
        lambda wrapped, batch: wrapped(batch),
        batches,
        settings,
        transform=(lambda _: transform(model)) if transform else None,
        progress=progress if accelerator.is_main_process else None,
    )
    weights = {}
    for name, value in model.state_dict().items():  # all processes, in step: a shard is a part of each
        if isinstance(value, DTensor):
            value = value.full_tensor()
        if name in names and accelerator.is_main_process:
            weights[name] = value.cpu()
    return history, weights


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(prog="safebook.distributed", description=main.__doc__)
    add = made.add_argument
    add("--model", required=True, help="a folder, or a Hugging Face id owner/name")
    add("--rows", required=True, type=Path, help="prompts with answers, in a file")
    add("--out", required=True, type=Path, help="folder for the new checkpoint; must not exist")
    add("--iterations", type=int, default=100)
    add("--batch", type=int, default=16, help="rows an iteration, over all processes")
    add("--learning-rate", type=float, default=5e-5)
    add("--seed", type=int, default=0)
    add("--beta1", type=float, default=0.5, help="first moment of AdamW; 0.5 is that of the SPF paper")
    add("--anchor", type=Path, help="file whose first row is a request with its refusal as the answer")
    defence = made.add_mutually_exclusive_group()
    defence.add_argument(
        "--spf", type=float, metavar="RANK",
        help="under SPF: where the rows' gradient conflicts with the anchor's, RANK of its directions are removed from every "
        "matrix (below 1: this share of the outputs); not in shards",
    )  # fmt: skip
    defence.add_argument(
        "--mixing", type=float, metavar="WEIGHT", help="WEIGHT times the anchor's loss is added"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Fine-tune all weights of a checkpoint on a file of prompts with answers; exit code 2 for bad input."""
    try:
        return fine_tune(parser().parse_args(arguments))
    except InputError as error:
        print(f"safebook: {error}", file=sys.stderr)
        return 2


def _rank(value: float) -> int | float:
    """`SPFSettings.rank` of the option: whole numbers are directions, smaller ones a share of the outputs."""
    if not 0 < value < math.inf or (value >= 1 and value != int(value)):
        raise InputError("spf", value, "a whole number of directions, or their share between 0 and 1")
    return int(value) if value >= 1 else value


def fine_tune(options: argparse.Namespace) -> int:
    """What `main` does with its options: AdamW at a constant rate, rows drawn with replacement, answers count alone."""
    from safebook.baselines import mixed
    from safebook.chat_objectives import answer_loss
    from safebook.llama import load
    from safebook.prompts_io import read_prompts
    from safebook.spf import SPF, SPFSettings
    from safebook.streams import stream
    from safebook.tokenized import answered

    if options.out.exists():
        raise InputError("out", str(options.out), "a folder that does not exist yet")
    defended = options.spf is not None or options.mixing is not None
    if defended != (options.anchor is not None):
        raise InputError(
            "anchor", options.anchor, "a file where --spf or --mixing is given, and none without"
        )
    rows = read_prompts(str(options.rows), "rows", need_answers=True)
    safe = read_prompts(str(options.anchor), "anchor", need_answers=True)[:1] if defended else []
    chosen = None if options.spf is None else SPFSettings(rank=_rank(options.spf), method="low-rank")
    if options.mixing is not None and not 0 <= options.mixing < math.inf:
        raise InputError("mixing", options.mixing, "a number >= 0")
    rate, steps = options.learning_rate, options.iterations
    settings = TrainingSettings(
        steps, options.batch, rate, rate, 0, steps, betas=(options.beta1, 0.999), weight_decay=0.0, clip=1.0
    )
    accelerator = Accelerator()
    if chosen and accelerator.distributed_type.value == "FSDP":  # before every process loads the model
        raise InputError("spf", options.spf, "none with FSDP: it would see shards of the gradients only")
    model, tokenizer = load(options.model, device="cpu")  # accelerate takes it from there, shard by shard
    data = answered(tokenizer, [row.chat(answered=True) for row in rows])

    def batches(iteration: int) -> ChatBatch:
        generator = stream(torch.device("cpu"), "distributed", options.seed, iteration)
        return data.take(torch.randint(len(data), (options.batch,), generator=generator))

    model.requires_grad_(True)
    objective, transform = answer_loss, None
    if defended:
        anchor = answered(tokenizer, [row.chat(answered=True) for row in safe]).to(accelerator.device)
        if options.mixing is not None:
            objective = mixed(answer_loss, anchor, options.mixing)
        else:
            drawn = stream(torch.device("cpu"), "distributed directions", options.seed)
            transform = SPF(answer_loss, anchor, chosen, drawn)
    history, weights = train_together(
        accelerator, model, objective, batches, settings, transform=transform, progress="fine-tuning"
    )
    if accelerator.is_main_process:
        model.save_pretrained(options.out, state_dict=weights)
        tokenizer.save_pretrained(options.out)
        print(f"loss {history.loss[0]['loss']:.4f} to {history.loss[-1]['loss']:.4f}; {options.out}")
    accelerator.end_training()
    return 0


if __name__ == "__main__":
    sys.exit(main())
