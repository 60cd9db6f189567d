"""Debian's `tuxpaint-stamps-default` as a captioned collection of photographs.

The package carries pictures of single things (animals, fruit, tools, vehicles ...), each with a
text file of its name: English on the first line, then `LOCALE.utf8=NAME` lines. Drawings, letters
and coins are left out, so that what remains are photographs. Knows nothing of indexes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.errors import SourceError

PACKAGE = "tuxpaint-stamps-default"
_ROOT = Path("usr/share/tuxpaint/stamps")
_LANGUAGES = {"zh_CN": "zh", "es": "es"}
_NOT_PHOTOGRAPHS = frozenset({"symbols", "cartoon"})


def available() -> bool:
    """Whether this machine has the tools that fetch and unpack Debian packages."""
    return bool(shutil.which("apt-get") and shutil.which("dpkg-deb"))


def fetch(folder: Path) -> Path:
    """Download and unpack the package below `folder`, without installing it.

    Work already done is kept, so a second call returns at once.

    Returns:
        The JSONL manifest of the photographs.

    Raises:
        SourceError: the package cannot be downloaded or unpacked.
    """
    manifest = folder / "stamps.jsonl"
    if manifest.is_file():
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    unpacked = folder / "unpacked"
    if not unpacked.is_dir():
        package = _downloaded(folder) or _download(folder)
        scratch = folder / "unpacking"
        shutil.rmtree(scratch, ignore_errors=True)
        _run(["dpkg-deb", "--extract", str(package.resolve()), str(scratch.resolve())], folder)
        scratch.rename(unpacked)
    write_manifest(unpacked, manifest)
    return manifest


def write_manifest(unpacked: Path, manifest: Path) -> int:
    """Write one JSON line per photograph; paths are relative to the manifest.

    Returns:
        How many photographs were written.

    Raises:
        SourceError: the folder holds none, so the package's layout must have changed.
    """
    rows = list(_rows(unpacked, manifest.parent))
    if not rows:
        raise SourceError(f"no photographs in {unpacked.name}; has {PACKAGE} changed its layout?")
    scratch = manifest.with_suffix(".tmp")
    with scratch.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    scratch.replace(manifest)
    return len(rows)


def _rows(unpacked: Path, base: Path) -> Iterator[dict[str, Any]]:
    root = unpacked / _ROOT
    for picture in sorted(root.rglob("*.png")):
        inside = picture.relative_to(root)
        mirrored = picture.stem.endswith("_mirror")
        # a vector original beside the bitmap means that the bitmap was drawn, not taken
        drawn = picture.with_suffix(".svg").exists()
        if mirrored or drawn or _NOT_PHOTOGRAPHS & set(inside.parts):
            continue
        yield {
            "id": inside.with_suffix("").as_posix(),
            "image": picture.relative_to(base).as_posix(),
            "captions": parse_names(picture.with_suffix(".txt")),
            "category": inside.parent.as_posix(),
        }


def parse_names(path: Path) -> dict[str, str]:
    """The names of one stamp by language tag; empty where the stamp has no text file."""
    if not path.is_file():
        return {}
    first, *others = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    names = {"en": first.strip()}
    for line in others:
        locale, _, name = line.partition(".utf8=")
        if locale in _LANGUAGES:
            names[_LANGUAGES[locale]] = name.strip()
    return {language: name for language, name in names.items() if name}


def _downloaded(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob(f"{PACKAGE}_*.deb"))), None)


def _download(folder: Path) -> Path:
    # into a scratch folder first: an interrupted download must not pass for a package next time
    scratch = folder / "downloading"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        _run(["apt-get", "download", PACKAGE], scratch)
    except SourceError:
        # no package lists yet, as on a fresh machine: fetch them into our own folder, which needs
        # no privileges and leaves the system's state alone
        private = _private_apt_state(folder / "apt")
        _run(["apt-get", *private, "update"], scratch)
        _run(["apt-get", *private, "download", PACKAGE], scratch)
    package = _downloaded(scratch)
    if package is None:
        raise SourceError(f"apt-get reported success but left no {PACKAGE} package")
    kept = package.rename(folder / package.name)
    shutil.rmtree(scratch)
    return kept


def _private_apt_state(folder: Path) -> list[str]:
    state, cache = (folder / "state").resolve(), (folder / "cache").resolve()
    for needed in (state / "lists" / "partial", cache / "archives" / "partial"):
        needed.mkdir(parents=True, exist_ok=True)
    status = (folder / "status").resolve()
    status.touch()
    options = {"Dir::State": state, "Dir::Cache": cache, "Dir::State::status": status}
    return [part for name, value in options.items() for part in ("-o", f"{name}={value}")]


def _run(command: list[str], folder: Path) -> None:
    if command[0] == "apt-get" and os.geteuid() == 0:
        # as root, apt hands downloads to a user who may not write into our folder, and warns
        command = [command[0], "-o", "APT::Sandbox::User=root", *command[1:]]
    done = subprocess.run(  # noqa: S603 - fixed commands, no shell, no caller-supplied text
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SourceError(f"{command[0]} failed ({reason})")
