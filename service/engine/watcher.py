"""Hot swap: looks at each index's `CURRENT` and takes up the version it names.

One thread for all indexes, beside the ones that answer: opening and verifying a large version takes
its time while the old one serves. A version that is damaged, or made with another encoder pair, is
refused with one log line and a count, and the old one stays.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Self

from models.errors import DiptychError
from service.engine.engine import Engine
from service.operations import metrics

_LOG = logging.getLogger("diptych.service")

DEFAULT_POLL_S = 1.0


class IndexWatcher:
    """Watches the indexes of those engines that have a holder, while the block is open."""

    def __init__(self, engines: Sequence[Engine], poll_s: float = DEFAULT_POLL_S) -> None:
        self._engines = [engine for engine in engines if engine.holder is not None]
        self._poll_s = poll_s
        self._stop = threading.Event()
        self._refusals: dict[str, str] = {}
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        for engine in self._engines:
            _report_version(engine)
        if self._engines and self._poll_s > 0:
            self._thread = threading.Thread(target=self._run, name="index-watcher", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._poll_s):
            for engine in self._engines:
                self.look(engine)

    def look(self, engine: Engine) -> bool:
        """Take up a new version of one index, if there is one; whether it was taken up."""
        holder, name = engine.holder, engine.name
        assert holder is not None, "only engines with one are watched"
        try:
            swapped = holder.refresh()
        except Exception as error:  # whatever it is: the old version answers, and the watch goes on
            self._refused(name, error)
            return False
        if swapped:
            self._refusals.pop(name, None)
            metrics.INDEX_SWAPS.labels(name, "ok").inc()
            version = _report_version(engine)
            _LOG.info(
                "index=%s version=%d in use",
                name,
                version,
                extra={"fields": {"event": "index-swapped", "index": name, "version": version}},
            )
        return swapped

    def _refused(self, name: str, error: Exception) -> None:
        code = error.code if isinstance(error, DiptychError) else type(error).__name__
        reason = f"{code}: {error}"
        if self._refusals.get(name) == reason:
            return  # said before; the same version is looked at again at every poll
        self._refusals[name] = reason
        metrics.INDEX_SWAPS.labels(name, "refused").inc()
        _LOG.error(
            "index=%s new version refused, the old one keeps answering: %s",
            name,
            reason,
            extra={
                "fields": {"event": "index-refused", "index": name, "code": code, "why": str(error)}
            },
        )


def _report_version(engine: Engine) -> int:
    assert engine.holder is not None
    version = engine.holder.version
    metrics.INDEX_VERSION.labels(engine.name).set(version)
    return version
