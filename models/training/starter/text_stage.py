"""The sentence encoder's last layers in training, together with heads.

What the layers read, the pooled features of a caption, never changes and is computed once; they
themselves hold 2 M weights, few enough to be trained with the heads at a rate of their own. The
heads of this stage are scaffolding: what is kept of it is the network.

Legend: B pairs, P pooled features (1,280), S sentence features (512), D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.encoders.starter.heads import StarterHeads
from models.encoders.starter.text_network import SentenceNetwork
from models.training.features.maker import FeatureMaker
from models.training.features.pairs import Pairs, Rehearsal
from models.training.starter.config import TrainConfig
from models.training.starter.loop import Step, train

LAST_LAYERS = ("cnn_W", "cnn_b", "d0", "d1", "p1", "d2", "d3", "p3")
RATE = 0.3
"""Of the heads' learning rate: enough to move the layers, too little to forget 16 languages."""


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


def tune(
    joint: HeadsOverPools,
    pairs: Pairs,
    config: TrainConfig,
    *,
    rehearsal: Rehearsal | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> None:
    """Train heads and last layers in place.

    Args:
        joint: both.
        pairs: gathered with a `PoolMaker`.
        config: of the run.
        rehearsal: made with a `PoolMaker`.
        on_step: called after each optimiser step.
    """
    slow = joint.last_layers()
    train(joint, pairs, config, rehearsal=rehearsal, on_step=on_step, slow=slow, slow_rate=RATE)


def tuned_layers(network: SentenceNetwork) -> dict[str, Tensor]:
    """What of the network is not the package's own any more, by name."""
    return {name: network.weights[name] for name in LAST_LAYERS}


@torch.no_grad()
def soup(target: SentenceNetwork, networks: Sequence[SentenceNetwork]) -> None:
    """Set the weights of `target` to the mean of those of `networks`, rounded as a file has them.

    Networks that were tuned from the same start with small steps lie in one valley: their mean is
    at least as good as they are (Wortsman et al. 2022).
    """
    for name, weights in target.weights.items():
        mean = torch.stack([network.weights[name] for network in networks]).mean(dim=0)
        weights.copy_(mean.half())
