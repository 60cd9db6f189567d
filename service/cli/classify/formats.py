"""The shapes in which `diptych classify` answers: for people, JSON, JSON lines and CSV.

A writer takes one picture at a time, so that a whole folder needs no memory, save for `json`, whose
single document it is. With a file to write to, the file appears whole or not at all.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeAlias

import click

from service.cli.exits import one_line
from service.cli.output import note

if TYPE_CHECKING:
    from service.engine.queries import ImageResult, Prediction

Format: TypeAlias = Literal["text", "json", "jsonl", "csv"]

_BAR = 24
_COLUMNS = (
    "image",
    "rank",
    "label",
    "probability",
    "abstained",
    "background",
    "error",
    "sorted_to",
)


@dataclass(frozen=True, slots=True)
class Line:
    """One picture's answer: what it is called, where it went, where its heat map is."""

    image: str
    result: ImageResult
    sorted_to: str | None = None
    heatmap: str | None = None


class Writer:
    """Writes answers to a stream; `close` writes what stands after the last."""

    def __init__(self, stream: TextIO, kind: Format, about: dict[str, Any]) -> None:
        self._stream = stream
        self._kind = kind
        self._about = about
        self._documents: list[dict[str, Any]] = []
        self._rows = csv.writer(stream, lineterminator="\n")
        if kind == "csv":
            self._rows.writerow(_COLUMNS)

    def write(self, line: Line) -> None:
        if self._kind == "text":
            self._text(line)
        elif self._kind == "csv":
            self._rows.writerows(_rows(line))
        elif self._kind == "jsonl":
            self._stream.write(_json(document(line)) + "\n")
        else:
            self._documents.append(document(line))

    def close(self) -> None:
        if self._kind == "json":
            whole = {"results": self._documents, **self._about}
            self._stream.write(json.dumps(whole, ensure_ascii=False, indent=2, allow_nan=False))
            self._stream.write("\n")

    def _text(self, line: Line) -> None:
        result = line.result
        if result.error is not None:
            note(f"{line.image}: {one_line(result.error).removeprefix('diptych: ')}")
            return
        if line.sorted_to is not None:
            self._stream.write(f"{line.image} -> {line.sorted_to}\n")
            return
        none = f"  none of these ({result.background:.0%})" if result.abstained else ""
        self._stream.write(f"{line.image}{none}\n")
        for prediction in result.predictions:
            bar = "█" * round(prediction.probability * _BAR)
            words = f"  {prediction.probability:7.2%}  {prediction.label}  {bar}"
            self._stream.write(words.rstrip() + "\n")


def document(line: Line) -> dict[str, Any]:
    """One picture's answer as JSON."""
    result = line.result
    found: dict[str, Any] = {
        "image": line.image,
        "predictions": [_prediction(p) for p in result.predictions],
    }
    if result.parents is not None:
        found["parents"] = [_prediction(p) for p in result.parents]
    if result.background is not None:
        found["abstained"] = result.abstained
        found["background"] = round(result.background, 6)
    if line.sorted_to is not None:
        found["sorted_to"] = line.sorted_to
    if line.heatmap is not None:
        found["heatmap"] = line.heatmap
    error = result.error
    found["error"] = None if error is None else {"code": error.code, "message": error.message}
    return found


def _prediction(prediction: Prediction) -> dict[str, Any]:
    found: dict[str, Any] = {
        "label": prediction.label,
        "probability": round(prediction.probability, 6),
    }
    if prediction.path is not None:
        found["path"] = list(prediction.path)
    return found


def _rows(line: Line) -> Iterator[tuple[Any, ...]]:
    result = line.result
    if result.error is not None:
        yield (line.image, "", "", "", "", "", result.error.code, "")
        return
    background = "" if result.background is None else round(result.background, 6)
    abstained = "" if result.background is None else str(result.abstained).lower()
    for rank, prediction in enumerate(result.predictions, start=1):
        chance = round(prediction.probability, 6)
        yield (
            *(line.image, rank, prediction.label, chance, abstained, background, ""),
            line.sorted_to or "",
        )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


@contextmanager
def opened(out: Path | None, kind: Format, about: dict[str, Any]) -> Iterator[Writer]:
    """A writer to stdout or to a file that is replaced only once all of it is written."""
    if out is None:
        stream = _replacing(sys.stdout)
        writer = Writer(stream, kind, about)
        yield writer
        writer.close()
        stream.flush()
        return
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        # the csv module ends its own lines
        with unfinished.open(
            "w", encoding="utf-8", errors="backslashreplace", newline=""
        ) as stream:
            writer = Writer(stream, kind, about)
            yield writer
            writer.close()
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(out)
    except OSError as error:
        raise click.UsageError(f"cannot write {out}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _replacing(stream: TextIO) -> TextIO:
    # a file name that is not UTF-8 must not end the run where it is printed
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    return stream
