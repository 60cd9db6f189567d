"""Tiny open_clip pairs and captioned pictures, made on the spot, for tests of the trainer.

A pair is two layers of width 64 over pictures of 32 pixels: a step takes milliseconds.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from fakes import encode
from PIL import Image
from safetensors.torch import save_file

TINY: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 64,
        "head_width": 32,
        "patch_size": 8,
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
    },
}
TINY_SIGLIP: dict[str, Any] = {**TINY, "init_logit_bias": -10.0, "custom_text": True}
WORDS = (
    *("apple", "boat", "chair", "door", "eagle", "fire", "glove", "horn"),
    *("iron", "jar", "king", "lamp", "moon", "nut", "oar", "pen"),
)


def tiny_pair(folder: Path, config: dict[str, Any] = TINY, *, seed: int = 0) -> Path:
    """A directory in open_clip's layout with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    torch.manual_seed(seed)
    arguments = {key: value for key, value in config.items() if key != "custom_text"}
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    save_file(kind(**arguments).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def blocks(seed: int, *, size: int = 40) -> bytes:
    """A picture of sixteen coloured blocks that no other seed gives, as PNG."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(colours).resize((size, size), Image.Resampling.NEAREST)
    return encode(picture)


def shard(path: Path, rows: Sequence[tuple[str, bytes, dict[str, Any]]]) -> str:
    """A webdataset shard of (key, picture, JSON beside it)."""
    with tarfile.open(path, "w") as archive:
        for key, picture, data in rows:
            for suffix, content in (("png", picture), ("json", json.dumps(data).encode())):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return str(path)


def sixteen(path: Path) -> str:
    """Sixteen pictures whose captions only training can connect to them."""
    return shard(
        path,
        [
            (f"k{at:02d}", blocks(at), {"captions": {"en": [f"a {word}", f"one {word}"]}})
            for at, word in enumerate(WORDS)
        ],
    )
