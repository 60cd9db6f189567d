"""open_clip pairs: against open_clip itself, on tiny random models made by the test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from fakes import halves, solid
from PIL import Image
from safetensors.torch import load_file, save_file

from models.encoder import Encoder
from models.encoders.base.weights_file import inspect_weights
from models.encoders.open_clip.pair import OpenClipEncoder
from models.encoders.registry import load_encoder
from models.errors import InputError, InvalidTextError, ModelError
from models.explainer import Explainer
from models.images.decode import decode_image

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"

CLIP = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
    },
    "text_cfg": {
        "context_length": 12,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 2,
    },
}
SIGLIP = {
    **CLIP,
    "init_logit_bias": -10.0,
    "custom_text": True,
    "text_cfg": {**CLIP["text_cfg"], "no_causal_mask": True, "pool_type": "last"},
}
SIGLIP_PIXELS = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}
TEXTS = ["a red square", "two dogs on a beach", "一只猫", ""]


def make_pair(
    folder: Path,
    config: dict[str, Any] = CLIP,
    *,
    pixels: dict[str, Any] | None = None,
    seed: int = 0,
    spread: float = 3.0,
    **changes: Any,
) -> Path:
    """A directory in open_clip's layout; `spread` scales random weights so that outputs differ."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**config, **changes}
    content = {"model_cfg": config, "preprocess_cfg": pixels or {}}
    (folder / CONFIG).write_text(json.dumps(content), encoding="utf-8")
    torch.manual_seed(seed)
    arguments = {key: value for key, value in config.items() if key != "custom_text"}
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    model = kind(**arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(spread)
    save_file(model.state_dict(), folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pair(tmp_path_factory.mktemp("pairs") / "clip")


@pytest.fixture(scope="module")
def siglip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "siglip"
    return make_pair(folder, SIGLIP, pixels=SIGLIP_PIXELS)


@pytest.fixture
def copy_of(clip_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clip_dir, tmp_path / "copy"))


def load(folder: Path, precision: str = "fp32") -> OpenClipEncoder:
    encoder = load_encoder(f"local-dir:{folder}", device="cpu", precision=precision)
    assert isinstance(encoder, OpenClipEncoder)
    return encoder


def pictures() -> list[Image.Image]:
    dice = np.random.default_rng(3)
    noise = Image.fromarray(dice.integers(0, 256, (50, 70, 3), dtype=np.uint8))
    return [
        decode_image(solid("red")),
        decode_image(halves("blue", "yellow", size=(90, 40))),
        noise,
    ]


def images_of(encoder: Encoder) -> np.ndarray:
    return encoder.embed_images([encoder.prepare_image(picture) for picture in pictures()])


def texts_of(encoder: Encoder, texts: list[str] = TEXTS) -> np.ndarray:
    return encoder.embed_texts([encoder.prepare_text(text) for text in texts])


def refusal(folder: Path | str) -> ModelError:
    model = folder if isinstance(folder, str) else f"local-dir:{folder}"
    with pytest.raises(ModelError) as caught:
        load_encoder(model, device="cpu", precision="fp32")
    assert "\n" not in str(caught.value)
    return caught.value


# --- the same vectors as open_clip ---------------------------------------------------------------


@pytest.mark.parametrize("which", ["clip_dir", "siglip_dir"])
def test_vectors_equal_open_clips_own(which: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(which)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    with torch.no_grad():
        batch = torch.stack([transform(picture) for picture in pictures()])
        images = model.encode_image(batch, normalize=True).numpy()
        texts = model.encode_text(tokenizer(TEXTS), normalize=True).numpy()
    encoder = load(folder)
    assert isinstance(encoder, Encoder)
    assert np.abs(images_of(encoder) - images).max() < 1e-5
    assert np.abs(texts_of(encoder) - texts).max() < 1e-5
    assert encoder.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert encoder.dim == images.shape[1]


def test_rows_are_unit_float32_and_independent_of_the_batch(clip_dir: Path) -> None:
    encoder = load(clip_dir)
    for rows, singles in (
        (
            images_of(encoder),
            [encoder.embed_images([encoder.prepare_image(p)])[0] for p in pictures()],
        ),
        (texts_of(encoder), [texts_of(encoder, [text])[0] for text in TEXTS]),
    ):
        assert rows.dtype == np.float32
        assert np.allclose((rows**2).sum(axis=1), 1, atol=1e-6)
        assert np.abs(rows - np.stack(singles)).max() < 1e-5
        assert np.abs(rows[0] - rows[1]).max() > 0.01  # the towers do look at their input


def test_empty_batches(clip_dir: Path) -> None:
    encoder = load(clip_dir)
    assert encoder.embed_images([]).shape == (0, 24)
    assert encoder.embed_texts([]).shape == (0, 24)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("which", ["clip_dir", "siglip_dir"])
def test_low_precision_keeps_cosines_and_ranking(
    which: str, precision: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(which)
    exact, low = load(folder), load(folder, precision)
    images, rounded = images_of(exact), images_of(low)
    texts, rounded_texts = texts_of(exact), texts_of(low)
    assert (images * rounded).sum(axis=1).min() > 0.999
    assert (texts * rounded_texts).sum(axis=1).min() > 0.999
    assert (rounded @ rounded_texts.T).argmax(axis=1).tolist() == (images @ texts.T).argmax(
        axis=1
    ).tolist()
    assert np.abs(images - rounded).max() > 0  # it really ran in the other arithmetic
    assert exact.fingerprint.digest == low.fingerprint.digest
    assert exact.logit_scale == low.logit_scale


def test_auto_is_definite_and_never_training(clip_dir: Path) -> None:
    encoder = load(clip_dir, "auto")
    assert encoder.precision in {"fp32", "bf16"}
    assert not any(module.training for module in encoder._pair.modules())
    assert not any(parameter.requires_grad for parameter in encoder._pair.parameters())


def test_patch_dropout_is_off(tmp_path: Path) -> None:
    vision = {**CLIP["vision_cfg"], "patch_dropout": 0.5}
    encoder = load(make_pair(tmp_path / "pair", vision_cfg=vision))
    first = images_of(encoder)
    assert np.array_equal(first, images_of(encoder))
    encoder._pair.train()  # the control: in training mode the same model is random
    assert not np.array_equal(first, images_of(encoder))


def test_sigmoid_pairs_have_a_bias(siglip_dir: Path, clip_dir: Path) -> None:
    assert load(siglip_dir).logit_bias == -10.0
    assert load(clip_dir).logit_bias is None


@pytest.mark.parametrize(("name", "pool"), [("test_vit", "token"), ("test_efficientnet", "")])
def test_timm_towers_load_without_the_network(tmp_path: Path, name: str, pool: str) -> None:
    vision = {"image_size": 64, "timm_model_name": name, "timm_pool": pool}
    config = {**SIGLIP, "vision_cfg": {**vision, "timm_model_pretrained": False}}
    folder = make_pair(tmp_path / "pair", config, spread=1.0)
    asking = {**config, "vision_cfg": {**vision, "timm_model_pretrained": True}}
    (folder / CONFIG).write_text(json.dumps({"model_cfg": asking}), encoding="utf-8")
    exact, low = images_of(load(folder)), images_of(load(folder, "bf16"))
    assert (exact * low).sum(axis=1).min() > 0.999


# --- the fingerprint -----------------------------------------------------------------------------


def test_fingerprint_does_not_depend_on_the_way_to_the_file(clip_dir: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(clip_dir, tmp_path / "elsewhere"))
    prints = [
        load(clip_dir).fingerprint,
        load(moved).fingerprint,
        load_encoder(f"{clip_dir / WEIGHTS}", device="cpu").fingerprint,
    ]
    assert len({print_.digest for print_ in prints}) == 1
    assert len({print_.model for print_ in prints}) == 3


def test_a_default_written_out_is_the_same_pair(copy_of: Path, clip_dir: Path) -> None:
    content = json.loads((copy_of / CONFIG).read_text())
    content["model_cfg"]["vision_cfg"]["mlp_ratio"] = 4.0
    content["model_cfg"]["quick_gelu"] = False
    content["preprocess_cfg"] = {"interpolation": "bicubic", "size": 999}
    (copy_of / CONFIG).write_text(json.dumps(content))
    assert load(copy_of).fingerprint.digest == load(clip_dir).fingerprint.digest


def test_fingerprint_tells_what_changed(clip_dir: Path, tmp_path: Path) -> None:
    base = load(clip_dir).fingerprint
    others = {
        "weights_sha256": make_pair(tmp_path / "a", seed=1),
        "preprocessing": make_pair(tmp_path / "b", pixels={"mean": [0.5, 0.5, 0.5]}),
        "activation": make_pair(tmp_path / "c", quick_gelu=True),
    }
    for field, folder in others.items():
        assert base.differences(load(folder).fingerprint) == [field]
    text = {**CLIP["text_cfg"], "tokenizer_kwargs": {"clean": "canonicalize"}}
    changed = load(make_pair(tmp_path / "d", text_cfg=text)).fingerprint
    assert base.differences(changed) == ["tokenizer"]


def test_quick_gelu_gives_other_vectors(clip_dir: Path, tmp_path: Path) -> None:
    plain, quick = load(clip_dir), load(make_pair(tmp_path / "quick", quick_gelu=True))
    assert plain.fingerprint.activation == "gelu"
    assert quick.fingerprint.activation == "quick_gelu"
    assert np.abs(images_of(plain) - images_of(quick)).max() > 1e-4
    assert np.abs(texts_of(plain) - texts_of(quick)).max() > 1e-4


def test_preprocessing_is_the_configurations(siglip_dir: Path, clip_dir: Path) -> None:
    wide = decode_image(halves("red", "blue", size=(120, 40)))
    squashed = load(siglip_dir).prepare_image(wide)
    assert squashed.shape == (3, 32, 32)
    assert squashed.dtype == np.float32
    assert squashed[0, 16, 2] == pytest.approx(1.0)  # red - 0.5 / 0.5
    assert squashed[0, 16, 29] == pytest.approx(-1.0)
    cropped = load(clip_dir).prepare_image(wide)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    assert cropped[0, 16, 2] == pytest.approx((1 - mean[0]) / std[0], abs=1e-5)
    assert json.loads(load(siglip_dir).fingerprint.preprocessing)["resize_mode"] == "squash"


# --- texts ---------------------------------------------------------------------------------------


def test_truncation_is_reported_exactly(clip_dir: Path) -> None:
    encoder = load(clip_dir)  # 12 tokens, two of them start and end
    for words, truncated in ((0, False), (9, False), (10, False), (11, True), (500, True)):
        prepared = encoder.prepare_text(" ".join(["cat"] * words))
        assert prepared.truncated is truncated, words
        assert prepared.tokens.shape == (12,)
    tokenizer = open_clip.SimpleTokenizer(context_length=12)
    for text in ("cat " * 500, " \n" * 500 + "a cat", "word" * 2000):
        assert np.array_equal(encoder.prepare_text(text).tokens, tokenizer(text)[0].numpy())
    assert not encoder.prepare_text(" " * 5000 + "a cat").truncated


def test_not_unicode(clip_dir: Path) -> None:
    with pytest.raises(InvalidTextError):
        load(clip_dir).prepare_text("\ud800")


# --- refusals ------------------------------------------------------------------------------------


class Canary:
    """Unpickling this creates a file; nothing may ever do so."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_under_another_name_is_refused_unread(
    copy_of: Path, tmp_path: Path, zipped: bool
) -> None:
    trap = tmp_path / "executed"
    torch.save({"weights": Canary(trap)}, copy_of / WEIGHTS, _use_new_zipfile_serialization=zipped)
    assert "pickled" in str(refusal(copy_of))
    assert not trap.exists()
    named = shutil.copy(copy_of / WEIGHTS, tmp_path / "honest.pt")
    torch.load(named, weights_only=False)  # the control: the trap works
    assert trap.exists()


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "open_clip_pytorch_model.pth"])
def test_pickled_files_are_not_even_opened(copy_of: Path, name: str) -> None:
    (copy_of / WEIGHTS).rename(copy_of / name)
    assert "safetensors" in str(refusal(copy_of))
    assert "safetensors" in str(refusal(str(copy_of / name)))


@pytest.mark.parametrize("length", [0x4B50, 0x180, 0x280])
def test_an_honest_file_may_begin_like_a_pickle(tmp_path: Path, length: int) -> None:
    """The first bytes are the header's length, which can read PK or 0x80."""
    header = b'{"x":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}'.ljust(length)
    raw = length.to_bytes(8, "little") + header + b"\0\0\0\0"
    assert raw.startswith((b"PK", b"\x80"))
    (tmp_path / WEIGHTS).write_bytes(raw)
    assert inspect_weights(tmp_path / WEIGHTS).shapes == {"x": ()}


def test_damaged_weights(copy_of: Path) -> None:
    whole = (copy_of / WEIGHTS).read_bytes()
    header = int.from_bytes(whole[:8], "little")
    for damaged in (
        b"",
        whole[:4],
        whole[:8],
        whole[: 8 + header // 2],
        whole[: 8 + header],
        whole[:-1],
        (2**63).to_bytes(8, "little") + whole[8:],
        (header - 5).to_bytes(8, "little") + whole[8:],
        whole[:8] + b"{" * header + whole[8 + header :],
        b"just some text that is no model at all",
    ):
        (copy_of / WEIGHTS).write_bytes(damaged)
        assert WEIGHTS in str(refusal(copy_of))


def test_tensors_missing_extra_misshapen_or_not_finite(copy_of: Path) -> None:
    tensors = load_file(copy_of / WEIGHTS)

    def saved(changes: dict[str, torch.Tensor | None]) -> str:
        changed = {**tensors, **changes}
        kept = {key: value for key, value in changed.items() if value is not None}
        save_file(kept, copy_of / WEIGHTS)
        return str(refusal(copy_of))

    assert "ln_final.weight" in saved({"ln_final.weight": None})
    assert "stowaway" in saved({"stowaway": torch.zeros(3)})
    assert "ln_final.weight" in saved({"ln_final.weight": torch.zeros(17)})
    assert "visual.positional_embedding" in saved(
        {"visual.positional_embedding": torch.zeros(50, 32)}
    )
    for poison in (float("nan"), float("inf")):
        bad = tensors["visual.proj"].clone()
        bad[3, 3] = poison
        assert "visual.proj" in saved({"visual.proj": bad})
    save_file(tensors, copy_of / WEIGHTS)
    load(copy_of)


@pytest.mark.parametrize(
    "change",
    [
        {"embed_dim": None},
        {"embed_dim": 10**12},
        {"embed_dim": -4},
        {"vision_cfg": None},
        {"text_cfg": [1]},
        {"vision_cfg": {**CLIP["vision_cfg"], "layers": 10**9}},
        {"vision_cfg": {**CLIP["vision_cfg"], "width": 4_000_000}},
        {"vision_cfg": {**CLIP["vision_cfg"], "unheard_of": 1}},
        {"vision_cfg": {"image_size": 32, "timm_model_name": "hf-hub:some/one"}},
        {"vision_cfg": {"image_size": 32, "timm_model_name": "no_such_model"}},
        {"text_cfg": {**CLIP["text_cfg"], "layers": 7}},
        {"text_cfg": {**CLIP["text_cfg"], "tokenizer_kwargs": {"trust_remote_code": True}}},
        {"text_cfg": {**CLIP["text_cfg"], "tokenizer_kwargs": {"reduction_mask": "syntax"}}},
        {"multimodal_cfg": {}},
    ],
)
def test_unusable_configurations(copy_of: Path, change: dict[str, Any]) -> None:
    content = {"model_cfg": {**CLIP, **change}}
    (copy_of / CONFIG).write_text(json.dumps(content), encoding="utf-8")
    refusal(copy_of)


@pytest.mark.parametrize(
    "pixels",
    [
        {"mean": [0.5]},
        {"std": [0.5, 0.0, 0.5]},
        {"mean": "grey"},
        {"resize_mode": "stretch"},
        {"interpolation": "lanczos9"},
    ],
)
def test_unusable_preprocessing(copy_of: Path, pixels: dict[str, Any]) -> None:
    content = {"model_cfg": CLIP, "preprocess_cfg": pixels}
    (copy_of / CONFIG).write_text(json.dumps(content), encoding="utf-8")
    refusal(copy_of)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model_cfg": 3}', "{}", "[" * 100_000])
def test_unreadable_configuration(copy_of: Path, text: str) -> None:
    (copy_of / CONFIG).write_text(text, encoding="utf-8")
    assert CONFIG in str(refusal(copy_of))


def test_missing_files(copy_of: Path, tmp_path: Path) -> None:
    assert "no directory" in str(refusal(tmp_path / "nowhere"))
    (copy_of / CONFIG).rename(copy_of / "other.json")
    error = refusal(copy_of)
    assert CONFIG in str(error)
    assert "ViT-B-32:" in str(error.hint)
    (copy_of / WEIGHTS).unlink()
    assert WEIGHTS in str(refusal(copy_of))
    (copy_of / "other.json").rename(copy_of / CONFIG)
    assert "no weights file" in str(refusal(str(copy_of / WEIGHTS)))


def test_a_siglip_without_its_tokenizer_says_what_to_copy(copy_of: Path) -> None:
    text = {**CLIP["text_cfg"], "hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}
    content = {"model_cfg": {**CLIP, "text_cfg": text}}
    (copy_of / CONFIG).write_text(json.dumps(content), encoding="utf-8")
    error = refusal(copy_of)
    assert "timm/ViT-B-16-SigLIP" in f"{error} {error.hint}"


@pytest.mark.parametrize("config", [CLIP, SIGLIP], ids=["clip", "siglip"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pairs_explain(tmp_path: Path, config: dict[str, Any], precision: str) -> None:
    pixels = SIGLIP_PIXELS if config is SIGLIP else None
    encoder = load_encoder(
        f"local-dir:{make_pair(tmp_path / 'pair', config, pixels=pixels)}",
        device="cpu",
        precision=precision,
    )
    assert isinstance(encoder, Explainer)
    assert encoder.explanation_method == "legrad"
    squashed = config is SIGLIP
    assert encoder.explained_area(60, 40) == ((0, 0, 60, 40) if squashed else (10, 0, 50, 40))
    image = encoder.prepare_image(decode_image(halves("red", "blue", size=(40, 40))))
    text = encoder.embed_texts([encoder.prepare_text("a red square")])[0]
    before = encoder.embed_images([image])
    found = encoder.relevance_map(image, text)
    assert found.shape == (4, 4)
    assert (found.min(), found.max()) == (0.0, 1.0)
    # another text, another map; and explaining leaves the model as it was
    assert np.abs(found - encoder.relevance_map(image, -text)).max() > 0.1
    assert np.array_equal(before, encoder.embed_images([image]))


def test_any_picture_is_prepared_and_what_was_not_says_so(clip_dir: Path) -> None:
    encoder = load(clip_dir)
    pixels = encoder.prepare_image(Image.new("RGB", (30, 20), "white"))
    for mode in ("1", "P", "LA", "CMYK", "RGBA", "F", "I"):
        picture = Image.new("RGB", (30, 20), "white").convert(mode)
        assert np.allclose(encoder.prepare_image(picture), pixels, atol=0.02)
    clear = Image.new("RGBA", (30, 20), (0, 0, 0, 0))
    assert np.array_equal(encoder.prepare_image(clear), pixels)
    deep = Image.fromarray(np.full((20, 30), 65535, dtype=np.uint16))
    assert np.array_equal(encoder.prepare_image(deep), pixels)
    with pytest.raises(InputError, match="plain string"):
        encoder.embed_texts("a cat")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="embed_images takes"):
        encoder.embed_images([clear])  # type: ignore[list-item]
