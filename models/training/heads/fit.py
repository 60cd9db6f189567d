"""A class head from embedded, labelled pictures, by one of three ways.

Puts `linear`, `adapter` and `prompts` behind one call; knows no source, file or command.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.encoder import Encoder
from models.errors import SourceError
from models.labels.class_head import Adapter, ClassHead, Kind
from models.labels.prompts import check_labels
from models.labels.zeroshot import class_matrix
from models.sources.embedded import Collected
from models.training.pair import TrainablePair
from models.vectors import Vectors

KINDS: Final[tuple[Kind, ...]] = ("linear", "adapter", "prompts")


@dataclass(frozen=True, slots=True)
class Tuned:
    """A head and how it came to be.

    Attributes:
        parameters: numbers that learned.
        pictures: learned from.
        held_back: of these, on how many the choice was made.
        chosen: the penalty's strength, or the number of epochs.
        tried: accuracy on what was held back, by what was tried.
    """

    head: ClassHead
    parameters: int
    pictures: int
    held_back: int
    chosen: float
    tried: dict[str, float]


def labelled(collected: Collected) -> tuple[Vectors, npt.NDArray[np.int64], list[str]]:
    """(rows of pictures with a label, the position of each label, the labels in order)

    Raises:
        SourceError: fewer than two labels.
        InvalidLabelsError: a label that cannot be one (see `models.labels.prompts`).
    """
    at = [number for number, label in enumerate(collected.labels) if label is not None]
    found = [str(collected.labels[number]).strip() for number in at]
    labels = sorted(set(found))
    if len(labels) < 2:
        raise SourceError(
            f"the source holds {len(labels)} labels; a choice needs two",
            code="no-labels",
            hint="name the field they are in: --label-field label",
        )
    check_labels(labels)
    position = {label: number for number, label in enumerate(labels)}
    target_N = np.array([position[label] for label in found], dtype=np.int64)
    return np.ascontiguousarray(collected.image_ND[at]), target_N, labels


def fit_head(
    kind: Kind,
    encoder: Encoder,
    collected: Collected,
    *,
    templates: Sequence[str],
    pair: Callable[[], TrainablePair] | None = None,
    epochs: int | None = None,
    seed: int = 0,
) -> Tuned:
    """Learn to tell the labels of a source apart.

    Args:
        encoder: what embedded it.
        templates: prompts of the class directions that an adapter is trained against.
        pair: loads the same pair as a module; needed for prompts only.
        epochs: at most so many, of adapters and prompts.

    Raises:
        SourceError, InvalidLabelsError: see `labelled`.
        TrainingError: the pair's text tower takes no learned prompts.
    """
    image_ND, target_N, labels = labelled(collected)
    adapter: Adapter | None = None
    bias_C: npt.NDArray[np.float32] = np.zeros(len(labels), dtype=np.float32)
    scale = encoder.logit_scale
    limit: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    if kind == "linear":
        from models.training.heads.linear import fit_linear

        linear = fit_linear(image_ND, target_N, len(labels), seed=seed)
        weight_CD, bias_C, scale = linear.weight_CD, linear.bias_C, 1.0
        parameters, chosen = weight_CD.size + bias_C.size, linear.strength
        held, tried = linear.held_back, {f"{key:.0e}": one for key, one in linear.tried.items()}
    elif kind == "adapter":
        from models.training.heads.adapter import fit_adapter

        weight_CD = class_matrix(encoder, labels, templates)
        trained = fit_adapter(image_ND, target_N, weight_CD, scale, seed=seed, **limit)
        adapter = trained.adapter
        parameters, chosen = adapter.down_RD.size + adapter.up_DR.size, float(trained.epochs)
        held, tried = trained.held_back, _numbered(trained.tried)
    else:
        from models.training.heads.learned_prompts import learn_prompts

        assert pair is not None, "learned prompts need the pair as a module"
        learned = learn_prompts(pair(), image_ND, target_N, labels, seed=seed, **limit)
        weight_CD = learned.class_CD
        parameters, chosen = learned.context * learned.width, float(learned.epochs)
        held, tried = learned.held_back, _numbered(learned.tried)
    head = ClassHead(
        kind=kind,
        labels=tuple(labels),
        weight_CD=weight_CD,
        bias_C=bias_C,
        scale=scale,
        adapter=adapter,
        model=encoder.fingerprint.model,
        encoder=encoder.fingerprint.digest,
    )
    return Tuned(head, int(parameters), len(target_N), held, chosen, tried)


def _numbered(tried: Sequence[float]) -> dict[str, float]:
    return {str(epoch): accuracy for epoch, accuracy in enumerate(tried)}
