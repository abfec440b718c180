"""Support triage, and the examples it learns from."""

from schemas.events.tickets import MessageLabelled, TicketOpened
from workers.kit import Pipeline, Retry, parallel, route
from workers.nodes.triage import (
    by_urgency,
    check_reply,
    classify,
    close,
    detect_language,
    draft_reply,
    learn,
    page_on_call,
    recall_similar,
    remember,
)

support = Pipeline(
    on=TicketOpened,
    flow=[
        parallel(classify, detect_language, recall_similar),
        route(by_urgency, {"page": [page_on_call], "answer": [draft_reply, check_reply], "close": [close]}),
        remember,
    ],
    retry=Retry(attempts=5),
    timeout_s=120,
)

examples = Pipeline(on=MessageLabelled, flow=[learn])
