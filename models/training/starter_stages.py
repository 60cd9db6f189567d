"""Stages of the starter's recipe: towers that move with the heads, and members made into one pair.

`HeadsOverPools` holds the sentence encoder's last layers: what they read, the pooled features of a
caption, never changes, and they hold 2 M weights, few enough to be trained with the heads at a rate
of their own. The heads of that stage are scaffolding: what is kept of it is the network.

`HeadsOverTower` holds the image tower; pictures arrive as rows of a bank of pixels. Captions speak
of few things, and a tower free to move would forget the rest: what the ImageNet classifier says of
each picture's new features is held close to what it said of the old ones (Li & Hoiem 2016,
"Learning without Forgetting"). That keeps the concepts in the heads meaning what they meant, too.

`merge` makes several pairs of heads, trained alike from different seeds, into one. The mean of the
cosines that the members give ranks better than any member. It is itself a cosine: of the members'
embeddings laid end to end. Since every member is a sum of a hidden layer, a linear path and, for
pictures, the concepts, the whole can be written as one such head with all hidden layers side by
side; only two things are approximate. The members' embeddings are brought to length 1 by one number
a member, not one a row; and K times 512 numbers are brought back to 512 by the principal directions
of what pictures and texts at hand give.

Called by `service.recipes.starter`. Legend: B pairs, R real pictures among them, C ImageNet
classes, F image features, S sentence features (512), P pooled features (1,280), D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from models.encoders.starter.description import TEXT_FEATURES
from models.encoders.starter.heads import StarterHeads
from models.encoders.starter.image_tower import normalised
from models.encoders.starter.text_network import SentenceNetwork
from models.training.config import TrainConfig
from models.training.features.maker import FeatureMaker, PictureBank
from models.training.features.pairs import Rehearsal
from models.training.losses import InfoNCEObjective, Objective
from models.training.starter import StarterPair

LAST_LAYERS: Final = ("cnn_W", "cnn_b", "d0", "d1", "p1", "d2", "d3", "p3")
KEEP: Final = 2.0
"""Weight of the classifier's agreement with itself beside the contrastive loss."""
_PIECE: Final = 64


class StagedPair(StarterPair):
    """Heads together with a part of a tower, which was trained before, on more than there is here.

    Args:
        joint: both; what of the tower learns is its own to say.
    """

    def __init__(self, joint: HeadsOverPools | HeadsOverTower) -> None:
        super().__init__(joint)

    def choose(self, config: TrainConfig) -> None:
        """The module has said it."""
        assert config.tune == "full"

    def shares(self, config: TrainConfig) -> dict[str, float]:  # noqa: ARG002
        return {
            name: self.module.RATE if name.startswith("network.") else 1.0
            for name in self.learning()
        }

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        return not name.startswith("network.") and super().decays(name, parameter)

    def objective(self, config: TrainConfig) -> Objective:
        if not isinstance(self.module, HeadsOverTower):
            return super().objective(config)
        return _Remembering(self.module, label_smoothing=config.label_smoothing)


class PoolMaker(FeatureMaker):
    """A maker whose text features are what the last layers read."""

    def texts(self, texts: Sequence[str]) -> Tensor:
        return self.pools(texts)


class HeadsOverPools(StarterHeads):
    """Heads whose texts arrive as pooled features and the root of their length [B, P + 1].

    Args:
        heads: where the heads start.
        network: its last layers are trained in place, the others stay.
    """

    RATE: ClassVar[float] = 0.3
    """Of the heads' learning rate: enough to move the layers, too little to forget 16 languages."""

    def __init__(self, heads: StarterHeads, network: SentenceNetwork) -> None:
        super().__init__(heads.config)
        self.load_state_dict(heads.state_dict())
        self.network = network.requires_grad_(False)
        for weights in self.last_layers():
            weights.requires_grad_(True)

    def last_layers(self) -> list[nn.Parameter]:
        return [self.network.weights[name] for name in LAST_LAYERS]

    def embed_texts(self, features_BS: Tensor) -> Tensor:
        sentence_BS = self.network.sentence_of(features_BS.float())
        return functional.normalize(self.text(sentence_BS), dim=1)

    def heads(self) -> StarterHeads:
        """The heads alone, in evaluation mode."""
        state = {k: v for k, v in self.state_dict().items() if not k.startswith("network.")}
        heads = StarterHeads(self.config)
        heads.load_state_dict(state)
        return heads.eval()


class HeadsOverTower(StarterHeads):
    """Heads whose pictures arrive as the old features and, last, a row in a bank [B, F + 1].

    Rows below zero stand for features without a picture: pseudo-pictures of the rehearsal.

    Args:
        heads: where the heads start.
        network: see `models.encoders.starter.image_tower.ImageTower.trainable`; trained in place.
        bank: of the pictures; the network and the heads go to its device.
    """

    RATE: ClassVar[float] = 1.0
    """Of the heads' learning rate, which is low itself in this stage."""

    def __init__(self, heads: StarterHeads, network: nn.Module, bank: PictureBank) -> None:
        super().__init__(heads.config)
        self.load_state_dict(heads.state_dict())
        self.network: Any = network.requires_grad_(True)
        self.penalty = torch.zeros(())
        """Of the pictures embedded last: how far the classifier's opinion of them has moved."""
        self._bank = bank
        self.to(bank.device)
        self.network.to(memory_format=torch.channels_last)

    def embed_images(self, features_BF: Tensor) -> Tensor:
        old_BF, row_B = features_BF[:, :-1], features_BF[:, -1].long()
        real_R = (row_B >= 0).nonzero()[:, 0]
        row_R = row_B[real_R].cpu()
        if self.training:
            pixels_R3HW = self._bank.draw(row_R, torch.default_generator)
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

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features_BF, caption_BS, class_B, said_B = super().draw(size, generator)
        return functional.pad(features_BF, (0, 1), value=-1.0), caption_BS, class_B, said_B


class _Remembering(InfoNCEObjective):
    """InfoNCE, and the price of what the classifier no longer says."""

    def __init__(self, joint: HeadsOverTower, *, label_smoothing: float) -> None:
        super().__init__(joint.scale.log_scale, label_smoothing=label_smoothing, chunk=None)
        # not as a submodule: an objective's parameters are its scale alone
        self._penalty: Callable[[], Tensor] = lambda: joint.penalty

    def forward(self, image_BD: Tensor, text_BD: Tensor, **named: Any) -> Tensor:
        return super().forward(image_BD, text_BD, **named) + KEEP * self._penalty()


def tuned_layers(network: SentenceNetwork) -> dict[str, Tensor]:
    """What of the network is not the package's own any more, by name."""
    return {name: network.weights[name] for name in LAST_LAYERS}


@torch.no_grad()
def merge(members: Sequence[StarterHeads], image_NF: Tensor, text_MS: Tensor) -> StarterHeads:
    """One pair that scores as the members do together, all but exactly.

    Args:
        members: of one shape and one set of concepts, in evaluation mode.
        image_NF: features of pictures, to measure lengths and directions on.
        text_MS: the same of texts.
    """
    image_KND = [member.image(image_NF) for member in members]
    text_KMD = [member.text(text_MS) for member in members]
    direction_DE = _principal(_end_to_end(image_KND), _end_to_end(text_KMD))
    # what each member's rows are multiplied by, on their way into the merged space
    blocks = torch.split(direction_DE, TEXT_FEATURES, dim=1)
    image_maps = [b / x.norm(dim=1).mean() for b, x in zip(blocks, image_KND, strict=True)]
    text_maps = [b / x.norm(dim=1).mean() for b, x in zip(blocks, text_KMD, strict=True)]
    config = members[0].config
    merged = StarterHeads(
        replace(
            config,
            image_hidden=config.image_hidden * len(members),
            text_hidden=config.text_hidden * len(members),
        )
    ).eval()
    merged.scale.log_scale.copy_(torch.stack([m.scale.log_scale for m in members]).mean())
    merged.image.concept_CD.copy_(members[0].image.concept_CD)
    merged.image.concept_map.weight.copy_(
        _sum(m @ h.image.concept_map.weight for m, h in zip(image_maps, members, strict=True))
    )
    _join(merged, members, image_maps, text_maps)
    return merged


def _join(
    merged: StarterHeads,
    members: Sequence[StarterHeads],
    image_maps: Sequence[Tensor],
    text_maps: Sequence[Tensor],
) -> None:
    """Fill in the corrections, and for texts the identity that a head adds to its own."""
    image, text = merged.image.correction, merged.text.correction
    up_weight, up_bias, down_bias = [], [], []
    for to_merged, member in zip(image_maps, members, strict=True):
        own, norm = member.image.correction, member.image.norm
        # a member's norm has weights of its own: they go into what follows it
        up_weight.append(own.up.weight * norm.weight)
        up_bias.append(own.up.bias + own.up.weight @ norm.bias)
        down_bias.append(to_merged @ (own.down.bias + own.linear.weight @ norm.bias))
    image.up.weight.copy_(torch.cat(up_weight))
    image.up.bias.copy_(torch.cat(up_bias))
    image.down.bias.copy_(_sum(down_bias))
    pairs = list(zip(image_maps, members, strict=True))
    image.down.weight.copy_(torch.cat([m @ h.image.correction.down.weight for m, h in pairs], 1))
    image.linear.weight.copy_(
        _sum(m @ (h.image.correction.linear.weight * h.image.norm.weight) for m, h in pairs)
    )
    pairs = list(zip(text_maps, members, strict=True))
    text.up.weight.copy_(torch.cat([h.text.correction.up.weight for _, h in pairs]))
    text.up.bias.copy_(torch.cat([h.text.correction.up.bias for _, h in pairs]))
    text.down.weight.copy_(torch.cat([m @ h.text.correction.down.weight for m, h in pairs], 1))
    text.down.bias.copy_(_sum(m @ h.text.correction.down.bias for m, h in pairs))
    root = TEXT_FEATURES**0.5  # the correction reads features scaled by it, the identity does not
    text.linear.weight.copy_(
        _sum(m @ h.text.correction.linear.weight for m, h in pairs)
        + (_sum(text_maps) - torch.eye(TEXT_FEATURES)) / root
    )


def _end_to_end(rows_KND: Sequence[Tensor]) -> Tensor:
    return torch.cat([functional.normalize(rows_ND, dim=1) for rows_ND in rows_KND], dim=1)


def _principal(image_NE: Tensor, text_ME: Tensor) -> Tensor:
    """Orthonormal rows [512, E]: the directions that pictures and texts together vary most in."""
    moment_EE = image_NE.T @ image_NE / len(image_NE) + text_ME.T @ text_ME / len(text_ME)
    # double: the sign and order of close directions must not hang on the last bits
    _, vector_EE = torch.linalg.eigh(moment_EE.double())
    kept_DE: Tensor = vector_EE[:, -TEXT_FEATURES:].T.float().contiguous()
    return kept_DE


def _sum(matrices: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(matrices)).sum(dim=0)


@torch.no_grad()
def soup(target: SentenceNetwork, networks: Sequence[SentenceNetwork]) -> None:
    """Set the weights of `target` to the mean of those of `networks`, rounded as a file has them.

    Networks that were tuned from the same start with small steps lie in one valley: their mean is
    at least as good as they are (Wortsman et al. 2022).
    """
    for name, weights in target.weights.items():
        mean = torch.stack([network.weights[name] for network in networks]).mean(dim=0)
        weights.copy_(mean.half())
