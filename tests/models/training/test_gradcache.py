"""Cached batches: the full batch's loss and gradients, on a tiny open_clip pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
from loss_inputs import objective_for
from torch import Tensor, nn
from torch.nn import functional

from models.training.losses import InfoNCEObjective, SigmoidObjective
from models.training.step import cached_backward

CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 2},
}
B, MICRO = 24, 5  # the last piece is smaller
IMAGE = torch.randn(B, 3, 16, 16, generator=torch.Generator().manual_seed(1))
TEXT = torch.randint(1, 64, (B, 8), generator=torch.Generator().manual_seed(2))
HARD = torch.randint(1, 64, (B, 8), generator=torch.Generator().manual_seed(3))
GROUP = torch.arange(B) // 2
Gradients = dict[str, Tensor]


def pair(patch_dropout: float = 0.0, **changes: Any) -> Any:
    torch.manual_seed(0)
    vision = {**CONFIG["vision_cfg"], "patch_dropout": patch_dropout}
    return open_clip.CLIP(**{**CONFIG, "vision_cfg": vision}, **changes).train()


def pieces(size: int = MICRO) -> list[slice]:
    return [slice(begin, begin + size) for begin in range(0, B, size)]


def encoder(model: Any) -> Callable[[slice], tuple[Tensor, ...]]:
    def encode(piece: slice) -> tuple[Tensor, ...]:
        return (
            model.encode_image(IMAGE[piece], normalize=True),
            model.encode_text(TEXT[piece], normalize=True),
            model.encode_text(HARD[piece], normalize=True),
        )

    return encode


def gradients_of(model: nn.Module) -> Gradients:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def difference(ours: Gradients, theirs: Gradients) -> float:
    """Norm of the difference over the norm of the whole gradient."""
    assert ours.keys() == theirs.keys()
    apart = sum(float((ours[name] - theirs[name]).square().sum()) for name in ours)
    return (apart / sum(float(value.square().sum()) for value in theirs.values())) ** 0.5


def full(model: Any, objective: nn.Module) -> tuple[float, Gradients]:
    image_BD, text_BD, hard_HD = encoder(model)(slice(0, B))
    loss = objective(image_BD, text_BD, group_B=GROUP, hard_HD=hard_HD)
    loss.backward()
    return loss.item(), gradients_of(model)


def cached(model: Any, objective: nn.Module, **options: Any) -> tuple[float, Gradients]:
    def loss(image_BD: Tensor, text_BD: Tensor, hard_HD: Tensor) -> Tensor:
        return objective(image_BD, text_BD, group_B=GROUP, hard_HD=hard_HD)

    value = cached_backward(pieces(), encoder(model), loss, **options)
    assert not value.requires_grad
    return value.item(), gradients_of(model)


@pytest.mark.parametrize("bias", [None, -10.0])
@pytest.mark.parametrize("chunk", [None, 7])
def test_the_full_batchs_loss_and_gradients(bias: float | None, chunk: int | None) -> None:
    one, other = pair(init_logit_bias=bias), pair(init_logit_bias=bias)
    expected, theirs = full(one, objective_for(one))
    value, ours = cached(other, objective_for(other, chunk=chunk))
    assert value == pytest.approx(expected, rel=1e-6)
    assert difference(ours, theirs) <= 1e-5
    assert "logit_scale" in ours


@pytest.mark.parametrize("locked", ["visual", "transformer", ""])
def test_locked_towers(locked: str) -> None:
    """Embeddings without a way back are compared with, and left alone; even all of them."""
    one, other = pair(), pair()
    for model in (one, other):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name == "logit_scale" or (bool(locked) and locked not in name))
    expected, theirs = full(one, objective_for(one))
    value, ours = cached(other, objective_for(other))
    assert value == pytest.approx(expected, rel=1e-6)
    assert difference(ours, theirs) <= 1e-5


def test_plain_accumulation_is_another_gradient() -> None:
    """The broken twin: each piece compared with itself alone."""
    one, other = pair(), pair()
    _, theirs = full(one, objective_for(one))
    objective = objective_for(other)
    for piece in pieces():
        image_BD, text_BD, hard_HD = encoder(other)(piece)
        loss = objective(image_BD, text_BD, group_B=GROUP[piece], hard_HD=hard_HD)
        (loss * len(image_BD) / B).backward()
    assert difference(gradients_of(other), theirs) > 0.1


class Dropping(nn.Module):
    """Towers whose dropout the test can know: masks drawn piece by piece, in order."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Linear(12, 32), nn.Dropout(0.5), nn.Linear(32, 8))
        self.text = nn.Sequential(nn.Linear(6, 32), nn.Dropout(0.5), nn.Linear(32, 8))

    def forward(self, image_BX: Tensor, text_BX: Tensor) -> tuple[Tensor, Tensor]:
        return (
            functional.normalize(self.image(image_BX), dim=1),
            functional.normalize(self.text(text_BX), dim=1),
        )


def dropped(
    replay: Callable[[Callable[[slice], Any], Callable[..., Tensor], nn.Module], Any],
) -> Any:
    model, objective = Dropping(), InfoNCEObjective()
    dice = torch.Generator().manual_seed(1)
    image_BX, text_BX = torch.randn(B, 12, generator=dice), torch.randn(B, 6, generator=dice)
    torch.manual_seed(5)
    replay(
        lambda piece: model(image_BX[piece], text_BX[piece]),
        lambda image_BD, text_BD: objective(image_BD, text_BD, group_B=GROUP),
        model,
    )
    return gradients_of(model), torch.get_rng_state()


def whole_graph(
    encode: Callable[[slice], Any], loss: Callable[..., Tensor], model: nn.Module
) -> None:
    """The oracle: the same pieces with the same masks, all in one graph."""
    parts = [encode(piece) for piece in pieces()]
    loss(*(torch.cat(tensors) for tensors in zip(*parts, strict=True))).backward()


def test_dropout_is_the_same_in_both_passes() -> None:
    theirs, state = dropped(whole_graph)

    def replayed(encode: Any, loss: Any, model: nn.Module) -> None:
        cached_backward(pieces(), encode, loss, module=model)

    ours, after = dropped(replayed)
    assert difference(ours, theirs) <= 1e-5
    assert torch.equal(after, state)  # what follows draws what it would have drawn

    def forgetful(encode: Any, loss: Any, model: nn.Module) -> None:
        """Broken twin: draws other masks for the pass with the graph."""
        with torch.no_grad():
            parts = [encode(piece) for piece in pieces()]
        whole = [torch.cat(tensors).requires_grad_() for tensors in zip(*parts, strict=True)]
        loss(*whole).backward()
        for piece in pieces():
            torch.autograd.backward(encode(piece), [tensor.grad[piece] for tensor in whole])

    assert difference(dropped(forgetful)[0], theirs) > 0.1


def test_patch_dropout_of_open_clip() -> None:
    """A tower that draws its own random numbers: the value is that of one more pass over pieces."""
    model = pair(patch_dropout=0.5)
    objective = objective_for(model)
    torch.manual_seed(3)
    with torch.no_grad():
        parts = [encoder(model)(piece) for piece in pieces()]
        image_BD, text_BD, hard_HD = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        expected = objective(image_BD, text_BD, group_B=GROUP, hard_HD=hard_HD).item()
    torch.manual_seed(3)
    value, _ = cached(model, objective, module=model)
    assert value == pytest.approx(expected, rel=1e-6)


def test_autocast_inside_or_around() -> None:
    """Casts that autocast remembers from the first pass carry no gradient: none may be reused."""

    def run(around: bool) -> Gradients:
        model = pair()
        objective = objective_for(model)
        plain = encoder(model)

        def encode(piece: slice) -> tuple[Tensor, ...]:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return plain(piece)

        def loss(image_BD: Tensor, text_BD: Tensor, hard_HD: Tensor) -> Tensor:
            return objective(image_BD, text_BD, group_B=GROUP, hard_HD=hard_HD)

        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=around):
            cached_backward(pieces(), encode, loss)
        return gradients_of(model)

    model = pair()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image_BD, text_BD, hard_HD = encoder(model)(slice(0, B))
        loss = objective_for(model)(image_BD, text_BD, group_B=GROUP, hard_HD=hard_HD)
    loss.backward()
    theirs = gradients_of(model)
    assert difference(run(around=False), theirs) < 0.02  # bf16 rounds, but to the same place
    assert difference(run(around=True), theirs) < 0.02


def test_a_scaled_loss_scales_the_gradients() -> None:
    one, other = pair(), pair()
    plain_value, plain = cached(one, objective_for(one))
    value, scaled = cached(other, objective_for(other), loss_scale=lambda loss: loss * 1024)
    assert value == plain_value
    for name, gradient in scaled.items():
        torch.testing.assert_close(gradient / 1024, plain[name], rtol=1e-4, atol=1e-7)


def test_gradients_are_added_to_those_there() -> None:
    model = pair()
    objective = objective_for(model)
    _, once = cached(model, objective)
    _, twice = cached(model, objective)
    for name, gradient in twice.items():
        torch.testing.assert_close(gradient, 2 * once[name])


def test_running_statistics_count_each_piece_once() -> None:
    def tower() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).train()

    inputs_BX = torch.randn(B, 6, generator=torch.Generator().manual_seed(1))
    one, other = tower(), tower()
    with torch.no_grad():
        for piece in pieces(8):
            one(inputs_BX[piece])
    cached_backward(
        pieces(8),
        lambda piece: (other(inputs_BX[piece]), inputs_BX[piece, :4]),
        lambda image_BD, text_BD: SigmoidObjective()(image_BD, text_BD),
        module=other,
    )
    for name, value in other.state_dict().items():
        torch.testing.assert_close(value, one.state_dict()[name])
