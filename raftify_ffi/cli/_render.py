"""Output: a table for people, JSON for programs. Everything here writes to stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ._decode import TABLE_WIDTH


def wants_json(output: str | None) -> bool:
    """`-o` decides; without it a terminal gets a table and everything else JSON."""
    return output == "json" if output is not None else not sys.stdout.isatty()


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Not rich's way, which ends the program with 1: that the reader has enough is no failure."""
        raise BrokenPipeError


def console() -> Console:
    # A pipe has no width: a table that was asked for by name must not be cut to 80 columns there.
    width = None if sys.stdout.isatty() else 200
    return _Console(file=sys.stdout, width=width, highlight=False, soft_wrap=False)


def short(value: object, width: int = TABLE_WIDTH) -> str:
    """One line, cut at `width`."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, Mapping) and set(value) == {"base64"}:
        text = f"base64:{value['base64']}"
    else:
        text = json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def cell(value: object) -> Text:
    """Never parsed as markup: what a node or a disk says is data."""
    return Text("-" if value is None else value if isinstance(value, str) else short(value))


def table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    made = Table(title=title, title_justify="left", header_style="bold", title_style="bold")
    for column in columns:
        made.add_column(Text(column), overflow="fold")
    for row in rows:
        made.add_row(*(value if isinstance(value, Text) else cell(value) for value in row))
    return made


def fields(title: str, values: Mapping[str, object]) -> Table:
    """Name and value, one pair a line."""
    return table(title, ("field", "value"), [(name, value) for name, value in values.items()])
