"""Weights go from their file into a module once: open_clip's bits, and no second copy."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.encoders.base.model_id import parse_model_id
from models.encoders.base.weights_file import inspect_weights
from models.encoders.open_clip.assembly import build_pair
from models.encoders.open_clip.lookup import find_source
from models.encoders.open_clip.weights import without_weights

WEIGHTS = "open_clip_model.safetensors"
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TIMM = {
    "timm_model_name": "resnet10t",
    "timm_model_pretrained": False,
    "timm_pool": "avg",
    "timm_proj": "linear",
    "image_size": 64,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT},
    "timm": {"embed_dim": 24, "vision_cfg": TIMM, "text_cfg": TEXT},
    "custom text": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT, "custom_text": True},
}


def saved(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    torch.manual_seed(1)
    bare = {key: value for key, value in config.items() if key != "custom_text"}
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    model = kind(**bare)
    with torch.no_grad():
        model.logit_scale.fill_(3.14159)  # no bf16 number
    save_file(model.state_dict(), folder / WEIGHTS)
    return folder


def ours(folder: Path, dtype: torch.dtype) -> Any:
    source = find_source(parse_model_id(f"local-dir:{folder}"))
    return build_pair(source, inspect_weights(source.weights), dtype)[0].eval()


def theirs(folder: Path, precision: str) -> Any:
    model, _, _ = open_clip.create_model_and_transforms(
        f"local-dir:{folder}", precision=precision, load_weights=True
    )
    return model.eval()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_every_tensor_is_open_clip_s_bit_for_bit(
    name: str, precision: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "pair", CONFIGS[name])
    mine, other = ours(folder, dtype).state_dict(), theirs(folder, precision).state_dict()
    assert mine.keys() == other.keys()
    for key, value in mine.items():
        assert not value.is_meta
        if key == "logit_scale":
            assert float(value) == pytest.approx(3.14159, abs=1e-6)
        else:
            assert value.dtype == other[key].dtype
            assert torch.equal(value, other[key])


def test_masks_that_are_computed_and_not_stored_are_there(tmp_path: Path) -> None:
    folder = saved(tmp_path / "pair", CONFIGS["vit"])
    mine, other = ours(folder, torch.float32), theirs(folder, "fp32")
    assert torch.equal(mine.attn_mask, other.attn_mask)
    text_BL = open_clip.tokenize(["a red square", "two dogs"], context_length=12)
    image_B3HW = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(mine.encode_text(text_BL), other.encode_text(text_BL))
        assert torch.equal(mine.encode_image(image_B3HW), other.encode_image(image_B3HW))


def test_a_loaded_pair_does_not_read_its_file_again(tmp_path: Path) -> None:
    folder = saved(tmp_path / "pair", CONFIGS["vit"])
    mine = ours(folder, torch.float32)
    before = {key: value.clone() for key, value in mine.state_dict().items()}
    with (folder / WEIGHTS).open("r+b") as file:  # in place: a mapping would see it
        file.seek(4096)
        file.write(b"\0" * 100_000)
    assert all(torch.equal(value, before[key]) for key, value in mine.state_dict().items())


def test_only_the_thread_that_asked_builds_without_weights() -> None:
    built: list[nn.Module] = []
    with without_weights():
        empty = nn.Linear(3, 3)
        other = threading.Thread(target=lambda: built.append(nn.Linear(3, 3)))
        other.start()
        other.join()
    assert empty.weight.is_meta
    assert not built[0].weight.is_meta  # type: ignore[union-attr]
    assert not nn.Linear(3, 3).weight.is_meta


def test_loading_takes_little_more_than_the_weights(tmp_path: Path) -> None:
    wide = {**TEXT, "width": 512, "heads": 8, "layers": 4}
    folder = saved(tmp_path / "pair", {**CONFIGS["vit"], "text_cfg": wide})
    size = (folder / WEIGHTS).stat().st_size
    code = f"""
import resource, open_clip, models.encoders.open_clip.pair
from models.encoders.registry import load_encoder
from models.encoders.open_clip import assembly, tokens
def peak(): return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
encoder = load_encoder("local-dir:{folder}", device="cpu", precision="fp32", threads=1)
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert size > 140e6
    # one copy, a chunk of the file, the tokenizer; it was three copies
    assert int(done.stdout) < 1.8 * size
