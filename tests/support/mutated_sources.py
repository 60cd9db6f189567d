"""Good sources with bytes changed, cut and repeated: each must give rows or one `SourceError`.

    python tests/support/mutated_sources.py KIND COUNT [SEED]

KIND is one of `SEEDS`. Prints a tally as JSON. A crash or a hang of a parser written in C ends
this process, not the suite's.
"""

from __future__ import annotations

import base64
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from bad_manifests import coco, karpathy
from bad_shards import archive
from bad_sources import BLUE, RED

from models.errors import SourceError
from models.sources import Reject, open_source

MAX_ROWS = 10_000


def jsonl() -> bytes:
    picture = base64.b64encode(RED).decode()
    rows = [
        {"id": 1, "image": "good.png", "captions": {"en": "a", "zh": ["二"]}, "n": 1.5},
        {"image_base64": picture, "text": "b", "label": "x"},
        {"image": "no.png", "nested": [[{"a": None}], True]},
    ]
    return b"\n".join(json.dumps(row).encode() for row in rows)


def csv() -> bytes:
    return 'id,image,caption\n1,good.png,"a ""b"", c"\n2,no.png,"two\nlines"\n3,,三\n'.encode()


def parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": RED, "path": "a"}, {"bytes": None, "path": "good.png"}] * 4, kind)
    table = pa.table({"image": images, "caption": ["a", "b"] * 4, "n": [[1], [2, 3]] * 4})
    buffer = BytesIO()
    pq.write_table(table, buffer, row_group_size=4)
    return buffer.getvalue()


def tar() -> bytes:
    return archive([("a.png", RED), ("a.json", b'{"caption": "x"}'), ("n" * 200 + ".png", BLUE)])


SEEDS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "jsonl": ("a.jsonl", jsonl),
    "csv": ("a.csv", csv),
    "json": ("a.json", lambda: json.dumps(karpathy()).encode()),
    "coco": ("a.json", lambda: json.dumps(coco()).encode()),
    "parquet": ("a.parquet", parquet),
    "tar": ("a.tar", tar),
    "list": ("a.txt", lambda: b"# x\ngood.png\r\n\nno.png\n"),
}


def mutate(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(len(changed)) if changed else 0
        action = draw.randrange(5)
        if action == 0 and changed:
            changed[at] ^= 1 << draw.randrange(8)
        elif action == 1 and changed:
            changed[at] = draw.choice(b"\0\xff\x80\"'{}[],:\\\n\r\t 09-")
        elif action == 2:
            del changed[at : at + draw.randrange(1, 64)]
        elif action == 3:
            changed[at:at] = changed[at : at + draw.randrange(1, 64)]
        elif draw.randrange(4) == 0:
            del changed[at:]
    return bytes(changed)


def run(kind: str, count: int, seed: int) -> dict[str, int]:
    name, make = SEEDS[kind]
    whole, draw = make(), random.Random(seed)
    tally = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "good.png").write_bytes(RED)
        path = Path(folder) / name
        for _ in range(count):
            path.write_bytes(mutate(whole, draw))
            try:
                source = open_source(str(path))
                source.count()
                for number, row in enumerate(source):
                    tally[row.code if isinstance(row, Reject) else "ok"] += 1
                    assert number < MAX_ROWS
            except SourceError as error:
                tally[f"!{error.code}"] += 1
    return dict(tally.most_common())


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int((sys.argv[3:] or ["0"])[0]))))
