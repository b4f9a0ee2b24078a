"""The three sizes of paper 1's experiments. Every difference from the paper carries its reason in `DEVIATIONS`."""

from dataclasses import dataclass

from safebook.errors import InputError
from safebook.settings import ModelSettings, TrainingSettings, Vocabulary, WorldSettings

SIZES = ("smoke", "laptop", "paper")


@dataclass(frozen=True)
class Mixture:
    """Shares of the four forms of a pretraining sample (text only, both steps, first step only, second step only)."""

    start: tuple[float, float, float, float]
    end: tuple[float, float, float, float]
    hold: float  # share of the run for which `start` holds; linear to `end` from then on

    def at(self, progress: float) -> tuple[float, float, float, float]:
        """Shares after this part (0 .. 1) of the run."""
        t = max(0.0, (progress - self.hold) / (1 - self.hold))
        mixed = [a + (b - a) * t for a, b in zip(self.start, self.end)]
        return tuple(m / sum(mixed) for m in mixed)


@dataclass(frozen=True)
class Protocols:
    """Settings of the three safety fine-tuning protocols. Source: Sec. 2.3 of the protocol, released README and runs."""

    rho: float = 0.2  # share of unsafe training samples whose second step only is unsafe
    ssft_safe_share: float = 0.8
    unlearning_forget: tuple[float, float] = (0.1, 0.05)  # weight of ascent at the medium, small rate
    dpo_beta_chosen: float = 0.1
    dpo_beta_rejected: tuple[float, float] = (0.01, 0.002)  # at the medium, small rate
    dpo_standard_beta: float = 0.1  # of the usual DPO, which the paper does not use


@dataclass(frozen=True)
class Profile:
    """One size of paper 1: the world, the model, and how both stages train."""

    size: str
    world: WorldSettings
    model: ModelSettings
    pretraining: TrainingSettings
    mixture: Mixture
    fine_tuning: dict[str, TrainingSettings]  # "medium", "small": the paper's two learning rates
    protocols: Protocols
    window: int  # output positions over which activations are averaged
    device: str = "auto"


def _vocabulary(world: WorldSettings) -> int:
    return Vocabulary(world.alphabet, world.operators, world.duplicates).size


def _fine_tuning(iterations: int, batch: int, medium: float, precision: str) -> dict[str, TrainingSettings]:
    """The paper's schedule, stretched to `iterations`; the small rate is a tenth of the medium one."""

    def at(rate: float) -> TrainingSettings:
        warmup, decay = iterations // 5, iterations * 4 // 5
        return TrainingSettings(
            iterations, batch, rate, rate / 100, warmup, decay, clip=1.0, precision=precision
        )

    return {"medium": at(medium), "small": at(medium / 10)}


#: Two grammars over the same 12 symbols. A pre-terminal spells one pair of symbols, always the same, and no pair belongs to
#: both grammars: any aligned pair tells the grammar, whatever the text type, as any aligned run of three does at paper size.
SMALL_TERMINALS = (
    (((0, 1),) * 2, ((2, 3),) * 2, ((4, 5),) * 2, ((6, 7),) * 2, ((8, 9),) * 2, ((10, 11),) * 2),
    (((0, 3),) * 2, ((2, 5),) * 2, ((4, 7),) * 2, ((6, 9),) * 2, ((8, 11),) * 2, ((10, 1),) * 2),
)
SMALL_WORLD = WorldSettings(
    alphabet=12,
    terminals=SMALL_TERMINALS,
    operators=8,
    duplicates=0,
    operand_lengths=(12, 14),
    sequence_length=52,
    always_unsafe=((1,), (2,)),
    always_safe=((0, 3), (0, 3)),
)


def _small_model(layers: int, heads: int, width: int) -> ModelSettings:
    context = SMALL_WORLD.sequence_length - 1
    vocabulary = _vocabulary(SMALL_WORLD)
    return ModelSettings(vocabulary, context, layers, heads, width, 4 * width, embedding_std=0.3)


_PAPER_MIXTURE = Mixture(start=(0.5, 0.1, 0.2, 0.2), end=(0.1, 0.2, 0.3, 0.4), hold=0.1)
_SMALL_MIXTURE = Mixture(start=(0.1, 0.3, 0.3, 0.3), end=(0.1, 0.3, 0.3, 0.3), hold=0.1)

_PROFILES = {
    "smoke": Profile(
        "smoke",
        SMALL_WORLD,
        _small_model(layers=4, heads=2, width=32),
        TrainingSettings(60, 32, 3e-3, 3e-5, warmup=6, decay_until=60),
        _SMALL_MIXTURE,
        _fine_tuning(20, 32, 1e-3, "float32"),
        Protocols(),
        window=4,
        device="cpu",
    ),
    "laptop": Profile(
        "laptop",
        SMALL_WORLD,
        _small_model(layers=4, heads=4, width=96),
        TrainingSettings(5000, 32, 3e-3, 3e-5, warmup=250, decay_until=5000),
        _SMALL_MIXTURE,
        _fine_tuning(1000, 32, 1e-3, "float32"),
        Protocols(),
        window=4,
        device="cpu",
    ),
    "paper": Profile(
        "paper",
        WorldSettings(),
        ModelSettings(),
        TrainingSettings(100_000, 512, 1e-3, 1e-5, warmup=20_000, decay_until=80_000, precision="bfloat16"),
        _PAPER_MIXTURE,
        _fine_tuning(10_000, 512, 1e-4, "bfloat16"),
        Protocols(),
        window=10,
    ),
}


def _kinds(world: WorldSettings) -> tuple[int, int, int]:
    """How many operators of a grammar are never, sometimes (context operators), always safe."""
    never, always = len(world.always_unsafe[0]), len(world.always_safe[0])
    return never, world.operators - never - always, always


#: What differs between the sizes: label -> (how to read it from a profile, why the small sizes differ).
DEVIATIONS = {
    "symbols, operators, grammars": (
        lambda p: f"{p.world.alphabet}, {p.world.operators}, {p.world.grammars}",
        "fewer facts to learn; every kind of operator (always safe, never safe, context, alias) stays",
    ),
    "operators of a grammar that are never, sometimes, always safe": (
        lambda p: ", ".join(map(str, _kinds(p.world))),
        "more of them depend on the text, so that a short fine-tuning learns the rule and not a list of operators",
    ),
    "operand length, sequence length": (
        lambda p: f"{p.world.operand_lengths[0]} to {p.world.operand_lengths[1]}, {p.world.sequence_length}",
        "time grows with the tokens",
    ),
    "symbols to a pre-terminal": (
        lambda p: p.world.terminal_table.shape[-1],
        "one spelling instead of two: a short window must still tell the grammar and the text type",
    ),
    "layers x heads x width": (
        lambda p: f"{p.model.layers} x {p.model.heads} x {p.model.width}",
        "the smallest model found that learns both steps",
    ),
    "standard deviation of the initial embedding": (
        lambda p: p.model.embedding_std,
        "at 0.02 the fixed positions drown the tokens, and a short run never leaves chance",
    ),
    "pretraining: iterations x batch": (
        lambda p: f"{p.pretraining.iterations} x {p.pretraining.batch}",
        "small batches leave the plateau at the start after far fewer sequences",
    ),
    "pretraining: learning rate, warm-up, decay until": (
        lambda p: f"{p.pretraining.learning_rate:g}, {p.pretraining.warmup}, {p.pretraining.decay_until}",
        "scaled to the shorter run",
    ),
    "pretraining: shares of the four forms, first and last": (
        lambda p: f"{p.mixture.start}, {p.mixture.end}",
        "a short run must see both steps from the start; without many second steps alone, some seeds learn to "
        "compute the second output from the operand, and fail",
    ),
    "fine-tuning: iterations x batch": (
        lambda p: f"{p.fine_tuning['medium'].iterations} x {p.fine_tuning['medium'].batch}",
        "time",
    ),
    "fine-tuning: medium rate, small rate": (
        lambda p: f"{p.fine_tuning['medium'].learning_rate:g}, {p.fine_tuning['small'].learning_rate:g}",
        "higher, since there are fewer iterations; their ratio, and rate times iterations, are the paper's",
    ),
    "output positions averaged": (
        lambda p: p.window,
        "the same share of the first output",
    ),
    "precision": (
        lambda p: p.pretraining.precision,
        "bfloat16 pays only where the hardware multiplies it faster; float32 gives one result on all processors",
    ),
}


def comparison(sizes: tuple[str, ...] = ("paper", "laptop")) -> list[dict[str, str]]:
    """Rows `setting`, one column a size, `reason`: what the sizes differ in, read from the profiles themselves."""
    return [
        {"setting": label} | {size: str(read(profile(size))) for size in sizes} | {"reason": reason}
        for label, (read, reason) in DEVIATIONS.items()
    ]


def profile(size: str) -> Profile:
    """The profile of a size. Raises InputError for an unknown one."""
    if size not in _PROFILES:
        raise InputError("size", size, " | ".join(SIZES))
    return _PROFILES[size]
