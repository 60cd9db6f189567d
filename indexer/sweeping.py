"""Remove what writers that died before their commit left behind.

Called with the writer's lock held. Only names that a writer makes are touched, and nothing that
any manifest up to the current one refers to.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from indexer.fs import Fs
from indexer.manifest import (
    MANIFESTS,
    RELEVANCE,
    SCRATCH,
    SEGMENTS,
    TOMBSTONES,
    Manifest,
    parse_manifest,
)
from models.errors import StoreError

_MANIFEST_NAME: Final = re.compile(r"[0-9]{8}\.json")
_SEGMENT_NAME: Final = re.compile(r"[0-9]{8}-(image|text)-[0-9a-f]{8}")
_ARRAY_NAME: Final = re.compile(r"[0-9]{8}\.npy")


def empty_scratch(fs: Fs, root: Path) -> None:
    for path in sorted((root / SCRATCH).iterdir()):
        fs.remove(path)


def sweep(fs: Fs, root: Path, manifest: Manifest | None) -> None:
    """Remove scratch, manifests newer than the current one, and files that no manifest names.

    Raises:
        StoreError: something could not be removed.
    """
    empty_scratch(fs, root)
    newest = -1 if manifest is None else manifest.version
    kept: set[str] = set()
    buried: set[str] = set()
    measured: set[str] = set()
    for path in sorted((root / MANIFESTS).iterdir()):
        if not _MANIFEST_NAME.fullmatch(path.name):
            continue
        if int(path.stem) > newest:
            fs.remove(path)
            continue
        try:
            older = parse_manifest(path.name, path.read_bytes())
        except (StoreError, OSError):
            return  # an older version cannot be read: remove nothing it may still need
        kept.update(entry.id for entry in older.segments)
        if older.tombstones is not None:
            buried.add(older.tombstones.file)
        if older.relevance is not None:
            measured.add(older.relevance.file)
    for path in sorted((root / SEGMENTS).iterdir()):
        if path.name not in kept and _SEGMENT_NAME.fullmatch(path.name):
            fs.remove(path)
    for folder, named in ((TOMBSTONES, buried), (RELEVANCE, measured)):
        for path in sorted((root / folder).iterdir()):
            if path.name not in named and _ARRAY_NAME.fullmatch(path.name):
                fs.remove(path)
