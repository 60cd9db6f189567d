"""Nothing reports home and nothing leaves files about: every command, watched from outside.

Dependencies change their defaults: ONNX Runtime began to keep a device id and to send events in
1.29, and stops only where variables of a pipeline are set.
"""

from __future__ import annotations

import socket
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from guarded import Guard
from PIL import Image
from tiny import tiny_pair


def pictures(folder: Path) -> Path:
    folder.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture number {number}")
    return folder


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    return Guard(tmp_path / "guarded")


def test_index_search_classify_and_serve_keep_to_themselves(guard: Guard) -> None:
    index = guard.work / "x.index"
    guard.diptych("index", "build", pictures(guard.work / "p"), "--out", index)
    assert "picture number" in guard.diptych("search", "--index", index, "a red square", "-k", "1")
    guard.diptych("classify", guard.work / "p" / "0.png", "--labels", "noise,cat")
    with guard.serving("--index", index) as url:
        for path in ("/readyz", "/", "/docs", "/openapi.json"):
            urllib.request.urlopen(url + path, timeout=30).read()
        asked = urllib.request.Request(
            f"{url}/v1/search/image-to-text",
            (guard.work / "p" / "0.png").read_bytes(),
            {"content-type": "image/png"},
        )
        assert b'"hits"' in urllib.request.urlopen(asked, timeout=30).read()
        time.sleep(3)
    assert guard.faults == []


def test_training_and_plots_keep_to_themselves(guard: Guard) -> None:
    pytest.importorskip("matplotlib")
    data, tuned = pictures(guard.work / "p"), guard.work / "tuned"
    guard.diptych("train", "--data", data, "--out", tuned, "--epochs", "1", "--val", "none")
    assert (tuned / "curves.png").stat().st_size > 0
    assert guard.faults == []


def test_a_pair_from_the_cache_of_the_hub_keeps_to_itself(guard: Guard) -> None:
    data, hub = pictures(guard.work / "p"), guard.work / "hub"
    pair = tiny_pair(hub / "models--acme--tiny" / "snapshots" / ("0" * 40))
    (pair.parents[1] / "refs").mkdir()
    (pair.parents[1] / "refs" / "main").write_text(pair.name)
    guard.more["HF_HUB_CACHE"] = str(hub)
    index = guard.work / "x.index"
    guard.diptych("index", "build", data, "--out", index, "--model", "hf-hub:acme/tiny")
    guard.diptych("search", "--index", index, "a red square")
    assert guard.faults == []


@pytest.mark.slow
def test_a_service_keeps_to_itself_for_longer_than_events_wait(guard: Guard) -> None:
    index = guard.work / "x.index"
    guard.diptych("index", "build", pictures(guard.work / "p"), "--out", index)
    with guard.serving("--index", index):
        time.sleep(100)
    assert guard.faults == []


def test_the_guard_sees_what_it_should(guard: Guard) -> None:
    guard.python(
        "-c",
        "import socket, pathlib, threading, tempfile\n"
        "pathlib.Path.home().joinpath('deviceid').write_text('me')\n"
        "pathlib.Path(tempfile.gettempdir(), '.ses').write_text('me')\n"
        "pathlib.Path('named').write_text('fine')\n"
        "with socket.socket(type=socket.SOCK_DGRAM) as line:\n"
        "    line.sendto(b'', ('192.0.2.1', 9))\n"
        "    threading.Thread(target=line.connect, args=[('127.0.0.1', 53)]).start()\n"
        "with socket.socket() as line, socket.socket() as own:\n"
        "    own.bind(('127.0.0.1', 0)); own.listen()\n"
        "    line.connect(own.getsockname())\n",
    )
    assert sorted(guard.faults) == [
        "connect to 127.0.0.1 port 53",
        "left home/deviceid",
        "left temporary/.ses",
        f"openat of {guard.home}/deviceid",
        "sendto to 192.0.2.1 port 9",
    ]


def test_the_guard_lets_the_loopback_be(guard: Guard) -> None:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        own.listen()
        port = own.getsockname()[1]
        guard.python("-c", f"import socket; socket.create_connection(('127.0.0.1', {port}))")
    assert guard.faults == []
