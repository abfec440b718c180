"""What `make pictures` writes: pictures of the running product, taken by a Chromium that has no window."""

import asyncio
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx

from service.access.local_token import local_token
from tests.board import ENDED
from tests.eventually import eventually
from tests.pages import files, sections, write
from tests.processes import LAST_WORDS, ROOT, product_in, up_on

FOLDER: Final = ROOT / ".github" / "pictures"
BYTES_MAX: Final = 150_000
CHROMIUM: Final = ("chromium", "chromium-browser", "google-chrome")
SHOT_S: Final = 60.0
WIDE, NARROW = 1180, 500  # a window of Chromium is not narrower
# Each picture: the page of which event (none: the list of all), width and height, light or dark.
PICTURES: Final = {
    "event.png": ("ticket.opened", WIDE, 985, "light"),
    "event-dark.png": ("ticket.opened", WIDE, 985, "dark"),
    "event-narrow.png": ("ticket.opened", NARROW, 1130, "light"),
    "dead-letter.png": ("refund.requested", WIDE, 620, "dark"),
    "events.png": ("", WIDE, 650, "light"),
    "events-narrow.png": ("", NARROW, 900, "dark"),
}
TICKETS: Final = (
    ("T-1", "Card declined", "My card was declined in a shop today, though there is money on the account."),
    ("T-2", "Top up", "The money that I topped up is not on my account."),
    ("T-3", "Cannot log in", "My password is rejected when I log in."),
)
CARDS: Final = "A new card arrives within five days. Activate it in the app before you use it for the first time. "
IN_A_DAY: Final = (datetime.now(UTC) + timedelta(days=1, minutes=1)).isoformat()
EVENTS: Final[list[dict[str, Any]]] = [
    {"type": "refund.requested", "data": {"order_id": "O-7", "amount": 19.9, "reason": "It arrived broken."}},
    {"type": "refund.requested", "data": {"order_id": "O-8", "amount": 20_000, "reason": "I do not like it."}},
    {"type": "document.added", "source": "/handbook", "data": {"document_id": "cards", "text": CARDS * 20}},
    {"type": "message.received", "partitionkey": "anna", "data": {"text": "Where is my card?"}},
    {"type": "message.received", "partitionkey": "anna", "data": {"text": "And how do I activate it?"}},
    {"type": "announcement.requested", "data": {"audience": "customers", "facts": ["Cards arrive within five days."]}},
    {"type": "message.labelled", "dueat": IN_A_DAY, "data": {"text": "Where is my card?", "label": "card_arrival"}},
    *(
        {"type": "ticket.opened", "data": {"ticket_id": name, "subject": subject, "body": body}}
        for name, subject, body in TICKETS
    ),
]


async def main() -> None:
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser is None:
        sys.exit("make pictures needs a Chromium: apt-get install chromium.")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        clone = product_in(work / "clone")
        write(clone, files(sections("README.md")["The four files"]))
        with up_on(work, {"CALLBOARD_SIMULATE": "on"}, clone) as up:
            await up.program.says(LAST_WORDS)
            async with up.client() as http:
                events = await shown(http)
            for name, (kind, width, height, scheme) in PICTURES.items():
                path = f"ui/events/{events[kind]}" if kind else ""
                address = f"{up.address}/{path}?token={local_token(Path(up.data))}"
                await asyncio.to_thread(
                    shoot, browser, work / name.partition(".")[0], address, FOLDER / name, width, height, scheme
                )
                size = (FOLDER / name).stat().st_size
                assert size <= BYTES_MAX, f"{name} has {size:,} bytes: make it smaller"


async def shown(http: httpx.AsyncClient) -> dict[str, str]:
    """The newest event of each type, once all have ended that are due."""
    for event in EVENTS:
        (await http.post("/events", json=event)).raise_for_status()

    async def rest() -> list[dict[str, Any]] | None:
        items: list[dict[str, Any]] = (await http.get("/events", params={"limit": 100})).json()["items"]
        return items if all(item["status"] in {*ENDED, "scheduled"} for item in items) else None

    items = await eventually(rest, 30)
    assert items
    return {item["type"]: item["event_id"] for item in reversed(items) if item["status"] in ENDED}


def shoot(browser: str, profile: Path, address: str, picture: Path, width: int, height: int, scheme: str) -> None:
    options = (
        "--headless=new",
        "--no-sandbox",  # which Chromium has not for root; the one page that it opens is ours
        "--hide-scrollbars",
        "--disable-gpu",
        f"--user-data-dir={profile}",
        f"--window-size={width},{height}",
        f"--blink-settings=preferredColorScheme={'0' if scheme == 'dark' else '1'}",
        f"--screenshot={picture}",
    )
    subprocess.run((browser, *options, address), check=True, capture_output=True, timeout=SHOT_S)


if __name__ == "__main__":
    asyncio.run(main())
