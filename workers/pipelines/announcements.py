"""Announcements: a critic sends the draft back until it is sound, three rounds at most."""

from schemas.events.announcements import AnnouncementRequested
from workers.kit import Run, pipeline
from workers.nodes.announcements import Announcement, criticize, draft, redraft

ROUNDS = 3


@pipeline(on=AnnouncementRequested, timeout_s=300)
async def announcements(run: Run, request: AnnouncementRequested) -> Announcement:
    """Each draft and each critique is a step: whatever fails on the way, none that was completed is paid for twice."""
    text = await run.step(draft, request)
    for rounds in range(1, ROUNDS + 1):
        critique = await run.step(criticize, request, text)
        if critique.sound or rounds == ROUNDS:
            break
        text = await run.step(redraft, request, text, critique)
    return Announcement(text.text, rounds, [] if critique.sound else critique.faults, run.simulated)
