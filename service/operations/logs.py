"""How log records look: one JSON object a line, or a line for people. Configures nothing.

A record may carry `fields`, given as `extra={"fields": {...}}`; JSON shows them as members of
their own. Who logs sees to it that neither holds what was asked.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

TEXT_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class JsonFormatter(logging.Formatter):
    """One object a line: ts (UTC), level, logger, event, then the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields = getattr(record, "fields", None)
        if fields is None:
            line["event"] = record.getMessage()
        else:
            line |= fields
        if record.exc_info is not None and record.exc_info[0] is not None:
            # neither its text nor its frames' source: both may quote what was asked
            line["exception"] = record.exc_info[0].__name__
        return json.dumps(line, ensure_ascii=True, default=str)
