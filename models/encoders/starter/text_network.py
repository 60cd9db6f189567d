"""The sentence encoder's network in torch, for training: the package's numbers, with gradients.

Universal Sentence Encoder, multilingual version 3 (Yang et al. 2020, "Multilingual Universal
Sentence Encoder for Semantic Retrieval"), the convolutional variant: token embeddings, three
branches of residual n-gram convolutions, a sum over the tokens, four dense layers. What can be
trained are the 3.4 M weights above the embedding table; the table of 66 M stays as it is, eight
bits a number, as the numpy network has it.

Knows nothing of heads, losses or where captions come from. Legend: B texts, N tokens of all texts,
M rows (the tokens with gaps between texts), E token embedding (512), W branch width (256), P pooled
features (1,280), S sentence features (512).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.encoders.starter.text_tower import SentenceArrays, network_arrays

ORDERS = {2: 0, 3: 1, 5: 2}
"""n-gram order of each branch -> how many of its tokens lie to the left of the middle one."""
POOLED_FEATURES = 1280
BRANCH_WIDTH = 256
_GAP = 2
"""Zero rows around every text: as far as the widest window reaches."""


@dataclass(frozen=True, slots=True)
class TokenTable:
    """The frozen embedding table: 8-bit rows; row i is dequantised by block i modulo blocks."""

    rows: Tensor
    scale: Tensor
    low: Tensor

    def look_up(self, token_M: Tensor) -> Tensor:
        """[M, E] in the precision of `scale`."""
        block_M = token_M % len(self.scale)
        row_ME = self.rows[token_M].to(self.scale.dtype)
        return row_ME * self.scale[block_M, None] + self.low[block_M, None]


class SentenceNetwork(nn.Module):
    """Token ids (with their start and end marks) -> unit sentence features [B, S].

    Args:
        network: in numpy, whose weights and table are copied.
    """

    def __init__(self, network: SentenceArrays) -> None:
        super().__init__()
        self.table = TokenTable(
            *map(torch.from_numpy, (network.table.whole(), network.scale, network.lo))
        )
        self.eps = float(network.eps)
        self.weights = nn.ParameterDict(
            {
                name: nn.Parameter(torch.from_numpy(array.copy()))
                for name, array in network_arrays(network).items()
            }
        )

    def forward(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Unit rows [B, S]."""
        return self.sentence(*self.pool(texts))

    def pool(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """(sum of the tokens' features over the root of their number [B, P], that root [B])."""
        rows = _lay_out(texts)
        w = self.weights
        embedding_ME = self.table.look_up(rows.token_M)
        projected_M3W = embedding_ME @ w["proj_W"] + w["proj_b"]
        # one norm over all three branches together
        projected_M3W = functional.layer_norm(
            projected_M3W, projected_M3W.shape[1:], w["ln_g_all"], w["ln_b_all"], self.eps
        )
        first_M3W = self._convolve(projected_M3W * rows.real_M1, "1")
        second_M3W = self._convolve(first_M3W * rows.real_M1, "2")
        feature_MP = torch.cat([embedding_ME, second_M3W], dim=1)
        feature_MP = functional.layer_norm(
            feature_MP, feature_MP.shape[1:], w["ln_g"], w["ln_b"], self.eps
        )
        zero_BP = feature_MP.new_zeros(len(texts), POOLED_FEATURES)
        sum_BP = zero_BP.index_add(0, rows.text_M, feature_MP * rows.real_M1)
        return sum_BP / rows.root_B[:, None], rows.root_B

    def sentence(self, pooled_BP: Tensor, root_B: Tensor) -> Tensor:
        """What `pool` returns -> unit rows [B, S]."""
        w = self.weights
        # the bias belongs to every token: n of them over the root of n
        mean_BS = pooled_BP @ w["cnn_W"] + root_B[:, None] * w["cnn_b"]
        y1_B = (mean_BS @ w["p1"] + (mean_BS @ w["d0"]).relu() @ w["d1"]).relu()
        z_BS = (y1_B @ w["p3"] + (y1_B @ w["d2"]).relu() @ w["d3"]).tanh()
        unit_BS: Tensor = z_BS * z_BS.square().sum(dim=1, keepdim=True).clamp(min=self.eps).rsqrt()
        return unit_BS

    def sentence_of(self, pooled_BP1: Tensor) -> Tensor:
        """The same of both in one matrix, the root in its last column [B, P + 1]."""
        return self.sentence(pooled_BP1[:, :-1], pooled_BP1[:, -1])

    def _convolve(self, x_M3W: Tensor, layer: str) -> Tensor:
        """One residual convolution of each branch over its own columns, [M, branches * W].

        Rows in gaps must be zero; in the result they are not.
        """
        w = self.weights
        results = []
        for at, (order, left) in enumerate(ORDERS.items()):
            x_MW = x_M3W[:, at * BRANCH_WIDTH : (at + 1) * BRANCH_WIDTH]
            windows = _windows(x_MW, order, left)
            results.append(x_MW + (windows @ w[f"w{layer}_{at}"] + w[f"b{layer}_{at}"]).relu())
        return torch.cat(results, dim=1)


@dataclass(frozen=True, slots=True)
class _Rows:
    """All tokens of a batch in one column, every text between gaps."""

    token_M: Tensor
    text_M: Tensor
    real_M1: Tensor
    """1 for tokens, 0 in gaps."""
    root_B: Tensor


def _lay_out(texts: Sequence[Sequence[int]]) -> _Rows:
    length_B = torch.tensor([len(text) for text in texts])
    text_N = torch.repeat_interleave(torch.arange(len(texts)), length_B)
    row_N = torch.arange(len(text_N)) + _GAP * (text_N + 1)
    size = len(text_N) + _GAP * (len(texts) + 1)
    token_M, text_M = torch.zeros(2, size, dtype=torch.long)
    token_M[row_N] = torch.tensor([token for text in texts for token in text])
    text_M[row_N] = text_N
    real_M1 = torch.zeros(size, 1)
    real_M1[row_N] = 1.0
    return _Rows(token_M, text_M, real_M1, length_B.float().sqrt())


def _windows(x_MW: Tensor, order: int, left: int) -> Tensor:
    """Every row beside its neighbours [M, order * W]; beyond the ends there are zeros."""
    padded_MW = functional.pad(x_MW, (0, 0, left, order - 1 - left))
    return torch.cat([padded_MW[at : at + len(x_MW)] for at in range(order)], dim=1)
