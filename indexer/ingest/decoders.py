"""The decoding stage: encoded pictures to what the model takes, in processes or in this one.

Processes cost a fraction of a second to start and are started by the first picture; what a picture
does to its decoder costs that picture only (`models.images.pool`). Where they cannot be started,
threads decode. It knows pictures and an encoder, nothing of records.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Final

from models.encoder import Encoder, PreparedImage
from models.errors import DeadlineError, ModelError
from models.images.decode import decode_reduced
from models.images.geometry import SplitPreparation
from models.images.pictures import Seen, Wanted, see
from models.images.pool import DecodePool

_LOG = logging.getLogger("diptych.indexer")

TIMEOUT_S: Final = 30.0
"""For one picture. The largest that is allowed takes two seconds; a busy machine ten times that."""
FEW: Final = 64
"""A build that expects no more records than this decodes in threads: starting processes would take
as long as the work."""
_MOST: Final = 8


class Decoders:
    """Decodes pictures for an encoder; safe from any thread. `close` it.

    Attributes:
        processes: how many there are to be; 0 decodes in the calling threads.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        processes: int,
        thumbnail_side: int | None,
        draft: bool = False,
        timeout_s: float = TIMEOUT_S,
        entry: str = "models.images.worker",
    ) -> None:
        self.processes = processes
        self._encoder = encoder
        self._split = encoder if isinstance(encoder, SplitPreparation) else None
        geometry = self._split.geometry if self._split else None
        self._wanted = Wanted(geometry, thumbnail_side, draft)
        self._timeout_s = timeout_s
        self._entry = entry
        self._pool: DecodePool | None = None
        self._lock = threading.Lock()
        self._closed = False

    def decode(self, data: bytes) -> tuple[PreparedImage, Seen]:
        """A picture as the model takes it, and what else the index keeps of it.

        Raises:
            ImageError: it was refused, ended its process or took too long.
            DeadlineError: closed meanwhile.
        """
        from PIL import Image

        pool = self._running()
        if pool is not None:
            try:
                seen = pool.make(data, self._wanted)
            except ModelError as error:
                self._give_up(error)
            else:
                if self._split is not None:
                    return self._split.finish_image(seen.pixels), seen
                return self._encoder.prepare_image(Image.fromarray(seen.pixels)), seen
        image, size = decode_reduced(data, least=self._wanted.least)
        seen = see(image, size, self._wanted)
        if self._split is not None:
            return self._split.finish_image(seen.pixels), seen
        return self._encoder.prepare_image(image), seen

    def close(self) -> None:
        """End the processes, those at work too."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _running(self) -> DecodePool | None:
        if not self.processes:
            return None
        with self._lock:
            if self._closed:
                raise DeadlineError("the decoders have been stopped")
            if self._pool is None and self.processes:
                try:
                    self._pool = DecodePool(
                        self.processes, timeout_s=self._timeout_s, entry=self._entry
                    )
                except OSError as error:
                    self._no_processes(error)
            return self._pool

    def _give_up(self, error: Exception) -> None:
        with self._lock:
            if self.processes:
                self._no_processes(error)
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _no_processes(self, error: Exception) -> None:
        self.processes = 0
        _LOG.warning("decoding in threads, for processes cannot be started: %s", error)


def how_many(wanted: int | None, expected: int | None) -> tuple[int, int]:
    """(processes, threads that wait for them or decode themselves).

    Args:
        wanted: processes the user asked for; None leaves it to us.
        expected: pictures that may come; None where nobody knows.
    """
    cores = os.cpu_count() or 1
    if wanted is None:
        wanted = 0 if expected is not None and expected <= FEW else min(cores, _MOST)
    return wanted, wanted or min(4, cores)
