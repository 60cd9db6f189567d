"""Make the golden index of format 2, as `index_format_1.py` made that of format 1.

    PYTHONPATH=.:tests/support python tests/gold/index_format_2.py tests/gold/index-format-2

The same records, their pictures twice, and what format 2 adds: words, a search structure, the
erasure list, what every version did, and manifests that vouch for their parents. `answers.json` is
what the release that wrote it answered.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fakes import ColourEncoder
from indexes import ListSource

from indexer.files.fs import Fs
from indexer.filters.declared import parse_fields
from indexer.format.manifest import read_manifest
from indexer.ingest.build import BuildOptions, build_index
from indexer.maintain.edit import delete_items
from indexer.maintain.optimize import OptimizeOptions, optimize
from indexer.search.options import SearchOptions
from indexer.search.snapshot import Snapshot, open_snapshot
from indexer.store.history import history
from indexer.store.sweep import Keeping, Sweeper
from tests.gold.index_format_1 import FIELDS, records
from tests.gold.index_format_1 import answers as answers_of_format_1

HYBRID = ["red picture", "红", "yellow or 黑"]


def answers(snapshot: Snapshot) -> dict[str, Any]:
    """What format 1 is asked, and search by words fused with vectors."""
    encoder = ColourEncoder()
    found = []
    for text in HYBRID:
        query_QD = encoder.embed_texts([encoder.prepare_text(text)])
        for target in ("images", "texts"):
            [hits] = snapshot.search(
                query_QD, SearchOptions(k=6, target=target, hybrid=0.5), texts=[text]
            )  # type: ignore[arg-type]
            told = [[hit.item.id, hit.score, hit.fused] for hit in hits]
            found.append({"text": text, "target": target, "hits": told})
    return {**answers_of_format_1(snapshot), "hybrid": found}


def main(out: Path) -> None:
    encoder = ColourEncoder()
    index = out / "index"

    def build(renewed: bool) -> None:
        options = BuildOptions(fields=None if renewed else parse_fields([FIELDS]))
        rows = records(renewed)
        if not renewed:  # a structure wants a few more pictures than format 1 had
            rows += [replace(one, key=f"q{one.key[1:]}", texts={}) for one in rows]
        build_index([ListSource(rows, name="golden")], index, encoder, options=options)

    build(renewed=False)
    few = {"hnsw": (1,)}  # efforts and gains are meant for more rows than these
    with patch("indexer.maintain.structures._EFFORTS", few):
        options = OptimizeOptions(structure="hnsw", fewest=15, floor=0.05, gain=0.0)
        report = optimize(index, options)
    assert report.images.structure == "hnsw", report.images.notes
    delete_items(index, ["p01"])
    build(renewed=True)
    Sweeper(Fs(), index).collect(read_manifest(index), Keeping(versions=2))
    manifest = read_manifest(index)
    assert manifest.erased is not None
    assert manifest.tombstones is not None
    assert any(segment.ann for segment in manifest.segments)
    assert [one.operation for one in history(index)] == ["build", "delete"]
    (out / "index.rejects.jsonl").unlink(missing_ok=True)  # litter of the build
    (index / "LOCK").unlink()
    with open_snapshot(index, fingerprint=encoder.fingerprint) as snapshot:
        text = json.dumps(answers(snapshot), ensure_ascii=False, indent=1)
    (out / "answers.json").write_text(text + "\n", encoding="utf-8")
    shutil.rmtree(index / "scratch")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir()
    main(folder)
