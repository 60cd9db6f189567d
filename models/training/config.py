"""The settings of a run: each declared once, with its range, its words, and what is safe for whom.

From this one place come the options of `diptych train` (`service.cli.train.options`), what is saved
beside a result and compared when a run is continued, and the table in docs/training.md. A setting
nobody named is chosen by the kind of pair, the amount of data and the machine (`DEFAULTS`).

Small sets ruin pretrained pairs quickly, so whatever is not asked for does little harm: low rates,
few steps, the result half way back to where it started, or wherever validation likes it best. Loads
nothing heavy: the command line reads it to say what it takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Literal, TypeAlias

from models.errors import InputError

OPTIMISATION: Final = "Optimisation"
KEEPING: Final = "What stays as it was"
PIXELS: Final = "Pictures"
STARTER_ALONE: Final = "Only the starter pair"
_SETTING: Final = "setting"
MOST_WHOLE: Final = 2**31 - 1
MOST: Final = 1e6
"""What numbers without a bound of their own may be."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What there is to know of one setting.

    Attributes:
        name: of its field in `TrainConfig`, and of its option.
        heading: what `--help` lists it under.
        type: int, float, bool or str.
        help: what `--help` says; None where the name says it all.
        default: of the option; None where `DEFAULTS` decide.
        least, most: of a number; `above`, `below`: these two themselves are left out.
        choices: of a word.
        metavar: how `--help` writes its value.
        needs_towers: whether it speaks of whole towers: the starter's heads refuse it.
        quiet: whether `--help` leaves the default out.
        why: for the documentation, beyond `help`.
    """

    name: str
    heading: str
    type: type
    help: str | None = None
    default: Any = None
    least: int | None = None
    most: float | None = None
    above: bool = False
    below: bool = False
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    needs_towers: bool = False
    quiet: bool = False
    why: str = ""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def check(self, value: Any, *, advised: bool = True) -> None:
        """Refuse what the command line would refuse, for those who come another way.

        Args:
            advised: whether `most` holds too, which may be no more than good advice.

        Raises:
            InputError: a value of another type, out of range, or none of the choices.
        """
        if value is None:
            return
        kinds = (int, float) if self.type is float else (self.type,)
        right = isinstance(value, kinds) and (self.type is bool or not isinstance(value, bool))
        if right and self.choices:
            right = value in self.choices
        elif self.takes_word and value != "val":
            right = isinstance(value, int | float) and not isinstance(value, bool)
        if right and isinstance(value, int | float) and self.type is not bool:
            # NaN is neither above nor below anything
            right = value > self.smallest if self.above else value >= self.smallest
            largest = self.largest if advised else max(self.largest, MOST)
            right = right and (value < largest if self.below else value <= largest)
        if not right:
            raise InputError(f"{self.name} cannot be {value!r}", hint=self.told())

    @property
    def takes_word(self) -> bool:
        """Whether it is a number or the word `val`."""
        return self.type is str and not self.choices

    @property
    def smallest(self) -> float:
        return 0 if self.least is None else self.least

    @property
    def largest(self) -> float:
        """Beyond this no number means anything, and arithmetic begins to fail."""
        if self.most is not None:
            return self.most
        return MOST_WHOLE if self.type is int else MOST

    def told(self) -> str:
        """What it may be, for whoever gave it something else."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.type is bool:
            return "true or false"
        low, high = ("above" if self.above else "from"), ("below" if self.below else "to")
        number = "a whole number" if self.type is int else "a number"
        word = ", or val" if self.takes_word else ""
        return f"{number} {low} {self.smallest:g} {high} {self.largest:g}{word}"


def _set(heading: str, type: type, help: str | None = None, **named: Any) -> Any:
    """A field of `TrainConfig` that can be asked for."""
    option = named.pop("option", named.get("default"))
    metadata = {_SETTING: Setting("", heading, type, help, **{**named, "default": option})}
    if type is bool:
        return field(default=False, metadata=metadata)
    return field(metadata=metadata, **{k: v for k, v in named.items() if k == "default"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Same config, data, model, ranks, threads and machine: the same weights, bit for bit on CPU.

    Attributes:
        batch_size: also how many negatives a pair has.
        micro_batch: fewer than a rank's share of the batch makes the batch a cached one (see
            `models.training.step.cached_backward`). None: all at once.
        lr: of AdamW (Loshchilov & Hutter 2019), before half a cosine.
        betas: CLIP's second moment: at 0.999 it lags behind the fast growth of the scale.
        eps: CLIP's for vision transformers.
        layer_decay: Bao et al. 2022, BEiT.
        precision: `fp32`, or autocast in `bf16` or `fp16`; weights and loss stay in fp32.
        hard_negatives: Yuksekgonul et al. 2023.
        captions: how many of each picture a step compares it with: it is embedded once for all.
        concept_share: without it, training on captions of people and dogs forgets the
            strawberries (see `models.training.features.pairs.Rehearsal`).
        crop: see `models.training.samples.Augmentation`.
    """

    epochs: int = _set(OPTIMISATION, int, "Passes over --data.", least=1)
    batch_size: int = _set(
        OPTIMISATION,
        int,
        "Pairs a step, over all processes.",
        least=2,
        why="more negatives are better; 128 fits most machines",
    )
    micro_batch: int | None = _set(
        OPTIMISATION,
        int,
        "Embed N pairs at a time: any --batch-size in the memory of N, same gradients.",
        default=None,
        least=1,
        metavar="N",
        needs_towers=True,
    )
    lr: float = _set(
        OPTIMISATION,
        float,
        "Peak learning rate.",
        least=0,
        above=True,
        why="AdamW moves every weight by about the rate, however little there is to learn",
    )
    warmup: float = _set(
        OPTIMISATION,
        float,
        "Share of the steps with a rising rate.",
        default=0.1,
        least=0,
        most=1,
        why="then half a cosine to zero",
    )
    weight_decay: float = _set(
        OPTIMISATION,
        float,
        default=0.1,
        least=0,
        why="on matrices; none on norms, biases, gains, position embeddings, scale and bias",
    )
    grad_clip: float = _set(
        OPTIMISATION, float, "Largest norm of the gradients; 0 for none.", default=1.0, least=0
    )
    grad_checkpointing: bool = _set(
        OPTIMISATION,
        bool,
        "Recompute activations: slower, less memory.",
        needs_towers=True,
    )
    objective: Literal["clip", "siglip"] = _set(
        OPTIMISATION,
        str,
        "InfoNCE or pairwise sigmoids; auto takes what the model was trained with.",
        default="clip",
        option="auto",
        choices=("auto", "clip", "siglip"),
        needs_towers=True,
        why="sigmoids for pairs with a logit bias",
    )
    label_smoothing: float = _set(OPTIMISATION, float, default=0.0, least=0, most=0.5)
    hard_negatives: int = _set(
        OPTIMISATION,
        int,
        "Disturbed captions per pair, as further negatives.",
        default=0,
        least=0,
        most=8,
        metavar="N",
        needs_towers=True,
    )
    tune: Literal["full", "lora"] = _set(
        KEEPING,
        str,
        "What learns: the weights, low-rank updates that are added into them at the end (lora), "
        "or, from labelled pictures (--label-field) with the pair at rest, a class head: a linear "
        "one, an adapter on features, or a prompt's words. docs/tuning.md compares them.",
        default="full",
        choices=("full", "lora", "linear", "adapter", "prompts"),
    )
    lora_rank: int = _set(KEEPING, int, "Rank of each update.", default=8, least=1, most=4_096)
    lock_image: bool = _set(
        KEEPING, bool, "The image tower learns nothing (LiT).", needs_towers=True
    )
    lock_text: bool = _set(KEEPING, bool, "The text tower learns nothing.", needs_towers=True)
    unlock_blocks: int = _set(
        KEEPING,
        int,
        "Heads and last N blocks of locked towers learn; locks both if none is named.",
        default=0,
        least=0,
        metavar="N",
        quiet=True,
        needs_towers=True,
    )
    layer_decay: float = _set(
        KEEPING,
        float,
        "Factor on the rate for each block further from the head.",
        default=1.0,
        least=0,
        most=1,
        above=True,
        needs_towers=True,
    )
    ema: float = _set(
        KEEPING,
        float,
        "Decay of a moving average of the weights, which then is the result.",
        default=0.0,
        least=0,
        most=1,
        below=True,
    )
    interpolate: float | Literal["val"] = _set(
        KEEPING,
        str,
        "Share of the trained weights in the result, the rest being those it started from "
        "(WiSE-FT). [default: the best by validation, or 0.5 without one; 1 with --init fresh]",
        default=1.0,
        option=None,
        least=0,
        most=1,
        metavar="ALPHA|val",
        why="Wortsman et al. 2022; 0 means that nothing helped, and the pair is left as it was",
    )
    keep: Literal["last", "best"] = _set(
        KEEPING,
        str,
        "The last epoch, or the best on validation. [default: best where there is one]",
        default="last",
        option=None,
        choices=("last", "best"),
    )
    patience: int = _set(
        KEEPING,
        int,
        "Stop after N validations without a better R@1; 0 never. [default: 3, or 0 from scratch]",
        default=0,
        option=None,
        least=0,
        metavar="N",
    )
    eval_every: int = _set(
        KEEPING, int, "Epochs between validations.", default=1, least=1, metavar="EPOCHS"
    )
    crop: float = _set(
        PIXELS,
        float,
        "Smallest share of a picture that a random crop keeps; 1 for no crop.",
        default=0.9,
        least=0,
        most=1,
        above=True,
        why="captions describe the whole picture",
    )
    flip: bool = _set(
        PIXELS,
        bool,
        "Mirror half of the pictures, but none whose captions say left or right.",
        needs_towers=True,
        why="captions say left and right and pictures hold letters",
    )
    colour: float = _set(
        PIXELS,
        float,
        "Change brightness, contrast and saturation by up to this share.",
        default=0.0,
        least=0,
        most=0.9,
        needs_towers=True,
    )
    shuffle_buffer: int = _set(
        PIXELS, int, "Records that wait to be drawn.", default=4_096, least=1
    )
    concept_share: float = _set(
        STARTER_ALONE,
        float,
        "Share of each batch that rehearses the names of ImageNet's 1,000 classes.",
        default=0.2,
        least=0,
        most=0.4,
    )
    extra_share: float = _set(
        "Data",
        float,
        "Share of each batch that comes from --extra-data.",
        default=0.15,
        least=0,
        most=0.4,
    )
    class_share: float = _set(
        "Data",
        float,
        "Share of each batch that comes from --class-data.",
        default=0.1,
        least=0,
        most=0.4,
    )
    seed: int = _set("Run", int, default=0, least=0, most=2**63 - 1)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    precision: str = "fp32"
    captions: int = 1

    def __post_init__(self) -> None:
        """Whoever makes it, by a command, from Python or from a file, is told the same.

        Raises:
            InputError: a value out of range.
        """
        for one in _DECLARED:
            one.check(getattr(self, one.name), advised=False)
        low = (0 <= beta < 1 for beta in self.betas)
        if not (all(low) and 0 < self.eps < 1 and self.captions >= 1):
            raise InputError("betas must be from 0 to below 1, eps above 0, captions at least 1")


_DECLARED: Final = tuple(
    Setting(**{**{n: getattr(made, n) for n in Setting.__slots__}, "name": one.name})
    for one in fields(TrainConfig)
    if (made := one.metadata.get(_SETTING)) is not None
)


def settings(heading: str | None = None) -> Iterator[Setting]:
    """What can be asked for, in order, of all headings or one."""
    return (one for one in _DECLARED if heading in (None, one.heading))


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What defaults depend on.

    Attributes:
        pairs: of the sources that epochs go over.
        pictures: of all sources together.
        batch_size: once it is known.
        ranks: processes of the run.
        measured: whether there is a validation set.
        tune: as asked.
    """

    pairs: int
    pictures: int = 0
    batch_size: int = 0
    ranks: int = 1
    measured: bool = False
    tune: str = "full"


@dataclass(frozen=True, slots=True)
class Default:
    """A default that depends, and how the documentation puts it."""

    value: Callable[[Circumstances], Any]
    told: str


def _always(value: Any, told: str) -> Default:
    return Default(lambda _: value, told)


def few_epochs(at: Circumstances) -> int:
    """About a thousand steps of fine-tuning, but no more than ten passes.

    Example:
        >>> [few_epochs(Circumstances(pairs=n, batch_size=128)) for n in (16, 5_000, 50_000, 10**7)]
        [10, 10, 3, 1]
    """
    return max(1, min(10, round(1_000 / max(1, at.pairs // at.batch_size))))


def small_batch(at: Circumstances) -> int:
    """128, or all there are; a multiple of the number of ranks.

    Example:
        >>> [small_batch(Circumstances(pairs=n, ranks=r)) for n, r in ((10_000, 1), (30, 4))]
        [128, 28]
    """
    return max(at.ranks, min(128, max(2, at.pairs)) // at.ranks * at.ranks)


def rate_by_amount(at: Circumstances) -> float:
    """Grows with the square root of the amount, up to that of fresh heads at 20,000 pictures.

    Four pictures, two epochs at 1e-3 took R@1 on the very same four from 100 to 25 %.

    Example:
        >>> amounts = [Circumstances(pairs=n, pictures=n) for n in (4, 200, 5_000, 1_000_000)]
        >>> [round(rate_by_amount(at), 6) for at in amounts]
        [1.4e-05, 0.0001, 0.0005, 0.001]
    """
    return 1e-3 * math.sqrt(min(1.0, at.pictures / 20_000))


_GUARDED: Final[Mapping[str, Default]] = {
    "interpolate": Default(
        lambda at: "val" if at.measured else 0.5, "best of 0, 0.2 ... 1; 0.5 without validation"
    ),
    "keep": Default(lambda at: "best" if at.measured else "last", "best"),
    "patience": Default(lambda at: 3 if at.measured else 0, "3"),
}
_HEADS: Final[Mapping[str, Default]] = {
    "batch_size": _always(2_048, "2,048"),
    # heads over features at rest are small enough not to need either
    "grad_clip": _always(0.0, "none"),
    "eps": _always(1e-8, "1e-8"),
}
Defaults: TypeAlias = Mapping[str, Default]

DEFAULTS: Final[Mapping[str, Defaults]] = {
    "fine-tuning": {
        **_GUARDED,
        "batch_size": Default(small_batch, "128, or all pairs"),
        "epochs": Default(few_epochs, "about 1,000 steps, at most 10"),
        "lr": Default(
            lambda at: 1e-4 if at.tune == "lora" else 1e-5, "1e-5; 1e-4 with `--tune lora`"
        ),
    },
    "fresh": {
        "batch_size": Default(small_batch, "128, or all pairs"),
        "epochs": _always(32, "32"),
        "lr": Default(lambda at: 1e-4 if at.tune == "lora" else 5e-4, "5e-4"),
        "interpolate": _always(1.0, "1"),
        "keep": _GUARDED["keep"],
        "patience": _always(0, "0"),
    },
    "starter": {
        **_GUARDED,
        **_HEADS,
        "epochs": _always(10, "10"),
        "lr": Default(rate_by_amount, "1e-3 times the root of pictures / 20,000, at most 1e-3"),
    },
    "fresh starter": {
        **_HEADS,
        "epochs": _always(30, "30"),
        "lr": _always(1e-3, "1e-3"),
        "interpolate": _always(1.0, "1"),
        "keep": _always("last", "last"),
        "patience": _always(0, "0"),
    },
}
"""What is safe for each kind of pair where nobody says otherwise; what is not here is the same for
all, and stands in `TrainConfig`."""

FIXED: Final = frozenset({"grad_clip", "eps"})
"""Where `DEFAULTS` name these, they are so whatever was asked for."""


def foreign(asked: Mapping[str, Any], kind: str) -> list[Setting]:
    """The settings that were asked for and mean nothing to a kind of pair.

    Args:
        asked: by name; None, or the default, where nobody asked.
        kind: a row of `DEFAULTS`, or what `--tune` calls a class head.
    """
    changed = [one for one in _DECLARED if asked.get(one.name) not in (None, one.default, False)]
    if kind in ("linear", "adapter", "prompts"):
        known = {"tune", "seed"} | ({"epochs"} if kind != "linear" else set())
        return [one for one in changed if one.name not in known]
    found = [
        one
        for one in changed
        if (
            (one.needs_towers or one.heading == PIXELS) and asked[one.name] != "clip"
            if "starter" in kind
            else one.heading == STARTER_ALONE
        )
    ]
    if asked.get("tune") not in (None, "lora"):
        found += [one for one in changed if one.name == "lora_rank"]
    if asked.get("objective") == "siglip":
        found += [one for one in changed if one.name == "label_smoothing"]
    return found


def refuse_foreign(asked: Mapping[str, Any], kind: str) -> None:
    """Raise InputError where `foreign` finds something: it would be passed over in silence."""
    wrong = foreign(asked, kind)
    if "starter" in kind and asked.get("tune") == "lora":
        raise InputError("the starter's heads learn whole; tune='lora' is for open_clip models")
    if wrong:
        raise InputError(
            f"{', '.join(one.flag for one in wrong)}: of no use to this kind of pair and run "
            f"({kind})",
            hint="leave them out; docs/training.md has the table of what each kind knows",
        )


def asked_for(given: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting by name: as given, else as the command line has it where nobody says anything.

    Raises:
        InputError: an unknown setting, or a value that it cannot have.
    """
    known = {one.name: one for one in settings()}
    for name, value in given.items():
        if name not in known:
            raise InputError(f"training has no setting {name!r}", hint=f"one of {', '.join(known)}")
        known[name].check(value)
    return {name: one.default for name, one in known.items()} | dict(given)


def resolved(asked: Mapping[str, Any], kind: str, at: Circumstances) -> TrainConfig:
    """The settings of a run.

    Args:
        asked: by name; None, or left out, where nobody said anything.
        kind: a row of `DEFAULTS`.
        at: what the row depends on; `batch_size` is found here.
    """
    rows = DEFAULTS[kind]
    known = {one.name for one in fields(TrainConfig)}
    assert asked.keys() <= known, asked.keys() - known
    said = {name: value for name, value in asked.items() if value is not None}
    batch = said.get("batch_size") or rows["batch_size"].value(at)
    at = replace(at, batch_size=batch)
    depends = {name: one.value(at) for name, one in rows.items()}
    fixed = {name: value for name, value in depends.items() if name in FIXED}
    return TrainConfig(**{**depends, **said, **fixed})
