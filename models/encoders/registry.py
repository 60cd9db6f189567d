"""Loads the encoder pair that a model id names, and lists the known ones; for every surface.

torch and open_clip are imported when something is loaded or listed; the forms of an id are in
`models.encoders.base.model_id`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from models.devices import import_torch
from models.encoder import Encoder
from models.encoders.base.backends import resolve_backend
from models.encoders.base.model_id import STARTER, parse_model_id
from models.encoders.starter import DESCRIPTION_NAME
from models.errors import ModelError


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
        backend: see `models.encoders.base.backends`; None takes what the process prefers.

    Raises:
        ModelError: the id, the files, the device, the precision or the backend cannot be used.
    """
    parsed = parse_model_id(model)
    given: dict[str, Any] = {"device": device, "precision": precision, "threads": threads}
    if parsed.kind == "starter":
        from models.encoders.starter.pair import load_starter

        return load_starter(**given, backend=backend)
    if parsed.path is not None and (parsed.path / DESCRIPTION_NAME).is_file():
        from models.encoders.starter.pair import load_starter_from

        return load_starter_from(parsed.path, **given, backend=backend)
    resolve_backend(backend, device="cpu", precision=precision, supported=False)
    import_torch(f"the model {model}")
    from models.encoders.open_clip.pair import load_openclip

    return load_openclip(parsed, **given)


def is_starter(model: str) -> bool:
    """Whether an id names the starter pair, as it came or as `diptych train` left it.

    What is no id does not: a bare architecture, which training from scratch takes, or a mistake,
    which whoever loads it tells.
    """
    try:
        parsed = parse_model_id(model)
    except ModelError:
        return False
    return parsed.kind == "starter" or (
        parsed.path is not None and (parsed.path / DESCRIPTION_NAME).is_file()
    )


def known_models() -> list[KnownModel]:
    """The starter pair, then every architecture and tag that open_clip knows, in its order.

    Where open_clip is not installed, the starter alone.
    """
    starter = KnownModel(STARTER, STARTER, "", "bundled")
    if not open_clip_installed():
        return [starter]
    from models.encoders.open_clip.lookup import tagged_models

    return [starter, *(KnownModel(*row) for row in tagged_models())]


def open_clip_installed() -> bool:
    """Whether the extra `clip` is there."""
    return find_spec("open_clip") is not None
