"""What a data report means: sets that cannot teach are refused, doubtful ones are warned about.

`check` raises, `warnings` and `report_lines` give text for people; nothing here reads or prints.
`named_fields` finds out what a set's captions could have been called, for the refusal's hint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Final

from models.errors import SourceError
from models.sources.records import Record, Row
from models.sources.report.counts import LENGTH_BINS, DataReport

FEWEST_PAIRS: Final = 2
"""A contrast needs something to differ from."""
PROBE_FIELDS: Final = ("\0none", "txt")
"""Text fields to open a source with for `named_fields`: nothing but a `.txt` beside a picture is
taken for a caption, so that all else stays among the attributes."""

_PROBED: Final = 100
_FEW: Final = 1_000
_NOTABLE: Final = 0.01
_CLASS_LIKE: Final = 0.1


def check(report: DataReport, *, fields: Iterable[str] = ()) -> None:
    """Refuse a set that contrastive training can learn nothing from.

    Args:
        report: of the training set.
        fields: names of fields that could hold captions, see `named_fields`.

    Raises:
        SourceError: `empty-source`, `no-captions`, `no-pictures`, `unpaired` (pictures and captions
            never meet), `too-few-pairs`, `captions-identical`, `pictures-identical`.
    """
    named = ", ".join(report.sources) or "the source"
    refused = _refused(report)
    if not report.records:
        raise SourceError(
            f"{named} holds no usable record{refused}",
            code="empty-source",
            hint="see docs/sources.md for what a source looks like",
        )
    if not report.pictures:
        _refuse_without_pairs(report, named, refused, tuple(fields))
    if report.pictures < FEWEST_PAIRS:
        raise SourceError(
            f"1 picture with captions in {named}{refused}; contrastive training needs at least "
            f"{FEWEST_PAIRS}, of different pictures",
            code="too-few-pairs",
            hint="name another source, or the field the captions are in (--text-field)",
        )
    if report.distinct_pictures == 1:
        raise SourceError(
            f"all {report.pictures} pictures of {named} are one and the same file",
            code="pictures-identical",
            hint="is the right field named as the picture (--image-field)?",
        )
    if all(count == 1 for count in report.distinct_captions.values()):
        example = report.repeated[0][0][:60] if report.repeated else ""
        raise SourceError(
            f"all {report.pictures} pictures of {named} have the same caption, {example!r}",
            code="captions-identical",
            hint="captions and pictures do not belong together; is this the right --text-field?"
            + _named(tuple(fields)),
        )


def _refuse_without_pairs(
    report: DataReport, named: str, refused: str, fields: tuple[str, ...]
) -> None:
    if report.without_caption and report.without_picture:
        raise SourceError(
            f"{named} holds {report.without_caption} pictures and {report.without_picture} texts, "
            f"but no picture that has a text{refused}",
            code="unpaired",
            hint="a picture and its caption share their name: cat.jpg and cat.txt, or one row "
            "of a manifest",
        )
    if report.without_caption:
        raise SourceError(
            f"none of the {report.without_caption} pictures of {named} has a caption{refused}",
            code="no-captions",
            hint=_named(fields).removeprefix("; ")
            or "put cat.txt beside cat.jpg, or name the field the captions are in (--text-field)",
        )
    raise SourceError(
        f"none of the {report.without_picture} texts of {named} has a picture{refused}",
        code="no-pictures",
        hint="name the field that holds the picture or its path (--image-field)",
    )


def _named(fields: tuple[str, ...]) -> str:
    if not fields:
        return ""
    return f"; fields that hold text: {', '.join(fields)} (--text-field {fields[0]})"


def _refused(report: DataReport) -> str:
    total = report.rejects.total()
    if not total:
        return ""
    code, count = report.rejects.most_common(1)[0]
    return f" ({total} were refused, {count} of them as {code})"


def warnings(report: DataReport) -> list[str]:
    """What deserves a look before hours of training, one line each, most harmful first."""
    lines = []
    if report.known_pictures:
        lines.append(
            f"{report.known_pictures} of its pictures are in the training set too: "
            "what is measured on them is memory"
        )
    distinct = report.distinct_captions.total()
    if report.pictures >= _FEW and distinct <= _CLASS_LIKE * report.pictures:
        lines.append(
            f"only {distinct} different captions for {report.pictures} pictures: if they are class "
            "names, say so (--class-data), for equal captions are no negatives of each other"
        )
    for caption, count in report.repeated:
        if count > _NOTABLE * report.pairs and count >= 10 and distinct > 10:
            lines.append(f"the caption {caption[:60]!r} occurs at least {count} times")
    if report.duplicate_pictures > _NOTABLE * report.pictures:
        lines.append(
            f"{report.duplicate_pictures} pictures are copies of others, "
            f"e.g. {', '.join(report.duplicate_examples[:3])}"
        )
    if report.truncated > _NOTABLE * report.checked_captions:
        lines.append(
            f"{_share(report.truncated, report.checked_captions)} of the captions are longer than "
            "the model's context; what is cut off is not learned"
        )
    undecodable = report.undecodable
    if undecodable:
        lines.append(
            f"{undecodable} of {report.checked_pictures + undecodable} pictures decoded are "
            "damaged or none, and left out"
        )
    if report.pictures < _FEW:
        lines.append(
            f"{report.pictures} pictures are few: expect them to be learned by heart, and measure "
            "on others"
        )
    return lines


def report_lines(report: DataReport, title: str = "data") -> list[str]:
    """The report for people; warnings come last, marked."""
    captions = ", ".join(f"{count} {tag}" for tag, count in sorted(report.captions.items()))
    lines = [
        f"{title}: {report.pictures} pictures, {report.pairs} captions ({captions or 'none'})",
        f"  duplicates: {report.duplicate_pictures} pictures, {report.duplicate_captions} captions",
    ]
    for language, lengths in sorted(report.lengths.items()):
        bins = zip((*(f"≤{end}" for end in LENGTH_BINS), "more"), lengths.histogram(), strict=True)
        shown = "  ".join(f"{name}: {count}" for name, count in bins if count)
        lines.append(
            f"  {language} caption length, characters: median {lengths.quantile(0.5)}, "
            f"95 % within {lengths.quantile(0.95)}, longest {lengths.longest};  {shown}"
        )
    if report.checked_captions:
        lines.append(
            f"  longer than the model's context: {report.truncated} of "
            f"{report.checked_captions} captions checked"
        )
    if report.without_caption or report.without_picture:
        lines.append(
            f"  passed over: {report.without_caption} records without a caption, "
            f"{report.without_picture} without a picture"
        )
    if report.rejects:
        by_code = ", ".join(f"{count} {code}" for code, count in sorted(report.rejects.items()))
        lines.append(f"  rejected: {by_code}; e.g.")
        lines += [
            f"    {reject.source} {reject.key}: {reject.code}: {reject.detail}"
            for reject in report.reject_examples[:5]
        ]
    if report.one_in > 1:
        lines.append(f"  one picture in {report.one_in} was decoded to see whether that works")
    return [*lines, *(f"  ! {line}" for line in warnings(report))]


def named_fields(rows: Iterable[Row], *, most: int = 12) -> list[str]:
    """Dotted paths that hold text in the first records, e.g. `captions.en`; most frequent first.

    Args:
        rows: of a source opened with `PROBE_FIELDS` as text fields.
        most: how many to name.

    Example:
        >>> named_fields([Record("a", "", None, {}, None, {"captions": {"en": ["x"]}, "n": 3})])
        ['captions.en']
    """
    counts: dict[str, int] = {}
    for row in islice(rows, _PROBED):
        if not isinstance(row, Record):
            continue
        found = {path for key, value in row.attributes.items() for path in _paths(key, value)}
        if row.texts:
            found.add("txt")
        for path in found:
            counts[path] = counts.get(path, 0) + 1
    return sorted(counts, key=lambda path: (-counts[path], path))[:most]


def _paths(path: str, value: Any) -> list[str]:
    if isinstance(value, str):
        return [path] if value.strip() else []
    if isinstance(value, list):
        is_text = bool(value) and all(isinstance(entry, str) for entry in value)
        return [path] if is_text else []
    if isinstance(value, Mapping):
        return [below for key, entry in value.items() for below in _paths(f"{path}.{key}", entry)]
    return []


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"
