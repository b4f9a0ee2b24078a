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
    dpo_beta_standard: float = 0.1


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


#: Two grammars over 10 symbols that share two. A pre-terminal spells one symbol, always the same, so that a window of 8
#: to 10 symbols shows as much of the grammar as 25 to 35 symbols do at paper size.
SMALL_TERMINALS = (
    (((0,), (0,)), ((1,), (1,)), ((2,), (2,)), ((3,), (3,)), ((4,), (4,)), ((5,), (5,))),
    (((7,), (7,)), ((4,), (4,)), ((9,), (9,)), ((6,), (6,)), ((8,), (8,)), ((5,), (5,))),
)
SMALL_WORLD = WorldSettings(
    alphabet=10,
    terminals=SMALL_TERMINALS,
    operators=8,
    duplicates=0,
    operand_lengths=(8, 10),
    sequence_length=40,
    always_unsafe=((1, 2), (3, 4)),
    always_safe=((0, 3, 4), (0, 1, 2)),
)


def _small_model(layers: int, heads: int, width: int) -> ModelSettings:
    context = SMALL_WORLD.sequence_length - 1
    vocabulary = _vocabulary(SMALL_WORLD)
    return ModelSettings(vocabulary, context, layers, heads, width, 4 * width, embedding_std=0.3)


_PAPER_MIXTURE = Mixture(start=(0.5, 0.1, 0.2, 0.2), end=(0.1, 0.2, 0.3, 0.4), hold=0.1)
_SMALL_MIXTURE = Mixture(start=(0.1, 0.7, 0.1, 0.1), end=(0.1, 0.5, 0.2, 0.2), hold=0.5)

_PROFILES = {
    "smoke": Profile(
        "smoke",
        SMALL_WORLD,
        _small_model(layers=4, heads=2, width=32),
        TrainingSettings(60, 32, 3e-3, 3e-5, warmup=6, decay_until=60),
        _SMALL_MIXTURE,
        _fine_tuning(20, 32, 1e-3, "float32"),
        Protocols(),
        window=3,
        device="cpu",
    ),
    "laptop": Profile(
        "laptop",
        SMALL_WORLD,
        _small_model(layers=4, heads=4, width=96),
        TrainingSettings(6000, 32, 3e-3, 3e-5, warmup=300, decay_until=6000),
        _SMALL_MIXTURE,
        _fine_tuning(300, 64, 1e-3, "float32"),
        Protocols(),
        window=3,
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

#: Setting -> (paper, laptop, reason). Shown in the book; a test compares the values with the profiles.
DEVIATIONS: dict[str, tuple[str, str, str]] = {}


def profile(size: str) -> Profile:
    """The profile of a size. Raises InputError for an unknown one."""
    if size not in _PROFILES:
        raise InputError("size", size, " | ".join(SIZES))
    return _PROFILES[size]
