"""Learned prompts: where they start, what of them learns, a tiny overfit and its control."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY, TINY_SIGLIP, tiny_pair

from models.encoder import Encoder
from models.encoders.base.model_id import parse_model_id
from models.encoders.registry import load_encoder
from models.errors import InvalidLabelsError, TrainingError
from models.evaluation.measures import evaluate_head
from models.labels.zeroshot import class_matrix
from models.sources.embedded import Collected
from models.training.class_heads import fit_head
from models.training.learned_prompts import Context, learn_prompts
from models.training.open_clip import OpenClipPair, load_pair
from models.vectors import Vectors, unit_rows

LABELS = ["apple", "red boat", "chair", "a very old door"]


def loaded(folder: Path) -> tuple[OpenClipPair, Encoder]:
    name = f"local-dir:{folder}"
    return load_pair(parse_model_id(name)), load_encoder(name, device="cpu", precision="fp32")


@pytest.fixture(scope="module", params=["clip", "siglip"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[OpenClipPair, Encoder]:
    config = TINY if request.param == "clip" else TINY_SIGLIP
    return loaded(tiny_pair(tmp_path_factory.mktemp("pairs") / "tiny", config))


@pytest.mark.parametrize("words", ["a photo of a", "this is"])
def test_the_start_is_the_prompt_in_words(both: tuple[OpenClipPair, Encoder], words: str) -> None:
    pair, encoder = both
    pair.module.eval()
    with torch.no_grad():
        found_CD = Context(pair, LABELS, words)().numpy()
    expected_CD = class_matrix(encoder, LABELS, [f"{words} {{c}}."])
    np.testing.assert_allclose(found_CD, expected_CD, atol=2e-6)
    # negative control: other words are another matrix
    other_CD = class_matrix(encoder, LABELS, ["a sketch of a {c}."])
    assert float(np.abs(found_CD - other_CD).max()) > 1e-3


def test_the_context_stands_where_the_words_stood(both: tuple[OpenClipPair, Encoder]) -> None:
    pair, _ = both
    context = Context(pair, LABELS)
    begin = context.pair.tokenizer("a photo of a").tokens
    assert context.span == slice(1, 5)
    table = context._table
    expected_MW = table.weight[torch.from_numpy(begin[1:5])]
    torch.testing.assert_close(context.vector_MW, expected_MW)


def test_only_the_context_learns_and_the_hook_is_gone(
    both: tuple[OpenClipPair, Encoder],
) -> None:
    pair, _ = both
    pair.module.eval().requires_grad_(False)
    context = Context(pair, LABELS)
    context().square().sum(dim=0)[0].backward()
    gradient = context.vector_MW.grad
    assert gradient is not None
    assert float(gradient.abs().min(dim=1).values.max()) > 0  # every vector has a say
    assert all(value.grad is None for value in pair.module.parameters())
    with torch.no_grad():
        plain_CD = pair.text_rows(context.token_CL)
        context.vector_MW.add_(1.0)
        torch.testing.assert_close(pair.text_rows(context.token_CL), plain_CD)
        assert not torch.allclose(context(), plain_CD)


def test_a_tiny_overfit_and_its_control(tmp_path: Path) -> None:
    """One picture a class, where other words would have put it: a context can come near."""
    pair, encoder = loaded(tiny_pair(tmp_path / "tiny"))
    before = {name: value.clone() for name, value in pair.module.state_dict().items()}
    aim_CD = class_matrix(encoder, LABELS, ["old dark moon {c}."])
    image_ND = unit_rows(aim_CD - aim_CD.mean(axis=0))
    target_N = np.arange(4)

    def loss(class_CD: Vectors, targets: list[int]) -> float:
        logits_NC = torch.from_numpy(encoder.logit_scale * image_ND @ class_CD.T)
        return float(torch.nn.functional.cross_entropy(logits_NC, torch.tensor(targets)))

    words_CD = class_matrix(encoder, LABELS, ["a photo of a {c}."])
    learned = learn_prompts(pair, image_ND, target_N, LABELS, epochs=60)
    assert (learned.epochs, learned.held_back, learned.context) == (60, 0, 4)
    assert loss(learned.class_CD, [0, 1, 2, 3]) < 0.7 * loss(words_CD, [0, 1, 2, 3])
    # the control: towards other labels, it comes no nearer to these
    broken = learn_prompts(pair, image_ND, np.roll(target_N, 1), LABELS, epochs=60)
    assert loss(broken.class_CD, [0, 1, 2, 3]) > loss(words_CD, [0, 1, 2, 3])
    for name, value in pair.module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_head_of_learned_prompts(both: tuple[OpenClipPair, Encoder]) -> None:
    pair, encoder = both
    target_N = np.repeat(np.arange(4), 5)
    image_ND = class_matrix(encoder, LABELS, ["a photo of a {c}."])[target_N]
    collected = Collected(image_ND, labels=[LABELS[at] for at in target_N])
    tuned = fit_head("prompts", encoder, collected, templates=["{c}"], pair=lambda: pair, epochs=2)
    assert evaluate_head(tuned.head, collected)["acc1"] == 1.0
    assert (tuned.parameters, tuned.held_back) == (4 * 32, 4)
    assert tuned.tried["0"] == 1.0  # the words were right already: of equals, the least is taken
    assert tuned.chosen == 0
    np.testing.assert_allclose(np.linalg.norm(tuned.head.weight_CD, axis=1), 1.0, rtol=1e-5)


def test_what_cannot_be_prompted_is_refused(both: tuple[OpenClipPair, Encoder]) -> None:
    pair, _ = both
    with pytest.raises(InvalidLabelsError, match="too long"):
        Context(pair, ["apple", "door " * 30])
    with pytest.raises(TrainingError):
        Context(pair, LABELS, "")
