"""All that user code imports of us, besides `Event`."""

from service.errors import Outage, Reject
from workers.kit.flow import parallel, route
from workers.kit.pipeline import Pipeline, Retry, pipeline
from workers.kit.run import Run

__all__ = ["Outage", "Pipeline", "Reject", "Retry", "Run", "parallel", "pipeline", "route"]
