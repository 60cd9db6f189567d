"""The pictures of the page in docs/: `python tests/bench/screenshots.py [--out docs]`.

The photographs shown are those of the scikit-image wheel that are CC0 or in the public domain
(its `data/_fetchers.py` says so for each), and details cut from them. A real service answers; the
browser is the system's chromium, and so are the fonts.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image

MOST_BYTES = 250_000
# name: (file, part of it as fractions left, top, right, bottom; kind; English; Chinese)
WHOLE = (0.0, 0.0, 1.0, 1.0)
PHOTOGRAPHS: dict[str, tuple[str, tuple[float, ...], str, str, str]] = {
    "cat": ("chelsea.png", WHOLE, "animals",
        "A tabby cat.", "一只虎斑猫。"),
    "cat-eyes": ("chelsea.png", (0.3, 0.12, 0.72, 0.62), "animals",
        "The eyes of a cat.", "猫的眼睛。"),
    "astronaut": ("astronaut.png", WHOLE, "people",
        "A smiling astronaut.", "微笑的宇航员。"),
    "helmet": ("astronaut.png", (0.5, 0.55, 1, 1), "things",
        "A space helmet.", "太空头盔。"),
    "photographer": ("camera.png", WHOLE, "people",
        "A man with a camera on a tripod.", "用三脚架拍照的男人。"),
    "coffee": ("coffee.png", WHOLE, "food",
        "A cup of coffee with a spoon.", "一杯咖啡和勺子。"),
    "rocket": ("rocket.jpg", WHOLE, "space",
        "A rocket on the launch pad.", "发射台上的火箭。"),
    "galaxies": ("hubble_deep_field.jpg", WHOLE, "space",
        "Galaxies in deep space.", "深空中的星系。"),
    "spiral": ("hubble_deep_field.jpg", (0.55, 0.2, 0.95, 0.6), "space",
        "Distant galaxies.", "遥远的星系。"),
    "coins": ("coins.png", WHOLE, "things",
        "Old coins.", "古代硬币。"),
    "grass": ("grass.png", WHOLE, "ground",
        "Grass.", "草地。"),
    "gravel": ("gravel.png", WHOLE, "ground",
        "Gravel.", "碎石。"),
    "bricks": ("brick.png", WHOLE, "ground",
        "A brick wall.", "砖墙。"),
    "retina": ("retina.jpg", WHOLE, "medicine",
        "The retina of a human eye.", "人眼的视网膜。"),
    "clock": ("clock_motion.png", WHOLE, "things",
        "A clock in motion.", "晃动的时钟。"),
    "shuttle": ("astronaut.png", (0.55, 0.0, 1, 0.5), "space",
        "A model of a space shuttle.", "航天飞机模型。"),
}  # fmt: skip


def write_gallery(folder: Path) -> Path:
    """The photographs and a manifest of them, with a kind to filter by."""
    import skimage

    source = Path(skimage.__file__).parent / "data"
    rows = []
    folder.mkdir(parents=True)
    for name, (file, part, kind, english, chinese) in PHOTOGRAPHS.items():
        with Image.open(source / file) as picture:
            width, height = picture.size
            left, top, right, bottom = part
            box = (int(left * width), int(top * height), int(right * width), int(bottom * height))
            picture.convert("RGB").crop(box).save(folder / f"{name}.png")
        captions = {"en": english, "zh": chinese}
        rows.append({"id": name, "image": f"{name}.png", "captions": captions, "kind": kind})
    manifest = folder / "gallery.jsonl"
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    manifest.write_text("".join(lines), encoding="utf-8")
    return manifest


def build(root: Path) -> str:
    from indexer.filters.declared import parse_fields
    from indexer.ingest.build import BuildOptions, build_index
    from models.encoders.registry import load_encoder
    from models.sources import open_source

    gallery = open_source(str(write_gallery(root / "gallery")))
    options = BuildOptions(fields=parse_fields(["kind"]))
    build_index([gallery], root / "gallery.index", load_encoder("starter"), options=options)
    return f"gallery={root / 'gallery.index'}"


def keep(page: Any, path: Path) -> None:
    """A screenshot as a PNG of at most 256 colours, or fewer until it is small enough."""
    page.wait_for_load_state("networkidle")
    page.evaluate("document.fonts.ready")
    page.wait_for_timeout(700)  # pictures fade in
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    for colours in (256, 192, 128, 96):
        drawn = io.BytesIO()
        flat = shot.quantize(colours, kmeans=3, dither=Image.Dither.NONE)
        flat.save(drawn, "PNG", optimize=True)
        if drawn.tell() <= MOST_BYTES:
            break
    else:
        raise SystemExit(f"{path} would hold {drawn.tell()} bytes")
    path.write_bytes(drawn.getvalue())
    print(f"{path}  {shot.width} x {shot.height}  {drawn.tell():,} bytes, {colours} colours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    tests = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(tests.parent), str(tests / "support")]
    import browsing

    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(browsing.service([build(root)], root / "log"))
        browser = stack.enter_context(browsing.chromium())

        def visit(fragment: str, *, width: int = 1200, height: int = 720, **more: Any) -> Any:
            settings = {"device_scale_factor": options.scale, "locale": "en-US", **more}
            page = browser.new_page(viewport={"width": width, "height": height}, **settings)
            page.set_default_timeout(60_000)
            page.goto(f"{url}/{fragment}")
            return page

        page = visit("#search?q=a+cat")
        page.wait_for_selector("#results img.loaded")
        keep(page, options.out / "page.png")

        page = visit("#search?q=a+cup+of+coffee")
        page.locator("#results button.card").first.click()
        page.locator("#detail-said li").first.wait_for()
        page.locator("#detail-where").click()
        page.wait_for_function("() => document.querySelector('#detail-heat').naturalWidth > 0")
        keep(page, options.out / "page-detail.png")

        page = visit("#classify")
        page.fill("#labels", "a cup of coffee, a bowl of soup, a vase, a cat")
        page.locator("#abstain").check()
        page.locator("#heat").check()
        page.set_input_files("#classify-picture", root / "gallery" / "coffee.png")
        page.locator("#heat-of:not(:empty)").wait_for()
        page.locator("#labels").blur()
        keep(page, options.out / "page-classify.png")

        page = visit("#search?q=a+rocket+on+the+launch+pad", color_scheme="dark")
        page.wait_for_selector("#results img.loaded")
        keep(page, options.out / "page-dark.png")

        page = visit("#search?q=一只猫", locale="zh-CN")
        page.wait_for_selector("#results img.loaded")
        keep(page, options.out / "page-zh.png")

        page = visit(
            "#search?q=a+cat", width=390, height=780,
            is_mobile=True, has_touch=True, device_scale_factor=2,
        )  # fmt: skip
        page.wait_for_selector("#results img.loaded")
        keep(page, options.out / "page-phone.png")


if __name__ == "__main__":
    main()
