"""Real worker processes, real signals: what a picture does to its decoder costs only itself."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from time import monotonic

import numpy as np
import psutil
import pytest
from fakes import encode, halves, solid
from PIL import Image

from models.errors import DeadlineError, ImageError, ModelError
from models.images.decode import ImageLimits, decode_image
from models.images.geometry import Geometry
from models.images.pictures import Wanted, pixel_digest, see
from models.images.pool import DecodePool

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX processes")
RED = solid("red")


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    """Two workers that misbehave on request; shared, because they must survive each other."""
    with DecodePool(2, timeout_s=10.0, entry="misbehaving") as pool:
        yield pool


def code_of(pool: DecodePool, data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        pool.decode(data)
    return caught.value.code


def told(pool: DecodePool) -> dict[str, object]:
    with pytest.raises(ImageError) as caught:
        pool.decode(b"TELL")
    assert caught.value.code == "told"
    found: dict[str, object] = json.loads(caught.value.message)
    return found


def photograph(orientation: int = 6) -> bytes:
    """A JPEG of two colours that its EXIF turns, with a maker's remark."""
    picture = Image.effect_noise((97, 61), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "somewhere"
    buffer = BytesIO()
    picture.save(buffer, format="JPEG", exif=exif)
    return buffer.getvalue()


def with_alpha() -> bytes:
    picture = Image.new("RGBA", (40, 30), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 20, 30))
    return encode(picture)


@pytest.mark.parametrize(
    "data",
    [
        RED,
        halves("red", "blue"),
        photograph(),
        with_alpha(),
        solid("green", fmt="GIF"),
        solid("blue", fmt="TIFF", size=(1, 700)),
        encode(Image.new("I;16", (5, 7), 40_000)),
    ],
    ids=["png", "halves", "exif", "alpha", "gif", "tiff", "16-bit"],
)
def test_pixels_are_those_of_the_one_decoder(pool: DecodePool, data: bytes) -> None:
    ours, theirs = pool.decode(data), decode_image(data)
    assert (ours.mode, ours.size, ours.tobytes()) == (theirs.mode, theirs.size, theirs.tobytes())
    assert ours.info == {}


@pytest.mark.parametrize(
    "data",
    [b"", b"nope", b"%PDF-1.7", RED[: len(RED) // 2], b"<svg/>"],
    ids=["empty", "garbage", "pdf", "cut", "svg"],
)
def test_refusals_are_those_of_the_one_decoder(pool: DecodePool, data: bytes) -> None:
    with pytest.raises(ImageError) as ours:
        pool.decode(data)
    with pytest.raises(ImageError) as theirs:
        decode_image(data)
    assert (ours.value.code, ours.value.message) == (theirs.value.code, theirs.value.message)


def test_limits_travel_to_the_worker() -> None:
    with DecodePool(1, limits=ImageLimits(max_bytes=10_000, max_pixels=1000)) as small:
        assert code_of(small, solid("red", size=(32, 32))) == "image-too-many-pixels"
        assert code_of(small, b"x" * 10_001) == "image-too-large"
        assert small.decode(solid("red", size=(31, 31))).size == (31, 31)


@pytest.mark.parametrize("act", [b"SEGV", b"SEGV again"])
def test_a_crash_costs_its_own_picture_and_the_worker_is_replaced(
    pool: DecodePool, act: bytes
) -> None:
    before = set(pool.pids)
    assert code_of(pool, act) == "image-undecodable"
    assert pool.decode(RED).getpixel((0, 0)) == (255, 0, 0)
    after = set(pool.pids)
    assert len(after) == 2
    assert len(before - after) == 1


def test_a_killed_worker_costs_the_picture_it_had() -> None:
    with DecodePool(1, entry="misbehaving", timeout_s=60) as pool, ThreadPoolExecutor(1) as threads:
        pool.decode(RED)
        [worker] = pool._all
        caught = threads.submit(code_of, pool, b"HANG until killed")
        while worker.decoded < 2:  # the picture is on its way
            threading.Event().wait(0.005)
        os.kill(worker.process.pid, signal.SIGKILL)
        assert caught.result(30) == "image-undecodable"
        assert pool.decode(RED).size == (32, 32)
        [worker] = pool._all
        os.kill(worker.process.pid, signal.SIGKILL)  # one that is idle is no loss at all
        while worker.process.poll() is None:
            threading.Event().wait(0.005)
        assert pool.decode(RED).size == (32, 32)


def test_a_hang_is_ended_and_poison_is_known_after_two_kills() -> None:
    reasons: list[str] = []
    with DecodePool(1, timeout_s=0.3, entry="misbehaving", on_restart=reasons.append) as pool:
        pool.decode(RED)  # started
        for _ in range(2):
            assert code_of(pool, b"HANG") == "decode-timeout"
        assert reasons == ["timeout", "timeout"]
        pids = pool.pids
        assert code_of(pool, b"HANG") == "image-undecodable"  # at once
        assert pool.pids == pids
        assert code_of(pool, b"SEGV") == "image-undecodable"  # another picture, still tried
        assert reasons == ["timeout", "timeout", "crash"]
        assert pool.decode(RED).size == (32, 32)


def test_memory_is_bounded(pool: DecodePool) -> None:
    with pytest.raises(ImageError, match="memory"):
        pool.decode(b"SWELL")
    assert pool.decode(RED).size == (32, 32)


def test_32_at_once_of_which_one_crashes(pool: DecodePool) -> None:
    pictures = [solid("red", size=(8 + number, 8)) for number in range(32)]
    pictures[13] = b"SEGV among 32"
    with ThreadPoolExecutor(32) as threads:
        futures = [threads.submit(pool.decode, data) for data in pictures]
    for number, future in enumerate(futures):
        if number == 13:
            assert isinstance(future.exception(), ImageError)
        else:
            assert future.result().size == (8 + number, 8)


def test_workers_know_little_and_may_do_less(
    pool: DecodePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPTYCH_TEST_SECRET", "canary")
    found = told(pool)
    assert found["torch"] is False
    assert found["secret"] is None
    assert found["writes_files"] is False
    if sys.platform == "linux" and Path("/sys/kernel/security").exists():
        assert found["reads_files"] is False, "Landlock"
    with contextlib.suppress(ImportError):
        import pyseccomp  # noqa: F401

        assert found["opens_sockets"] is False
        assert found["runs_programs"] is False


def test_a_worker_is_replaced_after_so_many_pictures() -> None:
    reasons: list[str] = []
    with DecodePool(1, recycle=3, on_restart=reasons.append) as pool:
        seen = []
        for _ in range(7):
            seen.append(pool.pids[0])
            pool.decode(RED)
    assert reasons == ["recycled", "recycled"]
    assert [seen.count(pid) for pid in dict.fromkeys(seen)] == [3, 3, 1]


def test_closing_leaves_no_process_and_no_descriptor_and_refuses() -> None:
    here = psutil.Process()
    before = here.num_fds()
    pool = DecodePool(2, entry="misbehaving")
    pool.decode(RED)
    code_of(pool, b"SEGV")
    pids = pool.pids
    pool.close()
    pool.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert here.num_fds() == before
    with pytest.raises(DeadlineError):
        pool.decode(RED)


def test_closing_frees_a_thread_that_is_decoding() -> None:
    pool = DecodePool(1, entry="misbehaving", timeout_s=60)
    pool.decode(RED)
    with ThreadPoolExecutor(2) as threads:
        at_work = threads.submit(pool.decode, b"HANG")
        while pool._idle:
            threading.Event().wait(0.005)
        waiting = threads.submit(pool.decode, RED)
        pool.close()
        assert isinstance(at_work.exception(30), ImageError | DeadlineError)
        assert isinstance(waiting.exception(30), DeadlineError)


def test_waiting_for_a_worker_has_an_end() -> None:
    with DecodePool(1, entry="misbehaving", timeout_s=60) as pool:
        pool.decode(RED)
        with ThreadPoolExecutor(1) as threads:
            held = threads.submit(pool.decode, b"HANG")
            while pool._idle:
                threading.Event().wait(0.005)
            with pytest.raises(DeadlineError):
                pool.decode(RED, wait_s=0.01)
            pool.close()
            held.exception(30)


def test_workers_that_never_start_are_an_error_and_not_a_loop() -> None:
    with DecodePool(1, entry="no_such_module_anywhere") as pool:
        for _ in range(2):
            with pytest.raises(ModelError):
                pool.decode(RED)


def test_a_killed_parent_leaves_no_worker(tmp_path: Path) -> None:
    script = (
        "import sys, time; from models.images.pool import DecodePool\n"
        "from fakes import solid\n"
        "pool = DecodePool(2); pool.decode(solid('red'))\n"
        "print(*pool.pids, flush=True); time.sleep(60)\n"
    )
    root = Path(__file__).resolve().parents[3]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests" / "support")]),
    }
    parent = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
    finally:
        parent.kill()
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()
    until = monotonic() + 20
    while monotonic() < until and any(alive(pid) for pid in pids):
        threading.Event().wait(0.02)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("data", [RED, photograph(), photograph(1), with_alpha()])
@pytest.mark.parametrize("shape", [None, Geometry(20, 16, "shortest")], ids=["whole", "fitted"])
def test_what_is_made_of_a_picture_is_what_this_process_makes(
    pool: DecodePool, data: bytes, shape: Geometry | None
) -> None:
    wanted = Wanted(shape, thumbnail_side=24)
    ours, picture = pool.make(data, wanted), decode_image(data)
    theirs = see(picture, picture.size, wanted)
    assert np.array_equal(ours.pixels, theirs.pixels)
    assert ours.thumbnail == theirs.thumbnail
    assert (ours.width, ours.height, ours.digest) == (*picture.size, pixel_digest(picture))
    assert pool.make(data, Wanted(shape)).thumbnail is None
    assert code_of_make(pool, b"SEGV while making") == "image-undecodable"


def test_a_draft_is_a_reduced_jpeg_that_tells_its_full_size(pool: DecodePool) -> None:
    big = BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((901, 640), 60).convert("RGB").save(big, format="JPEG", exif=exif)
    wanted = Wanted(Geometry(40, 40), draft=True)
    reduced = pool.make(big.getvalue(), wanted)
    whole = pool.make(big.getvalue(), Wanted(Geometry(40, 40)))
    assert (reduced.width, reduced.height) == (whole.width, whole.height) == (640, 901)
    assert reduced.digest != whole.digest  # 1/8 was decoded, which is twice 40 and not below
    difference = reduced.pixels.astype(int) - whole.pixels
    assert np.abs(difference).mean() < 4
    data = photograph()  # 61 < 2 * 80: not reduced
    assert pool.make(data, wanted).digest == pixel_digest(decode_image(data))


def code_of_make(pool: DecodePool, data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        pool.make(data, Wanted(Geometry(8, 8)))
    return caught.value.code
