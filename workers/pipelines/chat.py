"""Conversations."""

from schemas.events.chat import MessageReceived
from workers.kit import Pipeline
from workers.nodes.chat import answer

chat = Pipeline(on=MessageReceived, flow=[answer], timeout_s=60)
