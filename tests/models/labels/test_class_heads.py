"""Linear heads, adapters and their file: optima, zero-shot starts, damage, another encoder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import COLOURS, ColourEncoder, solid

from models.errors import InvalidLabelsError, LabelSetError, SourceError
from models.evaluation.measures import evaluate_head, evaluate_zero_shot
from models.images.decode import decode_image
from models.labels.class_head import Adapter, ClassHead, load_head, save_head
from models.sources.embedded import Collected
from models.training.class_heads import (
    fit_adapter,
    fit_head,
    fit_linear,
    held_back,
    minimise,
    penalised,
)
from models.vectors import Vectors, unit_rows


def clusters(
    classes: int, each: int, dim: int, noise: float, seed: int = 0
) -> tuple[Vectors, np.ndarray]:
    """Pictures around one random direction a class."""
    centre_CD = unit_rows(np.random.default_rng(7).standard_normal((classes, dim)))
    dice = np.random.default_rng(seed)
    target_N = np.repeat(np.arange(classes), each)
    wobble_ND = noise * dice.standard_normal((len(target_N), dim)) / dim**0.5
    return unit_rows(centre_CD[target_N] + wobble_ND), target_N


def test_the_gradient_is_zero_at_the_optimum_and_nowhere_near() -> None:
    image_ND, target_N = clusters(4, 10, 8, 1.0)
    x_ND, y_N = torch.from_numpy(image_ND).double(), torch.from_numpy(target_N)
    weight_CD, bias_C = minimise(x_ND, y_N, 4, 1e-3)

    def slope(weight_CD: torch.Tensor) -> float:
        leaves = [weight_CD.clone().requires_grad_(), bias_C.clone().requires_grad_()]
        loss = penalised(x_ND, y_N, leaves[0], leaves[1], 1e-3)
        return max(float(g.abs().max()) for g in torch.autograd.grad(loss, leaves))

    assert slope(weight_CD) < 1e-6
    assert slope(weight_CD * 1.01) > 1e-5
    # any other point is worse: the minimum of a convex function
    best = penalised(x_ND, y_N, weight_CD, bias_C, 1e-3)
    for seed in range(5):
        away = torch.randn(weight_CD.shape, generator=torch.Generator().manual_seed(seed))
        assert penalised(x_ND, y_N, weight_CD + 0.1 * away, bias_C, 1e-3) > best


def test_closed_forms_of_the_optimum() -> None:
    """Two mirrored pictures: weight w on the axis solves sigmoid(-2 w) = strength * w."""
    x_ND = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    weight_CD, bias_C = minimise(x_ND, torch.tensor([0, 1]), 2, 0.1)
    w = float(weight_CD[0, 0])
    assert w > 0
    assert float(torch.sigmoid(torch.tensor(-2 * w))) == pytest.approx(0.1 * w, rel=1e-5)
    torch.testing.assert_close(weight_CD, torch.tensor([[w, 0], [-w, 0]], dtype=torch.float64))
    # features without information: the classes' shares are all there is to learn
    nothing_ND = torch.zeros(4, 2, dtype=torch.float64)
    _, bias_C = minimise(nothing_ND, torch.tensor([0, 0, 0, 1]), 2, 0.1)
    torch.testing.assert_close(bias_C.softmax(dim=0), torch.tensor([0.75, 0.25]).double())


def test_the_penalty_is_chosen_on_pictures_that_were_not_learned_from() -> None:
    image_ND, target_N = clusters(6, 10, 32, 3.0)
    found = fit_linear(image_ND, target_N, 6)
    assert found.held_back == 12
    assert found.tried[found.strength] == max(found.tried.values())
    test_ND, test_N = clusters(6, 40, 32, 3.0, seed=1)
    guess_N = (test_ND @ found.weight_CD.T + found.bias_C).argmax(axis=1)
    assert float((guess_N == test_N).mean()) > 0.5  # chance is a sixth
    again = fit_linear(image_ND, target_N, 6)
    assert np.array_equal(again.weight_CD, found.weight_CD)


def test_a_fifth_of_each_class_is_held_back() -> None:
    target_N = np.array([0] * 10 + [1] * 2 + [2])
    held_N = held_back(target_N)
    assert [int(held_N[target_N == number].sum()) for number in range(3)] == [2, 1, 0]
    assert np.array_equal(held_back(target_N), held_N)
    assert not np.array_equal(held_back(target_N, seed=1), held_N)


def test_single_pictures_leave_nothing_to_choose_on() -> None:
    image_ND, target_N = clusters(3, 1, 8, 0.1)
    linear = fit_linear(image_ND, target_N, 3)
    assert (linear.held_back, linear.tried) == (0, {})
    adapter = fit_adapter(image_ND, target_N, image_ND, 20.0, epochs=3)
    assert (adapter.held_back, adapter.epochs) == (0, 3)


def test_an_adapter_starts_at_zero_shot_learns_and_its_control_does_not() -> None:
    """The class directions are wrong by a rotation that only training can find."""
    image_ND, target_N = clusters(5, 20, 16, 0.3)
    turned_CD = np.roll(unit_rows(np.random.default_rng(7).standard_normal((5, 16))), 1, axis=0)
    trained = fit_adapter(image_ND, target_N, turned_CD.astype(np.float32), 30.0, epochs=200)
    before = (image_ND @ turned_CD.T).argmax(axis=1)
    after = (trained.adapter(image_ND) @ turned_CD.T).argmax(axis=1)
    assert trained.tried[0] == pytest.approx(0.0) == float((before == target_N).mean())
    assert float((after == target_N).mean()) == 1.0
    # its control: the same training towards labels that mean nothing is not carried over
    shuffled_N = np.random.default_rng(3).permutation(target_N)
    broken = fit_adapter(image_ND, shuffled_N, turned_CD.astype(np.float32), 30.0, epochs=200)
    after = (broken.adapter(image_ND) @ turned_CD.T).argmax(axis=1)
    assert float((after == target_N).mean()) < 0.6


def head(kind: str = "linear") -> ClassHead:
    dice = np.random.default_rng(0)
    adapter = None
    if kind == "adapter":
        down, up = dice.standard_normal((2, 8)), dice.standard_normal((8, 2))
        adapter = Adapter(down.astype(np.float32), up.astype(np.float32))
    weight_CD = dice.standard_normal((3, 8)).astype(np.float32)
    bias_C = dice.standard_normal(3).astype(np.float32)
    return ClassHead(kind, ("a", "猫", "c"), weight_CD, bias_C, 2.5, adapter, "m", "e")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["linear", "adapter", "prompts"])
def test_a_file_gives_back_the_same_logits(tmp_path: Path, kind: str) -> None:
    one = head(kind)
    save_head(one, tmp_path / "x" / "head.safetensors")
    other = load_head(tmp_path / "x" / "head.safetensors")
    image_BD = clusters(4, 2, 8, 1.0)[0]
    assert np.array_equal(one.logits(image_BD), other.logits(image_BD))
    assert (other.labels, other.kind, other.model, other.encoder) == (one.labels, kind, "m", "e")
    # the loop form
    for b, row_D in enumerate(image_BD):
        x_D = row_D if one.adapter is None else one.adapter(row_D[None])[0]
        for c in range(3):
            expected = one.scale * float(x_D @ one.weight_CD[c]) + float(one.bias_C[c])
            assert one.logits(image_BD)[b, c] == pytest.approx(expected, rel=1e-5)


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    save_head(head("adapter"), path)
    data = path.read_bytes()
    with pytest.raises(LabelSetError):
        load_head(tmp_path / "none")
    for at in range(0, len(data), 3):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with pytest.raises(LabelSetError):
            load_head(path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(LabelSetError):
        load_head(path)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ("a", "b")},
        {"labels": ("a", "a", "b")},
        {"kind": "other"},
        {"bias_C": np.zeros(2, dtype=np.float32)},
        {"weight_CD": np.full((3, 8), np.nan, dtype=np.float32)},
        {"scale": 0.0},
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    save_head(dataclasses.replace(head(), **change), tmp_path / "head")  # type: ignore[arg-type]
    with pytest.raises(LabelSetError):
        load_head(tmp_path / "head")


def test_another_encoder_is_refused() -> None:
    head().check_encoder("e")
    with pytest.raises(LabelSetError) as caught:
        head().check_encoder("other")
    assert caught.value.code == "label-set-mismatch"


def colours(each: int) -> tuple[ColourEncoder, Collected]:
    """Pictures of two colours, each labelled as the other: zero-shot is wrong throughout."""
    encoder = ColourEncoder()
    names = list(COLOURS)[:2]
    wrong = [*names[1:], names[0]]
    pictures = [
        encoder.prepare_image(decode_image(solid(name))) for name in names for _ in range(each)
    ]
    labels: list[str | None] = [label for label in wrong for _ in range(each)]
    return encoder, Collected(encoder.embed_images(pictures), labels=labels)


@pytest.mark.parametrize("kind", ["linear", "adapter"])
def test_labels_that_contradict_the_words_are_learned(kind: str) -> None:
    encoder, collected = colours(5)
    tuned = fit_head(kind, encoder, collected, templates=["{c}"], epochs=300)  # type: ignore[arg-type]
    zero_shot = evaluate_zero_shot(encoder, collected, templates=["{c}"])
    assert zero_shot["acc1"] == 0.0
    assert evaluate_head(tuned.head, collected)["acc1"] == 1.0
    assert tuned.head.encoder == encoder.fingerprint.digest
    assert (tuned.pictures, tuned.held_back) == (10, 2)
    assert tuned.parameters > 0


def test_labels_are_needed_and_must_be_known() -> None:
    encoder, collected = colours(2)
    tuned = fit_head("linear", encoder, collected, templates=["{c}"])
    collected.labels[0] = "something else"
    with pytest.raises(InvalidLabelsError, match="none of the head's"):
        evaluate_head(tuned.head, collected)
    collected.labels[:] = ["one"] * len(collected.labels)
    with pytest.raises(SourceError) as caught:
        fit_head("linear", encoder, collected, templates=["{c}"])
    assert caught.value.code == "no-labels"
