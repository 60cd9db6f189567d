"""The image tower in training, together with heads that were trained before.

Pictures arrive as rows of a bank of pixels (`models.training.features.maker`). Captions speak of
few things, and a tower free to move would forget the rest: what the ImageNet classifier says of
each picture's new features is held close to what it said of the old ones (Li & Hoiem 2016,
"Learning without Forgetting"). That keeps the concepts in the heads meaning what they meant, too.

Legend: B pairs, R real pictures among them, C ImageNet classes, F image features, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from models.encoders.starter.heads import StarterHeads
from models.encoders.starter.towers import normalised
from models.training.features.maker import PictureBank
from models.training.features.pairs import Pairs, Rehearsal
from models.training.losses import info_nce
from models.training.starter.config import TrainConfig
from models.training.starter.loop import Step, train

RATE = 1.0
"""Of the heads' learning rate, which is low itself in this stage."""
KEEP = 2.0
"""Weight of the classifier's agreement with itself beside the contrastive loss."""
_PIECE = 64


class HeadsOverTower(StarterHeads):
    """Heads whose pictures arrive as the old features and, last, a row in a bank [B, F + 1].

    Rows below zero stand for features without a picture: pseudo-pictures of the rehearsal.

    Args:
        heads: where the heads start.
        network: see `models.encoders.starter.towers.ImageTower.trainable`; trained in place.
        bank: of the pictures; the network and the heads go to its device.
        seed: of the choice of views.
    """

    def __init__(
        self, heads: StarterHeads, network: nn.Module, bank: PictureBank, *, seed: int
    ) -> None:
        super().__init__(heads.config)
        self.load_state_dict(heads.state_dict())
        self.network: Any = network.requires_grad_(True)
        self.penalty = torch.zeros(())
        """Of the pictures embedded last: how far the classifier's opinion of them has moved."""
        self._bank = bank
        self._generator = torch.Generator().manual_seed(seed)
        self.to(bank.device)
        self.network.to(memory_format=torch.channels_last)

    def embed_images(self, features_BF: Tensor) -> Tensor:
        old_BF, row_B = features_BF[:, :-1], features_BF[:, -1].long()
        real_R = (row_B >= 0).nonzero()[:, 0]
        row_R = row_B[real_R].cpu()
        if self.training:
            pixels_R3HW = self._bank.draw(row_R, self._generator)
            new_RF = torch.cat([self._run(piece) for piece in self._pieces(pixels_R3HW)])
            self.penalty = self._forgotten(old_BF[real_R], new_RF)
        else:
            with torch.no_grad():
                pieces = torch.split(row_R, _PIECE)
                whole = (self._bank.whole(piece).permute(0, 3, 1, 2) for piece in pieces)
                new_RF = torch.cat([self._features(pixels.float()) for pixels in whole])
        return super().embed_images(old_BF.index_copy(0, real_R, new_RF))

    def _pieces(self, pixels_R3HW: Tensor) -> Sequence[Tensor]:
        # in the memory of a GPU a batch fits; elsewhere it goes through in pieces, twice
        is_cpu = pixels_R3HW.device.type == "cpu"
        return torch.split(pixels_R3HW, _PIECE) if is_cpu else [pixels_R3HW]

    def _run(self, pixels_R3HW: Tensor) -> Tensor:
        # half precision is noise here, and with matrix units a fifth of the time
        with torch.autocast(pixels_R3HW.device.type, torch.bfloat16):
            if pixels_R3HW.device.type != "cpu":
                return self._features(pixels_R3HW)
            features_RF: Tensor = checkpoint(self._features, pixels_R3HW, use_reentrant=False)
            return features_RF

    def _features(self, pixels_R3HW: Tensor) -> Tensor:
        map_RFHW: Tensor = self.network.forward_features(normalised(pixels_R3HW))
        return map_RFHW.float().mean(dim=(2, 3))

    def _forgotten(self, old_RF: Tensor, new_RF: Tensor) -> Tensor:
        """Mean Kullback-Leibler divergence of the classifier's new opinion from its old one."""
        old_RC, new_RC = (x @ self.image.weight_CF.T + self.image.bias_C for x in (old_RF, new_RF))
        return functional.kl_div(
            new_RC.log_softmax(dim=1), old_RC.log_softmax(dim=1),
            log_target=True, reduction="batchmean",
        )  # fmt: skip

    def heads(self) -> StarterHeads:
        """The heads alone, in evaluation mode, on the CPU."""
        heads = StarterHeads(self.config)
        own = heads.state_dict().keys()
        heads.load_state_dict({k: v.cpu() for k, v in self.state_dict().items() if k in own})
        return heads.eval()

    def tuned(self) -> dict[str, Tensor]:
        """The tower's weights, by the names they have in the network, on the CPU."""
        return {name: value.detach().cpu() for name, value in self.network.state_dict().items()}


class RowlessRehearsal(Rehearsal):
    """A rehearsal whose pseudo-features say that they have no row."""

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        features_BF, caption_BS, class_B = super().draw(size, generator)
        return functional.pad(features_BF, (0, 1), value=-1.0), caption_BS, class_B


def tune_image(
    joint: HeadsOverTower,
    pairs: Pairs,
    config: TrainConfig,
    *,
    rehearsal: Rehearsal | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> None:
    """Train heads and tower in place; the same bits every time on a CPU, nearly on a GPU.

    Args:
        joint: both.
        pairs: gathered with a `PictureMaker`, whose bank `joint` reads.
        config: of the run.
        rehearsal: of the old features.
        on_step: called after each optimiser step.
    """

    def loss(*args: Tensor, **named: object) -> Tensor:
        return info_nce(*args, **named) + KEEP * joint.penalty  # type: ignore[arg-type]

    slow = list(joint.network.parameters())
    train(
        joint, pairs, config, rehearsal=rehearsal, on_step=on_step, loss=loss, slow=slow,
        slow_rate=RATE,
    )  # fmt: skip


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor; runs from one start lie in one valley (Wortsman et al. 2022)."""
    return {name: torch.stack([s[name] for s in states]).mean(dim=0) for name in states[0]}
