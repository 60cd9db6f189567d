"""Judges weights files before a pair loads them: safetensors only, by content.

Pickled checkpoints can run any code when read; they are refused whatever they are called. This
file knows bytes, headers and hashes, not architectures.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

from models.errors import ModelError

WEIGHTS_NAME = "open_clip_model.safetensors"
"""open_clip's name for weights in a local directory or hub repository."""

_MAX_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library itself."""

_PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz", ".h5", ".onnx")


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A checked safetensors file: tensor shapes by name and the hash of the whole content."""

    path: Path
    sha256: str
    shapes: dict[str, tuple[int, ...]]

    @property
    def values(self) -> int:
        """How many numbers the file holds."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def inspect_weights(path: Path) -> WeightsFile:
    """Check and hash a weights file without loading a tensor.

    Raises:
        ModelError: missing, not a regular file, pickled, or not valid safetensors.
    """
    if not path.is_file():
        raise ModelError(f"no weights file at {path}")
    with path.open("rb") as file:
        _check_is_safetensors(path, file.read(9), path.stat().st_size)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return WeightsFile(path, digest, _shapes(path))


def is_pickle_name(name: str) -> bool:
    return name.lower().endswith(_PICKLED_SUFFIXES)


def refuse_pickle(what: str) -> ModelError:
    return ModelError(
        f"{what} holds pickled weights, which can run code when read; only safetensors is loaded",
        hint="convert it once, where you trust it, with safetensors.torch.save_file",
    )


def _check_is_safetensors(path: Path, head: bytes, size: int) -> None:
    header = int.from_bytes(head[:8], "little")
    if len(head) == 9 and head[8:] == b"{" and header <= min(_MAX_HEADER, size - 8):
        return
    # torch.save writes a zip, or a bare pickle in the old format; asked second, because the
    # length of an honest header may begin with the same bytes
    if head.startswith((b"PK", b"\x80")):
        raise refuse_pickle(str(path))
    raise ModelError(f"{path} is not a safetensors file, or it is cut short")


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ModelError(f"{path} is not a usable safetensors file: {reason}") from error


def read_json_object(path: Path, *, limit: int = 4_000_000) -> dict[str, object]:
    """A small JSON object from a model's directory.

    Raises:
        ModelError: missing, larger than `limit` bytes, or not a JSON object.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
        value = json.loads(raw) if len(raw) <= limit else None
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object of reasonable size")
    return value
