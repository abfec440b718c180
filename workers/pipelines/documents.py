"""Documents are taken in, and somebody is told when one can be found."""

from schemas.events.documents import DocumentAdded, DocumentIngested
from workers.kit import Pipeline, each
from workers.nodes.documents import announce, notify, split, store

documents = Pipeline(on=DocumentAdded, flow=[split, each(store), announce])

notices = Pipeline(on=DocumentIngested, flow=[notify])
