"""Options declared as fields: what click is told, and what a command is given."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import click
import pytest
from click.testing import CliRunner

from service.cli.options import (
    HeadedCommand,
    MachineOptions,
    ModelOptions,
    argument,
    declared,
    group,
    json_option,
    option,
    takes,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    size: int = option("--size", "-s", default=3, show_default=True, help="How large.")
    quiet: bool = option("--quiet", is_flag=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    out: str = option("--out", required=True, help="Where to.")
    inner: Inner = group(Inner, "Its size")
    names: tuple[str, ...] = argument(nargs=-1)
    tags: tuple[str, ...] = option("--tag", multiple=True)
    top: int | None = option("--top", type=int)
    as_json: bool = json_option()


def given(*typed: str) -> Outer:
    found: list[Outer] = []

    @click.command()
    @takes(Outer)
    def command(options: Outer) -> None:
        found.append(options)

    result = CliRunner().invoke(command, [*typed])
    assert result.exit_code == 0, result.output
    return found[0]


def test_a_command_is_given_one_object_with_what_was_typed() -> None:
    assert given("--out", "o", "-s", "5", "a", "b", "--tag", "x", "--json") == Outer(
        out="o", inner=Inner(size=5), names=("a", "b"), tags=("x",), as_json=True
    )


def test_defaults_are_the_same_with_and_without_a_command_line() -> None:
    assert given("--out", "o") == Outer(out="o")
    assert Outer(out="o").inner == Inner(size=3, quiet=False)
    with pytest.raises(TypeError, match="out"):
        Outer()


def test_help_lists_fields_in_order_under_their_headings() -> None:
    @click.command(cls=HeadedCommand)
    @takes(Outer)
    def command(options: Outer) -> None: ...

    shown = CliRunner().invoke(command, ["--help"]).output
    order = ["Its size:", "--size", "--quiet", "Other:", "--out", "--tag", "--top", "--json"]
    assert [shown.index(word) for word in order[:3]] == sorted(map(shown.index, order[:3]))
    assert [shown.index(word) for word in order[3:]] == sorted(map(shown.index, order[3:]))
    assert "[default: 3]" in shown


def test_declarations_name_flag_help_default_and_heading() -> None:
    found = {one.name: one for one in declared(Outer)}
    assert list(found) == ["out", "size", "quiet", "names", "tags", "top", "as_json"]
    assert found["size"].flags == ("--size", "-s")
    assert found["size"].heading == "Its size"
    assert found["size"].settings["default"] == 3
    assert found["names"].flags == ()


def test_a_value_of_one_name_in_two_groups_is_a_defect() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Twice:
        one: Inner = group(Inner)
        other: Inner = group(Inner)

    with pytest.raises(AssertionError):
        takes(Twice)


def test_the_options_of_a_pair_are_saved_as_a_document() -> None:
    saved = dataclasses.asdict(ModelOptions(model="starter", machine=MachineOptions(threads=2)))
    assert saved["machine"] == {
        "device": "auto", "precision": "auto", "threads": 2, "backend": "auto",
    }  # fmt: skip
