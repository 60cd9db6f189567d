"""How fast an index is built, beside what the model alone could do; how cost and memory grow.

    python tests/bench/embed.py                          throughput and linear
    python tests/bench/embed.py --part memory            10,000 and 200,000 pictures
    python tests/bench/embed.py --part startup           100,000 files, nothing new
    python tests/bench/embed.py --part draft             reduced JPEGs: cosines and time
    python tests/bench/embed.py --data ~/Pictures        your photographs instead of made ones

throughput: JPEG files on disk to a committed index, against `embed_images` on tensors that are in
memory already: same pictures, model, process and threads, taking turns. linear: ten times the
pictures with a tower that costs nothing, so that what grows would show. memory: peak RSS of builds
in processes of their own, same tower. startup: the whole command on a folder that is indexed.
Photographs are crops of those in the scikit-image wheel. The last line is JSON; `--out FILE` keeps
it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from PIL import Image  # noqa: E402

from indexer.ingest.build import BuildOptions, BuildReport, build_index  # noqa: E402
from models.encoder import Encoder, Fingerprint, PreparedImage, PreparedText  # noqa: E402
from models.images.decode import decode_image  # noqa: E402
from models.images.geometry import Geometry, Pixels  # noqa: E402
from models.sources import open_source  # noqa: E402
from models.sources.records import Plan, Record, Source  # noqa: E402
from models.vectors import Vectors, unit_rows  # noqa: E402

NAMES = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "retina.jpg")
SIZE = (640, 480)


# --- pictures ------------------------------------------------------------------------------------


def photographs() -> list[Image.Image]:
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    found = [folder / name for name in NAMES if (folder / name).is_file()]
    return [Image.open(path).convert("RGB") for path in found]


def jpegs(count: int, size: tuple[int, int] = SIZE) -> Iterator[bytes]:
    """JPEGs of quality 90: random parts of photographs, some mirrored, none twice."""
    draw, photos = random.Random(0), photographs()
    for _ in range(count):
        photo = draw.choice(photos)
        share = draw.uniform(0.6, 1.0)
        width, height = (int(side * share) for side in photo.size)
        left, top = draw.randint(0, photo.width - width), draw.randint(0, photo.height - height)
        part = photo.resize(size, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        if draw.random() < 0.5:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        buffer = BytesIO()
        part.save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def write_folder(folder: Path, pictures: Iterator[bytes], suffix: str = "jpg") -> Path:
    for number, data in enumerate(pictures):
        place = folder / f"{number // 1000:04}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:07}.{suffix}").write_bytes(data)
    return folder


def tiny(count: int) -> Iterator[bytes]:
    """16 x 16 PNGs, all different."""
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    for number in range(count):
        pixels[0, 0] = number & 255, number >> 8 & 255, number >> 16
        pixels[8:] = number * 7919 % 251
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
        yield buffer.getvalue()


class Made(Source):
    """Tiny pictures that are on no disk, as a source."""

    kind = "made"
    name = "made"

    def __init__(self, count: int) -> None:
        self._count = count

    def count(self) -> int:
        return self._count

    def plan(self) -> Plan:
        return Plan(self._count, self._count, None, None, exact=True)

    def __iter__(self) -> Iterator[Record]:
        for number, data in enumerate(tiny(self._count)):
            yield Record(f"p{number:08}", f"file:///made/{number}", data)


class FlatTower:
    """A tower that costs next to nothing: random projections of 8 x 8 pixels."""

    logit_scale = 100.0
    logit_bias = None
    dim = 64
    geometry = Geometry(8, 8, "squash", "bilinear")

    def __init__(self) -> None:
        self._matrix = np.random.default_rng(0).standard_normal((192, self.dim), dtype=np.float32)

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint("flat", "random projection", "0", "8x8", "bytes", "none", self.dim)

    def prepare_image(self, image: Image.Image) -> PreparedImage:
        return np.asarray(self.geometry.fit(image))

    def finish_image(self, pixels: Pixels) -> PreparedImage:
        return pixels

    def prepare_text(self, text: str) -> PreparedText:
        return PreparedText(np.frombuffer(text.encode()[:192].ljust(192), dtype=np.uint8))

    def embed_images(self, images: list[PreparedImage]) -> Vectors:
        flat = np.stack(images).reshape(len(images), -1).astype(np.float32) - 127.3
        return unit_rows(flat @ self._matrix)

    def embed_texts(self, texts: list[PreparedText]) -> Vectors:
        return self.embed_images([text.tokens for text in texts])


# --- parts ---------------------------------------------------------------------------------------


def bare(encoder: Encoder, prepared: list[PreparedImage], batch: int) -> float:
    """Pictures a second of the model alone."""
    start = time.perf_counter()
    for at in range(0, len(prepared), batch):
        encoder.embed_images(prepared[at : at + batch])
    return len(prepared) / (time.perf_counter() - start)


def built(encoder: Encoder, folder: Path, **options: Any) -> tuple[float, BuildReport]:
    """Pictures a second from files to a committed index, everything included but loading."""
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        settings = BuildOptions(relevance=False, **options)
        report = build_index(
            [open_source(str(folder))], Path(name) / "x.index", encoder, options=settings
        )
        return report.images / (time.perf_counter() - start), report


def throughput(options: argparse.Namespace) -> dict[str, Any]:
    from models.encoders.registry import load_encoder

    encoder = load_encoder(options.model, threads=options.threads)
    size = tuple(int(side) for side in options.size.split("x"))
    with tempfile.TemporaryDirectory() as name:
        folder = options.data or write_folder(Path(name), jpegs(options.pictures, size))  # type: ignore[arg-type]
        files = [row.image for row in open_source(str(folder)) if isinstance(row, Record)]
        prepared = [encoder.prepare_image(decode_image(data)) for data in files if data]
        bare(encoder, prepared[:64], options.batch)  # warm
        alone, whole, reports = [], [], []
        for _ in range(options.rounds):
            alone.append(bare(encoder, prepared, options.batch))
            more = {"batch_size": options.batch, "workers": options.workers}
            speed, report = built(encoder, folder, **more)
            whole.append(speed)
            reports.append(report.performance)
            note(f"model {alone[-1]:.1f}/s, build {speed:.1f}/s, ratio {speed / alone[-1]:.3f}")
    ratios = [ours / model for ours, model in zip(whole, alone, strict=True)]
    return {
        "model": options.model,
        "pictures": len(files),
        "size": (options.data and "own") or options.size,
        "model_images_per_s": [round(one, 2) for one in alone],
        "build_images_per_s": [round(one, 2) for one in whole],
        "ratio": round(statistics.median(ratios), 4),
        "stages": reports[-1]["stages"],
    }


def linear(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds for n and 10 n pictures, files on disk, the free tower; medians of `--rounds`."""
    few, many = options.few, 10 * options.few
    with tempfile.TemporaryDirectory() as name:
        folders = {
            count: write_folder(Path(name) / str(count), tiny(count), "png")
            for count in (few, many)
        }
        seconds: dict[int, list[float]] = {few: [], many: []}
        for _ in range(options.rounds):
            for count, folder in folders.items():
                speed, _ = built(FlatTower(), folder, workers=options.workers)
                seconds[count].append(count / speed)
                note(f"{count} pictures in {seconds[count][-1]:.2f} s")
    middle = {count: statistics.median(taken) for count, taken in seconds.items()}
    return {
        "pictures": [few, many],
        "seconds": [round(middle[few], 3), round(middle[many], 3)],
        "factor": round(middle[many] / middle[few], 3),
    }


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak RSS of the building process and of its largest worker, each build in a process."""
    found = []
    for count in options.counts:
        command = [sys.executable, __file__, "--part", "memory-child", "--counts", str(count)]
        if options.workers is not None:
            command += ["--workers", str(options.workers)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1])["memory-child"])
        note(str(found[-1]))
    return {"builds": found, "grown_mb": round(found[-1]["peak_mb"] - found[0]["peak_mb"], 1)}


def memory_child(options: argparse.Namespace) -> dict[str, Any]:
    import resource

    [count] = options.counts
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        settings = BuildOptions(workers=options.workers, rejects=Path(name) / "rejects")
        report = build_index([Made(count)], Path(name) / "x.index", FlatTower(), options=settings)
        seconds = time.perf_counter() - start
    assert report.images == count
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {
        "pictures": count,
        "seconds": round(seconds, 1),
        "peak_mb": round(peak_mb(), 1),
        "largest_worker_mb": round(workers, 1),
    }


def startup(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the whole command where nothing is new; no file is young, after 3 s of waiting."""
    count = options.files
    with tempfile.TemporaryDirectory() as name:
        folder, out = (
            write_folder(Path(name) / "photos", tiny(count), "png"),
            Path(name) / "x.index",
        )
        time.sleep(3)
        command = [
            sys.executable, str(ROOT / "tests" / "support" / "colour_cli.py"),
            "index", "build", str(folder), "--out", str(out), "--json",
        ]  # fmt: skip
        seconds = []
        for run in range(1 + options.rounds):
            start = time.perf_counter()
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds.append(time.perf_counter() - start)
            report = json.loads(done.stdout)
            assert (report["unchanged"] if run else report["added"]) == count, report
            note(f"run {run}: {seconds[-1]:.2f} s")
        start = time.perf_counter()
        subprocess.run([*command, "--rehash"], check=True, capture_output=True)
        rehash = time.perf_counter() - start
    return {
        "files": count,
        "first_s": round(seconds[0], 2),
        "again_s": round(statistics.median(seconds[1:]), 2),
        "rehash_s": round(rehash, 2),
    }


def draft(options: argparse.Namespace) -> dict[str, Any]:
    """What decoding JPEGs at a fraction does to embeddings: cosines to the full decoding."""
    from models.encoders.registry import load_encoder
    from models.images.decode import decode_reduced

    encoder = load_encoder(options.model, threads=options.threads)
    side = encoder.geometry.height  # type: ignore[attr-defined]
    found = []
    for size in ((1600, 1200), (2400, 1800), (4000, 3000)):
        files = list(jpegs(12, size))
        rows, seconds = {}, {}
        for margin in (None, 2, 4):
            least = None if margin is None else margin * side
            start = time.process_time()
            pictures = [decode_reduced(data, least=least)[0] for data in files]
            seconds[margin] = (time.process_time() - start) / len(files)
            rows[margin] = encoder.embed_images([encoder.prepare_image(one) for one in pictures])
        for margin in (2, 4):
            cosines = (rows[margin] * rows[None]).sum(axis=1)
            found.append({
                "size": list(size),
                "keeps_times_the_side": margin,
                "lowest_cosine": round(float(cosines.min()), 6),
                "mean_cosine": round(float(cosines.mean()), 6),
                "decode_ms": round(1e3 * seconds[margin], 1),
                "full_decode_ms": round(1e3 * seconds[None], 1),
            })  # fmt: skip
            note(str(found[-1]))
    return {"model": options.model, "cases": found}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "throughput": throughput,
    "linear": linear,
    "memory": memory,
    "memory-child": memory_child,
    "startup": startup,
    "draft": draft,
}


def peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", action="append", choices=list(PARTS))
    parser.add_argument("--model", default="starter")
    parser.add_argument("--data", type=Path, help="a folder of photographs to use")
    parser.add_argument("--pictures", type=int, default=960)
    parser.add_argument("--size", default="x".join(map(str, SIZE)))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, help="of the model")
    parser.add_argument("--workers", type=int, help="decoding processes")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--few", type=int, default=1000)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 200_000])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    document: dict[str, Any] = {"bench": "embed"}
    for name in dict.fromkeys(options.part or ["throughput", "linear"]):
        document[name] = PARTS[name](options)
    document |= {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "pillow")},
    }
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
