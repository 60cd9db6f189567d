"""Parses model ids, for the registry and the trainer: what users write, and what it means.

    starter                      the pair that comes with Diptych; needs no network
    ViT-B-32/laion2b_s34b_b79k   NAME/TAG: an open_clip architecture and one of its training runs
    hf-hub:ORG/NAME              a Hugging Face repository in open_clip's layout
    local-dir:PATH               a directory with open_clip_config.json and its .safetensors, or
                                 a starter pair that `diptych train` left there
    PATH.safetensors             a checkpoint with open_clip_config.json beside it
    NAME:PATH.safetensors        a checkpoint of a built-in open_clip architecture
    NAME/TAG:PATH.safetensors    the same, of weights that grew from that training run: it has
                                 the run's preprocessing and activation

Imports nothing heavy, and looks nothing up; `models.encoders.registry` loads what an id names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from models.encoders.base.weights_file import is_pickle_name, refuse_pickle
from models.errors import ModelError

Kind: TypeAlias = Literal["starter", "tag", "hub", "directory", "checkpoint"]

STARTER = "starter"
_FORMS = (
    "use starter, NAME/TAG, hf-hub:ORG/NAME, local-dir:PATH, PATH.safetensors or "
    "NAME[/TAG]:PATH.safetensors; `diptych models` lists the names"
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
        tag: the training run (`tag`, and `checkpoint` where given).
        path: directory or file (`directory`, `checkpoint`).
    """

    kind: Kind
    text: str
    name: str = ""
    tag: str = ""
    path: Path | None = None


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
        name, _, tag = scheme.rpartition("/")
        if rest and _WORD.fullmatch(name) and _WORD.fullmatch(tag) and not Path(given).exists():
            path = Path(rest).expanduser()
            return ModelId("checkpoint", given, name=name, tag=tag, path=path)
        return ModelId("checkpoint", given, path=Path(given).expanduser())
    words = given.split("/")  # three where the name is OpenAI's ViT-B/32
    if len(words) in (2, 3) and all(_WORD.fullmatch(word) for word in words):
        return ModelId("tag", given, name="-".join(words[:-1]), tag=words[-1])
    hint = _FORMS
    if given and Path(given).expanduser().is_dir():
        hint = f"for a directory write local-dir:{given}"
    raise ModelError(f"{given!r} is not a model id", hint=hint)
