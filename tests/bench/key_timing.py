"""Does the time of looking up an API key tell anything about it? Welch's t-test.

    python tests/bench/key_timing.py

Keys that are wrong in four ways are looked up in random order among keys that are right, and the
times of each way are compared with those of an unknown id. |t| below 4.5 is the usual bound for "no
difference seen" (Goodwill et al. 2011, test vector leakage assessment). The figure that matters is
`t_first_against_last`: were the comparison to stop at the first difference, it would be large. The
others compare few texts that recur with many that do not, and differ by some 10 ns (1%), most
likely for that. Times above the 99th percentile are other programs' and are left out of all. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import sys
from pathlib import Path
from time import perf_counter_ns

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from service.http.middleware.keys import KeyRing, mint


def welch(one: np.ndarray, other: np.ndarray) -> float:
    spread = one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other)
    return float((one.mean() - other.mean()) / math.sqrt(spread))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--keys", type=int, default=100)
    options = parser.parse_args()
    made = [mint(str(number)) for number in range(options.keys)]
    ring = KeyRing([stored for _, stored in made])
    chance = random.Random(1)

    def wrong(kind: str) -> str:
        # letters at both places, so that the other case is another character
        key = chance.choice([key for key, _ in made if key[15].isalpha() and key[-7].isalpha()])
        stranger = mint("stranger")[0]
        return {
            "unknown id": lambda: stranger,
            "first character wrong": lambda: key[:15] + key[15].swapcase() + key[16:],
            "last character wrong": lambda: key[:-7] + key[-7].swapcase() + key[-6:],
            "all of the secret wrong": lambda: key[:15] + stranger[15:],
        }[kind]()

    kinds = ["unknown id", "first character wrong", "last character wrong",
             "all of the secret wrong"]  # fmt: skip
    pool = {kind: [wrong(kind).encode() for _ in range(2000)] for kind in kinds}
    order = kinds * options.samples
    chance.shuffle(order)
    asked = [(kind, chance.choice(pool[kind])) for kind in order]
    times: dict[str, list[int]] = {kind: [] for kind in kinds}
    gc.disable()
    for kind, data in asked:
        # a fresh copy each time: where a string lies costs more than what is in it
        key = data.decode()
        began = perf_counter_ns()
        ring.find(key)
        times[kind].append(perf_counter_ns() - began)
    cut = np.percentile(np.concatenate([np.array(one) for one in times.values()]), 99)
    kept = {kind: np.array([t for t in one if t <= cut], float) for kind, one in times.items()}
    result = {
        "benchmark": "key_timing",
        "samples": options.samples,
        "mean_ns": {kind: round(one.mean(), 1) for kind, one in kept.items()},
        # among keys with a known id: how much of the secret was right must not show
        "t_first_against_last": round(
            welch(kept["first character wrong"], kept["last character wrong"]), 2
        ),
        "t_first_against_all": round(
            welch(kept["first character wrong"], kept["all of the secret wrong"]), 2
        ),
        "t_known_against_unknown_id": round(
            welch(kept["first character wrong"], kept["unknown id"]), 2
        ),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
