"""The photographs inside the scikit-image wheel: the demo's collection where apt does not exist."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from models.errors import SourceError

NAMES: dict[str, tuple[str, str]] = {
    "astronaut.png": ("A smiling astronaut in an orange suit.", "穿橙色宇航服的女宇航员。"),
    "brick.png": ("A brick wall.", "砖墙。"),
    "camera.png": ("A man with a camera on a tripod.", "用三脚架拍照的男人。"),
    "chelsea.png": ("A tabby cat.", "一只猫。"),
    "clock_motion.png": ("A clock on the wall.", "墙上的钟。"),
    "coffee.png": ("A cup of coffee with a spoon.", "一杯咖啡和勺子。"),
    "coins.png": ("Old coins.", "古代硬币。"),
    "grass.png": ("Grass.", "草地。"),
    "gravel.png": ("Gravel.", "碎石。"),
    "hubble_deep_field.jpg": ("Galaxies in deep space.", "深空中的星系。"),
    "moon.png": ("The surface of the moon.", "月球表面。"),
    "motorcycle_left.png": ("A motorcycle in a garage.", "车库里的摩托车。"),
    "page.png": ("A printed page of text.", "印有文字的一页。"),
    "retina.jpg": ("The retina of a human eye.", "人眼的视网膜。"),
    "rocket.jpg": ("A rocket on the launch pad.", "发射台上的火箭。"),
}


def write_manifest(folder: Path) -> Path:
    """Write a JSONL manifest with copies of the photographs beside it.

    Raises:
        SourceError: scikit-image is not installed.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise SourceError("scikit-image is not installed", hint='pip install "diptych[demo]"')
    photographs = Path(next(iter(spec.submodule_search_locations))) / "data"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, (english, chinese) in NAMES.items():
        picture = photographs / name
        if not picture.is_file():
            continue
        (folder / name).write_bytes(picture.read_bytes())
        captions = {"en": english, "zh": chinese}
        rows.append({"id": picture.stem, "image": name, "captions": captions})
    manifest = folder / "photos.jsonl"
    manifest.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return manifest
