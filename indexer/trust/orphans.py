"""Files in an index directory that nothing names: what a killed writer left, or a stranger put.

They do no harm; the next writer sweeps those it knows the names of. This only lists.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from indexer.format.manifest import CURRENT, LOCK, Manifest, manifest_path


def find_orphans(root: Path, versions: Mapping[int, Manifest]) -> list[str]:
    """Paths relative to the index, sorted; a file that vanishes meanwhile is left out."""
    named = {name for manifest in versions.values() for name in manifest.files()}
    named |= {manifest_path(number) for number in versions} | {CURRENT, LOCK}
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = (Path(folder) / name).relative_to(root).as_posix()
            if path not in named:
                found.append(path)
    return sorted(found)
