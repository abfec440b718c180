"""What a pipeline says of single nodes: their time limits, and the resources they take."""

import math
from collections.abc import Mapping

from service.core.errors import WiringError
from workers.compiler.plan import Plan
from workers.compiler.reading import bounds
from workers.kit.flow import where
from workers.kit.pipeline import Pipeline
from workers.kit.resources import given_by
from workers.kit.signature import hints_of


def check_limits(qualname: str, pipeline: Pipeline, plan: Plan) -> None:
    """Raises WiringError where a limit is no number of seconds, or of a node that the flow has not."""
    if not isinstance(pipeline.limits_s, Mapping):
        raise WiringError(f"{qualname}: limits_s is no dict. Write {{node: seconds, …}}.")
    there = (
        None if pipeline.body is not None else {bound.node for bound in bounds(plan)}
    )  # what a free form runs shows when it runs
    for node, limit_s in pipeline.limits_s.items():
        hints_of(node)
        if there is not None and node not in there:
            raise WiringError(
                f"{qualname}: limits_s names {where(node)}, which is not in its flow. Put it there, or take it away."
            )
        if not isinstance(limit_s, int | float) or isinstance(limit_s, bool) or not 0 < limit_s < math.inf:
            raise WiringError(f"{qualname}: limits_s gives {where(node)} {limit_s!r}. Give seconds, more than 0.")


def check_resources(qualname: str, pipeline: Pipeline) -> None:
    if not isinstance(pipeline.resources, list | tuple):
        raise WiringError(f"{qualname}: resources is no list. Write [{where(pipeline.resources)}].")
    for resource in pipeline.resources:
        given_by(resource)
