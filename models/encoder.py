"""The `Encoder` protocol: all that indexing, search and serving know of a model.

This file knows no tensors library: it runs on numpy and the standard library, so that everything
above `models/` can be tested with a fake encoder whose right answers are known by construction.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from models.errors import InputError, InvalidTextError, InvalidVectorError, ModelError
from models.vectors import Vectors

if TYPE_CHECKING:
    from PIL.Image import Image

PREPARED_IMAGE = np.ndarray
PreparedImage: TypeAlias = npt.NDArray[np.generic]
"""One picture after the model's own preprocessing, e.g. float32 [3, H, W]."""


@dataclass(frozen=True, slots=True)
class PreparedText:
    """One text after the model's own tokenizer; `truncated` when the context cut it."""

    tokens: Any
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Everything that changes an embedding. Two digests differ -> the vectors do not compare.

    `model` is the name the user typed and takes no part in the digest: the same weights reached
    through `hf-hub:` and `local-dir:` compare. `precision_family` is `float` for fp32, bf16 and
    fp16, whose vectors of one model agree to a cosine above 0.999 and rank alike; quantised
    backends are families of their own.
    """

    model: str
    architecture: str
    weights_sha256: str
    preprocessing: str
    tokenizer: str
    activation: str
    dim: int
    precision_family: str = "float"

    @property
    def digest(self) -> str:
        """sha256 (hex) over every field but `model`, as canonical JSON."""
        bound = {k: v for k, v in asdict(self).items() if k != "model"}
        text = json.dumps(bound, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, other: Fingerprint) -> list[str]:
        """Names of the fields, `model` aside, in which the two differ."""
        return [
            field.name
            for field in fields(self)
            if field.name != "model" and getattr(self, field.name) != getattr(other, field.name)
        ]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fingerprint:
        """Inverse of `to_dict`.

        Raises:
            ModelError: missing, unknown or wrongly typed fields.
        """
        expected = {field.name: int if field.name == "dim" else str for field in fields(cls)}
        if set(data) != set(expected):
            raise ModelError(f"fingerprint fields are {sorted(data)}, expected {sorted(expected)}")
        for name, kind in expected.items():
            if type(data[name]) is not kind:
                raise ModelError(f"fingerprint field {name!r} must be {kind.__name__}")
        return cls(**data)


@runtime_checkable
class Encoder(Protocol):
    """An image tower and a text tower into one unit sphere of dimension D.

    `prepare_*` is CPU work on one item and thread-safe; `embed_*` is device work on a batch and
    is called from one thread at a time. `embed_*` of an empty batch returns [0, D].
    """

    @property
    def fingerprint(self) -> Fingerprint: ...

    @property
    def dim(self) -> int:
        """D."""
        ...

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before softmax or sigmoid (already exponentiated)."""
        ...

    @property
    def logit_bias(self) -> float | None:
        """Added after scaling by sigmoid-trained pairs (SigLIP); None for softmax-trained ones."""
        ...

    def prepare_image(self, image: Image) -> PreparedImage:
        """Preprocess one picture: `models.images.decode.decode_image` gives one that is upright
        and RGB, any other of Pillow's is brought there first (`upright_rgb`).
        """
        ...

    def prepare_text(self, text: str) -> PreparedText:
        """Tokenise one text; a text longer than the context is cut and marked `truncated`."""
        ...

    def embed_images(self, images: Sequence[PreparedImage]) -> Vectors:
        """Embed prepared pictures -> float32 [B, D], unit rows.

        Raises:
            InputError: something that `prepare_image` did not make.
        """
        ...

    def embed_texts(self, texts: Sequence[PreparedText]) -> Vectors:
        """Embed prepared texts -> float32 [B, D], unit rows.

        Raises:
            InputError: something that `prepare_text` did not make, such as a plain string.
        """
        ...


def check_prepared(batch: Any, kind: type) -> None:
    """Refuse what was not prepared, with the call that was meant.

    Args:
        batch: what `embed_*` was given.
        kind: what each of it must be: `PreparedText` or `PREPARED_IMAGE`.

    Raises:
        InputError
    """
    what = "text" if kind is PreparedText else "image"
    plain = isinstance(batch, str | bytes | PreparedText) or not hasattr(batch, "__len__")
    wrong = batch if plain else next((one for one in batch if not isinstance(one, kind)), None)
    if plain or wrong is not None:
        raise InputError(
            f"embed_{what}s takes a list of what prepare_{what} returns, not {_kind_of(wrong)}",
            hint=f"embed_{what}s([encoder.prepare_{what}({what}) for {what} in {what}s])",
        )


def check_text(text: Any) -> str:
    """The text, if it is one.

    Raises:
        InvalidTextError
    """
    if not isinstance(text, str):
        raise InvalidTextError(
            f"a text must be a str, not {_kind_of(text)}",
            hint="[encoder.prepare_text(text) for text in texts], one call for each",
        )
    return text


def _kind_of(value: Any) -> str:
    return "a plain string" if isinstance(value, str) else f"one {type(value).__name__}"


def embed_each(embed: Callable[[Any], Vectors], prepared: Sequence[Any]) -> list[Vectors | None]:
    """Embed a batch; None for each item whose vector is unusable, without losing the others."""
    if not prepared:
        return []
    try:
        vectors_BD = embed(prepared)
    except InvalidVectorError:
        if len(prepared) == 1:
            return [None]
        return [vector for one in prepared for vector in embed_each(embed, [one])]
    assert len(vectors_BD) == len(prepared)
    squares_B = np.einsum("bd,bd->b", vectors_BD, vectors_BD, dtype=np.float64)
    # NaN and infinity fail the comparison too
    good_B = np.abs(squares_B - 1.0) < 0.01
    return [row if good else None for row, good in zip(vectors_BD, good_B, strict=True)]
