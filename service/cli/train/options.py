"""The options of `diptych train`, by heading, and the settings they come to.

A setting nobody named stays None here: what is safe depends on the model and the amount of data
(`models.training.defaults`, `models.training.starter.defaults`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from service.cli.grouped import group
from service.cli.sources import Reading, reading_options
from service.cli.train.filter import filter_options

F = TypeVar("F", bound=Callable[..., Any])

_DATA = (
    click.option(
        "--data",
        "data",
        multiple=True,
        metavar="SOURCE",
        help="Captioned pictures: folder, shards or manifest (docs/sources.md); repeatable.",
    ),
    click.option(
        "--val",
        "val",
        multiple=True,
        metavar="SOURCE",
        help="Captioned pictures to measure; repeatable. Without it a tenth or less of --data is "
        "held back where it holds 100 pictures or more; `--val none` holds nothing back.",
    ),
    click.option(
        "--extra-data",
        "extra_data",
        multiple=True,
        metavar="SOURCE",
        help="Captioned pictures of another kind, mixed in for breadth; repeatable.",
    ),
    click.option(
        "--class-data",
        "class_data",
        multiple=True,
        nargs=2,
        metavar="SOURCE FIELD",
        help="Pictures of single things and the field with their names; repeatable.",
    ),
    click.option(
        "--extra-share",
        type=click.FloatRange(min=0, max=0.4),
        default=0.15,
        show_default=True,
        help="Share of each batch that comes from --extra-data.",
    ),
    click.option(
        "--class-share",
        type=click.FloatRange(min=0, max=0.4),
        default=0.1,
        show_default=True,
        help="Share of each batch that comes from --class-data.",
    ),
    click.option(
        "--holdout",
        type=click.IntRange(min=2),
        metavar="N",
        help="Leave one record in N of every --class-data source out, to evaluate on.",
    ),
    reading_options,
    filter_options,
)

_RUN = (
    click.option(
        "--out",
        required=True,
        type=click.Path(file_okay=False, path_type=Path),
        help="Directory for the trained pair; load it with --model local-dir:DIR.",
    ),
    click.option(
        "--init",
        type=click.Choice(["pretrained", "starter", "fresh"]),
        default="pretrained",
        show_default=True,
        help="Continue from the model's weights, or start over with random ones; with `fresh`, "
        "--model may be a bare architecture (ViT-B-32). `starter` is an older word for "
        "`pretrained`.",
    ),
    click.option("--restart", is_flag=True, help="Drop a run that --out holds, and begin anew."),
    click.option(
        "--checkpoint-minutes",
        type=click.FloatRange(min=0),
        default=10.0,
        show_default=True,
        help="Time between checkpoints; each validation writes one too.",
    ),
    click.option(
        "--checkpoint-steps",
        type=click.IntRange(min=1),
        metavar="N",
        help="A checkpoint every N steps instead.",
    ),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
)

_OPTIMISATION = (
    click.option("--epochs", type=click.IntRange(min=1), help="Passes over --data."),
    click.option(
        "--batch-size", type=click.IntRange(min=2), help="Pairs a step, over all processes."
    ),
    click.option(
        "--micro-batch",
        type=click.IntRange(min=1),
        metavar="N",
        help="Embed N pairs at a time: any --batch-size in the memory of N, same gradients.",
    ),
    click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Peak learning rate."),
    click.option(
        "--warmup",
        type=click.FloatRange(min=0, max=1),
        default=0.1,
        show_default=True,
        help="Share of the steps with a rising rate.",
    ),
    click.option("--weight-decay", type=click.FloatRange(min=0), default=0.1, show_default=True),
    click.option(
        "--grad-clip",
        type=click.FloatRange(min=0),
        default=1.0,
        show_default=True,
        help="Largest norm of the gradients; 0 for none.",
    ),
    click.option(
        "--grad-checkpointing", is_flag=True, help="Recompute activations: slower, less memory."
    ),
    click.option(
        "--objective",
        type=click.Choice(["auto", "clip", "siglip"]),
        default="auto",
        show_default=True,
        help="InfoNCE or pairwise sigmoids; auto takes what the model was trained with.",
    ),
    click.option(
        "--label-smoothing", type=click.FloatRange(min=0, max=0.5), default=0.0, show_default=True
    ),
    click.option(
        "--hard-negatives",
        type=click.IntRange(min=0, max=8),
        default=0,
        show_default=True,
        metavar="N",
        help="Disturbed captions per pair, as further negatives.",
    ),
)

_KEEPING = (
    click.option(
        "--tune",
        type=click.Choice(["full", "lora", "linear", "adapter", "prompts"]),
        default="full",
        show_default=True,
        help="What learns: the weights, low-rank updates that are added into them at the end "
        "(lora), or, from labelled pictures (--label-field) with the pair at rest, a class head: "
        "a linear one, an adapter on features, or a prompt's words. docs/tuning.md compares them.",
    ),
    click.option(
        "--lora-rank",
        type=click.IntRange(min=1),
        default=8,
        show_default=True,
        help="Rank of each update.",
    ),
    click.option("--lock-image", is_flag=True, help="The image tower learns nothing (LiT)."),
    click.option("--lock-text", is_flag=True, help="The text tower learns nothing."),
    click.option(
        "--unlock-blocks",
        type=click.IntRange(min=0),
        default=0,
        metavar="N",
        help="Heads and last N blocks of locked towers learn; locks both if none is named.",
    ),
    click.option(
        "--layer-decay",
        type=click.FloatRange(min=0, max=1, min_open=True),
        default=1.0,
        show_default=True,
        help="Factor on the rate for each block further from the head.",
    ),
    click.option(
        "--ema",
        type=click.FloatRange(min=0, max=1, max_open=True),
        default=0.0,
        show_default=True,
        help="Decay of a moving average of the weights, which then is the result.",
    ),
    click.option(
        "--interpolate",
        metavar="ALPHA|val",
        callback=lambda _ctx, _param, value: _share(value),
        help="Share of the trained weights in the result, the rest being those it started from "
        "(WiSE-FT). [default: the best by validation, or 0.5 without one; 1 with --init fresh]",
    ),
    click.option(
        "--keep",
        type=click.Choice(["last", "best"]),
        help="The last epoch, or the best on validation. [default: best where there is one]",
    ),
    click.option(
        "--patience",
        type=click.IntRange(min=0),
        metavar="N",
        help="Stop after N validations without a better R@1; 0 never. [default: 3, or 0 from "
        "scratch]",
    ),
    click.option(
        "--eval-every",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="EPOCHS",
        help="Epochs between validations.",
    ),
)

_PIXELS = (
    click.option(
        "--crop",
        type=click.FloatRange(min=0, max=1, min_open=True),
        default=0.9,
        show_default=True,
        help="Smallest share of a picture that a random crop keeps; 1 for no crop.",
    ),
    click.option(
        "--flip",
        is_flag=True,
        help="Mirror half of the pictures, but none whose captions say left or right.",
    ),
    click.option(
        "--colour",
        type=click.FloatRange(min=0, max=0.9),
        default=0.0,
        show_default=True,
        help="Change brightness, contrast and saturation by up to this share.",
    ),
    click.option(
        "--shuffle-buffer",
        type=click.IntRange(min=1),
        default=4096,
        show_default=True,
        help="Records that wait to be drawn.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        help="Threads that decode pictures. [default: the number of cores, at most 8]",
    ),
)

_STARTER = (
    click.option(
        "--concept-share",
        type=click.FloatRange(min=0, max=0.4),
        default=0.2,
        show_default=True,
        help="Share of each batch that rehearses the names of ImageNet's 1,000 classes.",
    ),
    click.option(
        "--cache",
        type=click.Path(file_okay=False, path_type=Path),
        help="Keep the towers' features here, so that another run starts at once.",
    ),
)


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What the command line said; None where it said nothing and a default depends."""

    data: tuple[str, ...]
    val: tuple[str, ...]
    extra_data: tuple[str, ...]
    class_data: tuple[tuple[str, str], ...]
    extra_share: float
    class_share: float
    holdout: int | None
    reading: Reading
    filter_below: float | Literal["auto"] | None
    filter_model: str | None
    filter_folds: bool
    score_cache: Path | None
    out: Path
    init: str
    restart: bool
    checkpoint_minutes: float
    checkpoint_steps: int | None
    seed: int
    epochs: int | None
    batch_size: int | None
    micro_batch: int | None
    lr: float | None
    warmup: float
    weight_decay: float
    grad_clip: float
    grad_checkpointing: bool
    objective: str
    label_smoothing: float
    hard_negatives: int
    tune: str
    lora_rank: int
    lock_image: bool
    lock_text: bool
    unlock_blocks: int
    layer_decay: float
    ema: float
    interpolate: float | str | None
    keep: str | None
    patience: int | None
    eval_every: int
    crop: float
    flip: bool
    colour: float
    shuffle_buffer: int
    workers: int | None
    concept_share: float
    cache: Path | None
    model: str
    device: str
    precision: str
    threads: int | None
    as_json: bool

    @property
    def fresh(self) -> bool:
        return self.init == "fresh"


def train_options(function: F) -> F:
    """All options of the command; they reach it as one `TrainOptions`."""
    from service.cli.output import json_option, model_options

    @functools.wraps(function)
    def command(**named: Any) -> Any:
        from models.environment import default_model

        named["model"] = named["model"] or default_model()
        return function(TrainOptions(**{f.name: named[f.name] for f in fields(TrainOptions)}))

    wrapped: Any = command
    for heading, options in reversed(
        (
            ("Data", _DATA),
            ("Run", _RUN),
            ("Model and machine", (model_options, json_option)),
            ("Optimisation", _OPTIMISATION),
            ("What stays as it was", _KEEPING),
            ("Pictures", _PIXELS),
            ("Only the starter pair", _STARTER),
        )
    ):
        wrapped = group(heading, options)(wrapped)
    return wrapped  # type: ignore[no-any-return]


def _share(value: str | None) -> float | str | None:
    if value is None or value == "val":
        return value
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise click.BadParameter("a number from 0 to 1, or val")
    return share
