"""The decoder: every rule has a picture whose right pixels are known beforehand."""

from __future__ import annotations

import random
import struct
import threading
import time
import tracemalloc
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import skimage
from fakes import encode, solid
from PIL import Image, ImageCms

from models.errors import ImageError
from models.images.decode import FORMATS, ImageLimits, decode_image, encode_thumbnail

PHOTOS = Path(skimage.__file__).parent / "data"
ORIENTATION = 0x0112
EXTRASAMPLES = 338


def photo(name: str = "chelsea.png", size: tuple[int, int] | None = None) -> Image.Image:
    """A real photograph as stored, without its profile and metadata."""
    picture = Image.open(PHOTOS / name).convert("RGB")
    picture.info = {}
    return picture.resize(size) if size else picture


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def saved(picture: Image.Image, fmt: str, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format=fmt, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    rows: np.ndarray, *, depth: int, colour: int, middle: bytes = b"", size: object = None
) -> bytes:
    """A PNG written by hand: Pillow's writer cannot make 16-bit RGB or grey with alpha."""
    height, width = rows.shape[:2]
    if size is not None:
        width, height = size  # a header that lies
    big = rows.astype(">u2" if depth == 16 else "u1")
    body = b"".join(b"\0" + row.tobytes() for row in big)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + middle
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def refusal(data: bytes, **limits: int) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_image(data, limits=ImageLimits(**limits))
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)
    return caught.value


# --- formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_accepted_format_decodes(fmt: str) -> None:
    picture = photo(size=(60, 40))
    options = {"lossless": True} if fmt == "WEBP" else {"quality": 95} if fmt == "JPEG" else {}
    decoded = decode_image(saved(picture, fmt, **options))
    assert (decoded.mode, decoded.size) == ("RGB", (60, 40))
    tolerance = {"JPEG": 6.0, "GIF": 12.0}.get(fmt, 0.0)  # quantised by their nature
    assert np.abs(pixels(decoded) - pixels(picture)).mean() <= tolerance


def test_real_photographs_decode() -> None:
    for name in ("chelsea.png", "astronaut.png"):  # both say that they are sRGB
        data = (PHOTOS / name).read_bytes()
        assert np.array_equal(pixels(decode_image(data)), pixels(photo(name)))


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "HEIC"),
        (b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00", "HEIF"),
        (b"\x00\x00\x00\x18ftypavif\x00\x00\x00\x00", "AVIF"),
        (b"\x00\x00\x00\x18ftypisom\x00\x00\x00\x00", "MP4"),
        (b"%PDF-1.7\n", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"8BPS\x00\x01", "Photoshop"),
        (b"\x00\x00\x01\x00\x01\x00", "icon"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"PK\x03\x04", "ZIP"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!DOCTYPE svg>\n<svg/>', "SVG"),
        (b"<!DOCTYPE html><title>404</title>", "HTML"),
    ],
)
def test_known_foreign_formats_are_named(head: bytes, name: str) -> None:
    error = refusal(head + b"\0" * 64)
    assert error.code == "image-format-not-allowed"
    assert name in str(error)


@pytest.mark.parametrize("fmt", ["PPM", "TGA", "ICO", "PCX", "SGI", "EPS"])
def test_pillows_other_readers_are_never_used(fmt: str) -> None:
    error = refusal(saved(photo(size=(32, 32)), fmt))
    assert error.code in {"image-undecodable", "image-format-not-allowed"}


def test_empty_and_rubbish() -> None:
    assert refusal(b"").code == "image-empty"
    for data in (b"\0", b"\xff\xd8", b"just text", random.Random(1).randbytes(5000), b"GIF89a"):
        assert refusal(data).code == "image-undecodable"


# --- limits --------------------------------------------------------------------------------------


def test_byte_cap() -> None:
    data = solid("red")
    decode_image(data, limits=ImageLimits(max_bytes=len(data)))
    assert refusal(data, max_bytes=len(data) - 1).code == "image-too-large"


def test_pixel_and_side_limits_are_inclusive() -> None:
    data = solid("red", size=(40, 10))
    assert decode_image(data, limits=ImageLimits(max_pixels=400, max_side=40)).size == (40, 10)
    assert refusal(data, max_pixels=399).code == "image-too-many-pixels"
    assert refusal(data, max_side=39).code == "image-bad-dimensions"


@pytest.mark.parametrize(
    ("size", "code"),
    [
        ((13_000, 13_000), "image-too-many-pixels"),
        ((10_000, 9_000), "image-too-many-pixels"),  # in Pillow's warning zone
        ((100_000, 100_000), "image-too-many-pixels"),  # in Pillow's error zone
        ((1, 1_000_000), "image-bad-dimensions"),
    ],
)
def test_a_lying_header_is_refused(size: tuple[int, int], code: str) -> None:
    data = png(np.zeros((1, 1, 3)), depth=8, colour=2, size=size)
    assert refusal(data).code == code


def test_a_zero_side_is_refused() -> None:
    assert refusal(png(np.zeros((1, 1, 3)), depth=8, colour=2, size=(0, 5))).code in {
        "image-bad-dimensions",
        "image-undecodable",
    }


def test_a_decompression_bomb_costs_nothing() -> None:
    """A true 13,000 x 13,000 PNG: half a megabyte of file, half a gigabyte of pixels."""
    line = b"\0" * (1 + 3 * 13_000)
    squeezer = zlib.compressobj(9)
    body = b"".join(squeezer.compress(line) for _ in range(13_000)) + squeezer.flush()
    header = struct.pack(">IIBBBBB", 13_000, 13_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )
    assert len(bomb) < 1_000_000
    tracemalloc.start()
    began = time.process_time()
    assert refusal(bomb).code == "image-too-many-pixels"
    assert time.process_time() - began < 0.2
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 300), (300, 1)])
def test_tiny_pictures_are_pictures(size: tuple[int, int]) -> None:
    assert decode_image(solid("red", size=size)).size == size


def test_metadata_bombs_stay_cheap() -> None:
    """Text and profile chunks that unpack to 100 MB, and files cut into 300,000 pieces."""
    zeros = zlib.compress(b"\0" * 100_000_000)
    row = np.full((4, 4, 3), 128)
    jpeg = saved(photo(size=(16, 16)), "JPEG")
    gif = saved(photo(size=(16, 16)), "GIF")
    palette_end = 13 + (3 << ((gif[10] & 7) + 1))
    bombs = [
        png(row, depth=8, colour=2, middle=chunk(b"iCCP", b"x\0\0" + zeros)),
        png(row, depth=8, colour=2, middle=chunk(b"zTXt", b"x\0\0" + zeros)),
        png(row, depth=8, colour=2, middle=chunk(b"tEXt", b"k\0v") * 300_000),
        png(row, depth=8, colour=2, middle=chunk(b"IDAT", b"") * 300_000),
        jpeg[:2] + b"\xff\xfe\x00\x03a" * 300_000 + jpeg[2:],
        jpeg[:2] + b"\xff" * 5_000_000 + jpeg[2:],
        gif[:palette_end] + b"\x21\xfe\x01a\x00" * 300_000 + gif[palette_end:],
    ]
    for number, bomb in enumerate(bombs):
        began = time.process_time()
        refusal(bomb)
        assert time.process_time() - began < 0.2, number
    tracemalloc.start()  # slows Python down, hence a second round
    for bomb in bombs[:3]:
        refusal(bomb)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_ordinary_metadata_is_not_a_bomb() -> None:
    middle = b"".join(chunk(b"tEXt", b"k%d\0v" % i) for i in range(500))
    assert decode_image(png(np.full((4, 4, 3), 128), depth=8, colour=2, middle=middle))


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_every_sixteenth_truncation_is_refused(fmt: str) -> None:
    data = saved(photo(size=(96, 64)), fmt)
    decode_image(data)
    for sixteenth in range(1, 16):
        error = refusal(data[: len(data) * sixteenth // 16])
        assert error.code == "image-undecodable"


def test_a_png_cut_after_its_last_pixel_is_refused() -> None:
    """Pillow has all pixels by then and would not notice."""
    data = solid("red")
    decode_image(data + b"trailing bytes are another matter")
    for cut in range(1, 13):
        assert refusal(data[:-cut]).code == "image-undecodable"


def test_bytes_after_the_end_are_ignored() -> None:
    data = saved(photo(size=(32, 32)), "JPEG")
    assert np.array_equal(
        pixels(decode_image(data + b"<script>PK\x03\x04")), pixels(decode_image(data))
    )


def test_mutated_photographs_decode_or_are_refused_and_nothing_else() -> None:
    """Seeded random damage; with warnings as errors, a warning that leaks fails here too."""
    base = [
        saved(photo("chelsea.png", (80, 60)), "PNG"),
        saved(photo("astronaut.png", (64, 64)), "JPEG"),
        saved(photo("rocket.jpg", (64, 48)), "WEBP"),
        saved(photo("chelsea.png", (48, 32)), "TIFF", compression="tiff_lzw"),
        saved(photo("rocket.jpg", (48, 32)), "TIFF"),
        saved(photo("astronaut.png", (48, 48)), "GIF"),
        saved(photo("astronaut.png", (24, 24)), "BMP"),
    ]
    dice = random.Random(20_240_501)
    outcomes = {"decoded": 0, "refused": 0}
    messages: list[str] = []
    for _ in range(600):
        data = bytearray(dice.choice(base))
        # half of the damage goes to headers, where parsers are
        reach = len(data) if dice.random() < 0.5 else min(200, len(data))
        for _ in range(dice.choice((1, 1, 2, 8))):
            data[dice.randrange(reach)] = dice.randrange(256)
        if dice.random() < 0.1:
            del data[dice.randrange(len(data)) :]
        try:
            decoded = decode_image(bytes(data))
        except ImageError as error:
            messages.append(f"{error.code} {error}")
            outcomes["refused"] += 1
        else:
            assert decoded.mode == "RGB"
            outcomes["decoded"] += 1
    assert all(text.startswith("image-") and "\n" not in text for text in messages)
    assert min(outcomes.values()) > 100  # the mutations are neither harmless nor total


def test_pillows_warnings_do_not_leak_and_ours_stay() -> None:
    compression = struct.pack("<HHI", 259, 3, 1)
    data = saved(photo(size=(20, 10)), "TIFF").replace(
        compression,
        struct.pack("<HHI", 259, 3, 2),  # two values where one belongs
    )
    with pytest.warns(UserWarning, match="tag 259 had too many entries"):
        Image.open(BytesIO(data)).load()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        decode_image(data)
        assert seen == []
        warnings.warn("of the application", UserWarning, stacklevel=1)
        assert len(seen) == 1


def test_many_threads_agree() -> None:
    samples = [(PHOTOS / "chelsea.png").read_bytes(), (PHOTOS / "rocket.jpg").read_bytes()]
    expected = [pixels(decode_image(data)) for data in samples]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for turn in range(4):
            which = (seed + turn) % 2
            if not np.array_equal(pixels(decode_image(samples[which])), expected[which]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- orientation ---------------------------------------------------------------------------------


def stored_as(upright: Image.Image, orientation: int) -> Image.Image:
    """The sensor's view that orientation 1..8 turns back into `upright` (EXIF 2.3, 4.6.4.A)."""
    rows = np.asarray(upright)
    flips = {
        1: rows,
        2: rows[:, ::-1],
        3: rows[::-1, ::-1],
        4: rows[::-1],
        5: rows.swapaxes(0, 1),
        6: rows.swapaxes(0, 1)[::-1],
        7: rows[::-1, ::-1].swapaxes(0, 1),
        8: rows.swapaxes(0, 1)[:, ::-1],
    }
    return Image.fromarray(np.ascontiguousarray(flips[orientation]))


@pytest.mark.parametrize("fmt", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_gives_the_upright_pixels(orientation: int, fmt: str) -> None:
    upright = photo(size=(30, 20))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if fmt == "WEBP" else {}
    data = saved(stored_as(upright, orientation), fmt, exif=exif, **options)
    assert np.array_equal(pixels(decode_image(data)), pixels(upright))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_jpeg(orientation: int) -> None:
    upright = photo(size=(32, 16))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = saved(stored_as(upright, orientation), "JPEG", exif=exif, quality=98, subsampling=0)
    decoded = decode_image(data)
    assert decoded.size == (32, 16)
    assert np.abs(pixels(decoded) - pixels(upright)).mean() < 3


def exif_with_orientation(kind: int, count: int, value: bytes) -> bytes:
    entry = struct.pack("<HHI", ORIENTATION, kind, count) + value
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)


@pytest.mark.parametrize(
    "exif",
    [
        exif_with_orientation(3, 1, struct.pack("<HH", 0, 0)),
        exif_with_orientation(3, 1, struct.pack("<HH", 9, 0)),
        exif_with_orientation(3, 1, struct.pack("<HH", 65535, 0)),
        exif_with_orientation(2, 2, b"6\0\0\0"),  # text
        exif_with_orientation(11, 1, struct.pack("<f", 1.5)),
        exif_with_orientation(3, 500_000_000, struct.pack("<I", 26)),
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0rubbish",
        b"Exif\0\0",
    ],
)
def test_bad_orientations_and_damaged_exif_are_ignored(exif: bytes) -> None:
    picture = photo(size=(30, 20))
    for fmt in ("PNG", "JPEG", "WEBP"):
        plain = decode_image(saved(picture, fmt))
        assert np.array_equal(pixels(decode_image(saved(picture, fmt, exif=exif))), pixels(plain))


def test_two_orientations_are_no_crash() -> None:
    exif = exif_with_orientation(3, 2, struct.pack("<HH", 6, 6))
    assert decode_image(saved(photo(size=(30, 20)), "JPEG", exif=exif)).size in {(30, 20), (20, 30)}


# --- sample depth --------------------------------------------------------------------------------


def test_16_bit_grey_equals_8_bit() -> None:
    grey = np.asarray(photo(size=(64, 48)).convert("L"))
    wide = grey.astype(np.uint16) * 257
    expected = np.repeat(grey[..., None].astype(int), 3, axis=2)
    for data in (
        png(wide, depth=16, colour=0),
        saved(Image.fromarray(wide), "TIFF"),
        saved(Image.fromarray(wide.astype(np.int32)), "TIFF"),
        saved(Image.fromarray(wide.astype(np.float32)), "TIFF"),
        saved(Image.fromarray(grey.astype(np.float32)), "TIFF"),
        saved(Image.fromarray(grey.astype(np.float32) / 255), "TIFF"),
    ):
        assert np.abs(pixels(decode_image(data)) - expected).max() <= 1


def test_16_bit_colour_equals_8_bit() -> None:
    rgb = np.asarray(photo(size=(64, 48)))
    opaque = np.full((*rgb.shape[:2], 1), 65535)
    wide = rgb.astype(int) * 257
    for data in (
        png(wide, depth=16, colour=2),
        png(np.concatenate([wide, opaque], axis=2), depth=16, colour=6),
    ):
        assert np.abs(pixels(decode_image(data)) - rgb.astype(int)).max() <= 1


def test_float_rubbish_becomes_a_picture() -> None:
    samples = np.array([[np.nan, np.inf], [-np.inf, 0.5]], dtype=np.float32)
    decoded = pixels(decode_image(saved(Image.fromarray(samples), "TIFF")))[..., 0]
    assert decoded.tolist() == [[0, 255], [0, 128]]


def test_one_bit_and_palette() -> None:
    picture = photo(size=(40, 30))
    one = picture.convert("1")
    assert np.array_equal(pixels(decode_image(encode(one))), pixels(one.convert("RGB")))
    palette = picture.convert("P", palette=Image.Palette.ADAPTIVE)
    assert np.array_equal(pixels(decode_image(encode(palette))), pixels(palette.convert("RGB")))


# --- colour --------------------------------------------------------------------------------------


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile() -> bytes:
    """sRGB with its red and blue primaries exchanged: pure red means pure blue."""
    profile = srgb_profile().replace(b"sRGB", b"Swap").replace(b"s\0R\0G\0B", b"S\0w\0a\0p")
    marked = profile.replace(b"rXYZ", b"????", 1).replace(b"bXYZ", b"rXYZ", 1)
    return marked.replace(b"????", b"bXYZ", 1)


def test_an_srgb_profile_changes_nothing() -> None:
    picture = photo(size=(40, 30))
    assert np.array_equal(
        pixels(decode_image(saved(picture, "PNG", icc_profile=srgb_profile()))), pixels(picture)
    )


def test_a_photograph_in_adobe_rgb_is_converted_as_the_standards_say() -> None:
    """rocket.jpg carries Adobe RGB (1998); the oracle is the two standards' own formulas."""
    linear = (pixels(photo("rocket.jpg")) / 255.0) ** (563 / 256)
    to_xyz = [
        [0.57667, 0.18556, 0.18823],
        [0.29734, 0.62736, 0.07529],
        [0.02703, 0.07069, 0.99134],
    ]
    to_srgb = [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]
    light = np.clip(linear @ np.array(to_xyz).T @ np.array(to_srgb).T, 0, 1)
    coded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    difference = np.abs(pixels(decode_image((PHOTOS / "rocket.jpg").read_bytes())) - coded * 255)
    assert difference.mean() < 0.5
    assert difference.max() < 4
    assert np.abs(pixels(photo("rocket.jpg")) - coded * 255).mean() > 4  # it matters


@pytest.mark.parametrize("fmt", ["PNG", "TIFF", "WEBP"])
def test_a_profile_is_converted_to_srgb(fmt: str) -> None:
    options = {"lossless": True} if fmt == "WEBP" else {}
    stored = Image.new("RGB", (8, 8), (255, 0, 0))
    data = saved(stored, fmt, icc_profile=swapped_profile(), **options)
    assert np.abs(pixels(decode_image(data)) - [0, 0, 255]).max() <= 2


def test_a_profile_keeps_transparency() -> None:
    stored = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    stored.paste((255, 0, 0, 0), (0, 0, 4, 8))
    decoded = pixels(decode_image(saved(stored, "PNG", icc_profile=swapped_profile())))
    assert decoded[0, 0].tolist() == [255, 255, 255]
    assert np.abs(decoded[0, 7] - [0, 0, 255]).max() <= 2


@pytest.mark.parametrize(
    "profile", [b"not a profile", b"\0" * 200, srgb_profile()[:300]], ids=["text", "zeros", "cut"]
)
def test_a_broken_profile_is_ignored(profile: bytes) -> None:
    picture = photo(size=(40, 30))
    decoded = decode_image(saved(picture, "TIFF", icc_profile=profile))
    assert np.array_equal(pixels(decoded), pixels(picture))


def test_a_profile_of_the_wrong_space_is_ignored() -> None:
    grey = photo(size=(40, 30)).convert("L")
    decoded = decode_image(saved(grey, "PNG", icc_profile=swapped_profile()))
    assert np.array_equal(pixels(decoded), pixels(grey.convert("RGB")))


def test_cmyk_round_trip() -> None:
    picture = photo(size=(64, 48))
    cmyk = picture.convert("CMYK")
    expected = pixels(cmyk.convert("RGB"))
    assert np.abs(expected - pixels(picture)).max() <= 2  # Pillow's plain conversion inverts
    assert np.array_equal(pixels(decode_image(saved(cmyk, "TIFF"))), expected)
    # Pillow writes JPEG's CMYK inverted with Adobe's marker, as Photoshop does
    data = saved(cmyk, "JPEG", quality=98, subsampling=0)
    assert b"Adobe" in data
    assert np.abs(pixels(decode_image(data)) - expected).mean() < 4


def invisible_inks_profile() -> bytes:
    """A CMYK profile (ICC.1:2001, lut8Type) by which only black ink can be seen."""
    ramp = bytes(range(256))
    nodes = [(0 if black else 255, 128, 128) for _ in range(8) for black in (0, 1)]
    table = (
        b"mft1\0\0\0\0"
        + bytes([4, 3, 2, 0])
        + struct.pack(">9i", *[65536 if i % 4 == 0 else 0 for i in range(9)])
        + ramp * 4
        + b"".join(bytes(node) for node in nodes)
        + ramp * 3
    )
    tags = struct.pack(">I4sII", 1, b"A2B0", 144, len(table))
    header = struct.pack(
        ">I4sI4s4s4s12s4s", 144 + len(table), b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ",
        b"", b"acsp",
    )  # fmt: skip
    header = header.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)  # D50
    return header.ljust(128, b"\0") + tags + table


def test_cmyk_through_its_profile() -> None:
    inks = Image.new("CMYK", (2, 1), (255, 0, 0, 0))
    inks.putpixel((1, 0), (0, 0, 0, 255))
    plain = pixels(decode_image(saved(inks, "TIFF")))[0].tolist()
    assert plain == [[0, 255, 255], [0, 0, 0]]
    managed = saved(inks, "TIFF", icc_profile=invisible_inks_profile())
    found = pixels(decode_image(managed))[0]
    assert np.abs(found - [[255, 255, 255], [0, 0, 0]]).max() <= 4


def test_lab() -> None:
    picture = photo(size=(40, 30))
    decoded = decode_image(saved(picture.convert("LAB"), "TIFF"))
    assert np.abs(pixels(decoded) - pixels(picture)).mean() < 4  # 8-bit Lab is coarse


# --- transparency --------------------------------------------------------------------------------


def test_alpha_is_laid_over_white() -> None:
    rgba = Image.new("RGBA", (3, 1))
    for x, value in enumerate([(200, 0, 0, 255), (200, 0, 0, 0), (200, 0, 0, 128)]):
        rgba.putpixel((x, 0), value)
    half = [round(200 * 128 / 255 + 255 * 127 / 255), *[round(255 * 127 / 255)] * 2]
    expected = np.array([[[200, 0, 0], [255, 255, 255], half]])
    for fmt in ("PNG", "TIFF"):
        assert np.abs(pixels(decode_image(saved(rgba, fmt))) - expected).max() <= 1


def test_grey_with_alpha() -> None:
    rows = np.array([[[100, 255], [100, 0]]])
    for depth, scale in ((8, 1), (16, 257)):
        decoded = pixels(decode_image(png(rows * scale, depth=depth, colour=4)))
        assert decoded[0, :, 0].tolist() == [100, 255]


def test_transparent_palette_entry() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    for data in (
        saved(palette, "PNG", transparency=1),
        saved(palette, "PNG", transparency=bytes([255, 0])),
        saved(palette, "GIF", transparency=1),
    ):
        assert pixels(decode_image(data))[0].tolist() == [[255, 0, 0], [255, 255, 255]]


def test_transparent_colour_key() -> None:
    grey = np.array([[10, 200]])
    colour = np.array([[[10, 20, 30], [200, 20, 30]]])
    for depth, scale in ((8, 1), (16, 257)):
        key = chunk(b"tRNS", struct.pack(">H", 200 * scale))
        decoded = pixels(decode_image(png(grey * scale, depth=depth, colour=0, middle=key)))
        assert decoded[0, :, 0].tolist() == [10, 255]
        key = chunk(b"tRNS", struct.pack(">HHH", 200 * scale, 20 * scale, 30 * scale))
        decoded = pixels(decode_image(png(colour * scale, depth=depth, colour=2, middle=key)))
        assert decoded[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_premultiplied_alpha() -> None:
    rgba = Image.new("RGBA", (1, 1), (200, 0, 0, 128))
    straight = saved(rgba, "TIFF")
    with Image.open(BytesIO(straight)) as stored:
        assert stored.tag_v2[EXTRASAMPLES] == (2,)
    entry = struct.pack("<HHIHH", EXTRASAMPLES, 3, 1, 2, 0)
    assert entry in straight
    multiplied = straight.replace(entry, entry[:8] + struct.pack("<HH", 1, 0))
    multiplied = multiplied.replace(bytes([200, 0, 0, 128]), bytes([100, 0, 0, 128]))
    assert np.abs(pixels(decode_image(multiplied))[0, 0] - [227, 127, 127]).max() <= 2


# --- animations, metadata, thumbnails ------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_counts(fmt: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if fmt == "WEBP" else {}
    data = saved(frames[0], fmt, save_all=True, append_images=frames[1:], **options)
    assert pixels(decode_image(data))[5, 5].tolist() == [255, 0, 0]


def test_no_metadata_survives() -> None:
    canary = "CANARY-52.5163N-13.3777E"
    exif = Image.Exif()
    exif[0x010E] = canary
    exif.get_ifd(0x8825)[29] = canary
    data = saved(
        photo(size=(64, 48)), "JPEG", exif=exif, comment=canary, icc_profile=srgb_profile()
    )
    assert canary.encode() in data
    decoded = decode_image(data)
    assert decoded.info == {}
    assert not decoded.getexif()
    for carrier in (decoded, Image.open(BytesIO(data))):
        thumbnail = encode_thumbnail(carrier)
        assert canary.encode() not in thumbnail
        assert b"ICC_PROFILE" not in thumbnail
        assert b"Exif" not in thumbnail


def test_thumbnails() -> None:
    picture = photo()  # 451 x 300
    small = Image.open(BytesIO(encode_thumbnail(picture, side=100)))
    assert (small.format, small.size) == ("JPEG", (100, 67))
    assert picture.size == (451, 300)
    assert Image.open(BytesIO(encode_thumbnail(photo(size=(20, 10))))).size == (20, 10)
    assert Image.open(BytesIO(encode_thumbnail(Image.new("RGB", (5000, 1))))).size == (320, 1)
