"""Make the golden index of format 1: what the first release wrote, to be read for ever.

    git worktree add old 2d32910 && cp tests/gold/index_format_1.py old/tests/gold/
    cd old && PYTHONPATH=.:tests python tests/gold/index_format_1.py ../tests/gold/index-format-1

Sixteen live items of the colour encoder in three segments, with declared fields, thumbnails, a
background, two languages, and the tombstones of an upsert. `answers.json` is what that release
answered to the searches of `SEARCHES`; later releases must answer the same.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fakes import COLOURS, ColourEncoder, halves
from indexes import NAMES, ListSource

from indexer.filters.declared import parse_fields
from indexer.filters.language import parse_filter
from indexer.ingest.build import BuildOptions, build_index
from indexer.search.options import SearchOptions
from indexer.search.snapshot import Snapshot, open_snapshot
from models.sources.records import Record

FIELDS = "year:int,tags:str[],sold:bool"
SEARCHES: list[dict[str, Any]] = [
    {"query": "red", "target": "images", "k": 20},
    {"query": "red blue", "target": "images", "k": 5},
    {"query": "绿", "target": "images", "k": 3},
    {"query": "a yellow cyan thing", "target": "texts", "k": 20},
    {"query": "white", "target": "images", "k": 4, "offset": 2},
    {"query": "red", "target": "images", "k": 9, "filter": {"field": "year", "gte": 2022}},
    {
        "query": "green",
        "target": "images",
        "k": 9,
        "filter": {
            "any": [{"field": "tags", "contains": "even"}, {"field": "label", "in": ["yellow"]}],
            "not": {"field": "sold", "eq": True},
        },
    },
    {"query": "black", "target": "texts", "k": 9, "filter": {"field": "language", "eq": "zh"}},
    {"query": "nothing of the kind", "target": "images", "k": 3},
]


def records(renewed: bool) -> list[Record]:
    """The first release's records, or the two of them that were renewed."""
    found = []
    for i, left in enumerate(NAMES):
        right = NAMES[(i * 3 + (4 if renewed else 1)) % len(NAMES)]
        texts = {"en": (f"a {left} and {right} picture",), "zh": ("红 or 黑",)}
        kept = {} if renewed else {"en": texts["en"], **({"zh": texts["zh"]} if i < 3 else {})}
        found.append(
            Record(
                key=f"p{i:02}",
                uri=f"file:///pictures/p{i:02}.png",
                image=halves(left, right, size=(16, 8)),
                texts=kept,
                label=left,
                attributes={
                    "year": 2020 + i,
                    "brand": "acme" if i % 3 == 0 else "bolt",
                    "tags": ["even" if i % 2 == 0 else "odd", left],
                    "price": i + 0.5,
                    "sold": i > 4,
                    "note": "renewed" if renewed else "naïve 图",
                },
            )
        )
    return found[2:4] if renewed else found


def answers(snapshot: Snapshot) -> dict[str, Any]:
    """Everything that is compared: hits, relevance, items, vectors and thumbnails."""
    encoder = ColourEncoder()
    searched = []
    for search in SEARCHES:
        [query_D] = encoder.embed_texts([encoder.prepare_text(search["query"])])
        wanted = {name: search[name] for name in ("target", "k", "offset") if name in search}
        if "filter" in search:
            wanted["filter"] = parse_filter(search["filter"])
        [hits] = snapshot.search(query_D[None], SearchOptions(**wanted))
        scores = [hit.score for hit in hits]
        relevance = snapshot.relevance(query_D, scores, kind="text", target=wanted["target"])
        found = [[hit.item.id, hit.score] for hit in hits]
        searched.append({**search, "hits": found, "relevance": relevance})
    everything = encoder.embed_texts([encoder.prepare_text("red")])
    items = {}
    for target in ("images", "texts"):
        [hits] = snapshot.search(everything, SearchOptions(k=100, target=target))  # type: ignore[arg-type]
        for hit in hits:
            one = asdict(hit.item)
            one["vector"] = [round(float(x), 6) for x in snapshot.vector(hit.item.id)]
            one["captions"] = [text.id for text in snapshot.captions(hit.item.id)]
            if target == "images":
                one["thumbnail"] = len(snapshot.thumbnail(hit.item.id))
            items[f"{target}/{hit.item.id}"] = one
    about = snapshot.info()
    return {
        "version": about.version,
        "uuid": about.uuid,
        "images": about.images,
        "texts": about.texts,
        "segments": about.segments,
        "tombstones": about.tombstones,
        "searches": searched,
        "items": dict(sorted(items.items())),
    }


def main(out: Path) -> None:
    encoder = ColourEncoder()
    index = out / "index"
    for renewed in (False, True):
        source = ListSource(records(renewed), name="golden")
        options = BuildOptions(fields=None if renewed else parse_fields([FIELDS]))
        build_index([source], index, encoder, options=options)
    assert len(COLOURS) == 8
    for name in ("index.rejects.jsonl", "index/LOCK"):
        (out / name).unlink(missing_ok=True)  # litter of the build, no part of the format
    with open_snapshot(index, fingerprint=encoder.fingerprint) as snapshot:
        told = answers(snapshot)
    text = json.dumps(told, ensure_ascii=False, indent=1)
    (out / "answers.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    out = Path(sys.argv[1])
    out.mkdir()
    main(out)
