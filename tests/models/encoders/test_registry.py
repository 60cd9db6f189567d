"""Model ids, the hub cache, and the devices and precisions that `auto` may choose."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import open_clip
import pytest
import torch
from open_clip import factory as open_clip_factory
from open_clip import pretrained as open_clip_pretrained
from safetensors.torch import save_file
from threadpoolctl import threadpool_info

from models.devices import (
    resolve_device,
    resolve_precision,
    set_threads,
    settle_threads,
    threads_here,
)
from models.encoders.base.model_id import parse_model_id
from models.encoders.open_clip.lookup import PairSource, find_source
from models.encoders.open_clip.pair import OpenClipEncoder
from models.encoders.registry import known_models, load_encoder
from models.errors import ModelError

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no permission to use the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def publish(cache: Path, repository: str, **config: Any) -> Path:
    """Put a tiny pair into the cache as the hub's client lays it out."""
    base = cache / f"models--{repository.replace('/', '--')}"
    snapshot = base / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text("0" * 40)
    (snapshot / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**TINY, **config}}))
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**TINY).state_dict(), snapshot / "open_clip_model.safetensors")
    return snapshot


def load(model: str) -> OpenClipEncoder:
    encoder = load_encoder(model, device="cpu", precision="fp32")
    assert isinstance(encoder, OpenClipEncoder)
    return encoder


@pytest.mark.parametrize(
    ("text", "kind", "name", "tag", "path"),
    [
        ("starter", "starter", "", "", None),
        (" starter ", "starter", "", "", None),
        ("ViT-B-32/laion2b_s34b_b79k", "tag", "ViT-B-32", "laion2b_s34b_b79k", None),
        ("ViT-B/32/openai", "tag", "ViT-B-32", "openai", None),
        ("hf-hub:timm/ViT-B-16-SigLIP", "hub", "timm/ViT-B-16-SigLIP", "", None),
        ("local-dir:/a b/c", "directory", "", "", "/a b/c"),
        ("local-dir:x", "directory", "", "", "x"),
        ("a/b.safetensors", "checkpoint", "", "", "a/b.safetensors"),
        ("ViT-B-32:a/b.safetensors", "checkpoint", "ViT-B-32", "", "a/b.safetensors"),
        ("./a:b.safetensors", "checkpoint", "", "", "a:b.safetensors"),
        ("ViT-B-32/openai:b.safetensors", "checkpoint", "ViT-B-32", "openai", "b.safetensors"),
    ],
)
def test_id_forms(text: str, kind: str, name: str, tag: str, path: str | None) -> None:
    parsed = parse_model_id(text)
    assert (parsed.kind, parsed.name, parsed.tag) == (kind, name, tag)
    assert parsed.path == (None if path is None else Path(path))


@pytest.mark.parametrize(
    "text",
    ["", " ", "Starter!", "ViT-B-32", "hf-hub:", "hf-hub:timm", "hf-hub:../x/y", "local-dir:",
     "a//b", "/etc/passwd", "model.pt", "ViT-B-32:model.bin", "https://x.org/m.pth", "a\nb/c"],
)  # fmt: skip
def test_other_ids_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(ModelError) as caught:
        parse_model_id(text)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_bare_directory_is_pointed_to_its_form(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        parse_model_id(str(tmp_path))
    assert f"local-dir:{tmp_path}" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("model", "suggestion"),
    [
        ("ViT-B-23/openai", "ViT-B-32"),
        ("vit-b-32/openai", "ViT-B-32"),
        ("ViT-B-32/laion2b_s34b", "laion2b_s34b_b79k"),
        ("ViT-B-23:x.safetensors", "ViT-B-32"),
    ],
)
def test_unknown_names_suggest_close_ones(model: str, suggestion: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(model)
    assert suggestion in str(caught.value.hint)


@pytest.mark.parametrize("model", ["ViT-B-32/laion2b_s34b_b79k", "hf-hub:some/pair"])
def test_offline_and_not_cached_says_what_to_do(cache: Path, model: str) -> None:
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set") as caught:
        load(model)
    assert "hf download" in str(caught.value.hint)
    assert not cache.exists() or not list(cache.rglob("*.safetensors"))


def test_hub_and_directory_are_the_same_pair(cache: Path) -> None:
    snapshot = publish(cache, "some/pair")
    hub, directory = load("hf-hub:some/pair"), load(f"local-dir:{snapshot}")
    assert hub.fingerprint.digest == directory.fingerprint.digest
    assert hub.fingerprint.model == "hf-hub:some/pair"


def test_a_cached_pair_needs_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = publish(cache, "some/pair")
    weights = snapshot / "open_clip_model.safetensors"
    weights.rename(snapshot / "open_clip_pytorch_model.safetensors")  # the older name
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://hub.invalid")
    assert load("hf-hub:some/pair").dim == 8
    began = time.monotonic()
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        load("hf-hub:some/other")
    assert time.monotonic() - began < 10  # no half minute of retries


def test_a_tag_brings_its_activation_and_pixels(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ViT-B-32/openai in small: the architecture's name says GELU, the tag knows better."""
    snapshot = publish(cache, "some/pair", quick_gelu=True)
    tags = {
        "quick": open_clip_pretrained._pcfg(hf_hub="some/pair/", quick_gelu=True),
        "plain": open_clip_pretrained._slpcfg(hf_hub="some/pair/"),
        "pickled": open_clip_pretrained._pcfg(url="https://x.org/tiny.pt"),
    }
    monkeypatch.setitem(open_clip_factory._MODEL_CONFIGS, "tiny", TINY)
    monkeypatch.setitem(open_clip_pretrained._PRETRAINED, "tiny", tags)
    quick, plain = load("tiny/quick"), load("tiny/plain")
    assert quick.fingerprint.digest == load(f"local-dir:{snapshot}").fingerprint.digest
    assert quick.fingerprint.activation == "quick_gelu"
    assert plain.fingerprint.activation == "gelu"
    assert json.loads(plain.fingerprint.preprocessing)["resize_mode"] == "squash"
    with pytest.raises(ModelError, match="pickled"):
        load("tiny/pickled")
    with pytest.raises(ModelError, match="different preprocessings"):
        load(f"tiny:{snapshot / 'open_clip_model.safetensors'}")
    monkeypatch.setitem(open_clip_pretrained._PRETRAINED, "tiny", {"plain": tags["plain"]})
    named = load(f"tiny:{snapshot / 'open_clip_model.safetensors'}")
    assert named.fingerprint.digest == plain.fingerprint.digest


def test_every_built_in_tag_is_listed_and_parses() -> None:
    listed = known_models()
    assert listed[0].id == "starter"
    assert len(listed) == 1 + len(open_clip.list_pretrained())
    for model in listed[1:]:
        parsed = parse_model_id(model.id)
        assert (parsed.kind, parsed.name, parsed.tag) == ("tag", model.architecture, model.tag)
        assert model.source
    assert next(m for m in listed if m.id == "ViT-B-16-SigLIP/webli").needs == "hf"


def test_devices_and_precisions() -> None:
    cpu = torch.device("cpu")
    assert resolve_device("cpu") == cpu
    assert resolve_device("auto").type in {"cpu", "cuda", "mps"}
    for wrong in ("gpu", "cuda:x", "auto:1", "", "cuda:99"):
        with pytest.raises(ModelError):
            resolve_device(wrong)
    assert resolve_precision("fp16", cpu) == "fp16"
    with pytest.raises(ModelError, match="int4"):
        resolve_precision("int4", cpu)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "fp32"), ({"avx2": True}, "fp32")],
)
def test_auto_on_a_cpu_is_bf16_only_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", torch.device("cpu")) == expected


def test_threads() -> None:
    before = torch.get_num_threads()
    set_threads(None)
    assert torch.get_num_threads() == before
    with pytest.raises(ModelError):
        set_threads(0)
    try:
        set_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        set_threads(before)


def openmp_threads() -> set[int]:
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "openmp"}


def test_threads_hold_where_others_embed() -> None:
    before, seen = torch.get_num_threads(), []

    def work() -> None:
        seen.append(openmp_threads())
        settle_threads()
        torch.zeros(1)
        seen.append(openmp_threads())

    def in_a_thread() -> None:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    try:
        set_threads(before)
        in_a_thread()
        chosen = 1 + max(*seen[0], *seen[1])
        set_threads(chosen)
        in_a_thread()
    finally:
        set_threads(before)
    assert chosen not in seen[2]
    assert chosen in seen[3]


def test_one_thread_is_one_only_inside() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        several = openmp_threads()
        assert 2 in several
        with threads_here(1):
            assert openmp_threads() == {1}
        assert openmp_threads() == several
    finally:
        torch.set_num_threads(before)


def named(text: str) -> PairSource:
    return find_source(parse_model_id(text))


def test_a_bare_checkpoint_of_both_activations_is_refused_with_its_choices(tmp_path: Path) -> None:
    """A ViT-B-32 that grew from OpenAI's weights computes with QuickGELU, another one does not."""
    with pytest.raises(ModelError, match="both activations") as caught:
        named(f"ViT-B-32:{tmp_path}/ft.safetensors")
    assert caught.value.code == "activation-unknown"
    quick, plain = re.findall(r"(ViT-B-32\S+):ft\.safetensors", str(caught.value.hint))
    assert named(f"{quick}:{tmp_path}/ft.safetensors").model_cfg["quick_gelu"] is True
    assert named(f"{plain}:{tmp_path}/ft.safetensors").model_cfg["quick_gelu"] is False
    # what was ambiguous for another reason has the same way out
    with pytest.raises(ModelError, match="different preprocessings") as caught:
        named("ViT-L-14:x.safetensors")
    assert "ViT-L-14/TAG:x.safetensors" in str(caught.value.hint)
    grown = named("ViT-L-14/dfn2b:x.safetensors")
    assert grown.model_cfg["quick_gelu"] is True
    assert grown.weights == Path("x.safetensors")
    with pytest.raises(ModelError, match="no pretrained tag"):
        named("ViT-L-14/dfn3b:x.safetensors")


def test_no_architecture_with_both_activations_loads_without_a_word() -> None:
    refused = set()
    for name in open_clip.list_models():
        twins = f"{name}-quickgelu" in open_clip.list_models()
        published = {
            bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
            for tag in open_clip.list_pretrained_tags_by_model(name)
        }
        try:
            quick = named(f"{name}:x.safetensors").model_cfg["quick_gelu"]
        except ModelError:
            refused.add(name)
            continue
        assert not twins
        assert quick == bool(open_clip.get_model_config(name).get("quick_gelu"))
        assert quick or True not in published
    assert {"ViT-B-32", "ViT-L-14-336", "RN50", "ViT-H-14", "ViT-L-14-worldwide"} <= refused
    assert not {"ViT-B-32-quickgelu", "ViT-B-32-256", "roberta-ViT-B-32"} & refused


def test_what_a_converted_configuration_says_of_the_activation_counts(tmp_path: Path) -> None:
    """A folder converted from Hugging Face's layout keeps its config.json."""
    (tmp_path / "open_clip_model.safetensors").touch()
    ours, theirs = tmp_path / "open_clip_config.json", tmp_path / "config.json"
    towers = {"text_config": {"hidden_act": "quick_gelu"}, "vision_config": {}}

    def write(path: Path, content: Any) -> None:
        path.write_text(json.dumps(content), encoding="utf-8")

    write(theirs, {"model_type": "clip", **towers})
    assert named(f"ViT-B-32:{tmp_path}/ft.safetensors").model_cfg["quick_gelu"] is True
    write(ours, {"model_cfg": {"embed_dim": 8}})
    with pytest.raises(ModelError, match="names no activation"):
        named(f"local-dir:{tmp_path}")
    for said in (True, False):  # whoever says it is believed
        write(ours, {"model_cfg": {"embed_dim": 8, "quick_gelu": said}})
        assert named(f"local-dir:{tmp_path}").model_cfg["quick_gelu"] is said
    write(ours, {"model_cfg": {"embed_dim": 8}})
    towers = {"text_config": {"hidden_act": "gelu"}, "vision_config": {"hidden_act": "gelu"}}
    write(theirs, {"model_type": "clip", **towers})
    named(f"local-dir:{tmp_path}")
    assert named(f"ViT-B-32:{tmp_path}/ft.safetensors").model_cfg["quick_gelu"] is False
    with pytest.raises(ModelError, match=r"config\.json"):
        named(f"ViT-B-32-quickgelu:{tmp_path}/ft.safetensors")
    write(theirs, {"model_type": "roberta", "hidden_act": "gelu"})  # of a text tower alone
    named(f"local-dir:{tmp_path}")
