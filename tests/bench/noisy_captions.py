"""What filtering by alignment wins back when a third of the captions stand beside wrong pictures.

    python tests/bench/noisy_captions.py TRAIN VAL --cache features

The starter's heads are trained from their untrained start (`--init fresh`) on the captions of TRAIN
as they are; with `--noise` of them dealt out among each other; and with the noisy ones filtered at
the floor that `--filter-below auto` takes. Recall is measured on VAL.

The pair that comes with Diptych was trained on Flickr8k, so it must not judge these captions: it
would know the right ones by heart. Who judges instead:

    start   the untrained heads (ConSE): no caption has been seen; too weak, so nothing is trained
    self    the heads trained on the noisy captions themselves, as somebody with one set would do
    folds   two pairs of heads, each trained on the noisy captions of one half of the pictures and
            judging the other half

`oracle` drops exactly the wrong captions: as much as any filter could win back.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


from models.devices import resolve_device
from models.encoders.starter.description import HeadsConfig
from models.encoders.starter.heads import StarterHeads
from models.encoders.starter.image_tower import ImageTower
from models.encoders.starter.pair import starter_dtype
from models.encoders.starter.text_tower import TextTower
from models.evaluation.captions.mixture import best_floor, wrong_share
from models.sources import open_source
from models.training.config import Circumstances, resolved
from models.training.features.maker import FeatureMaker
from models.training.features.pairs import Pairs, gather
from models.training.record import Recall
from models.training.starter import StarterPair, fresh_heads, measure, train_heads


def owners_of(pairs: Pairs) -> np.ndarray:
    """The picture of each caption; the captions of a picture lie together."""
    counts = pairs.caption_count
    assert torch.equal(pairs.caption_start, counts.cumsum(0) - counts), "one language at a time"
    return np.repeat(np.arange(len(pairs)), counts.numpy())


def with_noise(pairs: Pairs, share: float, seed: int) -> tuple[Pairs, np.ndarray]:
    """Captions dealt out among each other, and which of them are wrong now."""
    rng = np.random.default_rng(seed)
    owner_M = owners_of(pairs)
    chosen = rng.permutation(len(owner_M))[: round(share * len(owner_M))]
    # in order of a random rank of pictures, a turn by more than any picture has captions moves
    # each to another picture
    rank_N = rng.permutation(len(pairs))
    chosen = chosen[np.argsort(rank_N[owner_M[chosen]], kind="stable")]
    order_M = np.arange(len(owner_M))
    order_M[chosen] = np.roll(chosen, int(pairs.caption_count.max()))
    wrong_M = owner_M[order_M] != owner_M
    assert wrong_M.sum() == len(chosen)
    assert pairs.said_M is not None
    order = torch.from_numpy(order_M)
    shuffled = {"caption_MS": pairs.caption_MS[order], "said_M": pairs.said_M[order]}
    return replace(pairs, **shuffled), wrong_M


def only(pairs: Pairs, keep_M: np.ndarray) -> Pairs:
    """The captions to keep, and the pictures that have one left."""
    owner_M = owners_of(pairs)[keep_M]
    picture_N, count_N = np.unique(owner_M, return_counts=True)
    assert pairs.said_M is not None
    chosen_N, count = torch.from_numpy(picture_N), torch.from_numpy(count_N)
    return replace(
        pairs,
        image_NF=pairs.image_NF[chosen_N],
        caption_MS=pairs.caption_MS[torch.from_numpy(np.flatnonzero(keep_M))],
        said_M=pairs.said_M[torch.from_numpy(np.flatnonzero(keep_M))],
        group_N=pairs.group_N[chosen_N],
        kind_N=pairs.kind_N[chosen_N],
        choice_start_N=torch.arange(len(chosen_N)),
        choice_count_N=torch.ones(len(chosen_N), dtype=torch.long),
        caption_start=count.cumsum(0) - count,
        caption_count=count,
        caption_language=(0,) * len(chosen_N),
        keys=tuple(pairs.keys[at] for at in picture_N.tolist()),
    )


@torch.inference_mode()
def scores(heads: StarterHeads, pairs: Pairs, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each caption: cosine with its picture, and with some other picture."""
    heads.eval()
    image_ND = heads.embed_images(pairs.image_NF).numpy()
    text_MD = heads.embed_texts(pairs.caption_MS).numpy()
    owner_M = owners_of(pairs)
    step_M = np.random.default_rng(seed).integers(1, len(image_ND), len(owner_M))
    other_M = (owner_M + step_M) % len(image_ND)
    return tuple((text_MD * image_ND[at]).sum(axis=1) for at in (owner_M, other_M))  # type: ignore[return-value]


def auc(wrong: np.ndarray, right: np.ndarray) -> float:
    """The chance that a wrong caption scores below a right one."""
    both = np.concatenate([wrong, right])
    rank = np.empty(len(both))
    rank[both.argsort(kind="stable")] = np.arange(1, len(both) + 1)
    below = rank[len(wrong) :].sum() - len(right) * (len(right) + 1) / 2
    return float(below / (len(wrong) * len(right)))


def flat(recall: Recall) -> dict[str, float]:
    (metrics,) = recall.values()
    return {
        f"{way} R@{k}": 100 * metrics[f"{prefix}_retrieval_recall@{k}"]
        for way, prefix in (("t2i", "image"), ("i2t", "text"))
        for k in (1, 5, 10)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("train")
    parser.add_argument("val")
    parser.add_argument("--text-field", default="captions.en")
    parser.add_argument("--cache", type=Path, help="folder for the towers' features")
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    started = time.perf_counter()
    torch.set_num_threads(1)
    device = resolve_device("cpu")
    tower = TextTower()
    maker = FeatureMaker(
        ImageTower(device=device, dtype=starter_dtype("auto", device)),
        tower,
        cache=arguments.cache,
    )
    clean, _ = gather([open_source(arguments.train, text_field=arguments.text_field)], maker)
    validation, _ = gather([open_source(arguments.val, text_field=arguments.text_field)], maker)
    asked = {"epochs": arguments.epochs, "batch_size": arguments.batch_size, "concept_share": 0.0}
    config = resolved(asked | {"seed": arguments.seed}, "fresh starter", Circumstances(pairs=0))

    # embeds a thousand names: once is enough
    start = fresh_heads(HeadsConfig(), tower, seed=arguments.seed)

    def trained(pairs: Pairs) -> StarterHeads:
        heads = copy.deepcopy(start)
        train_heads(StarterPair(heads), pairs, config)
        return heads

    results: dict[str, dict[str, float]] = {}

    def show(name: str, heads: StarterHeads) -> None:
        results[name] = flat(measure(heads, validation))
        cells = "  ".join(f"{key} {value:5.1f}" for key, value in results[name].items())
        print(f"{name:16}{cells}", flush=True)

    noisy, wrong_M = with_noise(clean, arguments.noise, arguments.seed)
    show("untrained", start)
    show("clean", trained(clean))
    noisy_heads = trained(noisy)
    show("noisy", noisy_heads)

    def judged(name: str, own_M: np.ndarray, other_M: np.ndarray, *, retrain: bool = True) -> None:
        floor = best_floor(own_M, other_M)
        assert floor is not None
        dropped_M = own_M < floor
        found = {
            "floor": floor,
            "estimated_wrong": wrong_share(own_M, other_M),
            "dropped": float(dropped_M.mean()),
            "precision": float(wrong_M[dropped_M].mean()),
            "recall": float(dropped_M[wrong_M].mean()),
            "auc": auc(own_M[wrong_M], own_M[~wrong_M]),
        }
        if retrain:
            show(f"filtered, {name}", trained(only(noisy, ~dropped_M)))
            found["recovered"] = recovered(results, f"filtered, {name}")
        filters[name] = found
        cells = "  ".join(f"{key} {value:.3f}" for key, value in found.items())
        print(f"  judge {name}: {cells}", flush=True)

    filters: dict[str, dict[str, float | None]] = {}
    judged("start", *scores(start, noisy, 1), retrain=False)
    judged("self", *scores(noisy_heads, noisy, 1))
    half_M = owners_of(noisy) % 2
    folds = [scores(trained(only(noisy, half_M == side)), noisy, 1) for side in (1, 0)]
    judged("folds", *(np.where(half_M == 0, folds[0][at], folds[1][at]) for at in range(2)))
    show("oracle", trained(only(noisy, ~wrong_M)))
    document = {
        "bench": "noisy_captions",
        "noise": float(wrong_M.mean()),
        "captions": len(wrong_M),
        "pictures": len(clean),
        "epochs": arguments.epochs,
        "batch_size": arguments.batch_size,
        "seed": arguments.seed,
        "recall": results,
        "filters": filters,
        "oracle_recovered": recovered(results, "oracle"),
        "machine": f"{platform.machine()}, one thread, torch {torch.__version__}",
        "seconds": round(time.perf_counter() - started, 1),
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document))


def recovered(results: dict[str, dict[str, float]], name: str) -> float:
    """The share of what noise cost in mean recall, over both ways and all k, that came back."""
    mean = {key: sum(value.values()) / len(value) for key, value in results.items()}
    return (mean[name] - mean["noisy"]) / (mean["clean"] - mean["noisy"])


if __name__ == "__main__":
    main()
