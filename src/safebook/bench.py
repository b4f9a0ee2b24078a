"""How fast this machine draws sequences and trains the paper-size model, against what its processor can do at most."""

import time
from collections.abc import Callable


def _rate(work: Callable[[], None], amount: float, seconds: float) -> float:
    """Amount per second, the best of three rounds of about `seconds`: other programs only ever slow a round down."""
    work()
    best = 0.0
    for _ in range(3):
        started, rounds = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            work()
            rounds += 1
        best = max(best, amount * rounds / (time.perf_counter() - started))
    return best


def measure(seconds: float = 1.0) -> dict:
    """Measure sampler, training step and matrix product on the CPU (on the GPU, if there is one, the last two).

    Returns
    -------
    pcfg_sequences_per_s : whole pretraining sequences at paper size (160 tokens), one thread, batches of 4096
    train_tokens_per_s : input tokens through forward, backward and optimiser step of the paper-size model, all threads
    matrix_peak_flops : the best of float32 and bfloat16 products of 2048 x 2048 matrices, operations a second
    matrix_peak_share : 6 x parameters x tokens of the training step over that peak
    """
    import torch

    from safebook.models import GPT
    from safebook.objectives import language_modelling
    from safebook.profiles import profile
    from safebook.training import optimizer
    from safebook.worlds.instructions import pretraining_batch
    from safebook.worlds.pcfg import PCFGWorld
    from safebook.zoo import device_of

    threads, p = torch.get_num_threads(), profile("paper")
    generator = torch.Generator().manual_seed(0)
    world = PCFGWorld(p.world)
    torch.set_num_threads(1)
    try:
        draw = _rate(lambda: pretraining_batch(world, 4096, p.mixture.end, generator), 4096, seconds)
    finally:
        torch.set_num_threads(threads)

    device = device_of("auto")
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    size = 8192 if device == "cuda" else 2048
    peaks = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))

        def product(a=a, b=b):
            a @ b
            wait()

        peaks[dtype] = _rate(product, 2.0 * size**3, seconds)

    batch = 512 if device == "cuda" else 32
    model = GPT(p.model, generator).to(device)
    optimise = optimizer(model, p.pretraining)
    sample = pretraining_batch(world, batch, p.mixture.end, generator)
    for name, value in vars(sample).items():
        setattr(sample, name, value.to(device))
    reduced = (
        peaks[torch.bfloat16] > peaks[torch.float32]
    )  # bf16 helps only where the hardware multiplies it faster

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=reduced):
            loss = language_modelling(model, sample)
        optimise.zero_grad(set_to_none=True)
        loss.backward()
        optimise.step()
        wait()

    tokens = _rate(step, batch * p.model.context, seconds)
    parameters = sum(x.numel() for x in model.parameters())
    peak = max(peaks.values())
    return {
        "pcfg_sequences_per_s": round(draw),
        "train_tokens_per_s": round(tokens),
        "matrix_peak_flops": round(peak),
        "matrix_peak_share": round(6 * parameters * tokens / peak, 4),
        "precision": "bfloat16" if reduced else "float32",
        "threads": threads,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }
