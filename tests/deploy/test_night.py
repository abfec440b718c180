"""What deploy/operations.md says to do at night, done: a provider, a model or a prompt that fails, a full disk."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import pytest

from tests.deploy.host import THERE, Host, until
from tests.deploy.product import Product, configure, containers, curl, live, query, served
from tests.processes import ROOT

pytestmark = pytest.mark.host

SIMULATOR: Final = "callboard simulator --port 8099"
DOWN: Final = "--fault 529,model=claude-haiku-5-5"


def test_a_provider_is_down(host: Host, product: Product) -> None:
    """Events wait, uncharged, and go on by themselves; the worker's log says what its breaker does."""
    configure(host, CALLBOARD_SIMULATE="off", ANTHROPIC_BASE_URL="http://127.0.0.1:8099", WORKERS="1")
    product.make("deploy")
    events = [open_ticket(host, f"down-{n}") for n in range(15)]
    until(lambda: "the breaker of anthropic claude-haiku-5-5 opens" in product.make("logs", "ARGS=worker"), 60)
    assert reached(host, events[0], "open")
    with provider(host):
        for each in events:
            until(partial(reached, host, each, "succeeded"), 120)
    assert "the breaker of anthropic claude-haiku-5-5 closes" in product.make("logs", "ARGS=worker")


def test_a_model_is_down_for_long(host: Host, product: Product) -> None:
    """Another one in its place takes over what waits, uncharged."""
    with provider(host, DOWN):
        event = open_ticket(host, "long")
        until(lambda: query(host, f"select snoozes > 0 from work where event_id = '{event}'") == "t", 60)
    models = (product.folder / "prompts/models.toml").read_text()
    product.release({"prompts/models.toml": models.replace("claude-haiku-5-5", "claude-sonnet-5-5")})
    product.make("deploy")
    with provider(host, DOWN):
        until(partial(reached, host, event, "succeeded"), 120)
    product.withdraw()


def test_a_bad_prompt_is_shipped(host: Host, product: Product) -> None:
    before = served(host)
    configure(host, CALLBOARD_SIMULATE="on", ANTHROPIC_BASE_URL="")
    good = (product.folder / "prompts/tickets/classify/v1.md").read_text()
    product.release({"prompts/tickets/classify/v2.md": good.replace("max_tokens = 2000", "max_tokens = 1")})
    product.make("deploy")
    events = [open_ticket(host, f"bad-{n}") for n in range(3)]
    for each in events:
        until(partial(reached, host, each, "dead"), 120)
    product.make("rollback")
    assert served(host) == before
    assert "3 fit, " in callboard(host, "dead replay --reason rejected --dry-run")
    callboard(host, "dead replay --reason rejected")
    for each in events:
        until(partial(reached, host, each, "succeeded"), 120)
    assert query(host, "select count(*) from dead_letters") == "0"
    product.withdraw()


def test_images_fill_the_disk(host: Host, product: Product) -> None:
    """What serves is kept; the release before has to be shipped again."""
    product.release({})
    product.make("deploy")
    host.ssh("docker image prune -af")
    assert curl(host, "/types") == "200"
    host.ssh(f"docker restart {live(host)}")
    until(lambda: curl(host, "/types") == "200", 30)
    assert "There is no image of " in product.make("rollback", fails=True)
    product.make("deploy")


def test_backups_fill_the_disk(host: Host, product: Product) -> None:
    """And a half of one, which is what such a disk leaves."""
    (leave_three,) = re.findall(
        r"`ssh root@box '([^']+)'` leaves three", (ROOT / "deploy/operations.md").read_text("utf-8")
    )
    host.ssh(f"cd {THERE} && for each in 1 2 3 4; do ./host.sh backup $each; done && touch backups/half.dump.part")
    before = host.ssh(f"ls {THERE}/backups/*.dump").split()
    host.ssh(leave_three)
    assert host.ssh(f"ls -d {THERE}/backups/*").split() == before[-3:]
    assert before[-1].removeprefix(f"{THERE}/") in product.make("restore-check")


def open_ticket(host: Host, name: str) -> str:
    data = {"ticket_id": name, "subject": "Charged twice", "body": "You charged my card twice this month."}
    told: dict[str, Any] = json.loads(
        curl(host, "/events", "--json", json.dumps({"type": "ticket.opened", "data": data}), code=False)
    )
    return str(told["event_id"])


def reached(host: Host, event_id: str, status: str) -> bool:
    """At the cost of no second attempt."""
    return query(host, f"select status, attempts <= 1 from events where event_id = '{event_id}'") == f"{status}|t"


def callboard(host: Host, words: str) -> str:
    return host.ssh(f"{THERE}/host.sh callboard {words}")


@contextmanager
def provider(host: Host, options: str = "") -> Iterator[None]:
    """A provider where the worker looks for it."""
    (worker,) = containers(host, "worker")
    image = f"localhost/callboard:{served(host)}"
    host.ssh(f"docker run -d --rm --name provider --network container:{worker} {image} {SIMULATOR} {options}")
    try:
        yield
    finally:
        host.ssh("docker rm -f provider")
