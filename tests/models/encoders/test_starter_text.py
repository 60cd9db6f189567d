"""The sentence encoder in torch is the package's in numpy; its tuned weights survive the disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from models.encoders.registry import load_encoder
from models.encoders.starter import DESCRIPTION_NAME
from models.encoders.starter.description import FORMAT, read_parts
from models.encoders.starter.head_arrays import WEIGHTS_NAME
from models.encoders.starter.heads import load_heads, save_heads
from models.encoders.starter.pair import STARTER_DIRECTORY, load_starter, load_text_tower
from models.encoders.starter.text_network import ORDERS, SentenceNetwork, TokenTable, _windows
from models.encoders.starter.text_tower import TextTower, network_arrays
from models.encoders.starter.tuned_weights import TEXT_WEIGHTS_NAME, load_weights, save_weights
from models.errors import ModelError
from models.training.starter import StarterPair

TEXTS = [
    "A cat.",
    "一只猫在垫子上睡觉",
    "Un chat noir dort sur le canapé.",
    "犬が走っている。",
    "två hundar 🐈‍⬛ и кошка",
    "",
    " ",
    "a",
    "two dogs run through the snow " * 20,
]


@pytest.fixture(scope="module")
def tower() -> TextTower:
    return TextTower()


@pytest.fixture(scope="module")
def network(tower: TextTower) -> SentenceNetwork:
    return tower.trainable()


def tokens(tower: TextTower, texts: list[str]) -> list[list[int]]:
    return [tower.prepare(text).tokens for text in texts]


def test_torch_gives_what_numpy_gives(tower: TextTower, network: SentenceNetwork) -> None:
    expected_BS = tower.features([tower.prepare(text) for text in TEXTS])
    with torch.inference_mode():
        found_BS = network(tokens(tower, TEXTS))
    np.testing.assert_allclose(found_BS.numpy(), expected_BS, atol=1e-5)


def test_a_text_does_not_see_its_neighbours(tower: TextTower, network: SentenceNetwork) -> None:
    with torch.inference_mode():
        together_BP, root_B = network.pool(tokens(tower, TEXTS))
        alone = [network.pool(tokens(tower, [text])) for text in TEXTS]
    torch.testing.assert_close(together_BP, torch.cat([pooled for pooled, _ in alone]))
    assert root_B.tolist() == pytest.approx([len(t) ** 0.5 for t in tokens(tower, TEXTS)])


def test_every_weight_has_a_gradient_and_it_is_the_slope(tower: TextTower) -> None:
    """Against central differences in double precision, one random direction a weight."""
    network = tower.trainable().double()
    table = network.table
    network.table = TokenTable(table.rows, table.scale.double(), table.low.double())
    batch = tokens(tower, TEXTS[:5])
    generator = torch.Generator().manual_seed(0)
    wanted_BS = torch.randn(5, 512, generator=generator, dtype=torch.double)

    def value() -> torch.Tensor:
        return (network(batch) * wanted_BS).sum()

    value().backward()
    for name, parameter in network.weights.items():
        assert parameter.grad is not None, name
        step = torch.randn(parameter.shape, generator=generator, dtype=torch.double)
        step *= 1e-5 / step.norm()
        slopes = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step
                slopes.append(value().item())
                parameter -= sign * step
        analytic = float((parameter.grad * step).sum())
        # a few of the ReLUs change sides within the step
        assert analytic == pytest.approx((slopes[0] - slopes[1]) / 2, rel=0.02, abs=1e-8), name


def test_windows_reach_as_far_as_the_order_says() -> None:
    column_M1 = torch.arange(1.0, 8.0)[:, None]
    for order, left in ORDERS.items():
        seen = _windows(column_M1, order, left)[3].tolist()
        assert seen == [float(4 - left + at) for at in range(order)]


def test_tuned_weights_change_the_features_and_only_of_their_tower(tower: TextTower) -> None:
    network = tower.trainable()
    with torch.no_grad():
        network.weights["d3"].mul_(1.5)
    tuned = TextTower(
        {name: value.detach().numpy() for name, value in network.weights.items()}, "abc"
    )
    text = [tower.prepare(TEXTS[0])]
    with torch.inference_mode():
        expected_BS = network([text[0].tokens])
    np.testing.assert_allclose(tuned.features(text), expected_BS.numpy(), atol=1e-5)
    assert np.abs(tuned.features(text) - tower.features(text)).max() > 1e-3
    np.testing.assert_array_equal(TextTower().features(text), tower.features(text))


def test_weights_of_another_shape_are_refused(tower: TextTower) -> None:
    weights = network_arrays(tower.network)
    with pytest.raises(ModelError, match="does not fit"):
        TextTower(weights | {"d3": np.zeros((2, 2), np.float32)})
    with pytest.raises(ModelError, match="does not fit"):
        TextTower({"d9": weights["d3"]})
    TextTower({"d3": weights["d3"]})  # one of them alone is what a file of tuned layers holds


@pytest.fixture
def pair(tmp_path: Path, tower: TextTower) -> Path:
    """The starter's heads over a text network that was changed."""
    network = tower.trainable()
    with torch.no_grad():
        network.weights["p3"].mul_(1.2)
    sha256 = save_weights(dict(network.weights), tmp_path, TEXT_WEIGHTS_NAME)
    save_heads(load_heads(STARTER_DIRECTORY)[0], tmp_path, parts={TEXT_WEIGHTS_NAME: sha256})
    return tmp_path


def test_a_pair_with_tuned_weights_loads_them(pair: Path) -> None:
    tuned, plain = load_encoder(f"local-dir:{pair}"), load_starter()
    assert tuned.fingerprint.differences(plain.fingerprint) == ["weights_sha256"]
    text = [plain.prepare_text("a dog on the beach")]
    cosine = float((tuned.embed_texts(text) * plain.embed_texts(text)).sum())
    assert 0.5 < cosine < 0.9999


def test_half_precision_on_disk_keeps_the_features(pair: Path, tower: TextTower) -> None:
    parts = read_parts(pair)
    weights = load_weights(pair, TEXT_WEIGHTS_NAME, parts[TEXT_WEIGHTS_NAME])
    network = tower.trainable()
    with torch.no_grad():
        network.weights["p3"].mul_(1.2)
    with torch.inference_mode():
        exact_BS = network(tokens(tower, TEXTS))
    read_BS = TextTower(weights).features([tower.prepare(text) for text in TEXTS])
    assert (exact_BS.numpy() * read_BS).sum(axis=1).min() > 0.9999


def test_without_the_file_or_with_another_the_pair_is_refused(pair: Path) -> None:
    path = pair / TEXT_WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(ModelError, match="not the text tower") as caught:
        load_text_tower(pair)
    assert caught.value.code == "model-wrong-weights"
    path.unlink()
    with pytest.raises(ModelError, match="cannot read"):
        load_encoder(f"local-dir:{pair}")


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    sha256 = save_weights(
        {"d3": torch.tensor([1e6])}, tmp_path, TEXT_WEIGHTS_NAME
    )  # fp16 ends at 65,504
    with pytest.raises(ModelError, match="NaN or infinity"):
        load_weights(tmp_path, TEXT_WEIGHTS_NAME, sha256)


def test_a_pair_without_parts_says_so_as_before(tmp_path: Path) -> None:
    for name in (DESCRIPTION_NAME, WEIGHTS_NAME):
        shutil.copy(STARTER_DIRECTORY / name, tmp_path)
    save_heads(load_heads(tmp_path)[0], tmp_path)
    assert read_parts(tmp_path) == {}
    assert json.loads((tmp_path / DESCRIPTION_NAME).read_text())["format"] == FORMAT


@pytest.mark.parametrize("parts", [5, ["x"], {"text.safetensors": 5}])
def test_damaged_parts_are_refused(pair: Path, parts: object) -> None:
    path = pair / DESCRIPTION_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parts": parts}))
    with pytest.raises(ModelError):
        load_text_tower(pair)


def test_a_run_takes_the_text_weights_of_its_start_along(pair: Path, tmp_path: Path) -> None:
    heads = load_heads(pair)[0]
    for name, start, parts in (
        ("from-pair", pair, {TEXT_WEIGHTS_NAME}),
        ("from-starter", STARTER_DIRECTORY, set(read_parts(STARTER_DIRECTORY))),
        ("fresh", None, set()),
    ):
        out = tmp_path / name
        StarterPair(heads, directory=start).save(out)
        assert set(read_parts(out)) == parts
        assert (out / TEXT_WEIGHTS_NAME).exists() == (TEXT_WEIGHTS_NAME in parts)
    assert (
        load_text_tower(tmp_path / "from-pair").weights_sha256
        == read_parts(pair)[TEXT_WEIGHTS_NAME]
    )
