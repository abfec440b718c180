"""What `make coverage` prints."""

from tests.coverage_report import File, Report, Summary, table


def test_lines_are_summed_by_room() -> None:
    files = {
        "service/intake/store.py": File(Summary(9, 10)),
        "service/intake/__init__.py": File(Summary(0, 0)),
        "workers/engine/budget/ledger.py": File(Summary(1, 2)),
        "workers/web.py": File(Summary(0, 4)),
        "sql/__init__.py": File(Summary(0, 0)),
    }
    assert table(Report(files))[2:] == [
        "| service/intake | 90.0% | 10 |",
        "| sql | 100.0% | 0 |",
        "| workers/engine | 50.0% | 2 |",
        "| workers | 0.0% | 4 |",
        "| the core | 83.3% | 12 |",
        "| all | 62.5% | 16 |",
    ]
