"""Tables: on a terminal as wide as it is, with every id and number whole; elsewhere tabs, for cut and awk."""

import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Final

import click
from rich.cells import get_character_cell_size

GAP: Final = "  "
INDENT: Final = "    "
WIDENS: Final = "\N{VARIATION SELECTOR-16}"  # shows the character before it as an emoji, which is a cell wider
NUMBER: Final = re.compile(r"-?[\d,]+(\.\d+)?|")
TIME: Final = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(\.\d+)?(Z|\+00:00)")

Row = Sequence[str]


def print_rows(columns: Row, rows: Sequence[Row]) -> None:
    """A table on a terminal; elsewhere one line per row, fields parted by tabs."""
    if sys.stdout.isatty():
        for line in fitted(columns, rows, shutil.get_terminal_size().columns):
            click.echo(line)
        return
    for row in (columns, *rows):
        click.echo("\t".join(field.replace("\t", " ").replace("\n", " ") for field in row))


def fitted(columns: Row, rows: Sequence[Row], width: int) -> Iterator[str]:
    """The table in lines of at most `width` cells.

    Columns that do not fit beside each other go on in a second line, indented, under heads that do the same; a text
    that is wider than the terminal is wrapped within its column. Nothing is cut. Times are in UTC, to the second.
    """
    shown = [[TIME.sub(r"\1 \2", field.replace("\n", " ").replace("\t", " ")) for field in row] for row in rows]
    widths = [max(map(cells_of, column)) for column in zip(columns, *shown, strict=True)]
    numeric = [all(NUMBER.fullmatch(row[index]) for row in shown) for index in range(len(columns))]
    lines = _lines(widths, width)
    for row in (list(columns), *shown):
        for number, line in enumerate(lines):
            cells = [(row[index], room, numeric[index]) for index, room in line]
            if number and not any(text for text, _, _ in cells):
                continue
            yield from _wrapped(cells, INDENT if number else "")


def cells_of(text: str) -> int:
    """How many cells of a terminal the text takes, at most: what joins or colours emoji may take none."""
    return sum(map(_size, text))


def _size(char: str) -> int:
    return 1 if char == WIDENS else get_character_cell_size(char)


def _lines(widths: Sequence[int], width: int) -> list[list[tuple[int, int]]]:
    """For each line of a row its columns, by index, with the room that each has."""
    lines: list[list[tuple[int, int]]] = [[]]
    used = 0
    for index, natural in enumerate(widths):
        begin = used + len(GAP) if lines[-1] else used
        if begin + natural > width and lines[-1]:
            lines.append([])
            begin = len(INDENT)
        room = max(1, min(natural, width - begin))
        lines[-1].append((index, room))
        used = begin + room
    return lines


def _wrapped(cells: Sequence[tuple[str, int, bool]], indent: str) -> Iterator[str]:
    """One line, and as many more as its longest cell needs."""
    pieces = [list(_pieces(text, room)) for text, room, _ in cells]
    for depth in range(max(map(len, pieces))):
        fields = []
        for (_, room, is_number), piece in zip(cells, pieces, strict=True):
            text = piece[depth] if depth < len(piece) else ""
            space = " " * (room - cells_of(text))
            fields.append(space + text if is_number else text + space)
        yield (indent + GAP.join(fields)).rstrip()


def _pieces(text: str, room: int) -> Iterator[str]:
    """The text in pieces of at most `room` cells."""
    begin, used = 0, 0
    for index, char in enumerate(text):
        size = _size(char)
        if used + size > room and index > begin:
            yield text[begin:index]
            begin, used = index, 0
        used += size
    yield text[begin:]
