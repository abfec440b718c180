"""Announcements: written, criticized, written again."""

from msgspec import Struct

from schemas.events.announcements import AnnouncementRequested
from workers.kit import Run


class Draft(Struct, frozen=True):
    text: str


class Critique(Struct, frozen=True):
    """Whether the draft may go out; what is wrong with it where it may not."""

    sound: bool
    faults: list[str]


class Announcement(Struct, frozen=True):
    """`faults` are those of the last critique: where there are any, a person has to look at it."""

    text: str
    rounds: int
    faults: list[str]
    simulated: bool


async def draft(run: Run, request: AnnouncementRequested) -> Draft:
    return await run.llm.ask("announcements/draft", returns=Draft, request=request)


async def criticize(run: Run, request: AnnouncementRequested, draft: Draft) -> Critique:
    return await run.llm.ask("announcements/criticize", returns=Critique, request=request, draft=draft)


async def redraft(run: Run, request: AnnouncementRequested, draft: Draft, critique: Critique) -> Draft:
    return await run.llm.ask("announcements/redraft", returns=Draft, request=request, draft=draft, critique=critique)
