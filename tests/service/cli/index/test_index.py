"""`diptych index ...` as a process: bad folders, exit codes, locks, a full disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from console import diptych
from fakes import COLOURS, encode, solid
from indexes import ids, opened, rejects_of, scratch
from PIL import Image

from indexer.maintain.verify import verify_index

DRIVER = Path(__file__).resolve().parents[3] / "support" / "colour_cli.py"


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(DRIVER), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        # a shell that runs the suite in its background makes children ignore Ctrl-C; undo that
        preexec_fn=_heed_interrupts,
    )


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in COLOURS:
        (folder / f"{name}.png").write_bytes(solid(name))
        (folder / f"{name}.txt").write_text(f"{name}\n")
    return folder


def huge_png(width: int, height: int) -> bytes:
    """A valid PNG of zeros: hundreds of kilobytes that unpack to hundreds of megabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, data) for kind, data in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    )


def test_a_bad_folder_is_indexed_as_far_as_it_goes(pictures: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    jpeg = encode(Image.fromarray(noise), fmt="JPEG")
    (pictures / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (pictures / "text.jpg").write_text("I am no picture.")
    (pictures / "empty.png").touch()
    os.mkfifo(pictures / "pipe.png")
    (pictures / "loop.jpg").symlink_to("loop.jpg")
    (pictures / "loop").symlink_to(".", target_is_directory=True)
    (pictures / "bomb.png").write_bytes(huge_png(13_000, 13_000))
    (pictures / "whole.jpg").write_bytes(jpeg)
    odd = os.fsencode(pictures) + b"/caf\xe9.png"
    with open(odd, "wb") as file:  # noqa: PTH123
        file.write(solid("red"))
    out = tmp_path / "x.index"

    run = diptych("index", "build", pictures, "--out", out, "--json")
    assert run.returncode == 3, run.stderr
    report = json.loads(run.stdout)
    assert report["added"] == len(COLOURS) + 2
    rejected = {line["key"]: (line["code"], line["detail"]) for line in rejects_of(out)}
    assert report["rejected"] == len(rejected)
    codes = {key: code for key, (code, _) in rejected.items()}
    assert codes.pop("loop", "symlink-skipped") == "symlink-skipped"
    assert codes == {
        "truncated.jpg": "image-undecodable",
        "text.jpg": "image-undecodable",
        "empty.png": "empty-file",
        "pipe.png": "not-a-regular-file",
        "loop.jpg": "symlink-skipped",
        "bomb.png": "image-too-many-pixels",
    }
    assert all(detail for _, detail in rejected.values())
    with opened(out) as snapshot:
        reds = ids(snapshot, "red", 2)
        assert "red.png" in reds
        [cafe] = [key for key in reds if key != "red.png"]
        assert cafe.startswith("caf")
        assert snapshot.item(cafe).uri.endswith("/caf%E9.png")
        assert len(ids(snapshot, "red")) == len(COLOURS) + 2

    again = diptych("index", "build", pictures, "--out", out)
    assert again.returncode == 3
    assert "0 added, 0 updated, 10 unchanged" in again.stdout
    assert str(out) + ".rejects.jsonl" in again.stdout


def test_the_commands_on_a_sound_index(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    run = diptych("index", "build", pictures, "--out", out)
    assert run.returncode == 0
    assert "8 images and 8 texts in version 1" in run.stdout
    assert "8 added, 0 updated, 0 unchanged, 0 rejected" in run.stdout
    assert not out.with_name("x.index.rejects.jsonl").exists()

    info = diptych("index", "info", "--index", out, "--json")
    about = json.loads(info.stdout)
    assert (about["images"], about["texts"], about["model"]) == (8, 8, "colours")
    assert about["sources"] == [{"name": str(pictures), "kind": "folder"}]
    text = diptych("index", "info", "--index", out).stdout
    for part in ("8 images", "colours", str(pictures)):
        assert part in text

    sound = diptych("index", "verify", "--index", out)
    assert (sound.returncode, "sound" in sound.stdout) == (0, True)
    for command in ([], ["build"], ["info"], ["verify"]):
        shown = diptych("index", *command, "--help")
        assert shown.returncode == 0
        assert "diptych index" in shown.stdout


def test_exit_codes_of_refusals(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    assert diptych("index", "build", pictures, "--out", out).returncode == 0
    cases = [
        (2, ["build", str(tmp_path / "missing"), "--out", str(out)], "missing"),
        (2, ["build", str(pictures), "--out", str(pictures)], "not an index"),
        (2, ["build", "--out", str(out)], "SOURCE"),
        (2, ["build", str(pictures), "--out", str(out), "--batch-size", "0"], "batch-size"),
        (2, ["info", "--index", str(tmp_path / "missing")], "no index"),
        (2, ["verify", "--index", str(DRIVER)], "not a directory"),
        (4, ["build", str(pictures), "--out", str(out), "--model", "colours-2"], "weights_sha256"),
    ]
    for code, arguments, words in cases:
        run = diptych("index", *arguments)
        assert run.returncode == code, (arguments, run.stderr)
        assert words in run.stderr
        assert run.stdout == ""

    [vectors, _] = sorted(out.glob("segments/*/vectors.npy"))
    data = bytearray(vectors.read_bytes())
    data[-1] ^= 1
    vectors.write_bytes(data)
    name = str(vectors.relative_to(out))
    for command in ("info", "build"):
        arguments = [pictures, "--out", out] if command == "build" else ["--index", out]
        run = diptych("index", command, *arguments)
        assert (run.returncode, name in run.stderr) == (4, True), run.stderr
        assert "diptych index verify" in run.stderr
    run = diptych("index", "verify", "--index", out, "--json")
    report = json.loads(run.stdout)
    assert (run.returncode, report["ok"], len(report["problems"])) == (4, False, 1)
    assert report["problems"][0]["file"] == name


def test_options_reach_the_builder(pictures: Path, tmp_path: Path) -> None:
    out, listed = tmp_path / "x.index", tmp_path / "refused.jsonl"
    (pictures / "text.jpg").write_text("no")
    run = diptych(
        "index", "build", pictures, "--out", out, "--no-thumbnails", "--no-captions",
        "--rejects", listed, "--batch-size", "3", "--max-errors", "0", "--json",
    )  # fmt: skip
    report = json.loads(run.stdout)
    assert run.returncode == 3
    assert report["texts"] == 0
    assert report["rejects_file"] == str(listed)
    assert len(listed.read_text().splitlines()) == 1
    assert rejects_of(out) == []


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_readers_and_other_builds_never_wait_and_a_purge_is_told_who_writes(
    pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.index"
    assert diptych("index", "build", pictures, "--out", out).returncode == 0
    (pictures / "more.png").write_bytes(solid("red", size=(9, 9)))
    log = tmp_path / "embedding"
    held = {"COLOUR_WAIT": str(tmp_path / "never"), "COLOUR_LOG": str(log)}
    writer = start("index", "build", pictures, "--out", out, **held)
    try:
        wait_for(log, writer)
        refused = diptych("index", "purge", "--index", out)
        assert refused.returncode == 5, refused.stderr
        assert f"is being written by process {writer.pid} on " in refused.stderr
        assert (out / "LOCK").read_text() == ""
        with opened(out) as snapshot:
            assert (snapshot.version, ids(snapshot, "red", 1)) == (1, ["red.png"])
        assert diptych("index", "verify", "--index", out).returncode == 0
        assert diptych("index", "build", pictures, "--out", out).returncode == 0
        assert len(scratch(out)) == 1  # what the first prepares is let be
    finally:
        writer.kill()
        writer.communicate()
    # what the dead writer left is swept
    assert diptych("index", "build", pictures, "--out", out).returncode == 0
    assert (out / "LOCK").read_text() == ""
    assert scratch(out) == []
    with opened(out) as snapshot:
        assert len(ids(snapshot, "red")) == 9


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_build_cleans_up(
    pictures: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    out, log = tmp_path / "x.index", tmp_path / "log"
    command = ("index", "build", pictures, "--out", out, "--batch-size", "1")
    writer = start(*command, COLOUR_DELAY="0.3", COLOUR_LOG=str(log))
    wait_for(log, writer)
    writer.send_signal(sent)
    _, err = writer.communicate(timeout=30)
    assert writer.returncode == code
    assert "Traceback" not in err
    assert scratch(out) == []
    assert diptych(*command).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "small"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(where)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("NOT TESTED: a small file system can be mounted by root only")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def noisy(number: int) -> bytes:
    rng = np.random.default_rng(number)
    return encode(Image.fromarray(rng.integers(0, 255, (320, 320, 3), dtype=np.uint8)), fmt="JPEG")


def tree(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def test_a_full_disk_leaves_the_old_version_untouched(
    pictures: Path, tmp_path: Path, small_disk: Path
) -> None:
    out = small_disk / "x.index"
    command = ("index", "build", pictures, "--out", out, "--rejects", tmp_path / "rejects")
    assert diptych(*command).returncode == 0
    before = tree(out)
    for number in range(80):  # their thumbnails alone are larger than the disk
        (pictures / f"noise{number:02}.jpg").write_bytes(noisy(number))
    full = diptych(*command)
    assert full.returncode == 6, full.stderr
    assert "no space left" in full.stderr
    assert "previous version is intact" in full.stderr
    assert tree(out) == before
    assert scratch(out) == []
    assert verify_index(out).ok
    # a disk filled by someone else, down to the last bytes, at ever other moments of a commit
    for extra in pictures.glob("noise*.jpg"):
        extra.unlink()
    (pictures / "new.png").write_bytes(solid("red", size=(9, 9)))
    codes = set()
    for spare in range(0, 180_000, 12_000):
        ballast = small_disk / "ballast"
        free = shutil.disk_usage(small_disk).free
        ballast.write_bytes(bytes(max(0, free - spare)))
        run = diptych(*command)
        codes.add(run.returncode)
        ballast.unlink()
        assert verify_index(out).ok
        assert scratch(out) == []
        if run.returncode == 0:
            break
        assert run.returncode == 6, run.stderr
        assert tree(out) == before
    assert codes == {0, 6}
    with opened(out) as snapshot:
        assert sorted(ids(snapshot, "red", 2)) == ["new.png", "red.png"]


def test_two_sources_with_the_same_ids_are_told_how_to_keep_both(
    pictures: Path, tmp_path: Path
) -> None:
    other, out = tmp_path / "other", tmp_path / "x.index"
    other.mkdir()
    (other / "red.png").write_bytes(solid("blue"))
    build = ("index", "build", pictures, "--out", out, "--model", "colours", "--json")
    assert diptych(*build).returncode == 0
    for command in (("add", other, "--index"), ("build", pictures, other, "--out")):
        run = diptych("index", *command, out, "--json")
        assert (run.returncode, json.loads(run.stdout)["conflicts"]) == (3, 1)
        for told in ("--prefix", "--id-field", "--replace"):
            assert told in run.stderr
    run = diptych("index", "add", other, "--index", out, "--json", "--prefix", "{source}")
    assert (run.returncode, json.loads(run.stdout)["added"]) == (0, 1)
    run = diptych("index", "add", other, "--index", out, "--json", "--replace")
    assert (run.returncode, json.loads(run.stdout)["updated"]) == (0, 1)


def test_a_source_that_has_nothing_is_no_success(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    out = tmp_path / "x.index"
    run = diptych("index", "build", pictures, tmp_path / "disk", "--out", out, "--model", "colours")
    assert run.returncode == 3
    assert f"Nothing was found in {tmp_path / 'disk'}: see that the disk is mounted" in run.stderr
    run = diptych("index", "build", pictures, "--out", out, "--include", "*.PNG", "--json")
    assert (run.returncode, json.loads(run.stdout)["empty"]) == (3, [str(pictures)])
