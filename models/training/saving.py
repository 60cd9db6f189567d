"""A trained pair as a directory in open_clip's own layout.

    open_clip_config.json, open_clip_model.safetensors, and the tokenizer's files where it has any

`--model local-dir:DIR` and open_clip itself load it. Every file is written beside its place and
renamed; the configuration last, because without it there is no pair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from models.atomic import replace_file
from models.encoders.base.weights_file import WEIGHTS_NAME
from models.encoders.open_clip.lookup import CONFIG_NAME
from models.training.pair import TrainablePair

_TOKENIZER_FILES: Final = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
    "tokenizer.model",
    # the configuration of a Hugging Face text tower
    "config.json",
)  # fmt: skip
_PREPROCESS: Final = ("mean", "std", "interpolation", "resize_mode", "fill_color")


def save_pair(
    pair: TrainablePair, directory: Path, *, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write the pair; with `state`, those weights instead of the module's own."""
    from safetensors.torch import save

    directory.mkdir(parents=True, exist_ok=True)
    tensors = dict(pair.module.state_dict() if state is None else state)
    # a copy each: safetensors refuses tensors that share memory
    copied = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    replace_file(directory / WEIGHTS_NAME, save(copied))
    _save_tokenizer(pair, directory)
    text = json.dumps(description(pair), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    replace_file(directory / CONFIG_NAME, text.encode())


def description(pair: TrainablePair) -> dict[str, Any]:
    """What `open_clip_config.json` says of the pair."""
    preprocess = {key: pair.preprocess_cfg[key] for key in _PREPROCESS}
    return {"model_cfg": pair.model_cfg, "preprocess_cfg": preprocess}


def _save_tokenizer(pair: TrainablePair, directory: Path) -> None:
    if pair.folder is not None:
        for name in _TOKENIZER_FILES:
            source = pair.folder / name
            if source.is_file() and source.resolve() != (directory / name).resolve():
                replace_file(directory / name, source.read_bytes())
        return
    pair.tokenizer.save_files(directory)
    if name := pair.model_cfg["text_cfg"].get("hf_model_name"):
        assert name
        pair.module.text.config.save_pretrained(str(directory))
