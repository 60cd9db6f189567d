"""How sources are read (`ReadOptions`), and what one decoded object says of its picture.

Shared by every reader, so that `captions.en` means the same in a sidecar, a shard and a manifest.
Opens no files. Caption values may be a string, a list of strings, or an object
`{language tag: string or list}`.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from models.sources.records import UNDETERMINED, RefusedError

CAPTION_KEYS = ("captions", "caption", "text", "txt", "title", "TEXT")
"""Where captions are looked for when no field is named; the first one present wins."""
LABEL_KEYS = ("label", "cls")
MAX_TEXT_BYTES = 1024 * 1024
"""Longest caption, in characters; also the largest sidecar and manifest row, in bytes."""
MAX_DEPTH = 64
"""Deepest nesting of a metadata object; deeper ones only come from attackers."""

# BCP 47 as far as data sets use it: a 2-3 letter language, then script, region or variant
_TAG = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,8})*")
_TAGGED = re.compile(rf"({_TAG.pattern})=(.+)", re.DOTALL)
_INDEX = re.compile(r"-?\d{1,9}")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


Fetch: TypeAlias = Callable[[str], bytes]
"""URL -> the picture's bytes; raises `models.sources.records.RefusedError` to refuse one."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How sources are read; one value for all readers, each of which takes what concerns it.

    Attributes:
        text_field: dotted paths of the captions, e.g. `captions.en` or `names.0`, each optionally
            with its language: `["en=title", "zh=title_zh"]`. One may be given as it is.
        label_field: dotted path of the class, e.g. `label`.
        image_field: of a manifest: what holds the picture: a path, bytes, or (written
            `base64=FIELD`) base64. `-` for rows without pictures.
        id_field: of a manifest: what becomes the key.
        attribute_fields: which other fields to keep; None keeps all.
        column_types: of a CSV: which cells are `int`, `float`, `bool` or `str[]` instead of text.
        root: of a manifest: the folder that its paths start from and must stay in, instead of its
            own (of standard input: the working directory).
        include, exclude: of a folder: patterns, see `models.sources.folder.Globs`.
        splits: of Karpathy's JSON: the splits to take; `dataset.json#train,restval` says the same.
        prefix: what every key begins with, and a slash: see `models.sources.records.Prefixed`.
        fetch: what gets pictures that are URLs; without it each is a reject, `url-not-allowed`.
    """

    text_field: Sequence[str] = ()
    label_field: str | None = None
    image_field: str | None = None
    id_field: str | None = None
    attribute_fields: Sequence[str] | None = None
    column_types: Mapping[str, str] = field(default_factory=dict)
    root: str | Path | None = None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    splits: Sequence[str] = ()
    prefix: str | None = None
    fetch: Fetch | None = None

    def __post_init__(self) -> None:
        if isinstance(self.text_field, str):
            object.__setattr__(self, "text_field", (self.text_field,))


@dataclass(frozen=True, slots=True)
class Fields:
    """What a metadata object says about its picture; see `Record` for the three parts."""

    texts: dict[str, tuple[str, ...]]
    label: str | None
    attributes: dict[str, Any]


def parse_object(data: bytes) -> dict[str, Any]:
    """Decode one JSON object (UTF-8, a byte order mark is tolerated).

    Raises:
        RefusedError: `bad-json` for anything that is not an object of standard JSON: NaN and
            Infinity, lone surrogates and absurd nesting included, because an index could not
            store them.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusedError("not-utf8", f"not UTF-8 at byte {error.start}") from error
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise RefusedError("bad-json", "nested too deeply") from error
    except ValueError as error:
        raise RefusedError("bad-json", str(error)) from error
    if not isinstance(value, dict):
        raise RefusedError("bad-json", f"expected an object, found {_kind(value)}")
    _check_storable(value)
    return value


def select(data: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or None: `captions.en`, `names.0`, `meta.titles.-1`.

    A key that is spelled like the whole path comes first: columns of tables may hold dots.

    Example:
        >>> select({"names": ["goldfish", "Carassius auratus"]}, "names.0")
        'goldfish'
    """
    if path in data:
        return data[path]
    value: Any = data
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and _INDEX.fullmatch(part):
            at = int(part)
            value = value[at] if -len(value) <= at < len(value) else None
        else:
            return None
    return value


def clean_captions(captions: Iterable[str]) -> tuple[str, ...]:
    """NFC, surrounding white space and NUL removed, empty ones dropped, order kept."""
    cleaned = (
        unicodedata.normalize("NFC", caption.replace("\x00", "")).strip() for caption in captions
    )
    return tuple(caption for caption in cleaned if caption)


def bare_words(text: str) -> str:
    """What a text says: in one case, composition and spacing.

    Example:
        >>> bare_words(" A  Red\\tWall") == bare_words("a red wall")
        True
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def group_of(content: bytes) -> int:
    """A number for what must not be contrasted with itself: equal bytes, equal numbers.

    Of 10 million different pictures two share a number with a probability below 1e-5.
    """
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)


@lru_cache(maxsize=65_536)
def said(caption: str) -> int:
    """A number for what a caption says, whatever its case, spacing and full stop.

    Example:
        >>> said("A red  wall.") == said("a red wall"), said("a red wall") == said("a wall")
        (True, False)
    """
    words = bare_words(caption)
    return group_of(b"says " + (words.rstrip(" .!。") or words).encode("utf-8", "surrogatepass"))


def caption_lines(data: bytes) -> list[str]:
    """Captions of a `.txt` file, one a line.

    Raises:
        RefusedError: `not-utf8`.
    """
    try:
        # not splitlines(): it also breaks at U+2028 and form feeds, which captions contain
        return data.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise RefusedError("not-utf8", f"not UTF-8 at byte {error.start}") from error


def interpret(
    data: Mapping[str, Any], options: ReadOptions = ReadOptions(), *, consumed: Sequence[str] = ()
) -> Fields:
    """Split a metadata object into captions, label and attributes.

    Args:
        data: the decoded object.
        options: where captions and label are, and which attributes to keep. Without fields named
            there: the first of `CAPTION_KEYS`, the first of `LABEL_KEYS`, and all that is left.
        consumed: top-level keys the reader has used already (the picture's path, the id).

    Raises:
        RefusedError: `bad-caption` or `bad-label` when the field holds another type,
            `text-too-long`.
    """
    paths = [tagged_path(text) for text in options.text_field] or [
        (None, key) for key in CAPTION_KEYS if key in data
    ][:1]
    label_path = options.label_field or next((key for key in LABEL_KEYS if key in data), None)
    used = {"txt", *consumed}
    for path in (*(path for _, path in paths), label_path):
        head = path.partition(".")[0] if path and path not in data else path
        # `names.0` takes one name out of a list that is still worth keeping as an attribute
        if head and (path == head or head in CAPTION_KEYS):
            used.add(head)
    attributes = {key: value for key, value in data.items() if key not in used}
    nested = attributes.get("attributes")
    if isinstance(nested, dict):
        del attributes["attributes"]
        attributes = {**attributes, **nested}
    if options.attribute_fields is not None:
        found = {path: select(attributes, path) for path in options.attribute_fields}
        attributes = {path: value for path, value in found.items() if value is not None}
    texts: dict[str, tuple[str, ...]] = {}
    for tag, path in paths:
        for language, captions in _texts(select(data, path), tag or _tag_of_path(path)).items():
            texts[language] = texts.get(language, ()) + captions
    return Fields(
        texts=texts,
        label=_label(select(data, label_path)) if label_path else None,
        attributes=attributes,
    )


def tagged_path(text: str) -> tuple[str | None, str]:
    """(language or None, path) of `[LANGUAGE=]PATH`.

    Example:
        >>> tagged_path("zh_CN=caption"), tagged_path("captions.en")
        (('zh-CN', 'caption'), (None, 'captions.en'))
    """
    found = _TAGGED.fullmatch(text)
    return (_tag(found[1]), found[2]) if found else (None, text)


def _texts(value: Any, language: str) -> dict[str, tuple[str, ...]]:
    if isinstance(value, Mapping):
        by_language: dict[str, list[str]] = {}
        for tag, captions in value.items():
            by_language.setdefault(_tag(tag), []).extend(_strings(captions))
    else:
        by_language = {language: _strings(value)}
    for captions in by_language.values():
        longest = max(map(len, captions), default=0)
        if longest > MAX_TEXT_BYTES:
            raise RefusedError("text-too-long", f"a caption of {longest} characters")
    cleaned = {tag: clean_captions(captions) for tag, captions in by_language.items()}
    return {tag: captions for tag, captions in cleaned.items() if captions}


def _strings(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return value
    raise RefusedError(
        "bad-caption", f"captions must be text or a list of texts, not {_kind(value)}"
    )


def _label(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value).strip() or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise RefusedError("bad-label", f"a label must be text or a whole number, not {_kind(value)}")


def _tag_of_path(path: str | None) -> str:
    """The language a path such as `captions.en` or `captions.en.0` names."""
    parts = (path or "").split(".")
    return _tag(parts[1]) if len(parts) > 1 and parts[0] in CAPTION_KEYS else UNDETERMINED


def _tag(text: str) -> str:
    """A language tag in one spelling (`zh_CN` -> `zh-CN`); `und` for keys that are not tags."""
    if not _TAG.fullmatch(text):
        return UNDETERMINED
    language, separator, rest = text.replace("_", "-").partition("-")
    return language.lower() + separator + rest


def _check_storable(value: Any) -> None:
    """Refuse what UTF-8 cannot hold and what would overflow later recursion."""
    stack = [(value, 1)]
    while stack:
        entry, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise RefusedError("bad-json", f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(entry, dict):
            stack += [(child, depth + 1) for pair in entry.items() for child in pair]
        elif isinstance(entry, list):
            stack += [(child, depth + 1) for child in entry]
        elif isinstance(entry, str) and _SURROGATE.search(entry):
            raise RefusedError("bad-json", "holds half of a surrogate pair, which is not Unicode")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value"}
    return names.get(type(value), "null" if value is None else "a number")
