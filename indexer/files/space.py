"""Is there room for what is about to be written? Asked before hours of work, not instead of care.

An estimate errs and others write too, so a full disk may come all the same; what is here spares the
clear cases.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from models.errors import NoSpaceError

_MARGIN: Final = 1.2


def require_space(directory: Path, estimate: int) -> None:
    """Refuse where less is free than a fifth more than the estimate, in bytes.

    Args:
        directory: on the file system in question; it need not exist yet, its parent must.

    Raises:
        NoSpaceError: naming both figures.
    """
    there = next((path for path in (directory, *directory.parents) if path.exists()), None)
    if there is None:
        return
    free = shutil.disk_usage(there).free
    needed = int(_MARGIN * estimate)
    if free < needed:
        raise NoSpaceError(
            f"no space left: about {needed:,} bytes are needed in {there}, {free:,} are free",
            hint="nothing was changed; free some space and run the same command again",
        )
