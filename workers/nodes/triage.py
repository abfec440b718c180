"""Support triage: what a ticket is about, how urgent it is, and what to do about it."""

from hashlib import blake2b
from typing import Annotated, Literal

from msgspec import Meta, Struct

from schemas.events.tickets import MessageLabelled, TicketOpened
from workers.kit import Run
from workers.nodes.pager import Pager

EXAMPLES = "examples"  # messages that people labelled, by events
SEED = "seed"  # examples for tickets of all sources: keys with the scope `documents` put them there, no event does
TICKETS = "tickets"  # what we have seen and handled
NEIGHBOURS = 10


class Triage(Struct, frozen=True):
    """How urgent a ticket is, in the words of a model."""

    urgency: Literal["high", "normal", "low"]
    summary: str


class Language(Struct, frozen=True):
    """A two-letter ISO 639-1 code."""

    code: Annotated[str, Meta(pattern="^[a-z]{2}$", examples=["en", "de", "fr", "es"])]


class Neighbour(Struct, frozen=True):
    """A labelled message; `score` is its cosine similarity to the ticket."""

    text: str
    label: str
    score: float


class Similar(Struct, frozen=True):
    """What the nearest labelled messages say: no model is asked, so this is real without any key."""

    intent: str
    confidence: float
    neighbours: list[Neighbour]


class Draft(Struct, frozen=True):
    text: str


class Check(Struct, frozen=True):
    """Whether the draft may be sent, and the text to send."""

    ok: bool
    text: str


class Handled(Struct, frozen=True):
    """What was done: every branch of the route gives one. `models` names what a model wrote for it."""

    route: Literal["page", "answer", "close"]
    reply: str | None
    note: str
    models: list[str] = []


class Resolution(Struct, frozen=True):
    """The result of a ticket. `simulated` names the parts that a simulated model wrote: don't read sense into them."""

    ticket_id: str
    intent: str
    intent_confidence: float
    urgency: str
    language: str
    route: str
    reply: str | None
    note: str
    simulated: list[str]


class Learned(Struct, frozen=True):
    id: str
    label: str


async def classify(run: Run, ticket: TicketOpened) -> Triage:
    return await run.llm.ask("tickets/classify", returns=Triage, ticket=ticket)


async def detect_language(run: Run, ticket: TicketOpened) -> Language:
    return await run.llm.ask("tickets/language", returns=Language, ticket=ticket)


async def recall_similar(run: Run, ticket: TicketOpened) -> Similar:
    """The ten nearest labelled messages of the seed and of the ticket's own source, and the intent they vote for.

    Any sender can name any source, so examples that came under one source count for tickets of that source alone.
    """
    text = body_of(ticket)
    own = await run.vectors.search(EXAMPLES, text, k=NEIGHBOURS, sources=[run.source])
    hits = [*own, *await run.vectors.search(SEED, text, k=NEIGHBOURS)]
    nearest = sorted(hits, key=lambda hit: hit.score, reverse=True)[:NEIGHBOURS]
    neighbours = [Neighbour(hit.text, hit.label, hit.score) for hit in nearest]
    intent, share = vote(neighbours)
    return Similar(intent, round(share, 3), neighbours)


async def by_urgency(triage: Triage) -> Literal["page", "answer", "close"]:
    match triage.urgency:
        case "high":
            return "page"
        case "normal":
            return "answer"
        case "low":
            return "close"


async def page_on_call(run: Run, ticket: TicketOpened, triage: Triage, similar: Similar, pager: Pager) -> Handled:
    """POST to PAGE_URL, with a key that lets the other side drop a repeat."""
    if not pager.page_url:
        return Handled("page", None, "nobody was paged: PAGE_URL is not set")
    page = {
        "ticket_id": ticket.ticket_id,
        "subject": ticket.subject,
        "intent": similar.intent,
        "summary": triage.summary,
    }
    reply = await run.web.post(pager.page_url, json=page)
    return Handled("page", None, f"paged, answer {reply.status}")


async def draft_reply(run: Run, ticket: TicketOpened, triage: Triage, language: Language, similar: Similar) -> Draft:
    """Streamed: the event's page shows it while it is written."""
    text = await run.llm.stream(
        "tickets/draft", returns=str, ticket=ticket, triage=triage, language=language, similar=similar
    )
    return Draft(text)


async def check_reply(run: Run, ticket: TicketOpened, draft: Draft) -> Handled:
    check = await run.llm.ask("tickets/check", returns=Check, ticket=ticket, draft=draft)
    return Handled("answer", check.text, "sent as drafted" if check.ok else "mended before sending", ["reply"])


async def close() -> Handled:
    return Handled("close", None, "closed without a reply")


async def remember(
    run: Run, ticket: TicketOpened, similar: Similar, triage: Triage, language: Language, handled: Handled
) -> Resolution:
    """Keep the ticket for later searches and say how it ended."""
    run.vectors.upsert(TICKETS, f"{run.source} {ticket.ticket_id}", body_of(ticket), {"intent": similar.intent})
    models = ["urgency", "language", *handled.models]
    return Resolution(
        ticket_id=ticket.ticket_id,
        intent=similar.intent,
        intent_confidence=similar.confidence,
        urgency=triage.urgency,
        language=language.code,
        route=handled.route,
        reply=handled.reply,
        note=handled.note,
        simulated=models if run.simulated else [],
    )


async def learn(run: Run, message: MessageLabelled) -> Learned:
    """Keep a labelled message as an example; the same text from the same source replaces itself."""
    example_id = blake2b(f"{run.source}\n{message.text}".encode(), digest_size=16).hexdigest()
    run.vectors.upsert(EXAMPLES, example_id, message.text, {"label": message.label})
    return Learned(example_id, message.label)


def body_of(ticket: TicketOpened) -> str:
    """A subject that only repeats how the body begins adds nothing."""
    subject = ticket.subject.rstrip("… ")
    return ticket.body if ticket.body.startswith(subject) else f"{ticket.subject}\n{ticket.body}"


def vote(neighbours: list[Neighbour]) -> tuple[str, float]:
    """The label with the largest share of the weight, and that share; a neighbour weighs its similarity to the fourth
    power, so that one near twin outvotes several strangers. Without neighbours: ("unknown", 0)."""
    weights: dict[str, float] = {}
    for neighbour in neighbours:
        weights[neighbour.label] = weights.get(neighbour.label, 0.0) + max(neighbour.score, 0.0) ** 4
    total = sum(weights.values())
    if not total:
        return "unknown", 0.0
    best = max(weights, key=weights.__getitem__)
    return best, weights[best] / total
