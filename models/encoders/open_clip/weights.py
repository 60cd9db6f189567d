"""Fills a module that was built without weights from a checked file; called by `assembly`.

The usual way holds a model three times while it loads: random weights, the file, and the converted
copy. Here the module is built with parameters that have no memory, and each tensor is read, judged,
rounded to what the module wants and put in place, so the peak is the model as it will run.

What open_clip does to a state dict on its way (other projects' layouts, older names, resized
positions) is done by open_clip's own functions, in `_as_open_clip_would`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from models.errors import ModelError

_CHUNK = 64 * 2**20
"""Bytes of the file that are mapped into memory at a time."""


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules that this thread builds inside have real buffers and parameters without memory.

    Unlike under `torch.device("meta")`, masks and other tables that are computed and not loaded
    are there. The values that parameters are initialised with go nowhere, and cost nothing.
    """
    thread = threading.get_ident()

    def emptied(_module: nn.Module, _name: str, parameter: Any) -> Any:
        if threading.get_ident() != thread or parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(emptied)
    try:
        yield
    finally:
        hook.remove()


def fill(pair: Any, path: Path) -> None:
    """Load strictly: every tensor there, none left over, all of the right shape and finite.

    Args:
        pair: as `without_weights` leaves it, in the precision it shall have.
        path: of a safetensors file.

    Raises:
        ModelError: a value is not finite.
        Exception: whatever open_clip or torch find wrong with names and shapes.
    """
    wanted: dict[str, Tensor] = pair.state_dict()
    state = _as_open_clip_would(pair, _read(path, wanted))
    for key, value in state.items():
        if key in wanted and value.dtype != wanted[key].dtype:
            state[key] = value.to(wanted[key].dtype)
    pair.load_state_dict(state, strict=True, assign=True)


def _read(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of all tensors, already rounded where the module has one of that name and shape."""
    from safetensors import safe_open

    state: dict[str, Tensor] = {}
    with safe_open(str(path), framework="pt") as file:
        names = list(file.keys())
    while names:
        taken = 0
        # opened anew: mapped pages count as this process's memory until their file is closed
        with safe_open(str(path), framework="pt") as file:
            while names and taken < _CHUNK:
                name = names.pop(0)
                stored = file.get_tensor(name)
                taken += stored.nbytes
                if stored.is_floating_point() and not torch.isfinite(stored).all():
                    raise ModelError(f"{path}: {name} holds NaN or infinity")
                own = wanted.get(name)
                fits = own is not None and own.shape == stored.shape
                # never a view of the mapping: the file may change while the model runs
                state[name] = stored.to(
                    own.dtype if fits and own is not None else stored.dtype, copy=True
                )
                del stored
    return state


def _as_open_clip_would(pair: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `open_clip.load_checkpoint` does to a state dict before the module gets it."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import (
        convert_to_custom_text_state_dict,
        resize_pos_embed,
        resize_text_pos_embed,
    )

    if next(iter(state)).startswith("module"):
        state = {key[7:]: value for key, value in state.items()}
    state = convert_state_dict(pair, state)
    if "positional_embedding" in state and not hasattr(pair, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):
        own = getattr(pair, name, None)
        if name in state and own is not None:
            state[name] = state[name].reshape(own.shape)  # a number, or a row of one
    if "logit_bias" not in state and getattr(pair, "logit_bias", None) is not None:
        state["logit_bias"] = torch.zeros_like(state["logit_scale"])
    positions = "text.transformer.embeddings.position_ids"
    if not hasattr(pair, positions):  # a table that older transformers saved
        state.pop(positions, None)
    resize_pos_embed(state, pair)
    resize_text_pos_embed(state, pair)
    return state
