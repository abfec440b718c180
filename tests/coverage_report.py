"""The share of lines that tests run, by room: `python -m tests.coverage_report FILE`, of coverage's JSON report.

The core is what no event goes past: intake, engine and calls of models. `make coverage` prints it; nothing fails by it.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct, json

CORE = ("service/intake", "workers/engine", "workers/models")


class Summary(Struct):
    """Of one file, or of several."""

    covered_lines: int = 0
    num_statements: int = 0


class File(Struct):
    summary: Summary


class Report(Struct):
    files: Mapping[str, File]


def room_of(path: str) -> str:
    """The folder below service/ or workers/, else the top-level folder."""
    return "/".join(Path(path).parts[:-1][:2])


def table(report: Report) -> list[str]:
    """Lines of Markdown: each room, the core, all."""
    totals: defaultdict[str, Summary] = defaultdict(Summary)
    for path, file in sorted(report.files.items()):
        for name in (room_of(path), *(["the core"] if room_of(path).startswith(CORE) else []), "all"):
            totals[name].covered_lines += file.summary.covered_lines
            totals[name].num_statements += file.summary.num_statements
    rooms = [name for name in totals if name not in ("the core", "all")]
    lines = ["| room | lines run | of |", "| --- | --- | --- |"]
    for name in (*rooms, "the core", "all"):
        total = totals[name]
        share = total.covered_lines / total.num_statements if total.num_statements else 1.0
        lines.append(f"| {name} | {share:.1%} | {total.num_statements:,} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table(json.decode(Path(sys.argv[1]).read_bytes(), type=Report))))
