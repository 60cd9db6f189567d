"""Named label sets in a directory, one JSON file each, and the class matrices they were given.

A set is replaced by renaming a whole, fsynced file over it, so a kill at any instant leaves the
old set or the new one. Names are plain slugs that cannot leave the directory. Every read is checked
against the file's own sha256. Writers, of this process or another, take turns through `flock`.

    pets.json              {"format": 1, "sha256": ..., "label_set": {...}}
    .pets.json.<hex>.tmp   an unfinished write; the next writer sweeps it
    matrices/<key>.<sha256>.f32   class matrices [C, D], float32: derived, may be deleted
    LOCK

Knows neither HTTP nor encoders; classifying is `service.engine.classifier`'s.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import json
import os
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from indexer.files.fs import Fs, open_regular
from models.errors import (
    DiptychError,
    InputError,
    InvalidLabelsError,
    LabelSetError,
    LabelSetNotFoundError,
    NotFoundError,
    StoreError,
)
from models.vectors import Vectors
from service.engine.label_sets import NO_EXAMPLES, Examples, LabelSet, check_label_set

MAX_SETS: Final = 256
MAX_BYTES: Final = 16 << 20
_FORMAT: Final = 1
_MAX_MATRICES: Final = 64
_MAX_KEPT: Final = 16
"""Read sets kept in memory; one may take a dozen MiB."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def check_name(name: str) -> str:
    """The name, if a label set may have it.

    Raises:
        InvalidLabelsError: anything but 1 to 64 of a-z, 0-9, `-` and `_`, led by a letter or digit.
    """
    if not _NAME.fullmatch(name):
        raise InvalidLabelsError(
            "a label set is named by 1 to 64 of the characters a-z, 0-9, - and _, "
            "and begins with a letter or a digit"
        )
    return name


class LabelSetStore:
    """Label sets by name; the directory is created by the first `put`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._kept: dict[str, tuple[tuple[int, int, int], LabelSet]] = {}
        self._keeping = threading.Lock()

    def get(self, name: str) -> LabelSet:
        """Read a set.

        Raises:
            InvalidLabelsError: no possible name.
            LabelSetNotFoundError: no set has it.
            LabelSetError: the file is damaged.
        """
        path = self._path(name)
        try:
            fd = open_regular(path)
        except (FileNotFoundError, NotADirectoryError):
            raise LabelSetNotFoundError("no label set has this name") from None
        except OSError as error:
            raise LabelSetError("the label set cannot be read") from error
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            kept = self._kept.get(name)
            if kept is not None and kept[0] == seen:
                return kept[1]
            found = decode(file.read(MAX_BYTES + 1))
        with self._keeping:
            self._kept.pop(name, None)
            self._kept[name] = (seen, found)
            if len(self._kept) > _MAX_KEPT:
                del self._kept[next(iter(self._kept))]
        return found

    def names(self) -> list[str]:
        """In order; empty where there is no directory yet.

        Raises:
            LabelSetError: the directory cannot be read.
        """
        try:
            files = [path.name for path in self._directory.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise LabelSetError("the label sets cannot be read") from error
        stems = (file.removesuffix(".json") for file in files if file.endswith(".json"))
        return sorted(stem for stem in stems if _NAME.fullmatch(stem))

    def entries(self) -> Iterator[tuple[str, LabelSet | DiptychError]]:
        """Every set, or what is wrong with it: a damaged one does not hide the others."""
        for name in self.names():
            try:
                yield name, self.get(name)
            except NotFoundError:
                continue  # deleted meanwhile
            except DiptychError as error:
                yield name, error

    def put(self, name: str, label_set: LabelSet) -> bool:
        """Store a set durably; True if the name is new.

        Raises:
            InvalidLabelsError: no possible name, or too large.
            LabelSetError: `label-sets-full`, `label-sets-read-only` or `label-sets-unwritable`.
        """
        path = self._path(name)
        content = encode(label_set)
        if len(content) > MAX_BYTES:
            raise InvalidLabelsError(f"a label set may take at most {MAX_BYTES >> 20} MiB")
        with self._writing() as fs:
            names = self.names()
            if name not in names and len(names) >= MAX_SETS:
                raise LabelSetError(
                    f"there are {MAX_SETS} label sets already",
                    code="label-sets-full",
                    hint="delete one that is not needed",
                )
            unfinished = self._directory / f".{path.name}.{secrets.token_hex(8)}.tmp"
            fs.write_file(unfinished, [content])
            fs.rename(unfinished, path)
            fs.sync_dir(self._directory)
        return name not in names

    def delete(self, name: str) -> None:
        """Remove a set, damaged ones too.

        Raises:
            InvalidLabelsError, LabelSetNotFoundError; LabelSetError as `put`.
        """
        path = self._path(name)
        if name not in self.names():
            raise LabelSetNotFoundError("no label set has this name")
        with self._writing() as fs:
            fs.remove(path)
            fs.sync_dir(self._directory)
        with self._keeping:
            self._kept.pop(name, None)

    @property
    def writable(self) -> bool:
        """Whether a `put` may be expected to work."""
        there = self._directory
        while not there.exists() and there != there.parent:
            there = there.parent
        return there.is_dir() and os.access(there, os.W_OK | os.X_OK)

    def matrix(self, key: str, rows: int, dim: int) -> Vectors | None:
        """A class matrix kept earlier, float32 [rows, dim]; None if there is no sound one."""
        for path in self._matrices().glob(f"{key}.*.f32"):
            with suppress(OSError):
                fd = open_regular(path)
                with os.fdopen(fd, "rb") as file:
                    data = file.read(rows * dim * 4 + 1)
                whole = len(data) == rows * dim * 4
                if whole and hashlib.sha256(data).hexdigest() == path.name.split(".")[1]:
                    return np.frombuffer(data, dtype="<f4").reshape(rows, dim)
        return None

    def keep_matrix(self, key: str, class_CD: Vectors) -> None:
        """Keep a class matrix for the next start. It can be made again, so failing is no error."""
        data = np.ascontiguousarray(class_CD, dtype="<f4").tobytes()
        target = self._matrices() / f"{key}.{hashlib.sha256(data).hexdigest()}.f32"
        with suppress(LabelSetError), self._writing() as fs:
            fs.make_dir(target.parent, exist_ok=True)
            if target.exists():
                return
            kept = sorted(target.parent.glob("*.f32"), key=lambda path: path.stat().st_mtime_ns)
            for old in kept[: max(0, len(kept) + 1 - _MAX_MATRICES)]:
                fs.remove(old)
            unfinished = self._directory / f".{key[:16]}.{secrets.token_hex(8)}.tmp"
            fs.write_file(unfinished, [data])
            fs.rename(unfinished, target)

    def _path(self, name: str) -> Path:
        return self._directory / f"{check_name(name)}.json"

    def _matrices(self) -> Path:
        return self._directory / "matrices"

    @contextmanager
    def _writing(self) -> Iterator[Fs]:
        """The writers' turn; what a killed writer left is swept first."""
        lock = -1
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            lock = os.open(self._directory / "LOCK", flags, 0o644)
            fcntl.flock(lock, fcntl.LOCK_EX)
            fs = Fs()
            for leftover in self._directory.glob(".*.tmp"):
                fs.remove(leftover)
            yield fs
        except (OSError, StoreError) as error:
            if not self.writable:
                raise LabelSetError(
                    "the label sets of this service cannot be changed", code="label-sets-read-only"
                ) from error
            raise LabelSetError(
                "the label set could not be stored; what was there before still is",
                code="label-sets-unwritable",
            ) from error
        finally:
            if lock >= 0:
                os.close(lock)


def _canonical(value: Any) -> bytes:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def encode(label_set: LabelSet) -> bytes:
    """The content of a label set's file: canonical JSON with its own sha256."""
    examples = label_set.examples
    body: dict[str, Any] = {
        "labels": list(label_set.labels),
        "templates": None if label_set.templates is None else list(label_set.templates),
        "template_set": label_set.template_set,
        "multi_label": label_set.multi_label,
        "hierarchy": label_set.tree is not None,
        "abstain": label_set.abstain,
        "temperature": label_set.temperature,
        # left out where there is none, so that earlier releases read the file
        **({} if label_set.offset is None else {"offset": label_set.offset}),
        "alpha": label_set.alpha,
        "beta": label_set.beta,
        "targets": list(examples.targets),
        "vectors": base64.b64encode(examples.vectors_ND.astype("<f4").tobytes()).decode("ascii"),
        "model": label_set.model,
        "encoder": label_set.encoder,
        "updated": label_set.updated,
    }
    digest = hashlib.sha256(_canonical(body)).hexdigest()
    return _canonical({"format": _FORMAT, "sha256": digest, "label_set": body}) + b"\n"


def decode(data: bytes) -> LabelSet:
    """Inverse of `encode`; everything is checked again.

    Raises:
        LabelSetError: damaged, or of another format.
    """
    damaged = LabelSetError("the stored label set is damaged", hint="store it again, or delete it")
    if len(data) > MAX_BYTES:
        raise damaged
    try:
        document = json.loads(data)
        body = document["label_set"]
        if document["format"] != _FORMAT:
            raise LabelSetError("the label set was stored by another version of Diptych")
        if hashlib.sha256(_canonical(body)).hexdigest() != document["sha256"]:
            raise damaged
        checked = check_label_set(
            body["labels"],
            templates=body["templates"],
            template_set=body["template_set"],
            multi_label=body["multi_label"],
            hierarchy=body["hierarchy"],
            abstain=body["abstain"],
            temperature=body["temperature"],
            offset=body.get("offset"),
            alpha=body["alpha"],
            beta=body["beta"],
        )
        return _with_examples(checked, body)
    except (ValueError, TypeError, KeyError, RecursionError, binascii.Error, InputError) as error:
        raise damaged from error


def _with_examples(checked: LabelSet, body: dict[str, Any]) -> LabelSet:
    targets = tuple(int(target) for target in body["targets"])
    flat = np.frombuffer(base64.b64decode(body["vectors"], validate=True), dtype="<f4")
    examples = NO_EXAMPLES
    if targets:
        if not all(0 <= target < len(checked.labels) for target in targets):
            raise ValueError("an example belongs to no label")
        examples = Examples(flat.reshape(len(targets), -1), targets)
    return replace(
        checked,
        examples=examples,
        model=str(body["model"]),
        encoder=str(body["encoder"]),
        updated=str(body["updated"]),
    )
