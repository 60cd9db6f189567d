"""`python -m service.demo`: what `make demo` runs once the environment exists.

Fetches a collection of real photographs (or takes yours), then runs Diptych's own commands and
prints each one before its output, so that it can be repeated by hand.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from models.errors import SourceError
from service.cli.exits import OK, PARTIAL, run_and_exit
from service.cli.main import cli
from service.demo import stamps, wheel_photos


@dataclass(frozen=True)
class Demo:
    """A collection to index and the questions that make sense for it."""

    source: Path
    index: Path
    text_queries: tuple[str, ...]
    picture: Path | None
    labels: str
    filterable: tuple[str, ...] = ()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="Your own pictures.")
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-data"),
    show_default=True,
    help="Where the collection and the index are kept between runs.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--serve/--no-serve", default=True, show_default=True)
def demo(data: Path | None, home: Path, port: int, serve: bool) -> None:
    """Index real photographs, ask three questions, classify a picture, serve the page."""
    chosen = _own(data, home) if data else _collection(home)
    index = str(chosen.index)
    build = ["index", "build", str(chosen.source), "--out", index]
    if chosen.filterable and not chosen.index.exists():  # fields are declared once
        build += ["--filterable", ",".join(chosen.filterable)]
    _run(build, allow_partial=True)
    for query in chosen.text_queries:
        _run(["search", "--index", index, query, "-k", "3"])
    if chosen.picture:
        captions = ["search", "--index", index, "--image", str(chosen.picture)]
        _run([*captions, "--target", "texts" if not data else "images", "-k", "3"])
        _run(["classify", str(chosen.picture), "--labels", chosen.labels, "--top-k", "3"])
    if serve:
        click.echo("\nThe same collection in your browser; Ctrl-C ends it.")
        _run(["serve", "--index", index, "--port", str(port)])


def _collection(home: Path) -> Demo:
    if stamps.available():
        click.echo(f"Photographs: Debian's {stamps.PACKAGE} (about 160 MB, fetched once) ...")
        try:
            manifest = stamps.fetch(home / "stamps")
        except SourceError as error:
            click.echo(f"Not to be had here: {error.message}.", err=True)
        else:
            tiger = "unpacked/usr/share/tuxpaint/stamps/animals/mammals/cats/tiger.png"
            return Demo(
                source=manifest,
                index=home / "stamps.index",
                text_queries=("a bird with colourful feathers", "红色的水果"),
                picture=manifest.parent / tiger,
                labels="tiger,zebra,dog,strawberry,truck",
                filterable=("category:str",),
            )
    click.echo("No apt packages here: using the photographs inside the scikit-image wheel instead.")
    manifest = wheel_photos.write_manifest(home / "wheel-photos")
    return Demo(
        source=manifest,
        index=home / "wheel-photos.index",
        text_queries=("a cat", "一杯咖啡"),
        picture=manifest.parent / "chelsea.png",
        labels="cat,dog,rocket,coffee,wall",
    )


def _own(data: Path, home: Path) -> Demo:
    pictures = (
        path
        for path in sorted(data.rglob("*"))
        if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"} and path.is_file()
    )
    home.mkdir(parents=True, exist_ok=True)
    return Demo(
        source=data,
        index=home / "own.index",
        text_queries=("people outdoors", "食物"),
        picture=next(pictures, None) if data.is_dir() else None,
        labels="person,animal,food,building,landscape",
    )


def _run(arguments: list[str], *, allow_partial: bool = False) -> None:
    click.secho(f"\n$ diptych {shlex.join(arguments)}", bold=True)
    code = cli.main(arguments, prog_name="diptych", standalone_mode=False)
    if isinstance(code, int) and code not in ((OK, PARTIAL) if allow_partial else (OK,)):
        sys.exit(code)


if __name__ == "__main__":
    run_and_exit(demo)
