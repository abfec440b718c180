"""A plan drawn: its nodes and the ways between them, as `GET /pipelines/{name}` shows them."""

from collections.abc import Sequence

from workers.compiler.plan import BoundEach, BoundNode, BoundParallel, BoundRoute, Free, Plan
from workers.kit.flow import OTHERWISE

Arrow = tuple[str, str, str | None]
End = tuple[str, str | None]  # a node and the label of the way that leads on from it


def edges(plan: Plan) -> tuple[list[tuple[str, str]], list[Arrow]]:
    """The drawing: (name, kind) of each node, (from, to, label) of each edge."""
    nodes: list[tuple[str, str]] = []
    arrows: list[Arrow] = []
    _draw(plan, [], nodes, arrows)
    return nodes, arrows


def _draw(plan: Plan, before: Sequence[End], nodes: list[tuple[str, str]], arrows: list[Arrow]) -> Sequence[End]:
    """Draw the parts behind `before`; returns the ends that what comes next stands behind."""
    ends = before
    for part in plan:
        match part:
            case BoundNode():
                ends = _arrive(part, "node", ends, nodes, arrows)
            case BoundParallel():
                ends = [end for member in part.members for end in _draw(member, ends, nodes, arrows)]
            case Free():
                ends = _arrive(BoundNode(part.body.__name__, part.body, ()), "free", ends, nodes, arrows)
            case BoundEach():
                ends = _arrive(part.bound, "each", ends, nodes, arrows)
            case BoundRoute():
                _arrive(part.router, "router", ends, nodes, arrows)
                branches = dict(part.branches) | ({OTHERWISE: part.otherwise} if part.otherwise is not None else {})
                ends = [
                    end
                    for label, branch in branches.items()
                    for end in _draw(branch, [(part.router.step_key, label)], nodes, arrows)
                ]
    return ends


def _arrive(
    bound: BoundNode, kind: str, before: Sequence[End], nodes: list[tuple[str, str]], arrows: list[Arrow]
) -> list[End]:
    nodes.append((bound.step_key, kind))
    arrows.extend((end, bound.step_key, label) for end, label in before)
    return [(bound.step_key, None)]
