"""Documents: split into passages, each found by what it says; then somebody is told."""

from textwrap import wrap

from msgspec import Struct

from schemas.events.documents import DocumentAdded, DocumentIngested
from workers.kit import Run
from workers.nodes.pager import Pager

DOCUMENTS = "documents"
PASSAGE_MAX = 1_200  # letters: a thought or two, so that a hit says where
PASSAGES_MAX = 1_000  # more than the longest document has


class Passage(Struct, frozen=True):
    document_id: str
    number: int
    text: str


class Stored(Struct, frozen=True):
    id: str


class Ingested(Struct, frozen=True):
    document_id: str
    passages: int


class Notice(Struct, frozen=True):
    document_id: str
    note: str


async def split(run: Run, document: DocumentAdded) -> list[Passage]:
    """What an earlier text had more of is deleted with the end of the event, in which the new one can be found."""
    texts = passages(document.text)
    beyond = range(len(texts) + 1, PASSAGES_MAX + 1)
    await run.vectors.delete(DOCUMENTS, [_id(run, document.document_id, number) for number in beyond])
    return [Passage(document.document_id, number, text) for number, text in enumerate(texts, 1)]


async def store(run: Run, passage: Passage) -> Stored:
    """Embedded here, and visible with all the others when the event ends."""
    stored = Stored(_id(run, passage.document_id, passage.number))
    run.vectors.upsert(DOCUMENTS, stored.id, passage.text, {"document_id": passage.document_id})
    return stored


async def announce(run: Run, document: DocumentAdded, stored: list[Stored]) -> Ingested:
    """The child event is stored in the transaction that makes the passages visible."""
    run.emit(DocumentIngested(document.document_id, len(stored)))
    return Ingested(document.document_id, len(stored))


async def notify(run: Run, document: DocumentIngested, pager: Pager) -> Notice:
    if not pager.page_url:
        return Notice(document.document_id, "nobody was told: PAGE_URL is not set")
    notice = {"document_id": document.document_id, "passages": document.passages}
    reply = await run.web.post(pager.page_url, json=notice)
    return Notice(document.document_id, f"told, answer {reply.status}")


def _id(run: Run, document_id: str, number: int) -> str:
    return f"{run.source} {document_id} {number}"


def passages(text: str) -> list[str]:
    """Paragraphs, long ones cut between words, short ones together, each passage at most PASSAGE_MAX letters."""
    pieces = [piece for paragraph in text.split("\n\n") for piece in wrap(paragraph, PASSAGE_MAX)]
    passages: list[str] = []
    for piece in pieces:
        if passages and len(passages[-1]) + len("\n\n") + len(piece) <= PASSAGE_MAX:
            passages[-1] += f"\n\n{piece}"
        else:
            passages.append(piece)
    return passages
