"""Proxies and a private CA, for real: TLS with certificates made here, and a CONNECT proxy in between."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import workers.providers
from prompts import Prompts
from service.core.errors import Outage
from service.core.settings import Settings
from tests.listening import listening_on
from tests.models import with_keys
from tests.workers.models.asking import Ledger, ask, said
from workers.models.client import open_llm
from workers.providers import discover

HOSTS: Final = {
    "openai": ("api.openai.com", "/v1/chat/completions"),
    "anthropic": ("api.anthropic.com", "/v1/messages"),
    "azure": ("ours.openai.azure.com", "/openai/v1/chat/completions"),
    "gemini": ("generativelanguage.googleapis.com", "/v1beta/openai/chat/completions"),
    "mistral": ("api.mistral.ai", "/v1/chat/completions"),
    "local": ("llm.our.example", "/v1/chat/completions"),
}
WITH_KEY: Final = with_keys(
    Settings(),
    openai_api_key="k-123",
    anthropic_api_key="k-123",
    azure_openai_api_key="k-123",
    azure_openai_endpoint="https://ours.openai.azure.com",
    gemini_api_key="k-123",
    mistral_api_key="k-123",
    local_base_url="https://llm.our.example/v1",
    local_api_key="k-123",
)
SDKS: Final = ("openai", "anthropic")
VARIABLES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, `ca.pem`, and what it signed for every host: `server.pem` and `server.key`."""
    folder = tmp_path_factory.mktemp("certificates")
    names = ",".join(f"DNS:{host}" for host, _ in HOSTS.values())
    (folder / "names").write_text(f"subjectAltName=DNS:localhost,{names}\nauthorityKeyIdentifier=keyid\n")
    ca = "-x509 -days 2 -subj /CN=our-ca -keyout ca.key -out ca.pem -addext keyUsage=critical,keyCertSign"
    signed = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -in server.csr -out server.pem"
    for command in (
        f"req -newkey rsa:2048 -nodes {ca}",
        "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr",
        f"x509 -req {signed}",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True, timeout=30)
    return folder


@asynccontextmanager
async def secure(certificates: Path, seen: list[Request]) -> AsyncIterator[int]:
    """A provider of every protocol behind TLS: its port."""

    async def answer(request: Request) -> Response:
        seen.append(request)
        return Response(said("hello"), media_type="application/json")

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["POST"])])
    files = {"ssl_certfile": certificates / "server.pem", "ssl_keyfile": str(certificates / "server.key")}
    async with listening_on(app, force=True, lifespan="off", **files) as url:
        yield int(url.rpartition(":")[2])


@asynccontextmanager
async def proxy(port: int, asked: list[str], refuses: str = "") -> AsyncIterator[str]:
    """Takes CONNECT to anywhere, notes where, and connects to `port`."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(head.splitlines()[0])
        writer.write(f"HTTP/1.1 {refuses or '200 Connected'}\r\n\r\n".encode())
        if refuses:
            writer.close()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def say(prompts: Prompts, ledger: Ledger, name: str, settings: Settings = WITH_KEY) -> object:
    async with open_llm(settings, prompts, None, discover(workers.providers)) as llm:
        return await ask(llm, ledger, model=name)


@pytest.mark.parametrize("name", HOSTS)
async def test_each_provider_is_asked_at_its_own_address_through_proxy_and_private_ca(
    prompts: Prompts, ledger: Ledger, certificates: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    seen: list[Request] = []
    tunnels: list[str] = []
    host, path = HOSTS[name]
    async with secure(certificates, seen) as port, proxy(port, tunnels) as through:
        monkeypatch.setenv("HTTPS_PROXY", through)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
        assert await say(prompts, ledger, name) == "hello"
    assert tunnels == [f"CONNECT {host}:443 HTTP/1.1"]
    assert (seen[0].headers["host"], seen[0].url.path) == (host, path)
    assert seen[0].headers["authorization"] == "Bearer k-123"


@pytest.mark.parametrize("name", SDKS)
async def test_a_certificate_that_is_not_trusted_is_said_to_be_that(
    prompts: Prompts, ledger: Ledger, certificates: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    seen: list[Request] = []
    async with secure(certificates, seen) as port, proxy(port, []) as through:
        monkeypatch.setenv("HTTPS_PROXY", through)
        with pytest.raises(Outage, match=r"certificate .* is not trusted .* SSL_CERT_FILE"):
            await say(prompts, ledger, name)
    assert not seen
    assert (ledger.outcomes, ledger.calls[0].cost_usd) == (["setup"], 0.0)


@pytest.mark.parametrize("name", SDKS)
async def test_who_is_in_no_proxy_is_asked_directly(
    prompts: Prompts, ledger: Ledger, certificates: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    seen: list[Request] = []
    tunnels: list[str] = []
    async with secure(certificates, seen) as port, proxy(port, tunnels) as through:
        monkeypatch.setenv("HTTPS_PROXY", through)
        monkeypatch.setenv("NO_PROXY", "example.com,localhost")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
        here = f"https://localhost:{port}"
        settings = with_keys(WITH_KEY, openai_base_url=f"{here}/v1", anthropic_base_url=here)
        assert await say(prompts, ledger, name, settings) == "hello"
    assert (len(seen), tunnels) == (1, [])


@pytest.mark.parametrize("name", SDKS)
async def test_a_proxy_that_refuses_is_said_to(
    prompts: Prompts, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    async with proxy(0, [], refuses="407 Proxy Authentication Required") as through:
        monkeypatch.setenv("HTTPS_PROXY", through)
        with pytest.raises(Outage, match="Proxy Authentication Required"):
            await say(prompts, ledger, name)
