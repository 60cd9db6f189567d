"""`diptych models`: which encoder pairs there are, and what one of them is."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import click

from service.cli.options import argument, json_option, option, takes
from service.cli.output import emit_json


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsArguments:
    needle: str = option("--filter", default="", help="Only ids that contain this, in any case.")
    as_json: bool = json_option()


@click.group(invoke_without_command=True)
@takes(ModelsArguments)
def models(given: ModelsArguments) -> None:
    """List encoder pairs: the starter pair, then open_clip's.

    Every line is an id for --model. The starter pair needs no network; the others are fetched
    from the Hugging Face hub on first use, and from its cache when HF_HUB_OFFLINE is set.

    \b
    diptych models --filter siglip
    diptych models show starter
    diptych models show local-dir:my-pair --json
    """
    if click.get_current_context().invoked_subcommand is not None:
        return
    from models.encoders.registry import known_models, open_clip_installed

    found = [model for model in known_models() if given.needle.lower() in model.id.lower()]
    if given.as_json:
        emit_json([asdict(model) for model in found])
        return
    width = max((len(model.id) for model in found), default=0)
    for model in found:
        extra = f"  (needs diptych[{model.needs}])" if model.needs else ""
        click.echo(f"{model.id:<{width}}  {model.source}{extra}")
    if not open_clip_installed():
        click.echo('open_clip\'s pairs need: pip install "diptych[clip]"', err=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowModelArguments:
    model: str = argument(required=True)
    device: str = option(
        "--device", default="auto", show_default=True, help="auto, cpu, cuda, mps."
    )
    precision: str = option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
        default="auto",
        show_default=True,
        help="Arithmetic of the towers.",
    )
    as_json: bool = json_option()


@models.command()
@takes(ShowModelArguments)
def show(given: ShowModelArguments) -> None:
    """Load MODEL and describe it: size, preprocessing and the fingerprint that binds an index.

    \b
    diptych models show starter
    diptych models show ViT-B-32/laion2b_s34b_b79k --json
    diptych models show local-dir:my-pair
    """
    from models.encoders.registry import load_encoder

    encoder = load_encoder(given.model, device=given.device, precision=given.precision)
    fingerprint = encoder.fingerprint
    described: dict[str, Any] = {
        "model": fingerprint.model,
        "dim": encoder.dim,
        "parameters": getattr(encoder, "parameters", None),
        "logit_scale": encoder.logit_scale,
        "logit_bias": encoder.logit_bias,
        "device": str(getattr(encoder, "device", "cpu")),
        "precision": getattr(encoder, "precision", None),
        "backend": getattr(encoder, "backend", "torch"),
        "preprocessing": _unpacked(fingerprint.preprocessing),
        "tokenizer": _unpacked(fingerprint.tokenizer),
        "architecture": fingerprint.architecture,
        "activation": fingerprint.activation,
        "weights_sha256": fingerprint.weights_sha256,
        "fingerprint": fingerprint.digest,
    }
    if given.as_json:
        emit_json(described)
        return
    for name, value in described.items():
        if value is not None:
            text = f"{value:,}" if name == "parameters" else _compact(value)
            click.echo(f"{name:<14}  {text}")


def _unpacked(text: str) -> Any:
    """Fields of a fingerprint that are JSON, as values; the others as they are."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _compact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_compact(part)}" for key, part in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(_compact(part) for part in value) if isinstance(value, list) else str(value)
