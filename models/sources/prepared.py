"""Rows of a source -> pictures ready for a model, decoded ahead in threads, order kept.

Knows the decoder and a `prepare` function, not what the pictures are for. Pillow releases the
interpreter lock while it decodes and resizes, so threads are enough.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

from PIL.Image import Image

from models.encoder import PreparedImage
from models.errors import ImageError
from models.images.decode import decode_image
from models.sources.records import Record, Reject, Row

Ready: TypeAlias = tuple[Record, PreparedImage | None]
"""A record and its prepared picture; None for a record of text only."""


def prepare_rows(
    rows: Iterable[Row],
    prepare: Callable[[Image], PreparedImage],
    *,
    source: str,
    workers: int = 2,
    ahead: int = 64,
) -> Iterator[Ready | Reject]:
    """Decode and prepare the pictures of `rows`; at most `ahead` wait in memory.

    A picture that is refused becomes a `Reject` in its place.
    """

    def work(row: Row) -> Ready | Reject:
        if isinstance(row, Reject):
            return row
        if row.image is None:
            return row, None
        try:
            return row, prepare(decode_image(row.image))
        except ImageError as error:
            return Reject(source, row.key, error.code, error.message)

    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Ready | Reject]] = deque()
        try:
            for row in rows:
                waiting.append(pool.submit(work, row))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
