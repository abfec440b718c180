"""All that user code imports of us, besides `Event`."""

from service.core.errors import Reject
from workers.kit.flow import Stop, each, parallel, route
from workers.kit.pipeline import Pipeline, Retry, pipeline
from workers.kit.run import Run
from workers.kit.settings import Settings
from workers.kit.state import State

__all__ = ["Pipeline", "Reject", "Retry", "Run", "Settings", "State", "Stop", "each", "parallel", "pipeline", "route"]
