"""A real Prometheus (Debian's package `prometheus`) scrapes two APIs as operations.md says, and its sums are true."""

import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import yaml

from service.core.settings import Settings
from tests.board import TICKET, board_on, serving
from tests.debian import unpacked
from tests.eventually import eventually
from tests.keys import AT_HOME
from tests.processes import free_port

SCRAPED_S = 40.0


@contextmanager
def prometheus(programs: Path, folder: Path, apis: list[str]) -> Iterator[str]:
    """One that scrapes all `apis`, and the fleet from the first; its address."""
    jobs = [
        {"job_name": "callboard", "static_configs": [{"targets": apis}]},
        {"job_name": "callboard-fleet", "metrics_path": "/metrics/fleet", "static_configs": [{"targets": apis[:1]}]},
    ]
    config = folder / "prometheus.yaml"
    config.write_text(yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}))
    subprocess.run([programs / "promtool", "check", "config", config], check=True, capture_output=True, timeout=30)
    address = f"127.0.0.1:{free_port()}"
    options = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([programs / "prometheus", *options], stdout=log, stderr=log)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


class Querying:
    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def value(self, query: str) -> float | None:
        """None where it does not answer yet, or has no series."""
        try:
            response = await self._http.get("/api/v1/query", params={"query": query})
        except httpx.TransportError:
            return None
        result = response.json()["data"]["result"] if response.is_success else []
        return float(result[0]["value"][1]) if result else None


@asynccontextmanager
async def querying(url: str) -> AsyncIterator[Querying]:
    async with httpx.AsyncClient(headers=AT_HOME, base_url=url, timeout=10, trust_env=False) as http:
        yield Querying(http)


async def test_sums_over_two_apis_are_true(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = unpacked(tmp_path / "debian", "prometheus") / "usr" / "bin"
    monkeypatch.setattr("workers.engine.report.REPORT_S", 0.2)
    monkeypatch.setattr("service.http.metrics.EVERY_S", 0.1)
    async with board_on(settings, workers=2) as board, serving(settings) as second:
        events = [await board.ended(await board.send("ticket.opened", TICKET)) for _ in range(4)]
        for path in ("/metrics", "/metrics/fleet"):
            text = (await board.http.get(path)).text
            checked = subprocess.run(
                [programs / "promtool", "check", "metrics"],
                input=text,
                capture_output=True,
                text=True,
                check=False,
                timeout=30,
            )
            assert checked.returncode == 0, checked.stderr
        apis = [url.removeprefix("http://").rstrip("/") for url in (str(board.http.base_url), second)]
        with prometheus(programs, tmp_path, apis) as url:
            async with querying(url) as query:
                expected = {
                    "sum(callboard_llm_calls_total)": float(sum(event["calls"] for event in events)),
                    "sum(callboard_worker_slots)": 2.0 * settings.concurrency,
                    'sum(callboard_workers{state="ready"})': 2.0,
                    "sum(callboard_events_accepted_total)": 4.0,
                    "count(callboard_postgres_up)": 1.0,
                    "count(count by (worker) (callboard_worker_cpu_seconds_total))": 2.0,
                    "sum(up)": 3.0,
                }
                found: dict[str, float | None] = {}

                async def scraped() -> bool:
                    found.update({text: await query.value(text) for text in expected})
                    return found == expected

                with suppress(AssertionError):
                    await eventually(scraped, SCRAPED_S)
                assert found == expected
                cost_usd = await query.value("sum(callboard_llm_cost_usd_total)")
                assert cost_usd == pytest.approx(sum(event["cost_usd"] for event in events), abs=1e-5)
