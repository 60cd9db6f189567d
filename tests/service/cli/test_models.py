"""`diptych models` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from service.cli.main import cli

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["models", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_list_and_filter() -> None:
    lines = run().splitlines()
    assert lines[0].startswith("starter")
    assert any(line.startswith("ViT-B-32/laion2b_s34b_b79k ") for line in lines)
    siglip = json.loads(run("--filter", "SigLip", "--json"))
    assert siglip
    assert all("siglip" in model["id"].lower() for model in siglip)
    assert run("--filter", "no such thing") == ""


def test_show(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY)
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    shown = json.loads(run("show", f"local-dir:{tmp_path}", "--json", "--precision", "fp32"))
    assert shown["dim"] == 8
    assert shown["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert shown["preprocessing"]["size"] == [16, 16]
    assert len(shown["fingerprint"]) == 64
    text = run("show", f"local-dir:{tmp_path}")
    assert shown["fingerprint"] in text
    assert f"{shown['parameters']:,}" in text


def test_help_has_examples() -> None:
    assert "diptych models show starter" in run("--help")
    assert "diptych models show starter" in run("show", "--help")
