"""The starter pair in training: its heads, over features of frozen towers that were computed once.

Made by `models.training.pair.load_trainable`; the stages of its recipe, in which towers move too,
are in `models.training.starter_stages`. Two judges of captions, each of which has never seen what
it judges, are trained here as well.

Legend: B pairs, N pictures, M captions, K captions a step, F image features, S sentence features.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from models.encoder import PreparedText
from models.encoders.base.model_id import parse_model_id
from models.encoders.starter.description import HeadsConfig, read_parts
from models.encoders.starter.heads import (
    StarterHeads,
    concept_matrix,
    head_arrays,
    load_heads,
    save_heads,
)
from models.encoders.starter.image_tower import ImageTower
from models.encoders.starter.pair import (
    STARTER_DIRECTORY,
    StarterEncoder,
    load_image_tower,
    load_text_tower,
    starter_dtype,
)
from models.encoders.starter.text_tower import TextTower
from models.encoders.starter.tuned_weights import copy_weights
from models.errors import ModelError
from models.sources.records import HoldOut, Source
from models.training.checkpoint import write_tensors
from models.training.config import TrainConfig
from models.training.distributed import World
from models.training.features.maker import FeatureMaker
from models.training.features.pairs import Kind, Pairs, Rehearsal, gather
from models.training.loop import derived
from models.training.losses import InfoNCEObjective, Objective
from models.training.pair import (
    Batch,
    Feed,
    PairRequest,
    TrainablePair,
    TrainingData,
    Watching,
    refuse_shares,
)
from models.training.record import Progress, Recall, Step, recall_of
from models.training.run import MakeObjective, train_unkept

JUDGED_EPOCHS: Final = 8
"""Enough to tell right from wrong; more teaches the wrong ones."""
HERE: Final = World(0, 1, torch.device("cpu"))


class StarterPair(TrainablePair):
    """Heads that learn over features of towers at rest.

    Args:
        heads: fresh or trained before.
        maker: computes, or remembers, features of both towers; needed to read sources.
        directory: the pair whose towers the heads sit on; its tuned weights come along.
        weights_sha256: of the heads; empty for fresh ones.
    """

    def __init__(
        self,
        heads: StarterHeads,
        maker: FeatureMaker | None = None,
        *,
        directory: Path | None = None,
        weights_sha256: str = "",
    ) -> None:
        self.module: Any = heads
        self.maker = maker
        self.directory = directory
        self.weights_sha256 = weights_sha256

    @property
    def kind(self) -> str:
        return "fresh starter" if self.fresh else "starter"

    @property
    def holds_back(self) -> bool:
        """The recipe of the shipped heads starts fresh and uses all it is given."""
        return not self.fresh

    @property
    def decodes_first(self) -> bool:
        return True

    @property
    def log_scale(self) -> nn.Parameter:
        scale: nn.Parameter = self.module.scale.log_scale
        return scale

    def image_rows(self, image_BX: Tensor) -> Tensor:
        rows_BD: Tensor = self.module.embed_images(image_BX)
        return rows_BD

    def text_rows(self, text_MX: Tensor) -> Tensor:
        rows_MD: Tensor = self.module.embed_texts(text_MX)
        return rows_MD

    def prepare_text(self, text: str) -> PreparedText:
        assert self.maker is not None
        return self.maker.text_tower.prepare(text)

    def arithmetic(self, precision: str, device: torch.device) -> str:  # noqa: ARG002
        """fp32: the precision that was asked for is that of the towers at rest."""
        return "fp32"

    def objective(self, config: TrainConfig) -> Objective:
        # a picture is a row of numbers here, so the logits are most of the work: in one product
        return InfoNCEObjective(self.log_scale, label_smoothing=config.label_smoothing, chunk=None)

    def prepare(
        self,
        feeds: Sequence[Feed],
        validation: Sequence[Source],
        config: TrainConfig,
        world: World,
        *,
        workers: int,  # noqa: ARG002
        watching: Watching,
    ) -> TrainingData:
        """Every picture and caption goes through the towers once, before the first step."""
        assert self.maker is not None
        self.maker.on_progress = watching.on_features
        sources = {feed.kind: list(feed.sources) for feed in feeds}
        pairs, report = gather(
            sources.get("main", []),
            self.maker,
            extra=sources.get("extra", []),
            classes=sources.get("class", []),
        )
        for line in report.lines():
            watching.on_note(line)
        rejects, measured = list(report.rejects), None
        if validation:
            measured, val_report = gather(validation, self.maker)
            rejects += val_report.rejects
        for reject in rejects:
            watching.on_reject(reject)
        rehearsal = Rehearsal(pairs.image_NF, self.maker) if config.concept_share else None
        data = self.over(pairs, config, world, validation=measured, rehearsal=rehearsal)
        return replace(data, described={"features": report.to_dict()})

    def over(
        self,
        pairs: Pairs,
        config: TrainConfig,
        world: World = HERE,
        *,
        validation: Pairs | None = None,
        rehearsal: Rehearsal | None = None,
    ) -> TrainingData:
        """The same of features that are at hand; None rehearses nothing, whatever the config."""
        batches = FeatureBatches(pairs, config, world, rehearsal)
        if validation is None:
            return TrainingData(batches.per_epoch, batches)
        measured = FeatureValidation(self, validation)
        return TrainingData(batches.per_epoch, batches, lambda: measured)

    def save(self, directory: Path) -> None:
        parts = {}
        if self.directory is not None:
            parts = read_parts(self.directory)
            copy_weights(self.directory, directory, parts)
        save_heads(self.module, directory, parts=parts)

    def checkpoint(self, directory: Path) -> str:
        """Not as a pair, whose file rounds the heads to fp16."""
        name = "module.safetensors"
        write_tensors(directory / name, self.module.state_dict())
        return name


class FeatureBatches:
    """Batches of main, extra and class pictures and of rehearsed concepts, as features.

    A step's batch is a matter of seed and step: a run continues anywhere.

    Raises:
        SourceError: too few pairs for the batch and ranks.
    """

    def __init__(
        self, pairs: Pairs, config: TrainConfig, world: World, rehearsal: Rehearsal | None
    ) -> None:
        self._pairs = pairs
        self._rehearsal = rehearsal
        self._config = config
        self._world = world
        by_kind = {kind: (pairs.kind_N == kind).nonzero()[:, 0] for kind in Kind}
        # the first kind that has pictures is what epochs go over; the others are drawn from
        main = next(kind for kind in Kind if len(by_kind[kind]))
        self._main_N = by_kind[main]
        shares = {Kind.EXTRA: config.extra_share, Kind.CLASS: config.class_share}
        self._drawn = [
            (by_kind[kind], round(config.batch_size * share))
            for kind, share in shares.items()
            if kind is not main and len(by_kind[kind])
        ]
        self._rehearsed = round(config.batch_size * config.concept_share) if rehearsal else 0
        others = self._rehearsed + sum(count for _, count in self._drawn)
        self._size = min(max(2, config.batch_size - others), len(self._main_N))
        self.per_epoch = len(self._main_N) // self._size
        refuse_shares(self._size + others, world)

    def __call__(self, first: int) -> Iterator[Batch]:
        """Batch `first` and those after it, without end."""
        seed, order_N, ordered = self._config.seed, self._main_N, -1
        for step in count(first):
            epoch, at = divmod(step, self.per_epoch)
            if epoch != ordered:
                turn = torch.Generator().manual_seed(derived(seed, epoch, 0, 1))
                order_N = self._main_N[torch.randperm(len(self._main_N), generator=turn)]
                ordered = epoch
            picture_B = order_N[at * self._size : (at + 1) * self._size]
            yield self._batch(picture_B, torch.Generator().manual_seed(derived(seed, step, 0, 2)))

    def _batch(self, picture_B: Tensor, dice: torch.Generator) -> Batch:
        pairs = self._pairs
        for pool_N, drawn in self._drawn:
            chosen = torch.randint(len(pool_N), (drawn,), generator=dice)
            picture_B = torch.cat([picture_B, pool_N[chosen]])
        image_BF = pairs.image_NF[picture_B]
        caption_BK = torch.stack(
            [pairs.draw_captions(picture_B, dice) for _ in range(self._config.captions)], dim=1
        )
        caption_BKS, group_B = pairs.caption_MS[caption_BK], pairs.groups(picture_B, caption_BK)
        keys = [pairs.keys[at] if pairs.keys else str(at) for at in picture_B.tolist()]
        if self._rehearsal is not None and self._rehearsed:
            pseudo_BF, name_BS, concept_B, said_B = self._rehearsal.draw(self._rehearsed, dice)
            image_BF = torch.cat([image_BF, pseudo_BF])
            name_BKS = name_BS[:, None].expand(-1, caption_BKS.shape[1], -1)
            caption_BKS = torch.cat([caption_BKS, name_BKS])
            concept_BG = said_B[:, None].repeat(1, group_B.shape[1])
            concept_BG[:, 0] = concept_B + int(pairs.group_N.max()) + 1
            group_B = torch.cat([group_B, concept_BG])
            keys += [f"(class {number} of ImageNet)" for number in concept_B.tolist()]
        own = len(keys) // self._world.size
        mine = slice(self._world.rank * own, (self._world.rank + 1) * own)
        return Batch(
            image_BX=image_BF[mine],
            text_MX=caption_BKS[mine].flatten(0, 1),
            group_B=group_B[mine],
            keys=tuple(keys[mine]),
        )


class FeatureValidation:
    """Captioned pictures to measure a pair on, as features."""

    def __init__(self, pair: StarterPair, pairs: Pairs) -> None:
        self._pair = pair
        self._pairs = pairs

    def measure(self) -> Recall:
        return measure(self._pair.module, self._pairs)


@torch.inference_mode()
def measure(heads: StarterHeads, pairs: Pairs) -> Recall:
    """Recall@1/5/10 both ways, for each language of the captions."""
    was = heads.training
    heads.eval()
    image_ND = heads.embed_images(pairs.image_NF.to(heads.device)).cpu().numpy()
    texts = {}
    for language in sorted(pairs.languages):
        caption_MS, owners = pairs.of_language(language)
        texts[language] = heads.embed_texts(caption_MS.to(heads.device)).cpu().numpy(), owners
    heads.train(was)
    return recall_of(image_ND, texts, contents=pairs.group_N.tolist())


def train_heads(
    pair: StarterPair,
    pairs: Pairs,
    config: TrainConfig,
    *,
    validation: Pairs | None = None,
    rehearsal: Rehearsal | None = None,
    on_step: Callable[[Step], None] | None = None,
    make_objective: MakeObjective | None = None,
) -> Progress:
    """Train a pair in place on features at hand, without files: a stage of a recipe.

    Raises:
        TrainingError: `loss-not-finite`.
    """
    world = World(0, 1, pair.module.device)
    data = pair.over(pairs, config, world, validation=validation, rehearsal=rehearsal)
    return train_unkept(pair, data, config, world, on_step=on_step, make_objective=make_objective)


def load_starter_pair(request: PairRequest) -> StarterPair:
    """See `models.training.pair.load_trainable`; its towers are run on the request's device."""
    own = parse_model_id(request.model).path  # of a starter that was trained before
    if request.fresh and own is not None:
        raise ModelError(
            f"a fresh starter begins on the package's towers, not on those of {request.model}",
            hint="--init fresh --model starter, or leave --init out to go on from it",
        )
    directory = None if request.fresh else own or STARTER_DIRECTORY
    dtype = starter_dtype(request.precision, request.device)
    if directory is None:
        texts, tower = TextTower(), ImageTower(device=request.device, dtype=dtype)
        heads, sha256 = fresh_heads(HeadsConfig(), texts, seed=request.seed), ""
    else:
        texts = load_text_tower(directory)
        tower = load_image_tower(directory, device=request.device, dtype=dtype)
        heads, sha256 = load_heads(directory)
    maker = FeatureMaker(tower, texts, cache=request.cache)
    return StarterPair(heads, maker, directory=directory, weights_sha256=sha256)


def fresh_heads(shape: HeadsConfig, tower: TextTower, *, seed: int) -> StarterHeads:
    """Heads at their starting point: the identity for texts, ConSE for pictures."""
    torch.manual_seed(seed)
    heads = StarterHeads(shape)
    heads.image.concept_CD.copy_(concept_matrix(tower))
    return heads


def halves(sources: Sequence[Source]) -> tuple[list[Source], list[Source]]:
    """The records of all sources in two disjoint parts of about the same size.

    By the bytes of their pictures: rows of one picture are judged by a pair that saw none of them.
    """
    first = [HoldOut(source, 2, held_out=False, by_picture=True) for source in sources]
    second = [HoldOut(source, 2, held_out=True, by_picture=True) for source in sources]
    return list(first), list(second)


def judges(
    parts: Sequence[Sequence[Source]],
    pair: StarterPair,
    config: TrainConfig,
) -> list[StarterEncoder]:
    """For each part a pair whose heads were trained on the other one: it never saw what it judges.

    A pair that was trained on wrong captions has learned to like them: judging its own training
    set, it finds half of what is wrong in it. Trained on one half and judging the other, it finds
    most (on Flickr8k with 30 % of the captions dealt out among each other, 79 % of the loss came
    back where judging itself brought 27 %; tests/bench/noisy_captions.py).

    Args:
        parts: see `halves`; readable more than once.
        pair: as it starts; its heads stay as they are.
        config: of the run; epochs, and what picks among them, are the judges' own.

    Raises:
        SourceError: a half has fewer than two pairs.
        TrainingError: see `models.training.loop.train`.
    """
    config = replace(
        config,
        epochs=min(config.epochs, JUDGED_EPOCHS),
        keep="last",
        patience=0,
        concept_share=0.0,
    )
    maker = pair.maker
    assert maker is not None
    found = []
    for number in range(len(parts)):
        pairs, _ = gather(parts[1 - number], maker)
        heads = copy.deepcopy(pair.module)
        train_heads(StarterPair(heads), pairs, config)
        heads.requires_grad_(False)
        digest = hashlib.sha256()
        for value in heads.state_dict().values():
            digest.update(value.contiguous().numpy().tobytes())
        name = f"judge {number + 1} of {len(parts)}"
        towers = (lambda: maker.image_tower), (lambda: maker.text_tower)
        rows = head_arrays(heads)
        found.append(StarterEncoder(name, *towers, rows, weights_sha256=digest.hexdigest()))
    return found
