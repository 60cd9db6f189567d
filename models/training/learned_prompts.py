"""Learned prompts: context vectors in the place of a template's words (CoOp).

Zhou et al. 2022, "Learning to Prompt for Vision-Language Models": the tokens of "a photo of a" are
replaced by vectors that are trained on labelled pictures, shared by all classes; both towers rest.
It needs a text tower that gradients can pass through, so an open_clip pair. Knows no file.

Legend: N pictures, C classes, D embedding, L tokens, M context vectors, W the text tower's width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import InvalidLabelsError, TrainingError
from models.training.class_heads import held_back
from models.training.open_clip import OpenClipPair
from models.training.step import cached_backward
from models.vectors import Vectors

WORDS: Final = "a photo of a"
"""Where the context starts, as in the paper's best setting."""
_RATE: Final = 2e-3
_CLASSES: Final = 128
"""Class prompts that go through the text tower at a time; memory does not grow with classes."""


@dataclass(frozen=True, slots=True)
class LearnedPrompts:
    """The class matrix of the learned context, and how it was found.

    Attributes:
        class_CD: unit rows.
        context: vectors learned; each is as wide as the text tower.
        epochs: chosen on the held-back pictures.
        held_back: how many these were.
        tried: accuracy on them after each epoch, that of the words first.
    """

    class_CD: Vectors
    context: int
    width: int
    epochs: int
    held_back: int
    tried: tuple[float, ...]


class Context(nn.Module):
    """Class names behind learned vectors -> class directions.

    Raises:
        TrainingError: a text tower without a table of token embeddings.
        InvalidLabelsError: a label that the context leaves no room for.
    """

    def __init__(self, pair: OpenClipPair, labels: Sequence[str], words: str = WORDS) -> None:
        super().__init__()
        self.pair = pair
        self._table = _token_table(pair.module)
        rows = [pair.tokenizer(f"{words} {label}.") for label in labels]
        cut = [label for label, row in zip(labels, rows, strict=True) if row.truncated]
        if cut:
            raise InvalidLabelsError(f"the label {cut[0]!r} is too long for a learned prompt")
        self.token_CL = torch.from_numpy(np.stack([row.tokens for row in rows]))
        self.span = _span(pair, words, self.token_CL)
        vectors_MW = self._table.weight[self.token_CL[0, self.span]]
        self.vector_MW = nn.Parameter(vectors_MW.detach().clone())

    def forward(self, rows: slice = slice(None)) -> Tensor:
        """Unit rows of some classes, [C, D]."""
        with self._in_place():
            return self.pair.text_rows(self.token_CL[rows].to(self._table.weight.device))

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """The context where the words' embeddings would be."""

        def put(_module: nn.Module, _inputs: Any, output_CLW: Tensor) -> Tensor:
            replaced_CLW = output_CLW.clone()
            replaced_CLW[:, self.span] = self.vector_MW.to(output_CLW)
            return replaced_CLW

        hook = self._table.register_forward_hook(put)
        try:
            yield
        finally:
            hook.remove()


def learn_prompts(
    pair: OpenClipPair,
    image_ND: Vectors,
    target_N: npt.NDArray[np.int64],
    labels: Sequence[str],
    *,
    epochs: int = 30,
    batch: int = 256,
    words: str = WORDS,
    seed: int = 0,
) -> LearnedPrompts:
    """Choose how long to train on a held-back fifth, then train so long on all pictures.

    The pair is left as it was, with gradients off and in evaluation mode.

    Raises:
        TrainingError, InvalidLabelsError: see `Context`.
    """
    pair.module.eval().requires_grad_(False)
    x_ND, y_N = torch.from_numpy(image_ND).float(), torch.from_numpy(target_N)
    held_N = torch.from_numpy(held_back(target_N, seed=seed))
    tried: list[float] = []
    if bool(held_N.any()):
        for class_CD in _epochs(
            Context(pair, labels, words), x_ND[~held_N], y_N[~held_N], epochs, batch, seed
        ):
            guess_N = (x_ND[held_N] @ class_CD.T).argmax(dim=1)
            tried.append(float((guess_N == y_N[held_N]).double().mean()))
    chosen = int(np.argmax(tried)) if tried else epochs
    context = Context(pair, labels, words)
    *_, class_CD = _epochs(context, x_ND, y_N, chosen, batch, seed)
    number, width = context.vector_MW.shape
    return LearnedPrompts(class_CD.numpy(), number, width, chosen, int(held_N.sum()), tuple(tried))


def _epochs(
    context: Context, x_ND: Tensor, y_N: Tensor, epochs: int, batch: int, seed: int
) -> Iterator[Tensor]:
    """The class matrix before the first epoch and after each."""
    dice = torch.Generator().manual_seed(seed)
    scale = float(context.pair.log_scale.detach().exp())
    optimiser = torch.optim.Adam([context.vector_MW], lr=_RATE)
    count = len(context.token_CL)
    pieces = [slice(at, min(at + _CLASSES, count)) for at in range(0, count, _CLASSES)]

    def classes() -> Tensor:
        with torch.no_grad():
            return torch.cat([context(piece) for piece in pieces]).cpu()

    yield classes()
    for _ in range(epochs):
        for rows in torch.randperm(len(x_ND), generator=dice).split(batch):  # type: ignore[no-untyped-call]
            optimiser.zero_grad()
            cached_backward(
                pieces,
                lambda piece: (context(piece),),
                lambda class_CD, rows=rows: functional.cross_entropy(
                    scale * x_ND[rows].to(class_CD) @ class_CD.T, y_N[rows].to(class_CD.device)
                ),
            )
            optimiser.step()
        yield classes()


def _token_table(module: Any) -> nn.Embedding:
    """The text tower's table of token embeddings."""
    text = getattr(module, "text", module)
    table = getattr(text, "token_embedding", None)
    if table is None and hasattr(text, "transformer"):
        # a Hugging Face tower
        find = getattr(text.transformer, "get_input_embeddings", None)
        table = find() if find is not None else None
    if not isinstance(table, nn.Embedding):
        raise TrainingError(
            "the text tower has no table of token embeddings to put a context into",
            code="nothing-to-train",
            hint="use --tune lora, adapter or linear",
        )
    return table


def _span(pair: OpenClipPair, words: str, token_CL: Tensor) -> slice:
    """Where the words' tokens stand, the same in every row."""
    alone_L = torch.from_numpy(pair.tokenizer(words).tokens)
    empty_L = torch.from_numpy(pair.tokenizer("").tokens)
    begin = _common(alone_L, empty_L)  # a mark of the beginning, where there is one
    end = min(_common(alone_L, row_L) for row_L in token_CL)
    if end <= begin:
        raise TrainingError("the words of the context are no tokens of their own")
    return slice(begin, end)


def _common(one_L: Tensor, other_L: Tensor) -> int:
    """Length of the longest common beginning."""
    return int((one_L == other_L).int().cumprod(dim=0).sum())
