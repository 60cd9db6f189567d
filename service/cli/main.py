"""The `diptych` command.

Knows the names of the commands and one line about each; a command's module, and with it torch,
faiss or fastapi, is imported only when that command runs, so `diptych --help` stays instant.
"""

from __future__ import annotations

import importlib
import signal
from types import FrameType
from typing import NoReturn

import click

from models.environment import raise_file_limit
from service.cli.exits import MEANINGS, run_and_exit

# name -> (module:attribute, the line shown by --help)
COMMANDS: dict[str, tuple[str, str]] = {
    "index": ("service.cli.index.group:index", "Build, describe and verify an index of pictures."),
    "search": ("service.cli.search:search", "Search an index by text or by picture."),
    "classify": ("service.cli.classify.modes:classify", "Sort pictures into labels you name."),
    "serve": ("service.cli.serve.startup:serve", "Serve an index over HTTP, with a web page."),
    "keys": ("service.cli.keys:keys", "Make, list and revoke API keys."),
    "data": ("service.cli.data:data", "Look a data set over before training on it."),
    "train": ("service.cli.train.command:train", "Train an encoder pair on captioned pictures."),
    "evaluate": (
        "service.cli.evaluate:evaluate",
        "Measure retrieval, zero-shot or linear-probe accuracy.",
    ),
    "models": ("service.cli.models:models", "List and describe encoder pairs."),
}


class LazyGroup(click.Group):
    """A click group whose commands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExit codes:\n"
    + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in MEANINGS.items()),
)
@click.version_option(package_name="diptych", message="diptych %(version)s")
def cli() -> None:
    """Search and sort pictures by meaning.

    \b
    diptych index build ~/Pictures --out photos.index
    diptych search --index photos.index "a dog running on the beach"
    diptych classify holiday.jpg --labels beach,mountain,city
    diptych serve --index photos.index
    """


def _terminate(signum: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)


def main() -> NoReturn:
    """Run the command line and exit with a documented code."""
    # unwinding instead of dying lets writers drop scratch files and release the lock
    signal.signal(signal.SIGTERM, _terminate)
    raise_file_limit()  # an index has two files a segment, and the usual limit is 1,024
    run_and_exit(cli)


if __name__ == "__main__":
    main()
