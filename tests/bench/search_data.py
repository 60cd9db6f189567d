"""What `search.py` searches: real pictures widened to a million, and real captions that ask.

Few machines hold a million pictures, so each embedded picture stands for many: a copy is

    unit(b + r * z),   z ~ N(0, C) scaled to E|z|^2 = 1

where b is a real picture's vector and C the covariance of the differences between real pictures
and their nearest real neighbours. So copies differ from a picture along the directions, and with
the spectrum, in which real pictures differ from similar ones; noise with the same power in all D
directions (`--noise isotropic`) has no such structure and makes every index look worse. r is set
by bisection so that the median cosine of a row's nearest neighbour, among the widened rows, is the
median among the real pictures. (In a million real pictures neighbours would be nearer.)

Near-duplicate pictures (cosine above 0.98) are taken out of the base first. Queries are captions,
embedded, not widened. Everything is kept in a folder by its parameters, so that a second run, and
the other libraries, search the same bytes.

Shapes: N rows, B base pictures, Q queries, K neighbours, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
K = 10
DUPLICATE = 0.98
BLOCK = 16_384
Noise = Literal["neighbours", "isotropic"]


@dataclass(frozen=True)
class Data:
    """Rows float16 [N, D]; queries float32 [Q, D]; true rows int64 [Q, K]; captions for tuning."""

    rows_ND: npt.NDArray[np.float16]
    queries_QD: Vectors
    truth_QK: npt.NDArray[np.int64]
    captions_CD: Vectors
    about: dict[str, Any]


def embed_sources(sources: list[str], out: Path) -> None:
    """Pictures and captions of the sources with the starter pair -> `images`, `captions` (npz)."""
    import tempfile

    from indexer.ingest.build import build_index
    from indexer.search.snapshot import open_snapshot
    from models.encoders.registry import load_encoder
    from models.sources import open_source

    encoder = load_encoder("starter")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "base.index"
        build_index([open_source(name) for name in sources], path, encoder)
        with open_snapshot(path, fingerprint=encoder.fingerprint) as snapshot:
            segments = snapshot.opened.segments
            parts: dict[str, list[Any]] = {"image": [], "text": []}
            for segment in segments:
                parts[segment.entry.modality].append(segment.vectors_ND.astype(np.float32))
            np.savez(out, images=np.concatenate(parts["image"]),
                     captions=np.concatenate(parts["text"]))  # fmt: skip


def load(base: Path, rows: int, queries: int, noise: Noise, cache: Path, seed: int = 0) -> Data:
    """The benchmark's data, made or taken from the cache.

    The last `queries` of the shuffled captions ask; as many others are what the index may tune on.
    """
    cache.mkdir(parents=True, exist_ok=True)
    stored = np.load(base, allow_pickle=False)
    rng = np.random.default_rng(seed)
    captions = unit_rows(stored["captions"])[rng.permutation(len(stored["captions"]))]
    assert len(captions) >= 2 * queries, "too few captions"
    queries_QD, captions_CD = captions[-queries:], captions[:queries]
    name = f"rows-{rows}-{noise}-{seed}"
    base_BD = distinct(unit_rows(stored["images"]))
    real = float(np.median(nearest(base_BD, base_BD, skip_self=True)))
    if not (cache / f"{name}.npy").exists():
        widened = widen(base_BD, rows, noise, real, np.random.default_rng(seed + 1))
        np.save(cache / "unfinished.npy", widened)
        (cache / "unfinished.npy").rename(cache / f"{name}.npy")
    rows_ND = np.load(cache / f"{name}.npy", mmap_mode="r")
    truth = cache / f"{name}-truth-{queries}.npy"
    if not truth.exists():
        np.save(truth, exact(rows_ND, queries_QD, K))
    sample = rows_ND[:: max(1, rows // 500)].astype(np.float32)
    found = nearest(sample, rows_ND, skip_self=True)
    about = {
        "pictures": len(base_BD),
        "captions": len(captions),
        "noise": noise,
        "nearest_cosine_real": round(real, 3),
        "nearest_cosine_widened": round(float(np.median(found)), 3),
    }
    return Data(rows_ND, queries_QD, np.load(truth), captions_CD, about)


def unit_rows(rows_ND: Vectors) -> Vectors:
    """`models.vectors.unit_rows`, which the peers' environments do not have."""
    lengths = np.sqrt(np.einsum("nd,nd->n", rows_ND, rows_ND, dtype=np.float64))
    return (rows_ND / lengths[:, None]).astype(np.float32)


def distinct(base_BD: Vectors) -> Vectors:
    """The rows that are no near-duplicate of an earlier one."""
    kept = np.ones(len(base_BD), dtype=bool)
    for start in range(0, len(base_BD), 4096):
        scores = base_BD[start : start + 4096] @ base_BD.T
        later, earlier = np.nonzero(scores > DUPLICATE)
        kept[start + later[earlier < start + later]] = False
    return base_BD[kept]


def widen(
    base_BD: Vectors, rows: int, noise: Noise, cosine: float, rng: np.random.Generator
) -> npt.NDArray[np.float16]:
    """See the module."""
    factor_DD = np.eye(base_BD.shape[1]) / np.sqrt(base_BD.shape[1])
    if noise == "neighbours":
        neighbour_B = nearest(base_BD, base_BD, skip_self=True, rows=True)
        covariance = np.cov((base_BD - base_BD[neighbour_B]).T)
        values, vectors = np.linalg.eigh(covariance / np.trace(covariance))
        factor_DD = vectors * np.sqrt(np.maximum(values, 0))
    factor_DD = factor_DD.astype(np.float32).T
    copies = -(-rows // len(base_BD))

    def block(owners: npt.NDArray[np.int64], radius: float) -> Vectors:
        z_BD = rng.standard_normal((len(owners), base_BD.shape[1]), dtype=np.float32) @ factor_DD
        return unit_rows(base_BD[owners] + radius * z_BD)

    low, high = 0.05, 3.0
    probe = rng.choice(len(base_BD), min(100, len(base_BD)), replace=False)
    for _ in range(12):
        radius = (low + high) / 2
        crowd = block(np.repeat(probe, copies), radius)
        found = float(np.median(nearest(crowd[::7], crowd, skip_self=True)))
        low, high = (radius, high) if found > cosine else (low, radius)
    owners_N = rng.permutation(np.tile(np.arange(len(base_BD)), copies))[:rows]
    out = np.empty((rows, base_BD.shape[1]), dtype=np.float16)
    for start in range(0, rows, BLOCK):
        out[start : start + BLOCK] = block(owners_N[start : start + BLOCK], radius)
    return out


def nearest(queries_QD: Vectors, rows_ND: Any, *, skip_self: bool, rows: bool = False) -> Any:
    """Best cosine (or row) of each query; a query equal to a row may skip that one."""
    best_Q = np.full(len(queries_QD), -np.inf, dtype=np.float32)
    row_Q = np.zeros(len(queries_QD), dtype=np.int64)
    for start in range(0, len(rows_ND), BLOCK):
        part = rows_ND[start : start + BLOCK].astype(np.float32)
        for first in range(0, len(queries_QD), 1024):
            inside = slice(first, first + 1024)
            scores = queries_QD[inside] @ part.T
            if skip_self:
                scores[scores > 0.9995] = -np.inf
            top = scores.argmax(axis=1)
            value = scores[np.arange(len(scores)), top]
            better = value > best_Q[inside]
            best_Q[inside] = np.where(better, value, best_Q[inside])
            row_Q[inside] = np.where(better, top + start, row_Q[inside])
    return row_Q if rows else best_Q


def exact(rows_ND: Any, queries_QD: Vectors, k: int) -> npt.NDArray[np.int64]:
    """The true k best rows of each query, by multiplying it all: int64 [Q, K]."""
    best = np.zeros((len(queries_QD), 0), dtype=np.float32)
    rows = np.zeros((len(queries_QD), 0), dtype=np.int64)
    for start in range(0, len(rows_ND), BLOCK):
        scores = queries_QD @ rows_ND[start : start + BLOCK].astype(np.float32).T
        top = np.argpartition(scores, -k, axis=1)[:, -k:]
        best = np.concatenate([best, np.take_along_axis(scores, top, axis=1)], axis=1)
        rows = np.concatenate([rows, top + start], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, rows = (np.take_along_axis(one, order, axis=1) for one in (best, rows))
    return rows


def recall(rows_QK: npt.NDArray[np.int64], truth_QK: npt.NDArray[np.int64]) -> float:
    """Mean share of the true rows that were found."""
    shared = [
        len(set(found.tolist()) & set(true.tolist()))
        for found, true in zip(rows_QK, truth_QK, strict=True)
    ]
    return float(np.mean(shared)) / truth_QK.shape[1]
