"""What do words add to vectors? Recall of captioned pictures at several weights of the words.

    python tests/bench/hybrid.py SOURCE --text-field captions.en [--indexed 4] [--out FILE]

Every picture of SOURCE with captions enough is indexed with `--indexed` of them; one caption that
is not indexed is its query, and the picture itself the one right answer. Reported are R@1, R@5 and
R@10 of `Snapshot.search(hybrid=W)`; the control gives every picture the captions of another. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from indexer.format.items import Item, NewRow
from indexer.search.options import SearchOptions
from indexer.search.snapshot import open_snapshot
from indexer.store.writer import IndexWriter
from models.encoder import Encoder
from models.encoders.registry import load_encoder
from models.images.decode import decode_image
from models.sources import open_source
from models.sources.records import Record
from models.vectors import Vectors

WEIGHTS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
BATCH = 32
K = 10


def main() -> None:
    options = _options()
    encoder = load_encoder(options.model, threads=options.threads)
    keys, captions, pictures = [], [], []
    for record in open_source(options.source, text_field=options.text_field):
        if not isinstance(record, Record) or record.image is None:
            continue
        texts = next(iter(record.texts.values()), ())
        if len(texts) > options.indexed:
            keys.append(record.key)
            captions.append(texts)
            pictures.append(encoder.prepare_image(decode_image(record.image)))
    vectors_ND = _in_batches(encoder.embed_images, pictures)
    queries = [texts[0] for texts in captions]
    queries_QD = _in_batches(encoder.embed_texts, [encoder.prepare_text(text) for text in queries])
    given = [texts[1 : 1 + options.indexed] for texts in captions]
    others = given[:]
    random.Random(0).shuffle(others)
    report: dict[str, Any] = {
        "benchmark": "hybrid",
        "source": options.name or Path(options.source).name,
        "text_field": options.text_field,
        "pictures": len(keys),
        "captions_indexed": options.indexed,
        "model": encoder.fingerprint.model,
        "weights": encoder.fingerprint.weights_sha256[-12:],
    }
    for name, texts in (("own_captions", given), ("captions_of_another", others)):
        print(name)
        report[name] = _measure(encoder, keys, vectors_ND, texts, queries, queries_QD)
    report |= {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    print(json.dumps(report))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _measure(
    encoder: Encoder,
    keys: list[str],
    vectors_ND: Vectors,
    texts: list[tuple[str, ...]],
    queries: list[str],
    queries_QD: Vectors,
) -> dict[str, Any]:
    digest = hashlib.sha256(b"bench").hexdigest()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.index"
        with IndexWriter(path, encoder.fingerprint) as writer:
            segment = writer.new_segment("image")
            rows = [
                NewRow(
                    key,
                    Item(key, "image", "", None, None, None, None, {}, digest),
                    texts=words,
                )
                for key, words in zip(keys, texts, strict=True)
            ]
            segment.add(vectors_ND, rows)
            writer.commit([segment])
        with open_snapshot(path, fingerprint=encoder.fingerprint) as snapshot:
            for weight in WEIGHTS:
                started = time.perf_counter()
                found = snapshot.search(
                    queries_QD, SearchOptions(k=K, hybrid=weight), texts=queries
                )
                spent = (time.perf_counter() - started) / len(queries) * 1e3
                ranks = np.array(
                    [
                        next((at for at, hit in enumerate(hits) if hit.item.id == key), K)
                        for key, hits in zip(keys, found, strict=True)
                    ]
                )
                one = {f"R@{k}": round(float((ranks < k).mean()) * 100, 1) for k in (1, 5, 10)}
                results[f"{weight:.1f}"] = {**one, "ms_a_query": round(spent, 2)}
                print(f"  w {weight:.1f}: {results[f'{weight:.1f}']}", flush=True)
    return results


def _in_batches(embed: Any, prepared: list[Any]) -> Vectors:
    parts = [embed(prepared[at : at + BATCH]) for at in range(0, len(prepared), BATCH)]
    return np.concatenate(parts)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("--text-field", default="captions.en")
    parser.add_argument("--indexed", type=int, default=4, help="Captions that are indexed.")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--name", help="What the source is called in the report.")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
