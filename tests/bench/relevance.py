"""Does relevance tell queries that an index can answer from those it cannot?

    python tests/bench/relevance.py --index photos.index [--real FILE] [--nothing FILE] [--plot PNG]

Real queries are the lines of --real, by default the distinct captions of the index in `--language`.
Queries without an answer are lines `kind<TAB>text`, by default `queries/nothing_here.tsv`: keyboard
noise, word salad, things that cannot be photographed, and things that simple collections lack; none
of them is in the built-in list that calibrates an index. `absent` is reported apart: whether such a
thing is in a picture is what the model itself gets wrong, and the list must fit the collection.

Compared by the area under the ROC curve of each query's best hit: relevance, the raw cosine, the
softmax probability over the index, and the z-score against the index's mean and covariance. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from indexer.format.version import OpenVersion, open_version
from indexer.search.relevance_file import read_background
from models.encoder import Encoder
from models.encoders.registry import load_encoder
from models.vectors import Vectors

Floats = npt.NDArray[np.float64]
_NOTHING = Path(__file__).with_name("queries") / "nothing_here.tsv"
_COLOURS = {"relevance": "#0b6e4f", "cosine": "#8d99ae", "softmax": "#e09f3e", "z-score": "#9e2a2b"}
GATE = 0.5


def main() -> None:
    """Measure, draw, print."""
    options = _options()
    version = open_version(options.index)
    encoder = load_encoder(
        options.model or version.manifest.fingerprint.model, threads=options.threads
    )
    assert encoder.fingerprint.digest == version.manifest.fingerprint.digest
    real = _lines(options.real) if options.real else _captions(version, options.language)
    if options.limit and len(real) > options.limit:
        real = real[:: -(-len(real) // options.limit)]
    kinds, nothing = _nothing(options.nothing)
    good = _statistics(version, encoder, _embed(encoder, real))
    bad = _statistics(version, encoder, _embed(encoder, nothing))
    version.close()
    nonsense = kinds != "absent"
    report: dict[str, Any] = {
        "index": options.name or options.index.name,
        "model": encoder.fingerprint.model,
        "weights": encoder.fingerprint.weights_sha256[-12:],
        "images": version.manifest.live.images,
        "real": len(real),
        "nothing": {kind: int((kinds == kind).sum()) for kind in dict.fromkeys(kinds)},
        "auc": {name: round(auc(good[name], bad[name]), 4) for name in good},
        "auc_nonsense": {name: round(auc(good[name], bad[name][nonsense]), 4) for name in good},
        "auc_absent": {name: round(auc(good[name], bad[name][~nonsense]), 4) for name in good}
        if not nonsense.all()
        else None,
        "gate": {
            "real_kept": round(float((good["relevance"] > GATE).mean()), 4),
            "passed": {
                kind: round(float((bad["relevance"][kinds == kind] > GATE).mean()), 4)
                for kind in dict.fromkeys(kinds)
            },
        },
    }
    if options.plot:
        _draw(options.plot, report, good, bad, nonsense)
    for name, area in report["auc"].items():
        print(f"{name:10} {area:.3f}   without absent things {report['auc_nonsense'][name]:.3f}")
    print(json.dumps(report))


def auc(positive: Floats, negative: Floats) -> float:
    """P(positive > negative) + P(equal) / 2, over all pairs."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left")
    up_to = np.searchsorted(ordered, positive, side="right")
    return float((below + up_to).mean() / 2 / len(negative))


def _statistics(version: OpenVersion, encoder: Encoder, query_QD: Vectors) -> dict[str, Floats]:
    """Of each query's best hit among the pictures, by four ways to score it."""
    background = read_background(version.root, version.manifest)
    assert background is not None, "the index was built without a background"
    parts = [
        segment.vectors_ND[~dead].astype(np.float32)
        for segment, dead in zip(version.segments, version.dead, strict=True)
        if segment.entry.modality == "image"
    ]
    image_ND = np.concatenate(parts)
    score_QN = (query_QD @ image_ND.T).astype(np.float64)
    best_Q = score_QN.max(axis=1)
    relevance = [
        background.relevance(query_D, [best], kind="text", target="images")
        for query_D, best in zip(query_QD, best_Q, strict=True)
    ]
    spread_DD = np.cov(image_ND.T, bias=True)
    deviation_Q = np.sqrt(np.einsum("qd,de,qe->q", query_QD, spread_DD, query_QD))
    share_QN = np.exp(encoder.logit_scale * (score_QN - best_Q[:, None]))
    return {
        "relevance": np.array([one[0] for one in relevance if one]),
        "cosine": best_Q,
        "softmax": 1.0 / share_QN.sum(axis=1),
        "z-score": (best_Q - query_QD @ image_ND.mean(axis=0)) / deviation_Q,
    }


def _embed(encoder: Encoder, texts: Sequence[str]) -> Vectors:
    return np.concatenate(
        [
            encoder.embed_texts([encoder.prepare_text(text) for text in texts[start : start + 64]])
            for start in range(0, len(texts), 64)
        ]
    )


def _captions(version: OpenVersion, language: str) -> list[str]:
    found: dict[str, None] = {}
    for segment in version.segments:
        if segment.entry.modality == "text":
            items = segment.items.items(range(segment.entry.rows)).values()
            found |= {item.text: None for item in items if item.text and item.language == language}
    assert found, f"no captions in {language!r}; name real queries with --real"
    return list(found)


def _nothing(path: Path) -> tuple[npt.NDArray[np.str_], list[str]]:
    rows = [line.split("\t", 1) for line in _lines(path)]
    return np.array([kind for kind, _ in rows]), [text for _, text in rows]


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _draw(
    path: Path,
    report: dict[str, Any],
    good: dict[str, Floats],
    bad: dict[str, Floats],
    nonsense: npt.NDArray[np.bool_],
) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 4.4), sharey=True, layout="constrained")
    chosen = {
        "against nonsense": (nonsense, report["auc_nonsense"]),
        "against nonsense and absent things": (np.ones(len(nonsense), dtype=bool), report["auc"]),
    }
    for axis, (title, (mask, areas)) in zip(axes, chosen.items(), strict=True):
        for name, values in good.items():
            steps = np.concatenate([[np.inf], np.sort(np.unique(np.r_[values, bad[name]]))[::-1]])
            kept = [(values >= step).mean() for step in steps]
            passed = [(bad[name][mask] >= step).mean() for step in steps]
            axis.plot(
                passed,
                kept,
                color=_COLOURS[name],
                linewidth=2.2 if name == "relevance" else 1.3,
                label=f"{name}  {areas[name]:.3f}",
            )
        gate = (bad["relevance"][mask] > GATE).mean(), (good["relevance"] > GATE).mean()
        axis.plot(*gate, "o", color=_COLOURS["relevance"], label="gate of no_good_match")
        axis.plot([0, 1], [0, 1], color="#cccccc", linewidth=0.8, zorder=0)
        axis.set(title=title, xlabel="queries without an answer let through", aspect="equal")
        axis.legend(loc="lower right", fontsize=8, frameon=False, title="area under the curve")
    axes[0].set_ylabel("real queries kept")
    figure.suptitle(
        f"{report['index']}: {report['images']} photographs, {report['real']} real queries, "
        f"{len(nonsense)} without an answer",
        fontsize=11,
    )
    figure.savefig(path, dpi=100)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--real", type=Path, help="one query a line")
    parser.add_argument("--nothing", type=Path, default=_NOTHING, help="kind<TAB>query a line")
    parser.add_argument("--language", default="en", help="of the captions taken as real queries")
    parser.add_argument("--limit", type=int, default=2000, help="of real queries")
    parser.add_argument("--name", help="what to call the collection")
    parser.add_argument("--model")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--plot", type=Path, help="draw the ROC here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
