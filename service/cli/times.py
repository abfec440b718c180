"""Points in time on the command line: `2026-11-22T10:00:00Z`, or how long ago, `90s`, `15m`, `1h`, `7d`, `2w`."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
AGO: Final = re.compile(r"([0-9]{1,6})([smhdw])")


class PointInTime(click.ParamType[str]):
    """Converts to RFC 3339 in UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        match = AGO.fullmatch(value)
        try:
            if match:
                at = datetime.now(UTC) - timedelta(**{UNITS[match[2]]: int(match[1])})
            else:
                at = datetime.fromisoformat(value)
        except (ValueError, OverflowError):
            self.fail(f"{value} is no time: write 2026-11-22T10:00:00Z, or how long ago: 90s, 15m, 1h, 7d.", param, ctx)
        if at.tzinfo is None:
            self.fail(f"{value} does not say of which zone it is: write Z behind it for UTC, or +01:00.", param, ctx)
        return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


AT: Final = PointInTime()
