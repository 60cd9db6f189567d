"""`python -m service.recipes.starter`: how the starter pair that ships with Diptych was trained.

Several pairs of heads are trained alike from different seeds and merged into one, then the image
tower is tuned together with it. Every stage of every member leaves its result
in a directory, and is passed over when that is there: a stopped run goes on, and members can be
trained side by side (`--stage S --member N` does one and stops).

Prints what it does; everything it uses is silent.


Long captions cut into sentences, because a query is one sentence at most.

Textbooks describe a figure in a paragraph and end it with credits; a sentence encoder makes one
blurred point of that. Knows nothing of features or training.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from models.devices import resolve_device, set_threads
from models.encoders.starter import DESCRIPTION_NAME
from models.encoders.starter.description import HeadsConfig, read_parts
from models.encoders.starter.heads import StarterHeads, load_heads, save_heads
from models.encoders.starter.image_graph import save_graph
from models.encoders.starter.image_tower import ImageTower
from models.encoders.starter.pair import load_image_tower, load_text_tower, starter_dtype
from models.encoders.starter.text_tower import TextTower
from models.encoders.starter.tuned_weights import (
    IMAGE_GRAPH_NAME,
    IMAGE_WEIGHTS_NAME,
    TEXT_WEIGHTS_NAME,
    copy_weights,
    save_weights,
)
from models.errors import DiptychError
from models.sources import open_source
from models.sources.records import Record, Row, Source, SourceWrapper
from models.training.config import Circumstances, TrainConfig, resolved
from models.training.features.maker import FeatureMaker, PictureMaker
from models.training.features.pairs import Kind, Pairs, Rehearsal, gather
from models.training.record import Recall, Step
from models.training.starter import StarterPair, fresh_heads, measure, train_heads
from models.training.starter_stages import (
    HeadsOverPools,
    HeadsOverTower,
    PoolMaker,
    RowlessRehearsal,
    StagedPair,
    merge,
    soup,
    tuned_layers,
)
from models.training.weights import interpolated, mean_of
from service.cli.exits import exit_code, one_line

_FOLDER = click.Path(file_okay=False, path_type=Path)
MEMBERS = 4
HOLDOUT = 5
HEADS = HeadsConfig(image_hidden=512, text_hidden=512)
_TOLD_EVERY = 20
_MERGED_ON = 4096
"""Captions that the principal directions are measured on."""


@dataclass(frozen=True)
class Stage:
    """One of the runs; the first three make a member."""

    name: str
    epochs: int
    lr: float


HEADS_ALONE = Stage("heads", 30, 1e-3)
"""The heads over both towers as they come."""
JOINT = Stage("joint", 10, 6e-4)
"""Heads and the last layers of a copy of the text tower. The mean of the members' copies (a model
soup, Wortsman et al. 2022) is the text tower that ships."""
SETTLED = Stage("settled", 6, 5e-4)
"""The heads again, over the text tower that ships."""
IMAGE = Stage("image", 28, 6e-4)
"""The merged heads and the image tower, from as many seeds as there are members."""
SHARE = 0.8
"""Of the way from the merged pair to the mean of the tuned ones (Wortsman et al. 2022, WiSE-FT):
the last fifth brings little on what was trained, and costs some of what was not."""


@dataclass(frozen=True)
class Workshop:
    """What every stage needs."""

    out: Path
    scale: float
    batch_size: int
    texts: TextTower
    maker: FeatureMaker
    data: Mapping[str, Source]

    def gather(self, maker: FeatureMaker) -> tuple[Pairs, Rehearsal]:
        data = self.data
        pairs, report = gather(
            [data["flickr8k"]],
            maker,
            extra=[data["openstax"]],
            classes=[data["tiny-imagenet"], data["grocery-store"]],
            holdout=HOLDOUT,
        )
        click.echo(f"data: {report.to_dict()}")
        return pairs, Rehearsal(pairs.image_NF, maker)

    def config(self, stage: Stage, member: int) -> TrainConfig:
        asked = {
            "epochs": max(1, round(stage.epochs * self.scale)),
            "batch_size": self.batch_size,
            "lr": stage.lr,
            "captions": 2 if stage is not JOINT else 1,
            "seed": member,
        }
        # the last weights of each stage, whole: whatever picks among them comes at the end
        return resolved(asked, "fresh starter", Circumstances(pairs=0))

    def folder(self, stage: Stage, member: int) -> Path:
        return self.out / f"{stage.name}-{member}"

    def heads(self, stage: Stage, member: int) -> StarterHeads:
        # from the file even right after training: the same bits whoever trained it, and when
        return load_heads(self.folder(stage, member))[0].requires_grad_(True)

    @property
    def merged(self) -> Path:
        """The heads of all members in one, over the package's image tower."""
        return self.out / "merged"

    def is_done(self, stage: Stage, member: int) -> bool:
        return (self.folder(stage, member) / DESCRIPTION_NAME).is_file()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", required=True, type=_FOLDER, help="Holds flickr8k/, openstax-photos/ ...")
@click.option("--out", required=True, type=_FOLDER, help="For the pair and what it is made of.")
@click.option("--cache", type=_FOLDER, help="Keeps the towers' features between runs.")
@click.option("--stage", "only", type=click.Choice(["heads", "joint", "settled", "image"]))
@click.option("--member", type=click.IntRange(0, MEMBERS - 1), help="Train this one and stop.")
@click.option("--scale", type=float, default=1.0, help="Of all numbers of epochs; for a trial.")
@click.option("--batch-size", type=click.IntRange(min=16), default=1024, show_default=True)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Of the image stage: minutes on a GPU, hours on a CPU.",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
def starter(
    data: Path,
    out: Path,
    cache: Path | None,
    only: str | None,
    member: int | None,
    scale: float,
    batch_size: int,
    device: str,
    threads: int,
) -> None:
    """Train the starter pair from the folder that holds its data sets."""
    set_threads(threads)
    # fp16, as the pair is used where the processor has it: half the time, the same ranking
    image_tower, texts = ImageTower(dtype=starter_dtype("fp16", resolve_device("cpu"))), TextTower()
    maker = FeatureMaker(image_tower, texts, cache=cache, on_progress=_tell_features)
    shop = Workshop(out, scale, batch_size, texts, maker, _sources(data))
    numbers = range(MEMBERS) if member is None else [member]
    if only in (None, "heads"):
        _train_heads(shop, HEADS_ALONE, numbers)
    if only in (None, "joint"):
        _train_jointly(shop, numbers, PoolMaker(image_tower, texts, cache=cache))
    if only in (None, "settled"):
        _use(shop)
        _train_heads(shop, SETTLED, numbers)
    if only is None:
        _merge(shop)
    if only in (None, "image"):
        _tune_image(shop, resolve_device(device), numbers, cache or out / "pixels")
    if only is None:
        _finish(shop, image_tower.dtype)


def _train_heads(shop: Workshop, stage: Stage, members: Iterable[int]) -> None:
    todo = [member for member in members if not shop.is_done(stage, member)]
    if not todo:
        return
    pairs, rehearsal = shop.gather(shop.maker)
    for member in todo:
        config = shop.config(stage, member)
        if stage is HEADS_ALONE:
            heads = fresh_heads(HEADS, shop.texts, seed=member)
        else:
            heads = shop.heads(JOINT, member)
        train_heads(StarterPair(heads), pairs, config, rehearsal=rehearsal, on_step=_tell_step)
        save_heads(heads.eval(), shop.folder(stage, member))


def _train_jointly(shop: Workshop, members: Iterable[int], maker: PoolMaker) -> None:
    todo = [member for member in members if not shop.is_done(JOINT, member)]
    if not todo:
        return
    pairs, rehearsal = shop.gather(maker)
    for member in todo:
        folder = shop.folder(JOINT, member)
        joint = HeadsOverPools(shop.heads(HEADS_ALONE, member), shop.texts.trainable())
        config = shop.config(JOINT, member)
        train_heads(StagedPair(joint), pairs, config, rehearsal=rehearsal, on_step=_tell_step)
        sha256 = save_weights(tuned_layers(joint.network), folder, TEXT_WEIGHTS_NAME)
        save_heads(joint.heads(), folder, parts={TEXT_WEIGHTS_NAME: sha256})


def _use(shop: Workshop) -> None:
    """Make the mean of the members' text networks the one that features are computed with."""
    networks = [
        load_text_tower(shop.folder(JOINT, member)).trainable() for member in range(MEMBERS)
    ]
    soup(shop.maker.network, networks)


def _merge(shop: Workshop) -> None:
    if (shop.merged / DESCRIPTION_NAME).is_file():
        return
    members = [shop.heads(SETTLED, member).eval() for member in range(MEMBERS)]
    pairs, _ = shop.gather(shop.maker)
    step = max(1, len(pairs.caption_MS) // _MERGED_ON)
    merged = merge(members, pairs.image_NF[pairs.kind_N != Kind.CLASS], pairs.caption_MS[::step])
    sha256 = save_weights(tuned_layers(shop.maker.network), shop.merged, TEXT_WEIGHTS_NAME)
    save_heads(merged, shop.merged, parts={TEXT_WEIGHTS_NAME: sha256})
    validation, _ = gather([shop.data["validation"]], shop.maker)
    for number, member in enumerate(members):
        _tell_recall(f"member {number}", measure(member, validation))
    _tell_recall("merged", measure(load_heads(shop.merged)[0], validation))


def _tune_image(shop: Workshop, device: Any, members: Iterable[int], cache: Path) -> None:
    todo = [member for member in members if not shop.is_done(IMAGE, member)]
    if not todo:
        return
    tower = ImageTower(device=device, dtype=starter_dtype("auto", device))
    maker = PictureMaker(
        tower, load_text_tower(shop.merged), cache=cache, on_progress=_tell_features
    )
    pairs, _ = shop.gather(maker)
    rehearsal = RowlessRehearsal(pairs.image_NF[:, :-1], maker)
    untuned = ImageTower()  # in fp32, whatever the features came from
    for member in todo:
        heads = load_heads(shop.merged)[0].requires_grad_(True)
        joint = HeadsOverTower(heads, untuned.trainable(), maker.bank)
        config = shop.config(IMAGE, member)
        train_heads(StagedPair(joint), pairs, config, rehearsal=rehearsal, on_step=_tell_step)
        folder = shop.folder(IMAGE, member)
        sha256 = save_weights(
            joint.tuned(), folder, IMAGE_WEIGHTS_NAME, own=untuned.trainable().state_dict()
        )
        save_heads(joint.heads(), folder, parts={IMAGE_WEIGHTS_NAME: sha256})


def _finish(shop: Workshop, dtype: Any) -> None:
    """Most of the way to the mean of the tuned pairs, which began as one and stayed near it."""
    folders = [shop.folder(IMAGE, member) for member in range(MEMBERS)]
    heads = load_heads(shop.merged)[0]
    mean = mean_of([load_heads(folder)[0].state_dict() for folder in folders])
    heads.load_state_dict(interpolated(heads.state_dict(), mean, SHARE))
    own = ImageTower().trainable().state_dict()
    mean = mean_of([load_image_tower(folder).trainable().state_dict() for folder in folders])
    tuned = interpolated(own, mean, SHARE)
    parts = read_parts(shop.merged)
    copy_weights(shop.merged, shop.out, parts)
    network = ImageTower().trainable()
    network.load_state_dict(tuned)
    parts[IMAGE_GRAPH_NAME] = save_graph(network, shop.out)
    save_heads(heads, shop.out, parts=parts, compact=True)
    finished = load_image_tower(shop.out, dtype=dtype)
    maker = FeatureMaker(finished, load_text_tower(shop.out))
    validation, _ = gather([shop.data["validation"]], maker)
    _tell_recall("finished", measure(load_heads(shop.out)[0], validation))


def _sources(data: Path) -> dict[str, Source]:
    return {
        "flickr8k": _open(data, "flickr8k/train-{00000..00001}.tar"),
        "openstax": InSentences(_open(data, "openstax-photos/train-{00000..00001}.tar")),
        "tiny-imagenet": _open(data, "tiny-imagenet/train-00000.tar", "names"),
        "grocery-store": _open(data, "grocery-store/train-00000.tar", "label"),
        "validation": _open(data, "flickr8k/val-00000.tar"),
    }


def _open(data: Path, shards: str, field: str | None = None) -> Source:
    return open_source(str(data / shards), text_field=field)


def _tell_features(what: str, done: int, total: int) -> None:
    if done % 1024 == 0 or done == total:
        click.echo(f"{what}: {done} of {total}")


def _tell_step(step: Step) -> None:
    if step.step % _TOLD_EVERY == 0 or step.step in (1, step.steps):
        click.echo(
            f"step {step.step} of {step.steps}: loss {step.loss:.3f}, scale {step.scale:.1f}, "
            f"{step.pairs_per_second:.0f} pairs a second, {time.process_time():.0f} s of processor"
        )


def _tell_recall(what: str, recall: Recall) -> None:
    for language, metrics in recall.items():
        cells = [
            " ".join(f"{100 * metrics[f'{way}_retrieval_recall@{k}']:.1f}" for k in (1, 5, 10))
            for way in ("image", "text")
        ]
        click.echo(f"{what}, {language}: text -> image {cells[0]}, image -> text {cells[1]}")


if __name__ == "__main__":
    try:
        starter.main(standalone_mode=False)
    except DiptychError as error:
        click.echo(one_line(error), err=True)
        sys.exit(exit_code(error))


_CREDIT = re.compile(
    r"\s*\((?:credit|attribution|photo|crédito|źródło)\b[^()]*(?:\([^()]*\)[^()]*)*\)?",
    re.IGNORECASE,
)
_END = re.compile(r"(?<=[.!?])\s+(?=[^\W\d_a-z])")
_LEAST, _MOST = 2, 40
"""Words in a sentence; shorter and longer ones are left out."""
_PER_CAPTION = 3
"""Later sentences speak of details."""


def sentences(caption: str) -> list[str]:
    """The first sentences without credits; the first words where no sentence is of usable length.

    Example:
        >>> sentences("A dog runs. It is brown. (credit: A. Nonymous)")
        ['A dog runs.', 'It is brown.']
    """
    found = [one.strip() for one in _END.split(_CREDIT.sub("", caption))]
    usable = [one for one in found if _LEAST <= len(one.split()) <= _MOST]
    return usable[:_PER_CAPTION] or [" ".join(caption.split()[:_MOST])]


class InSentences(SourceWrapper):
    """A source whose captions are sentences. Rejects pass through."""

    def __iter__(self) -> Iterator[Row]:
        for row in self.source:
            if isinstance(row, Record) and row.texts:
                texts = {
                    language: tuple(one for caption in captions for one in sentences(caption))
                    for language, captions in row.texts.items()
                }
                yield replace(row, texts=texts)
            else:
                yield row
