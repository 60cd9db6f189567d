"""What a starter pair's directory says of itself, and the numbers its parts agree on.

Read by the registry, the encoder, the heads and the training of the pair. Imports no tensors
library: a text query needs none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from models.atomic import replace_file
from models.encoders.starter import DESCRIPTION_NAME
from models.errors import ModelError
from models.images.geometry import Geometry

Read = TypeVar("Read")

FORMAT = 3
"""1 scaled the concepts where later ones map them: such a pair is refused and has to be trained
again. 2 left ImageNet's classifier to the image tower's package; 3 keeps it beside the heads."""
_READABLE = (2, 3)

IMAGE_SIDE = 260
IMAGE_FEATURES = 1280
TEXT_FEATURES = 512
IMAGENET_CLASSES = 1000
MAX_TOKENS = 256
"""USE has no context limit of its own; this one bounds memory (5 KiB a token) and time."""

IMAGE_SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
"""Of the package's image tower, before any tuning."""
TEXT_SHA256 = {
    "sp.model": "994fcc2e8ad0fe2c802b68fa0de9f058403f2b1656c2d33b6a94146b0c5925e9",
    "weights.npz": "0db566fd0af82cbf9f3a7eac3920ede5fb784a6882398563ca9b1bbd66fb37c9",
}
"""Of the package's sentence encoder."""
TOWERS_SHA256 = hashlib.sha256(
    "".join([IMAGE_SHA256, *(TEXT_SHA256[name] for name in sorted(TEXT_SHA256))]).encode()
).hexdigest()
"""One name for the untuned weights of both towers; part of the starter's fingerprint."""

GEOMETRY = Geometry(IMAGE_SIDE, IMAGE_SIDE, "squash", "bicubic")
PREPROCESSING = f"rgb squash {IMAGE_SIDE}x{IMAGE_SIDE} bicubic antialias (x-127.5)/127.5"
TOKENIZER = f"use-multilingual-v3 unigram, {MAX_TOKENS} tokens"


@dataclass(frozen=True, slots=True)
class HeadsConfig:
    """The shape of the heads; saved beside the weights.

    The dimension of the shared space is that of the sentence encoder, because both heads start
    there.
    """

    image_hidden: int = 1024
    text_hidden: int = 1024
    image_dropout: float = 0.4
    text_dropout: float = 0.1
    concept_temperature: float = 0.5


@dataclass(frozen=True, slots=True)
class Description:
    """The content of `diptych_starter.json`.

    Attributes:
        heads: their shape.
        parts: file name -> sha256 of the towers' weights that belong to the heads; a tower that
            is not named is its package's own.
        name: what the weights are called in the fingerprint. Empty: by the hashes of their files.
            Given: these files say the same as others did before, rounded otherwise; the vectors
            compare, and indexes of the others stay good.
        heads_sha256: of the heads' file, where `name` is given.
    """

    heads: HeadsConfig
    parts: dict[str, str] = field(default_factory=dict)
    name: str = ""
    heads_sha256: str = ""


def read_description(directory: Path) -> Description:
    """Read what `write_description` wrote, or an earlier version of it.

    Raises:
        ModelError: missing, damaged or of another format.
    """
    path = directory / DESCRIPTION_NAME
    try:
        content = json.loads(read(path))
        if content["format"] not in _READABLE:
            raise ModelError(
                f"{path} has format {content['format']!r}, this version reads "
                f"{' and '.join(map(str, _READABLE))}",
                hint="use the version of diptych that wrote it, or train the pair again",
            )
        parts, same = content.get("parts", {}), content.get("same_as", {})
        if not all(isinstance(text, str) for text in [*parts.values(), *same.values()]):
            raise ModelError(f"{path} does not name its parts by their sha256")
        heads = _heads_of(path, content["heads"])
        named = same.get("weights_sha256", ""), same.get("heads_sha256", "")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path} is not a description of starter heads") from error
    return Description(heads, dict(parts), *named)


def write_description(directory: Path, description: Description) -> None:
    """Write `diptych_starter.json`, in one step."""
    content: dict[str, Any] = {"format": FORMAT, "heads": asdict(description.heads)}
    if description.parts:
        content["parts"] = description.parts
    if description.name:
        content["same_as"] = {
            "weights_sha256": description.name,
            "heads_sha256": description.heads_sha256,
        }
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    replace_file(directory / DESCRIPTION_NAME, text.encode())


def read_parts(directory: Path) -> dict[str, str]:
    """Name -> sha256 of the tuned weights that belong to the heads in a directory.

    Raises:
        ModelError: the description is missing or damaged.
    """
    return read_description(directory).parts


def read(path: Path) -> bytes:
    """The content of one of a pair's files.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error


def read_checked(path: Path, sha256: str, what: str) -> bytes:
    """The same of a file that is named by its hash.

    Raises:
        ModelError: it cannot be read, or code `model-wrong-weights`: it is another.
    """
    data = read(path)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ModelError(
            f"{path} is not the {what} these heads were trained on",
            code="model-wrong-weights",
            hint="copy the whole directory of a trained pair, not single files",
        )
    return data


def read_packaged(path: Path, sha256: str) -> bytes:
    """The same of a file that a package carries.

    Raises:
        ModelError: likewise.
    """
    data = _packaged(path.read_bytes, path)
    _refuse_another(path, hashlib.sha256(data).hexdigest(), sha256)
    return data


def check_packaged(path: Path, sha256: str) -> None:
    """That a file of a package is the one it should be, without holding it in memory.

    Raises:
        ModelError: likewise.
    """

    def digest() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    _refuse_another(path, _packaged(digest, path), sha256)


def _packaged(read: Callable[[], Read], path: Path) -> Read:
    try:
        return read()
    except OSError as error:
        raise ModelError(
            f"the starter's weights {path.name} cannot be read: {error.strerror}",
            hint="reinstall diptych",
        ) from error


def _refuse_another(path: Path, found: str, sha256: str) -> None:
    if found != sha256:
        raise ModelError(
            f"{path.name} has sha256 {found[:12]}..., expected {sha256[:12]}...",
            code="model-wrong-weights",
            hint="reinstall the package that carries it",
        )


def _heads_of(path: Path, values: Mapping[str, Any]) -> HeadsConfig:
    known = {each.name: each.type for each in fields(HeadsConfig)}
    if set(values) != set(known):
        raise ModelError(f"{path} describes heads this version does not know")
    sizes_ok = all(
        type(values[name]) is int and 0 < values[name] <= 65_536
        if kind == "int"
        else isinstance(values[name], (int, float)) and 0 <= values[name] < 100
        for name, kind in known.items()
    )
    if not sizes_ok or not values["concept_temperature"]:
        raise ModelError(f"{path} holds sizes out of range")
    return HeadsConfig(**values)
