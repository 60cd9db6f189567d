"""Sources -> what a step over frozen towers needs: features, captions, and who is whose negative.

The towers are frozen, so each picture and each caption goes through them once. A rehearsal adds
pairs made without pictures: the ImageNet classifier's own idea of each class, with its name. The
captions at hand speak of few things; the frozen tower knows a thousand, and its classifier tells in
which direction of feature space each lies: row c of its weights. A pseudo-picture of class c is a
feature vector moved from the mean in that direction, on the background of a real picture (the
scatter of real ones around it). Rehearsing these pairs keeps the names in reach, in the manner of
rehearsal against catastrophic forgetting (Robins 1995). Called by `models.training.starter`; knows
nothing of heads or losses.

Legend: N pictures, M captions, C classes, F image features, S sentence features.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

import torch
from torch import Tensor
from torch.nn import functional

from models.encoders.starter.description import IMAGENET_CLASSES
from models.encoders.starter.heads import TEMPLATES, class_names
from models.encoders.starter.image_tower import load_classifier
from models.errors import SourceError
from models.labels.prompts import build_prompts
from models.sources.fields import said
from models.sources.records import HoldOut, Record, Reject, Source
from models.training.features.maker import FeatureMaker


@dataclass(slots=True)
class Gathered:
    """What the sources held, told before the first step."""

    pictures: int = 0
    captions: Counter[str] = field(default_factory=Counter)
    """Captions by language; prompts made of class names count as `class names`."""
    classes: int = 0
    without_caption: int = 0
    rejects: list[Reject] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        return {
            "pictures": self.pictures,
            "captions": dict(sorted(self.captions.items())),
            "classes": self.classes,
            "without_caption": self.without_caption,
            "rejected": len(self.rejects),
        }

    def lines(self) -> list[str]:
        """What the towers made of it, for people."""
        captions = ", ".join(f"{count} {name}" for name, count in sorted(self.captions.items()))
        lines = [f"used: {self.pictures} pictures; captions: {captions}"]
        if self.classes:
            lines.append(f"      {self.classes} classes by name")
        return lines


class Kind(IntEnum):
    """What part a picture plays in a batch."""

    MAIN = 0
    EXTRA = 1
    """Captioned, but of another kind than what is to be learned: drawn at random."""
    CLASS = 2
    """Its captions are prompts around a class name, not sentences of its own."""


@dataclass(slots=True)
class _Picture:
    texts: list[tuple[str, tuple[str, ...]]]
    """(language, captions)"""
    sha256: str
    group: str
    kind: Kind
    key: str


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pictures with their captions, as tower features.

    A picture's captions are kept by language in two steps, so that each language has the same
    chance however many captions it has: picture -> choices -> captions.
    """

    image_NF: Tensor
    caption_MS: Tensor
    group_N: Tensor
    """Pictures with equal numbers (the same bytes, the same class) are not negatives."""
    kind_N: Tensor
    """`Kind` of every picture."""
    choice_start_N: Tensor
    choice_count_N: Tensor
    caption_start: Tensor
    caption_count: Tensor
    languages: tuple[str, ...]
    caption_language: tuple[int, ...]
    """Index into `languages` of every choice."""
    keys: tuple[str, ...] = ()
    """Of every picture, to name it when something is wrong with it."""
    said_M: Tensor | None = None
    """Captions with equal numbers say the same; None where no two do."""

    def __len__(self) -> int:
        return len(self.image_NF)

    def part(self, picture_n: Tensor) -> Pairs:
        """Some of the pictures, with all that belongs to them."""
        return replace(
            self,
            image_NF=self.image_NF[picture_n],
            group_N=self.group_N[picture_n],
            kind_N=self.kind_N[picture_n],
            choice_start_N=self.choice_start_N[picture_n],
            choice_count_N=self.choice_count_N[picture_n],
            keys=tuple(self.keys[at] for at in picture_n.tolist()),
        )

    def draw_captions(self, picture_B: Tensor, generator: torch.Generator) -> Tensor:
        """One caption a picture: a language at random, then a caption of it -> [B], their rows."""
        choice_B = _draw(self.choice_start_N[picture_B], self.choice_count_N[picture_B], generator)
        return _draw(self.caption_start[choice_B], self.caption_count[choice_B], generator)

    def groups(self, picture_B: Tensor, caption_BK: Tensor) -> Tensor:
        """`Batch.group_B` of pictures with these captions -> [B, 1 + K + C]."""
        said_M = torch.arange(len(self.caption_MS)) if self.said_M is None else self.said_M
        at_B = torch.arange(len(picture_B))
        choice, owner = _spread(
            self.choice_start_N[picture_B], self.choice_count_N[picture_B], at_B
        )
        caption, owner = _spread(self.caption_start[choice], self.caption_count[choice], owner)
        count_B = owner.bincount(minlength=len(picture_B))
        said_BK = said_M[caption_BK]
        own_BC = said_BK[:, :1].repeat(1, int(count_B.max()))
        own_BC[owner, torch.arange(len(owner)) - (count_B.cumsum(0) - count_B)[owner]] = said_M[
            caption
        ]
        return torch.cat([self.group_N[picture_B][:, None], said_BK, own_BC], dim=1)

    def of_language(self, language: str) -> tuple[Tensor, list[int]]:
        """(captions [m, S], the picture each belongs to) for evaluation."""
        rows: list[int] = []
        owners: list[int] = []
        wanted = self.languages.index(language)
        for picture in range(len(self)):
            first = int(self.choice_start_N[picture])
            for choice in range(first, first + int(self.choice_count_N[picture])):
                if self.caption_language[choice] != wanted:
                    continue
                start, count = int(self.caption_start[choice]), int(self.caption_count[choice])
                rows += range(start, start + count)
                owners += [picture] * count
        return self.caption_MS[rows], owners


def _spread(start: Tensor, count: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Ranges that begin at `start` -> (all their members, the owner of each)."""
    owners = owner.repeat_interleave(count)
    begun = (start - (count.cumsum(0) - count)).repeat_interleave(count)
    return begun + torch.arange(len(owners)), owners


def _draw(start: Tensor, count: Tensor, generator: torch.Generator) -> Tensor:
    # double: float32 could round up to `count` itself
    chance = torch.rand(len(start), generator=generator, dtype=torch.float64)
    return start + (chance * count).long()


def gather(
    captioned: Sequence[Source],
    maker: FeatureMaker,
    *,
    extra: Sequence[Source] = (),
    classes: Sequence[Source] = (),
    holdout: int | None = None,
) -> tuple[Pairs, Gathered]:
    """Read the sources and compute their features.

    Args:
        captioned: sources whose captions are sentences.
        extra: more of these, for breadth.
        maker: computes, or remembers, tower features.
        classes: sources of single things whose captions are names, put into templates.
        holdout: leave one record in N of each class source out.

    Raises:
        SourceError: fewer than two pairs: a contrast needs something to differ from.
    """
    report = Gathered()
    pictures: list[_Picture] = []
    features: list[Tensor] = []
    kinds = [(Kind.MAIN, captioned), (Kind.EXTRA, extra), (Kind.CLASS, classes)]
    for kind, source in [(kind, source) for kind, sources in kinds for source in sources]:
        is_split = kind is Kind.CLASS and holdout is not None
        part = HoldOut(source, holdout or 1, held_out=False) if is_split else source
        found = list(_read(part, report, kind))
        image_NF, usable = maker.images(part, [picture.sha256 for picture in found], report.rejects)
        features.append(image_NF)
        pictures += [picture for picture, keep in zip(found, usable, strict=True) if keep]
    report.pictures = len(pictures)
    if len(pictures) < 2:
        raise SourceError(
            f"{len(pictures)} pictures with captions; contrastive training needs at least 2",
            code="too-few-pairs",
            hint="name the field the captions are in (--text-field), or another source",
        )
    return _assemble(pictures, torch.cat(features), maker, report), report


def _read(source: Source, report: Gathered, kind: Kind) -> Iterator[_Picture]:
    for row in source:
        if isinstance(row, Reject):
            report.rejects.append(row)
            continue
        if row.image is None or not row.texts:
            report.without_caption += 1
            continue
        digest = hashlib.sha256(row.image).hexdigest()
        if kind is Kind.CLASS:
            yield _class_picture(row, digest)
        else:
            yield _Picture(sorted(row.texts.items()), digest, digest, kind, row.key)


def _class_picture(row: Record, digest: str) -> _Picture:
    names = [name for texts in row.texts.values() for name in texts]
    prompts = tuple(prompt for line in build_prompts(names, TEMPLATES) for prompt in line)
    return _Picture([("class names", prompts)], digest, "class " + names[0], Kind.CLASS, row.key)


def _assemble(
    pictures: list[_Picture], image_NF: Tensor, maker: FeatureMaker, report: Gathered
) -> Pairs:
    row_of: dict[tuple[str, ...], tuple[int, int]] = {}
    texts: list[str] = []
    choice_start: list[int] = []
    choice_count: list[int] = []
    caption_start: list[int] = []
    caption_count: list[int] = []
    language_of: list[int] = []
    languages: dict[str, int] = {}
    groups: dict[str, int] = {}
    group: list[int] = []
    for picture in pictures:
        choice_start.append(len(caption_start))
        choice_count.append(len(picture.texts))
        group.append(groups.setdefault(picture.group, len(groups)))
        for language, captions in picture.texts:
            if captions not in row_of:  # the prompts of a class serve all its pictures
                row_of[captions] = (len(texts), len(captions))
                texts += captions
                report.captions[language] += len(captions)
            start, count = row_of[captions]
            caption_start.append(start)
            caption_count.append(count)
            language_of.append(languages.setdefault(language, len(languages)))
    report.classes = len({name for name in groups if name.startswith("class ")})
    return Pairs(
        image_NF=image_NF,
        caption_MS=maker.texts(texts),
        group_N=torch.tensor(group),
        kind_N=torch.tensor([int(picture.kind) for picture in pictures]),
        choice_start_N=torch.tensor(choice_start),
        choice_count_N=torch.tensor(choice_count),
        caption_start=torch.tensor(caption_start),
        caption_count=torch.tensor(caption_count),
        languages=tuple(languages),
        caption_language=tuple(language_of),
        keys=tuple(picture.key for picture in pictures),
        said_M=torch.tensor([said(text) for text in texts], dtype=torch.long),
    )


BACKGROUND = 0.7
"""How much of a real picture's own deviation from the mean stays in a pseudo-picture."""


class Rehearsal:
    """Draws pseudo-pairs; every class is equally likely."""

    def __init__(self, image_NF: Tensor, maker: FeatureMaker) -> None:
        weight_CF, _ = load_classifier()
        self._direction_CF = functional.normalize(weight_CF - weight_CF.mean(dim=0), dim=1)
        self._image_NF = image_NF
        self._mean_F = image_NF.mean(dim=0)
        self._spread = (image_NF - self._mean_F).norm(dim=1).mean()
        prompts: list[str] = []
        counts = []
        for names in class_names():
            lines = [prompt for line in build_prompts(names, TEMPLATES) for prompt in line]
            prompts += lines
            counts.append(len(lines))
        self._text_MS = maker.texts(prompts)
        self._said_M = torch.tensor([said(prompt) for prompt in prompts])
        self._count_C = torch.tensor(counts)
        self._start_C = self._count_C.cumsum(0) - self._count_C

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(pseudo features [n, F], captions [n, S], class [n], what the captions say [n])."""
        class_B = torch.randint(IMAGENET_CLASSES, (size,), generator=generator)
        other_B = torch.randint(len(self._image_NF), (size,), generator=generator)
        strength_B1 = self._spread * (0.5 + torch.rand(size, 1, generator=generator))
        features_BF = (
            self._mean_F
            + strength_B1 * self._direction_CF[class_B]
            + BACKGROUND * (self._image_NF[other_B] - self._mean_F)
        ).relu()  # pooled ReLU6 features are never negative
        chance_B = torch.rand(size, generator=generator, dtype=torch.float64)
        caption_B = self._start_C[class_B] + (chance_B * self._count_C[class_B]).long()
        return features_BF, self._text_MS[caption_B], class_B, self._said_M[caption_B]
