"""How well pictures of no label are told from pictures of one, and how often at the default line.

    python tests/bench/none_of_these.py SOURCE --label-field names.0 --pictures 2000

Draws random sets of 3, 8 and 20 of the source's labels. Pictures of those labels should be
answered, all others are none of these. Prints, as one JSON line per set size: the AUROC of the
background's share, of the best background word instead of their mean and deviation, and of the
softmax's own doubt; and at several thresholds the share of strangers refused and of right answers
refused. Take pictures of classes that the pair was not trained on.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import numpy.typing as npt

from models.encoders.registry import load_encoder
from models.labels.zeroshot import (
    background_logits,
    background_matrix,
    best_of,
    chances,
    class_logits,
    class_matrix,
    none_of_these,
)
from models.sources import open_source
from models.sources.embedded import collect
from models.sources.records import FirstRows

Figures = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
SIZES = (3, 8, 20)
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def auroc(inside: Figures, outside: Figures) -> float:
    """The chance that a stranger scores above a picture of a label, ties counting half."""
    above = (outside[:, None] > inside[None, :]).mean()
    return float(above + 0.5 * (outside[:, None] == inside[None, :]).mean())


def share(flags: list[Flags]) -> float:
    """Of all draws together: one draw may hold no right answer at all."""
    return round(float(np.concatenate(flags).mean()), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--label-field", default="label")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--draws", type=int, default=15)
    options = parser.parse_args()
    encoder = load_encoder(options.model)
    source = open_source(options.source, label_field=options.label_field)
    collected = collect([FirstRows(source, options.pictures)], encoder)
    names = sorted({label for label in collected.labels if label is not None})
    target_N = np.array([-1 if label is None else names.index(label) for label in collected.labels])
    image_ND, scale = collected.image_ND, encoder.logit_scale
    # every label is embedded once; a set of labels is a choice of rows
    class_CD, word_WD = class_matrix(encoder, names), background_matrix(encoder)
    dice = np.random.default_rng(0)
    for size in (size for size in SIZES if size < len(names)):
        ours, one_word, doubt = [], [], []
        refused: dict[float, list[tuple[Flags, Flags]]] = {at: [] for at in THRESHOLDS}
        for _ in range(options.draws):
            chosen = dice.choice(len(names), size, replace=False)
            logits_NC = class_logits(image_ND, class_CD[chosen], logit_scale=scale)
            inside_N = np.isin(target_N, chosen)
            zero_N = background_logits(
                image_ND, word_WD, logit_scale=scale, deviations=best_of(size)
            )
            share_N = none_of_these(logits_NC, zero_N)
            word_N = class_logits(image_ND, word_WD, logit_scale=scale).max(axis=1)
            for scores, figure_N in (
                (ours, share_N),
                (one_word, none_of_these(logits_NC, word_N)),
                (doubt, 1.0 - chances(logits_NC).max(axis=1)),
            ):
                scores.append(auroc(figure_N[inside_N], figure_N[~inside_N]))
            right_N = inside_N & (chosen[logits_NC.argmax(axis=1)] == target_N)
            for at, rates in refused.items():
                rates.append((share_N[~inside_N] >= at, share_N[right_N] >= at))
        print(
            json.dumps(
                {
                    "labels": size,
                    "auroc": round(float(np.mean(ours)), 3),
                    "auroc_best_word": round(float(np.mean(one_word)), 3),
                    "auroc_softmax": round(float(np.mean(doubt)), 3),
                    "refused": {
                        str(at): {
                            "strangers": share([strangers for strangers, _ in rates]),
                            "right_answers": share([right for _, right in rates]),
                        }
                        for at, rates in refused.items()
                    },
                }
            )
        )


if __name__ == "__main__":
    main()
