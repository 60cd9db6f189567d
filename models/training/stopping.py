"""Why a run stops before its end, in words that help."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from models.errors import NoSpaceError, TrainingError

NAMED_KEYS: Final = 8


def not_finite(
    step: int, keys: Sequence[str], *, what: str = "loss", kept: str = "in training/ of --out"
) -> TrainingError:
    """A loss or gradient that is NaN or infinite, with the records of its batch.

    Example:
        >>> not_finite(7, ["a", "b"]).message
        'step 7: the loss is not finite; its batch was a, b'
    """
    named = ", ".join(keys[:NAMED_KEYS])
    more = f" and {len(keys) - NAMED_KEYS} more" if len(keys) > NAMED_KEYS else ""
    return TrainingError(
        f"step {step}: the {what} is not finite; its batch was {named}{more}",
        code="loss-not-finite",
        hint="look at these records, or try a lower --lr or --precision fp32; the last good state "
        f"is {kept}",
    )


@contextmanager
def room_in(directory: Path) -> Iterator[None]:
    """A full disk, told as such: what was committed is intact, because it is replaced in one step.

    Raises:
        NoSpaceError
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoSpaceError(
            f"no space left for {directory}",
            hint="the last checkpoint is intact: free some space and run the same command again",
        ) from error
