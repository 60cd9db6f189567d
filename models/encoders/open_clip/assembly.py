"""Builds an open_clip module that is exactly what a configuration and a weights file say.

open_clip's own factory warns, resizes and falls back where this refuses: a pair that is nearly
right answers nearly right, and nobody notices. Called by `OpenClipEncoder` and the trainer. Knows
no ids, hubs or tokenizers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import torch

from models.encoders.base.weights_file import WeightsFile
from models.encoders.open_clip.lookup import PairSource
from models.encoders.open_clip.tokens import refuse_remote_code, require_transformers
from models.encoders.open_clip.weights import fill, without_weights
from models.errors import ModelError
from models.images.geometry import Geometry

_MAX_LAYERS = 1_000
_MAX_SIZE = 10_000_000
_POSITIONS = ("positional_embedding", "visual.positional_embedding", "text.positional_embedding")


def build_pair(
    source: PairSource, weights: WeightsFile, dtype: torch.dtype
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Build and load -> (module on the CPU, its configuration, its preprocessing).

    `dtype` is what the module multiplies in (see `in_precision`); its logit scale stays fp32.

    Raises:
        ModelError: the configuration is unusable, or the weights do not belong to it.
    """
    _check_config(source.model_cfg)
    config = _localised(source)
    pair, preprocess, expected = _build(config, source, weights, dtype)
    in_precision(pair, config, dtype)
    _load_weights(pair, source, weights, expected)
    return pair, config, preprocess


def build_fresh(source: PairSource, *, seed: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The pair a configuration describes with random weights, the same for the same seed.

    Returns:
        as `build_pair`.

    Raises:
        ModelError: the configuration is unusable.
    """
    _check_config(source.model_cfg)
    config = _localised(source)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pair = _instantiate(config, torch.float32)
        preprocess = _preprocessing(pair, source.preprocess_cfg)
    except Exception as error:  # as in `_build`
        raise ModelError(f"the model's configuration is unusable: {_brief(error)}") from error
    return pair, config, preprocess


def _check_config(config: Mapping[str, Any]) -> None:
    """Refuse configurations that would exhaust the machine or reach for other models' code."""
    parts = {"model_cfg": config, **{key: config.get(key) for key in ("vision_cfg", "text_cfg")}}
    for where, part in parts.items():
        if not isinstance(part, Mapping):
            raise ModelError(f"the model's configuration has no {where}")
        for key, value in part.items():
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int | float) and not 0 <= abs(number) <= (
                    _MAX_LAYERS if "layers" in key else _MAX_SIZE
                ):
                    raise ModelError(f"{where}.{key} = {number} is out of bounds")
    if not isinstance(config.get("embed_dim"), int):
        raise ModelError("the model's configuration has no embed_dim")
    if ":" in str(config["vision_cfg"].get("timm_model_name") or ""):
        raise ModelError("timm_model_name must be the name of a built-in timm architecture")


def _localised(source: PairSource) -> dict[str, Any]:
    """The configuration with a Hugging Face text tower's own configuration found offline."""
    config = deepcopy(source.model_cfg)
    name = config["text_cfg"].get("hf_model_name")
    if not name:
        return config
    require_transformers(str(name))
    if source.folder is None:
        return config
    if not (source.folder / "config.json").is_file():
        raise ModelError(
            f"{source.folder} lacks config.json, the configuration of its text tower {name}",
            hint=f"copy config.json of {name} into it",
        )
    refuse_remote_code(source.folder)
    config["text_cfg"]["hf_model_name"] = str(source.folder)
    return config


def _build(
    config: dict[str, Any], source: PairSource, weights: WeightsFile, dtype: torch.dtype
) -> tuple[Any, dict[str, Any], dict[str, tuple[int, ...]]]:
    """Instantiate -> (pair without weights, preprocessing, expected shapes)."""
    try:
        with torch.device("meta"):  # shapes without memory: a config may promise petabytes
            expected = {
                key: tuple(value.shape)
                for key, value in _instantiate(config, dtype).state_dict().items()
            }
        size = sum(math.prod(shape) for shape in expected.values())
        if size > 2 * weights.values + 1_000_000:
            raise ModelError(
                f"{weights.path} holds {weights.values:,} numbers, the configuration describes "
                f"{size:,}: they do not belong together"
            )
        with without_weights():
            pair = _instantiate(config, dtype)
        preprocess = _preprocessing(pair, source.preprocess_cfg)
    except ModelError:
        raise
    except Exception as error:  # open_clip checks little itself: TypeError, AssertionError, ...
        raise ModelError(f"the model's configuration is unusable: {_brief(error)}") from error
    return pair, preprocess, expected


def _instantiate(config: dict[str, Any], dtype: torch.dtype) -> Any:
    """The module open_clip's factory would make of this configuration, without any weights."""
    import open_clip

    config = deepcopy(config)
    custom_text = config.pop("custom_text", False) or bool(config["text_cfg"].get("hf_model_name"))
    if config["vision_cfg"].get("timm_model_name"):
        config["vision_cfg"]["timm_model_pretrained"] = False
    if config["text_cfg"].get("hf_model_name"):
        config["text_cfg"]["hf_model_pretrained"] = False
    kind: Any = open_clip.CLIP
    if custom_text:
        kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    # makes open_clip's norms compute in fp32 whatever runs around them
    cast_dtype = None if dtype == torch.float32 else dtype
    return kind(**config, cast_dtype=cast_dtype)


def _load_weights(
    pair: Any,
    source: PairSource,
    weights: WeightsFile,
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    """Load strictly: every tensor there, none left over, all of the right shape and finite."""
    for key in _POSITIONS:
        # open_clip would silently interpolate these and thereby hide a configuration of another
        # resolution; only its own tags may rely on it
        if key in weights.shapes and key in expected and not source.resize_positions:
            found, wanted = weights.shapes[key], expected[key]
            if found != wanted:
                raise ModelError(f"{weights.path}: {key} is {found}, the model needs {wanted}")
    before = weights.path.stat()
    try:
        fill(pair, weights.path)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{weights.path} does not fit its configuration: {_brief(error)}"
        ) from error
    after = weights.path.stat()
    if (before.st_ino, before.st_mtime_ns) != (after.st_ino, after.st_mtime_ns):
        raise ModelError(f"{weights.path} changed while it was read")


def in_precision(pair: Any, config: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Convert, in place, what is multiplied to `dtype` and keep norms and the logit scale in fp32.

    As open_clip's factory does it, except for Hugging Face towers, which it leaves half converted,
    and for the scale: exp() of a bf16 one would be off by up to 2 %.
    """
    from open_clip import convert_weights_to_lp

    if dtype == torch.float32:
        pair.float()
        return
    whole = bool(config["vision_cfg"].get("timm_model_name")) or bool(
        config["text_cfg"].get("hf_model_name")
    )
    if not whole:
        convert_weights_to_lp(pair, dtype=dtype)
        return
    pair.to(dtype)
    for module in pair.modules():
        if type(module).__name__ == "LayerNormFp32":
            module.float()
    for name in ("logit_scale", "logit_bias"):
        number = getattr(pair, name, None)
        if number is not None:
            number.data = number.data.float()


def _preprocessing(pair: Any, stated: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's preprocessing in full; the size is the image tower's, whatever a file says."""
    from open_clip.transform import PreprocessCfg

    size = getattr(pair.visual, "image_size", 224)
    cfg = asdict(PreprocessCfg(**{**stated, "size": size}))
    cfg["size"] = [int(side) for side in (size if isinstance(size, list | tuple) else (size, size))]
    for key in ("mean", "std"):
        values = cfg[key] if isinstance(cfg[key], list | tuple) else [cfg[key]] * 3
        cfg[key] = [float(value) for value in values]
    if len(cfg["mean"]) != 3 or len(cfg["std"]) != 3 or min(cfg["std"]) <= 0:
        raise ModelError("preprocess_cfg: mean and std need three values each, std above zero")
    return cfg


def transform(preprocess: Mapping[str, Any]) -> Any:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    cfg = {**preprocess, "size": tuple(preprocess["size"])}
    try:
        return image_transform_v2(PreprocessCfg(**cfg), is_train=False)
    except AssertionError as error:
        raise ModelError(
            "preprocess_cfg: interpolation must be bicubic or bilinear, resize_mode shortest, "
            "longest or squash"
        ) from error


def geometry(preprocess: Mapping[str, Any]) -> Geometry:
    """What `transform` does to pixels before arithmetic; options were checked there."""
    height, width = preprocess["size"]
    fill = int(preprocess["fill_color"])
    return Geometry(width, height, preprocess["resize_mode"], preprocess["interpolation"], fill)


def architecture(config: Mapping[str, Any], kind: str) -> str:
    """Stable name of a structure: the same however it was spelled, other when any size differs."""
    from open_clip import CLIPTextCfg, CLIPVisionCfg

    bare = {key: value for key, value in config.items() if key not in ("quick_gelu", "custom_text")}
    # through the dataclasses, so that a default left out equals a default written out
    vision = asdict(CLIPVisionCfg(**config["vision_cfg"]))
    text = asdict(CLIPTextCfg(**config["text_cfg"]))
    vision.pop("timm_model_pretrained")
    for key in ("hf_model_pretrained", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"):
        text.pop(key)  # the tokenizer has a field of its own
    text["hf_model_name"] = bool(text["hf_model_name"])  # a path in a local copy
    digest = hashlib.sha256(
        canonical({**bare, "vision_cfg": vision, "text_cfg": text}).encode()
    ).hexdigest()
    return f"{kind}-{config['embed_dim']}-{digest[:16]}"


def canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
