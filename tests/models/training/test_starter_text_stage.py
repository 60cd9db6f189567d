"""The sentence encoder's last layers in training: they move, the rest stays."""

from __future__ import annotations

import torch

from models.encoders.starter.description import IMAGE_FEATURES, HeadsConfig
from models.encoders.starter.heads import StarterHeads
from models.encoders.starter.text_network import POOLED_FEATURES
from models.encoders.starter.text_tower import TextTower
from models.training.config import TrainConfig
from models.training.features.maker import FeatureMaker
from models.training.features.pairs import Kind, Pairs
from models.training.starter import measure, train_heads
from models.training.starter_stages import LAST_LAYERS, HeadsOverPools, PoolMaker, StagedPair

TEXTS = ["a red boat", "two cats sleep", "一只猫", "una taza de café", "snow", "a man runs"]


def pairs_of(caption_MS: torch.Tensor) -> Pairs:
    count = len(caption_MS)
    each = torch.arange(count)
    one = torch.ones(count, dtype=torch.long)
    return Pairs(
        image_NF=torch.rand(count, IMAGE_FEATURES, generator=torch.Generator().manual_seed(0)),
        caption_MS=caption_MS,
        group_N=each,
        kind_N=torch.full((count,), int(Kind.MAIN)),
        choice_start_N=each,
        choice_count_N=one,
        caption_start=each,
        caption_count=one,
        languages=("und",),
        caption_language=(0,) * count,
    )


def test_the_last_layers_move_and_the_others_do_not() -> None:
    texts = TextTower()
    maker, pooled = FeatureMaker(None, texts), PoolMaker(None, texts)  # type: ignore[arg-type]
    pools_MP = pooled.texts(TEXTS)
    assert pools_MP.shape == (len(TEXTS), POOLED_FEATURES + 1)
    # kept in half precision, the features of both ways agree
    package_MS = torch.from_numpy(texts.features([texts.prepare(text) for text in TEXTS]))
    assert (maker.texts(TEXTS) * package_MS).sum(dim=1).min() > 0.9999

    torch.manual_seed(0)
    heads = StarterHeads(HeadsConfig(image_hidden=16, text_hidden=16)).eval()
    joint = HeadsOverPools(heads, texts.trainable())
    start_MD = heads.embed_texts(package_MS)
    torch.testing.assert_close(joint.eval().embed_texts(pools_MP), start_MD, atol=2e-3, rtol=0)
    before = {name: value.clone() for name, value in joint.network.weights.items()}
    pairs = pairs_of(pools_MP)
    recall = measure(joint, pairs)["und"]["image_retrieval_recall@1"]
    config = TrainConfig(epochs=8, batch_size=len(TEXTS), lr=1e-3, concept_share=0, grad_clip=0)
    train_heads(StagedPair(joint), pairs, config)
    assert measure(joint, pairs)["und"]["image_retrieval_recall@1"] > recall
    moved = {
        name
        for name, value in joint.network.weights.items()
        if not torch.equal(value, before[name])
    }
    assert moved == set(LAST_LAYERS)
    alone = joint.heads()
    sentence_MS = joint.network.sentence_of(pools_MP.float())
    torch.testing.assert_close(alone.embed_texts(sentence_MS), joint.embed_texts(pools_MP))
