"""Model ids: what users write, what it means, and the one door through which models are loaded.

    starter                      the pair that comes with Diptych; needs no network
    ViT-B-32/laion2b_s34b_b79k   NAME/TAG: an open_clip architecture and one of its training runs
    hf-hub:ORG/NAME              a Hugging Face repository in open_clip's layout
    local-dir:PATH               a directory with open_clip_config.json and its .safetensors, or
                                 a starter pair that `diptych train` left there
    PATH.safetensors             a checkpoint with open_clip_config.json beside it
    NAME:PATH.safetensors        a checkpoint of a built-in open_clip architecture

Parsing imports nothing heavy; torch and open_clip are imported when something is loaded or listed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from models.backends import resolve_backend
from models.checkpoints import is_pickle_name, refuse_pickle
from models.encoder import Encoder
from models.errors import ModelError
from models.starter import DESCRIPTION_NAME

Kind: TypeAlias = Literal["starter", "tag", "hub", "directory", "checkpoint"]

STARTER = "starter"
_FORMS = (
    "use starter, NAME/TAG, hf-hub:ORG/NAME, local-dir:PATH, PATH.safetensors or "
    "NAME:PATH.safetensors; `diptych models` lists the names"
)
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class ModelId:
    """A parsed id.

    Attributes:
        kind: which of the forms.
        text: what the user wrote.
        name: architecture (`tag`, and `checkpoint` where given) or repository (`hub`).
        tag: the training run (`tag`).
        path: directory or file (`directory`, `checkpoint`).
    """

    kind: Kind
    text: str
    name: str = ""
    tag: str = ""
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One line of `diptych models`."""

    id: str
    architecture: str
    tag: str
    source: str
    """Where the weights come from: `bundled`, or the hub repository."""
    needs: str | None = None
    """An extra that has to be installed first, e.g. `hf`."""


def parse_model_id(text: str) -> ModelId:
    """Read one of the forms above; whether the model exists is not looked up.

    Raises:
        ModelError: none of the forms, or a pickled checkpoint.
    """
    given = text.strip()
    if given == STARTER:
        return ModelId("starter", given)
    scheme, _, rest = given.partition(":")
    if scheme == "hf-hub":
        if not _REPOSITORY.fullmatch(rest):
            raise ModelError(f"{given!r} names no repository", hint="write hf-hub:ORG/NAME")
        return ModelId("hub", given, name=rest)
    if scheme == "local-dir":
        if not rest:
            raise ModelError("local-dir: needs a path", hint="write local-dir:PATH")
        return ModelId("directory", given, path=Path(rest).expanduser())
    if is_pickle_name(given):
        raise refuse_pickle(given)
    if given.endswith(".safetensors"):
        # a path that starts with a word and a colon can be written ./word:...
        if rest and _WORD.fullmatch(scheme):
            return ModelId("checkpoint", given, name=scheme, path=Path(rest).expanduser())
        return ModelId("checkpoint", given, path=Path(given).expanduser())
    words = given.split("/")  # three where the name is OpenAI's ViT-B/32
    if len(words) in (2, 3) and all(_WORD.fullmatch(word) for word in words):
        return ModelId("tag", given, name="-".join(words[:-1]), tag=words[-1])
    hint = _FORMS
    if given and Path(given).expanduser().is_dir():
        hint = f"for a directory write local-dir:{given}"
    raise ModelError(f"{given!r} is not a model id", hint=hint)


def load_encoder(
    model: str = STARTER,
    *,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    backend: str | None = None,
) -> Encoder:
    """Load the encoder pair that `model` names, ready to embed, in evaluation mode.

    Args:
        model: an id of one of the forms above.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: `auto`, `fp32`, `bf16` or `fp16`; see `models.devices.resolve_precision`.
        threads: CPU threads of the whole process; None leaves torch's default.
        backend: see `models.backends`; None takes what the process prefers.

    Raises:
        ModelError: the id, the files, the device, the precision or the backend cannot be used.
    """
    parsed = parse_model_id(model)
    given: dict[str, Any] = {"device": device, "precision": precision, "threads": threads}
    if parsed.kind == "starter":
        from models.starter.encoder import load_starter

        return load_starter(**given, backend=backend)
    if parsed.path is not None and (parsed.path / DESCRIPTION_NAME).is_file():
        from models.starter.encoder import load_starter_from

        return load_starter_from(parsed.path, **given, backend=backend)
    resolve_backend(backend, device="cpu", precision=precision, supported=False)
    from models.openclip import load_openclip

    return load_openclip(parsed, **given)


def known_models() -> list[KnownModel]:
    """The starter pair, then every architecture and tag that open_clip knows, in its order."""
    from models.openclip_source import tagged_models

    return [
        KnownModel(STARTER, STARTER, "", "bundled"),
        *(KnownModel(*row) for row in tagged_models()),
    ]
