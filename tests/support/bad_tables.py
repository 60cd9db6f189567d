"""Bad CSV, TSV and Parquet manifests; see `bad_sources.py`."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bad_sources import RED, Case

Columns = Mapping[str, list[Any]]


def csv(content: bytes, name: str = "a.csv") -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / "good.png").write_bytes(RED)
        (folder / name).write_bytes(content)
        return str(folder / name)

    return make


def huge_line(folder: Path) -> str:
    spec = csv(HEAD + b"a,good.png,a\n")(folder)
    with Path(spec).open("r+b") as file:
        file.seek(1 << 27)  # NUL up to here, sparse on disk
        file.write(b"\nb,good.png,b\n")
    return spec


HEAD = b"id,image,caption\n"
ROW = b"r,good.png,a square\n"

CSV = [
    Case("csv-empty", csv(b""), ("!source-empty",)),
    Case("csv-blank", csv(b"\r\n\r\n"), ("!source-empty",)),
    Case("csv-header-only", csv(HEAD), ()),
    Case("csv-missing-column", csv(HEAD + ROW), ("!column-missing",), {"text_field": "title"}),
    Case("csv-no-useful-column", csv(b"a,b\n1,2\n"), ("!column-missing",)),
    Case("csv-no-header", csv(b"good.png,a square\n"), ("!column-missing",)),
    Case("csv-columns-twice", csv(b"image,caption,image\n"), ("!source-damaged",)),
    Case("csv-header-broken", csv(b'image,"caption\n' + ROW), ("!source-damaged",)),
    Case("csv-header-not-utf8", csv(b"image,l\xe9gende\n"), ("!source-encoding",)),
    Case("csv-utf16", csv(HEAD.decode().encode("utf-16")), ("!source-encoding",)),
    Case("csv-cells", csv(HEAD + b"x,good.png\ny,good.png,a,b\n" + ROW),
         ("bad-row", "bad-row", "ok")),
    Case("csv-bom-crlf", csv(b"\xef\xbb\xbf" + (HEAD + ROW).replace(b"\n", b"\r\n")), ("ok",)),
    Case("csv-old-mac", csv((HEAD + ROW).replace(b"\n", b"\r")), ("!source-damaged",)),
    Case("csv-mixed-encodings", csv(HEAD + b"x,good.png,caf\xe9\n" + ROW), ("not-utf8", "ok")),
    Case("csv-nul", csv(HEAD + b"x,good.png,a\0b\n" + ROW), ("bad-row", "ok")),
    Case("csv-quote-unended", csv(HEAD + b'x,good.png,"a cat\n' + ROW + b"y,good.png,b\n"),
         ("bad-row", "ok", "ok")),
    Case("csv-quote-unended-then-quoted", csv(HEAD + b'x,good.png,"a cat\n"r",good.png,"b"\n'),
         ("bad-row", "ok")),
    Case("csv-quote-then-text", csv(HEAD + b'x,good.png,"a" cat\n' + ROW), ("bad-row", "ok")),
    Case("csv-quote-over-many-rows", csv(HEAD + b'x,good.png,"a\n' + b"".join(
        b"%d,good.png,b\n" % at for at in range(2500))), ("bad-row",) + ("ok",) * 2500),
    Case("csv-many-cells", csv(HEAD + b"," * 5_000_000 + b"\n" + ROW), ("bad-row", "ok")),
    Case("csv-huge-line", huge_line, ("ok", "line-too-long", "ok")),
    Case("csv-caption-10-mb", csv(HEAD + b"x,good.png," + b"a b " * 2_500_000 + b"\n" + ROW),
         ("text-too-long", "ok")),
    Case("csv-attribute-10-mb", csv(b"n,caption\n" + b"x" * 10_000_000 + b",a\n1,b\n"),
         ("text-too-long", "ok")),
    Case("csv-formula", csv(HEAD + b"=cmd|' /C calc'!A0,good.png,@SUM(1+1)\n"), ("ok",)),
    Case("csv-ids", csv(HEAD + ROW + ROW + b"i" * 3000 + b",good.png,a\n"),
         ("ok", "duplicate-key", "bad-id")),
    Case("csv-paths", csv(b"filepath\n../x.png\n/etc/passwd\nno.png\n\"\"\n"),
         ("path-outside", "path-outside", "file-missing", "no-image")),
    Case("csv-url", csv(b"URL,TEXT\nhttps://example.org/a.png,a\n"), ("url-not-allowed",)),
    Case("csv-base64", csv(b"image_base64,caption\n###,a\n"), ("bad-base64",)),
    Case("tsv-open-clip", csv(b"filepath\ttitle\ngood.png\ta, b\nno.png\tb\n", "a.csv"),
         ("ok", "file-missing")),
]  # fmt: skip


def table(**columns: list[Any]) -> Any:
    import pyarrow as pa

    return pa.table(columns)


def parquet(build: Callable[[], Any], change: Callable[[bytes], bytes] = bytes, **how: Any) -> Any:
    """A Parquet file of a table, its bytes changed afterwards."""

    def make(folder: Path) -> str:
        import pyarrow.parquet as pq

        (folder / "good.png").write_bytes(RED)
        buffer = io.BytesIO()
        pq.write_table(build(), buffer, **how)
        (folder / "a.parquet").write_bytes(change(buffer.getvalue()))
        return str(folder / "a.parquet")

    return make


def rows(count: int) -> Callable[[], Any]:
    return lambda: table(id=[f"r{n}" for n in range(count)], caption=["a square"] * count)


def varint(number: int) -> bytes:
    """A number as thrift's compact protocol writes it: zigzag, then 7 bits a byte."""
    number *= 2
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def declaring(real: int, claimed: int) -> Callable[[bytes], bytes]:
    """The same file whose footer claims another number of rows."""

    def change(data: bytes) -> bytes:
        length = int.from_bytes(data[-8:-4], "little")
        body, footer = data[: -8 - length], data[-8 - length : -8]
        assert varint(real) in footer
        footer = footer.replace(varint(real), varint(claimed))
        return body + footer + len(footer).to_bytes(4, "little") + b"PAR1"

    return change


def garbage_in_second_group(data: bytes) -> bytes:
    import pyarrow.parquet as pq

    column = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    return data[:start] + b"\xa5" * column.total_compressed_size + data[
        start + column.total_compressed_size :
    ]  # fmt: skip


def pickled_extension() -> Any:
    """A column of pyarrow's own pickled extension type, whose payload would make a file."""
    import pyarrow as pa

    payload = b"cposix\nsystem\n(S'touch PICKLE-RAN'\ntR."
    note = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": payload,
    }
    field = pa.field("caption", pa.string(), metadata=note)
    return pa.table([pa.array(["a square"])], schema=pa.schema([field]))


def json_extension() -> Any:
    import pyarrow as pa

    kind = pa.opaque(pa.string(), "type", "vendor")
    captions = pa.ExtensionArray.from_storage(kind, pa.array(["a square"]))
    return pa.table({"caption": captions})


def nested(depth: int) -> Callable[[], Any]:
    def build() -> Any:
        import pyarrow as pa

        kind = pa.string()
        for _ in range(depth):
            kind = pa.list_(kind)
        return pa.table({"caption": pa.array(["a square"]), "deep": pa.array([None], kind)})

    return build


def dictionary_bomb() -> Any:
    import pyarrow as pa

    big = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["x" * 2**21]))
    return pa.table({"caption": big})


def not_utf8() -> Any:
    import pyarrow as pa

    raw = pa.array([b"fine", b"caf\xe9", b"fine"])
    return pa.table({"caption": pa.Array.from_buffers(pa.string(), 3, raw.buffers())})


PARQUET = [
    Case("parquet-empty-file", csv(b"", "a.parquet"), ("!source-damaged",)),
    Case("parquet-no-parquet", csv(b"PAR1 but not really PAR1", "a.parquet"),
         ("!source-damaged",)),
    Case("parquet-cut", parquet(rows(100), lambda data: data[:-200]), ("!source-damaged",)),
    Case("parquet-footer-claims-2-gb",
         parquet(rows(100), lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1"),
         ("!source-damaged",)),
    Case("parquet-encrypted", csv(b"PARE" + b"\1" * 100 + b"\x20\0\0\0PARE", "a.parquet"),
         ("!source-damaged",)),
    Case("parquet-no-rows", parquet(rows(0)), ()),
    Case("parquet-missing-column", parquet(rows(3)), ("!column-missing",), {"text_field": "title"}),
    Case("parquet-no-useful-column", parquet(lambda: table(a=[1])), ("!column-missing",)),
    Case("parquet-claims-2e31-rows", parquet(rows(77777), declaring(77777, 2**31)),
         ("row-group-damaged",)),
    Case("parquet-claims-more-rows", parquet(rows(777), declaring(777, 900)),
         ("ok",) * 777 + ("row-group-damaged",)),
    Case("parquet-group-garbage", parquet(rows(300), garbage_in_second_group, row_group_size=100),
         ("ok",) * 100 + ("row-group-damaged",) + ("ok",) * 100),
    Case("parquet-pickled-extension", parquet(pickled_extension), ("ok",)),
    Case("parquet-extension", parquet(json_extension), ("ok",)),
    Case("parquet-nested", parquet(nested(20)), ("ok",)),
    Case("parquet-nested-500-deep", parquet(nested(500)), ("!source-damaged",)),
    Case("parquet-dictionary-bomb", parquet(dictionary_bomb), ("text-too-long",) * 1000),
    Case("parquet-not-utf8", parquet(not_utf8), ("ok", "not-utf8", "ok")),
    Case("parquet-pictures", parquet(lambda: table(
        id=list("abcde"),
        image=[{"bytes": RED, "path": "x.png"}, {"bytes": None, "path": "good.png"},
               {"bytes": b"", "path": None}, {"bytes": None, "path": "../x.png"}, None])),
         ("ok", "ok", "empty-file", "path-outside", "no-image")),
    Case("parquet-big-picture", parquet(lambda: table(image=[bytes(21 << 20), RED])),
         ("file-too-large", "ok")),
]  # fmt: skip

TABLES = [*CSV, *PARQUET]
