"""One ViT-B/32 of random weights, in open_clip's layout and in that of Hugging Face.

    python tests/bench/peers_model.py FOLDER

Speed does not depend on what the weights are, and so nothing is downloaded: the tokenizer is
rebuilt from the vocabulary that comes with open_clip. FOLDER/open_clip is for Diptych, FOLDER/hf
for infinity and clip-retrieval; the numbers in both are the same.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file

MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]
BLOCK = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
         "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}  # fmt: skip
REST = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # sic
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """open_clip's state dict -> that of transformers' CLIPModel."""
    found: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        tower = "vision_model" if key.startswith("visual.") else "text_model"
        if key in REST:
            found[REST[key]] = value
        elif key in ("text_projection", "visual.proj"):
            name = "visual_projection" if tower == "vision_model" else "text_projection"
            found[f"{name}.weight"] = value.T.contiguous()
        else:
            _, _, inner = key.partition("resblocks.")
            number, _, part = inner.partition(".")
            layer = f"{tower}.encoder.layers.{number}"
            if part.startswith("attn.in_proj_"):
                kind = part.removeprefix("attn.in_proj_")
                for name, third in zip("qkv", value.chunk(3), strict=True):
                    found[f"{layer}.self_attn.{name}_proj.{kind}"] = third.contiguous()
            else:
                module, _, kind = part.rpartition(".")
                found[f"{layer}.{BLOCK[module]}.{kind}"] = value
    return found


def hf_config() -> dict[str, Any]:
    common = {"hidden_act": "quick_gelu", "projection_dim": 512, "num_hidden_layers": 12}
    text = {"model_type": "clip_text_model", "hidden_size": 512, "intermediate_size": 2048,
            "num_attention_heads": 8, "vocab_size": 49408, "max_position_embeddings": 77,
            "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}  # fmt: skip
    vision = {"model_type": "clip_vision_model", "hidden_size": 768, "intermediate_size": 3072,
              "num_attention_heads": 12, "image_size": 224, "patch_size": 32}  # fmt: skip
    return {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 512,
            "text_config": text | common, "vision_config": vision | common}  # fmt: skip


def tokenizer(folder: Path) -> None:
    inner = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(key, key): number for key, number in inner.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    merges = sorted(inner.bpe_ranks, key=lambda pair: inner.bpe_ranks[pair])
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), "utf-8")
    end = "<|endoftext|>"
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "unk_token": end,
             "bos_token": "<|startoftext|>", "eos_token": end, "pad_token": end}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def main() -> None:
    folder = Path(sys.argv[1])
    ours, theirs = folder / "open_clip", folder / "hf"
    ours.mkdir(parents=True, exist_ok=True)
    theirs.mkdir(exist_ok=True)
    torch.manual_seed(0)
    config = {**open_clip.get_model_config("ViT-B-32"), "quick_gelu": True}
    state = open_clip.CLIP(**config).state_dict()
    # all texts are alike to fresh weights; apart, the cosines of a check say something
    for key in ("token_embedding.weight", "positional_embedding"):
        state[key] *= 5
    state = {key: value.contiguous() for key, value in state.items()}
    save_file(state, ours / "open_clip_model.safetensors")
    about = {"model_cfg": config, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (ours / "open_clip_config.json").write_text(json.dumps(about))
    save_file(renamed(state), theirs / "model.safetensors", metadata={"format": "pt"})
    (theirs / "config.json").write_text(json.dumps(hf_config()))
    pixels = {"image_processor_type": "CLIPImageProcessor",
              "image_mean": MEAN, "image_std": STD, "resample": 3, "do_convert_rgb": True,
              "do_resize": True, "do_center_crop": True, "do_rescale": True,
              "do_normalize": True, "rescale_factor": 1 / 255}  # fmt: skip
    pixels |= {"crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 224}}
    (theirs / "preprocessor_config.json").write_text(json.dumps(pixels))
    tokenizer(theirs)


if __name__ == "__main__":
    main()
