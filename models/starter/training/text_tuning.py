"""The upper half of the sentence encoder in training: what lies below is computed once a caption.

Of the 3.4 M weights above the embedding table, 1.05 M (the projection and the first convolution of
each branch) stay as they are, so a caption's features up to there never change: they are kept in
half precision, 1.5 KiB a token (20 KiB a caption of Flickr8k). The other 2.3 M are trained.

Knows nothing of pictures, heads or losses. Legend: B captions of a batch, T all captions, N tokens,
W branch width (256), S sentence features (512).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.starter.text_network import BRANCH_WIDTH, LOWER_WEIGHTS, ORDERS, SentenceNetwork


class TextTuner(nn.Module):
    """Captions by their number -> sentence features with gradients.

    Args:
        network: changed in place; its lower half is frozen.
        texts: token ids of every caption.
    """

    def __init__(self, network: SentenceNetwork, texts: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.network = network
        for name, parameter in network.weights.items():
            parameter.requires_grad_(name not in LOWER_WEIGHTS)
        self._texts = texts
        length_T = torch.tensor([len(text) for text in texts])
        self._end_T = length_T.cumsum(0)
        self._start_T = self._end_T - length_T
        width = BRANCH_WIDTH * len(ORDERS)
        self._lower_NW = torch.zeros(int(length_T.sum()), width, dtype=torch.float16)
        self._known_T = torch.zeros(len(texts), dtype=torch.bool)

    def forward(self, caption_B: Tensor) -> Tensor:
        """Unit rows [B, S] of the captions with these numbers."""
        self._remember(caption_B[~self._known_T[caption_B]].unique())
        texts = [self._texts[caption] for caption in caption_B.tolist()]
        lower_NW = self._lower_NW[self._rows_of(caption_B)].float()
        return self.network.sentence(*self.network.pool_from(lower_NW, texts))

    @torch.no_grad()
    def _remember(self, caption_B: Tensor) -> None:
        if not len(caption_B):
            return
        lower_NW = self.network.lower([self._texts[caption] for caption in caption_B.tolist()])
        self._lower_NW[self._rows_of(caption_B)] = lower_NW.half()
        self._known_T[caption_B] = True

    def _rows_of(self, caption_B: Tensor) -> Tensor:
        starts, ends = self._start_T[caption_B].tolist(), self._end_T[caption_B].tolist()
        return torch.cat(
            [torch.arange(start, end) for start, end in zip(starts, ends, strict=True)]
        )
