"""The image tower's last layers in training, together with heads that were trained before.

Pictures arrive as rows of a bank of maps (`models.starter.training.views`). Captions speak of few
things, and layers free to move would forget the rest: what the ImageNet classifier says of each
picture's new features is held close to what it said of the old ones (Li & Hoiem 2016, "Learning
without Forgetting"). That keeps the concepts in the heads meaning what they meant, too.

Legend: B pairs, C ImageNet classes, F image features, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from models.losses import info_nce
from models.starter.heads import StarterHeads
from models.starter.image_tail import ImageTail, in_pieces
from models.starter.training.config import TrainConfig
from models.starter.training.loop import Step, train
from models.starter.training.pairs import Pairs
from models.starter.training.rehearsal import Rehearsal
from models.starter.training.views import ViewBank

RATE = 1.0
"""Of the heads' learning rate, which is low itself in this stage."""
KEEP = 2.0
"""Weight of the classifier's agreement with itself beside the contrastive loss."""
_PIECE = 64


class HeadsOverTail(StarterHeads):
    """Heads whose pictures arrive as the old features and, last, a row in a bank [B, F + 1].

    Rows below zero stand for features that have no map: pseudo-pictures of the rehearsal.

    Args:
        heads: where the heads start.
        tail: trained in place.
        bank: the maps that it reads.
        seed: of the choice of views.
    """

    def __init__(self, heads: StarterHeads, tail: ImageTail, bank: ViewBank, *, seed: int) -> None:
        super().__init__(heads.config)
        self.load_state_dict(heads.state_dict())
        self.tail = tail
        self.penalty = torch.zeros(())
        """Of the pictures embedded last: how far the classifier's opinion of them has moved."""
        self._bank = bank
        self._generator = torch.Generator().manual_seed(seed)

    def embed_images(self, features_BF: Tensor) -> Tensor:
        old_BF, row_B = features_BF[:, :-1], features_BF[:, -1].long()
        real_R = (row_B >= 0).nonzero()[:, 0]
        if self.training:
            map_RCHW = self._bank.draw(row_B[real_R], self._generator)
            # half precision is noise here, and with matrix units a fifth of the time
            with torch.autocast("cpu", torch.bfloat16):
                new_RF = torch.cat([self.tail(piece) for piece in torch.split(map_RCHW, _PIECE)])
            self.penalty = self._forgotten(old_BF[real_R], new_RF)
        else:
            new_RF = in_pieces(self.tail, self._bank.whole(row_B[real_R]))
        return super().embed_images(old_BF.index_copy(0, real_R, new_RF))

    def _forgotten(self, old_RF: Tensor, new_RF: Tensor) -> Tensor:
        """Mean Kullback-Leibler divergence of the classifier's new opinion from its old one."""
        old_RC, new_RC = (x @ self.image.weight_CF.T + self.image.bias_C for x in (old_RF, new_RF))
        return functional.kl_div(
            new_RC.log_softmax(dim=1), old_RC.log_softmax(dim=1),
            log_target=True, reduction="batchmean",
        )  # fmt: skip

    def heads(self) -> StarterHeads:
        """The heads alone, in evaluation mode."""
        heads = StarterHeads(self.config)
        own = heads.state_dict().keys()
        heads.load_state_dict({k: v for k, v in self.state_dict().items() if k in own})
        return heads.eval()


class RowlessRehearsal(Rehearsal):
    """A rehearsal whose pseudo-features say that they have no row."""

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        features_BF, caption_BS, class_B = super().draw(size, generator)
        return functional.pad(features_BF, (0, 1), value=-1.0), caption_BS, class_B


def tune_image(
    joint: HeadsOverTail,
    pairs: Pairs,
    config: TrainConfig,
    *,
    rehearsal: Rehearsal | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> None:
    """Train heads and tail in place.

    Args:
        joint: both.
        pairs: gathered with a `ViewMaker`, whose bank `joint` reads.
        config: of the run.
        rehearsal: of the old features.
        on_step: called after each optimiser step.
    """

    def loss(*args: Tensor, **named: object) -> Tensor:
        return info_nce(*args, **named) + KEEP * joint.penalty  # type: ignore[arg-type]

    slow = list(joint.tail.tuned().values())
    train(
        joint, pairs, config, rehearsal=rehearsal, on_step=on_step, loss=loss, slow=slow,
        slow_rate=RATE,
    )  # fmt: skip


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor; runs from one start lie in one valley (Wortsman et al. 2022)."""
    return {name: torch.stack([s[name] for s in states]).mean(dim=0) for name in states[0]}
