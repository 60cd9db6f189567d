"""Pairs with Hugging Face tokenizers and text towers, offline from their own directory."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from models.encoders.open_clip.tokens import TextPreparer
from models.encoders.registry import load_encoder
from models.environment import hub_offline
from models.errors import ModelError

transformers = pytest.importorskip("transformers", reason="the extra diptych[hf] is not installed")

WORDS = ["a", "red", "blue", "square", "dog", "cat", "on", "the", "beach", "photo", "of"]
VISION = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
TEXT = {
    "hf_model_name": "nowhere/bert",
    "hf_tokenizer_name": "nowhere/bert",
    "context_length": 8,
    "tokenizer_kwargs": {"clean": "canonicalize"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SigLIP-like tokenizer, whose padding is its end of text, and a tiny BERT as text tower."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("pair")
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    vocabulary |= {word: number + 3 for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    ).save_pretrained(folder)
    config = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    torch.manual_seed(0)
    text = {**TEXT, "hf_model_name": str(folder), "hf_model_pretrained": False}
    model = open_clip.CustomTextCLIP(8, VISION, text)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def test_truncation_even_where_padding_is_the_end_of_text(folder: Path) -> None:
    prepare = TextPreparer(TEXT, folder)
    for words, truncated in ((3, False), (6, False), (7, False), (8, True), (400, True)):
        prepared = prepare(" ".join((WORDS * 40)[:words]))
        assert prepared.truncated is truncated, words
        assert prepared.tokens.tolist()[-1] == 1
    assert prepare("A RED dog!").tokens.tolist() == prepare("a red dog").tokens.tolist()


def test_text_tower_from_the_directory_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    encoder = load_encoder(f"local-dir:{folder}", device="cpu", precision="fp32")
    texts = [encoder.prepare_text(text) for text in ("a red dog", "blue cat on the beach")]
    rows = encoder.embed_texts(texts)
    text = {**TEXT, "hf_model_name": str(folder), "hf_model_pretrained": False}
    oracle = open_clip.CustomTextCLIP(8, VISION, text).eval()
    open_clip.load_checkpoint(oracle, str(folder / "open_clip_model.safetensors"))
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a red dog", "blue cat on the beach"])
    with torch.no_grad():
        expected = oracle.encode_text(tokens, normalize=True).numpy()
    assert np.abs(rows - expected).max() < 1e-5
    low = load_encoder(f"local-dir:{folder}", device="cpu", precision="bf16")
    assert (low.embed_texts(texts) * rows).sum(axis=1).min() > 0.999


def test_many_threads_tokenise(folder: Path) -> None:
    prepare = TextPreparer(TEXT, folder)
    expected = [prepare("dog " * length).tokens.tolist() for length in range(12)]
    wrong: list[int] = []

    def work() -> None:
        for length in range(12):
            try:
                if prepare("dog " * length).tokens.tolist() != expected[length]:
                    wrong.append(length)
            except RuntimeError:  # "Already borrowed"
                wrong.append(-1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_in_a_directory_is_never_run(folder: Path, tmp_path: Path, name: str) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = json.loads((tmp_path / name).read_text())
    content["auto_map"] = {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.T", None]}
    (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    with pytest.raises(ModelError, match="its own code"):
        load_encoder(f"local-dir:{tmp_path}", device="cpu")
    assert not (tmp_path / "executed").exists()


def test_a_missing_configuration_is_named(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        if path.name != "config.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match=r"config\.json") as caught:
        load_encoder(f"local-dir:{tmp_path}", device="cpu")
    assert "nowhere/bert" in str(caught.value.hint)


def test_a_tokenizer_in_the_cache_is_used_without_asking_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "models--nowhere--bert"
    shutil.copytree(folder, base / "snapshots" / ("0" * 40))
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text("0" * 40)
    for module in (huggingface_hub.constants, transformers.utils.hub.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path))
    # the variable is read as the client is imported, which this file does before `models`
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)
    asked = []

    def look_up(host: str, *_: object, **__: object) -> None:
        asked.append(host)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert not hub_offline()
    named = TextPreparer(TEXT, None)
    assert asked == []
    there = TextPreparer(TEXT, folder)
    assert named("a red dog").tokens.tolist() == there("a red dog").tokens.tolist()
