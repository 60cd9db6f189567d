"""Two judges of captions, each of which has never seen what it judges.

A pair that was trained on wrong captions has learned to like them: judging its own training set, it
finds half of what is wrong in it. Trained on one half and judging the other, it finds most (on
Flickr8k with 30 % of the captions dealt out among each other, 79 % of the loss came back where
judging itself brought 27 %; tests/bench/noisy_captions.py). Which half a record is in hangs on its
key alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from models.encoders.starter.heads import StarterHeads
from models.encoders.starter.pair import StarterEncoder
from models.encoders.starter.towers import ImageTower
from models.sources.records import HoldOut, Source
from models.training.features.maker import FeatureMaker
from models.training.features.pairs import gather
from models.training.starter.config import TrainConfig
from models.training.starter.loop import Step, train

EPOCHS = 8
"""Enough to tell right from wrong; more teaches the wrong ones."""


def halves(sources: Sequence[Source]) -> tuple[list[Source], list[Source]]:
    """The records of all sources in two disjoint parts of about the same size."""
    first = [HoldOut(source, 2, held_out=False) for source in sources]
    second = [HoldOut(source, 2, held_out=True) for source in sources]
    return list(first), list(second)


def judges(
    parts: Sequence[Sequence[Source]],
    maker: FeatureMaker,
    tower: ImageTower,
    start: Callable[[], StarterHeads],
    config: TrainConfig,
    *,
    on_step: Callable[[Step], None] | None = None,
) -> list[StarterEncoder]:
    """For each part a pair whose heads were trained on the other one.

    Args:
        parts: see `halves`; readable more than once.
        maker: over the towers of the run.
        tower: its image tower.
        start: makes the heads that training starts from.
        config: of the run; epochs, and what picks among them, are the judges' own.

    Raises:
        SourceError: a half has fewer than two pairs.
        TrainingError: see `models.training.starter.loop.train`.
    """
    config = replace(
        config, epochs=min(config.epochs, EPOCHS), keep="last", patience=0, concept_share=0.0
    )
    found = []
    for number in range(len(parts)):
        pairs, _ = gather(parts[1 - number], maker)
        heads = train(start().requires_grad_(True), pairs, config, on_step=on_step).heads
        heads.requires_grad_(False)
        digest = hashlib.sha256()
        for value in heads.state_dict().values():
            digest.update(value.contiguous().numpy().tobytes())
        name = f"judge {number + 1} of {len(parts)}"
        found.append(
            StarterEncoder(name, tower, maker.text_tower, heads, weights_sha256=digest.hexdigest())
        )
    return found
