"""One call to a model: prompt → chain of providers → reply by type, each try behind its breaker and in the ledger."""

from collections.abc import AsyncIterator, Callable, Container, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final, TypeVar, cast
from urllib.parse import quote

from msgspec.structs import replace

from prompts import Prompt, PromptError, Prompts, Rendered, Target, render
from service.errors import CallboardError, SettingsError, WiringError
from service.settings import PROVIDERS, Settings, variable
from workers.clients.breaker import Policy
from workers.clients.calling import Caller, LlmRefused
from workers.clients.embeddings import embed
from workers.clients.faults import Fault
from workers.clients.ledger import Book, Call, Question, Try, encode, hashed
from workers.clients.limits import Shared, open_gates
from workers.clients.provider import Answer, Client, Connect, Message, Request, Texts
from workers.clients.structured import InvalidReply, Shape

__all__ = ["Book", "Call", "Llm", "LlmRefused", "open_llm"]

T = TypeVar("T")

EMBED: Final = "embed"


class Llm:
    """Made by `open_llm`: one per process."""

    def __init__(self, prompts: Prompts, caller: Caller) -> None:
        self._prompts = prompts
        self._caller = caller
        self._shapes: dict[type[Any], Shape[Any]] = {}

    async def ask(
        self,
        prompt: str,
        variables: Mapping[str, object],
        *,
        returns: type[T],
        book: Book,
        model: str | None = None,
        timeout_s: float = 60.0,
        labels: Mapping[str, str] | None = None,
    ) -> T:
        """Ask `prompt`, at the alias `model` if not at its own, for a `str` or a Struct; `timeout_s` bounds each call.

        `book` is told of every call before it is made and before its reply is used; what it recalls is not asked again.
        `labels` (event, step) are told to the simulator only. Raises Outage where nobody on the chain can answer now,
        LlmRefused where it is for the event itself to fail, and CallboardError where prompt and variables don't fit.
        """
        chosen, rendered, chain = self._choose(prompt, variables, model)
        shape = self._shape(returns)
        request = Request(
            model=model or chosen.model,
            system=rendered.system,
            messages=(Message("user", rendered.user),),
            schema=shape.schema,
            max_tokens=chosen.max_tokens,
            temperature=chosen.head.temperature,
            headers=_headers(labels or {}) if self._caller.simulated else {},
        )
        question = Question(chosen, request, timeout_s, book)
        asked = hashed(encode(question))
        ordinal, told = book.recall(asked)
        if told is not None:
            with suppress(InvalidReply):
                reply = shape.decode(told)
                book.recalled(chosen)
                return reply
        question = replace(question, asked=asked, ordinal=ordinal)
        return await book.whole(self._caller.along(chain, lambda target: self._ask_at(target, question, shape)))

    async def embed(
        self,
        texts: Sequence[str],
        *,
        book: Callable[[], Book],
        model: str = "embed",
        timeout_s: float = 60.0,
        labels: Mapping[str, str] | None = None,
    ) -> list[list[float]]:
        """A vector for each text, in that order, from the alias `model`; `book` gives one for each call.

        Raises what `ask` raises; WiringError where a provider on the chain has no embeddings.
        """
        try:
            chain = self._known(model, self._prompts.chain(model))
        except PromptError as error:
            raise CallboardError(str(error)) from error
        _check_embeds(model, chain, self._caller)
        headers = _headers(labels or {}) if self._caller.simulated else {}
        return await embed(self._caller, chain, Texts(model, tuple(texts), headers), book, timeout_s)

    def breakers(self) -> dict[str, str]:
        """The state of each, by provider and model: closed, open or half_open."""
        return self._caller.breakers()

    def doors(self) -> dict[str, str]:
        """Breakers and limits, by the name under which events wait for them."""
        return self._caller.doors()

    def _choose(
        self, name: str, variables: Mapping[str, object], alias: str | None
    ) -> tuple[Prompt, Rendered, list[Target]]:
        try:
            prompt = self._prompts.get(name)
            chain = self._prompts.chain(alias or prompt.model)
            rendered = render(prompt, variables)
        except PromptError as error:
            raise CallboardError(str(error)) from error
        return prompt, rendered, self._known(alias or prompt.model, chain)

    def _known(self, alias: str, chain: Sequence[Target]) -> list[Target]:
        with_key = [target for target in chain if self._caller.knows(target)]
        if not with_key:
            raise SettingsError(_no_key(alias, chain))
        return with_key

    def _shape(self, returns: type[T]) -> Shape[T]:
        if returns not in self._shapes:
            self._shapes[returns] = Shape(returns)
        return self._shapes[returns]

    async def _ask_at(self, target: Target, question: Question, shape: Shape[T]) -> T:
        try:
            return await self._ask_once(self._caller.begin(question, target), shape)
        except InvalidReply as misfit:
            again = self._caller.begin(_again(question, misfit), target)
        try:
            return await self._ask_once(again, shape)
        except InvalidReply as misfit:
            raise LlmRefused(f"{again.where} gave no valid reply, asked twice: {misfit}.") from misfit

    async def _ask_once(self, begun: Try, shape: Shape[T]) -> T:
        timeout_s = begun.question.timeout_s
        answer = await self._caller.make(begun, lambda client, request: client.complete(request, timeout_s))
        try:
            reply = shape.decode(_whole(answer))
        except InvalidReply:
            await self._caller.close(begun, answer, valid=False)
            raise
        except Fault as fault:
            await self._caller.close(begun, answer, fault)
            raise LlmRefused(f"{begun.where}: {fault}") from fault
        await self._caller.close(begun, answer)
        return reply


@asynccontextmanager
async def open_llm(
    settings: Settings,
    prompts: Prompts,
    simulator_url: str | None,
    providers: Mapping[str, Connect],
    policy: Policy | None = None,
    shared: Shared | None = None,
) -> AsyncIterator[Llm]:
    """The clients of every provider that has a key; with `simulator_url`, of all, talking to that address.

    `shared`: where all workers together keep the limits; without it this process keeps them alone.

    Raises WiringError where models.toml names a provider there is no file for, SettingsError where a prompt's alias
    names none that has a key.
    """
    check_chains(prompts, providers)
    async with AsyncExitStack() as stack:
        clients: dict[str, Client] = {}
        for name, connect in providers.items():
            opening = connect(settings, simulator_url)
            if opening is not None:
                clients[name] = await stack.enter_async_context(opening)
        check_keys(prompts, clients)
        targets = {target for chain in prompts.models.values() for target in chain if target.provider in clients}
        gates = await stack.enter_async_context(open_gates(targets, shared))
        caller = Caller(clients, gates, policy or Policy(), simulated=simulator_url is not None)
        embedding = [target for target in prompts.models.get(EMBED, ()) if caller.knows(target)]
        _check_embeds(EMBED, embedding, caller)
        yield Llm(prompts, caller)


def check_chains(prompts: Prompts, providers: Mapping[str, Connect]) -> None:
    """Raises WiringError."""
    for alias, chain in prompts.models.items():
        for name in {target.provider for target in chain} - providers.keys():
            raise WiringError(f'models.toml: {alias} names the provider "{name}": write workers/providers/{name}.py.')


def check_keys(prompts: Prompts, with_key: Container[str]) -> None:
    """Raises SettingsError where a prompt's alias names no provider that has a key."""
    for alias in sorted({prompt.model for versions in prompts.versions.values() for prompt in versions.values()}):
        chain = prompts.chain(alias)
        if not any(target.provider in with_key for target in chain):
            raise SettingsError(_no_key(alias, chain))


def _no_key(alias: str, chain: Sequence[Target]) -> str:
    names = " or ".join(dict.fromkeys(_needs(target.provider) for target in chain))
    return (
        f'No provider of the model alias "{alias}" can be asked: set {names}, give the alias another one in '
        "prompts/models.toml, or set CALLBOARD_SIMULATE=on to try without."
    )


def _needs(provider: str) -> str:
    names = PROVIDERS.get(provider)
    return " and ".join(map(variable, names)) if names else f"what workers/providers/{provider}.py asks for"


def _check_embeds(alias: str, chain: Sequence[Target], caller: Caller) -> None:
    for target in chain:
        if not caller.embeds(target):
            raise WiringError(f"models.toml: {alias} names {target.provider}, which has no embeddings.")
    if len(models := dict.fromkeys(target.model for target in chain)) > 1:
        raise WiringError(
            f"models.toml: {alias} names {' and '.join(models)}, whose vectors can't be compared: "
            "all of its providers need the same model (of Azure: a deployment of that name)."
        )


def _headers(labels: Mapping[str, str]) -> dict[str, str]:
    return {f"x-callboard-{name.replace('_', '-')}": quote(value, safe="/#:[]") for name, value in labels.items()}


def _whole(answer: Answer) -> str:
    if answer.stop == "length":
        cut = f"the reply was cut off after {answer.tokens_out} tokens: raise max_tokens in the prompt's head."
        raise Fault("length", cut)
    if answer.stop == "refused" or answer.text is None:
        raise Fault("refused", "the model refused to answer.")
    return answer.text


def _again(question: Question, misfit: InvalidReply) -> Question:
    demand = f"This does not fit what was asked for: {misfit}. Reply again, with nothing but JSON that fits the schema."
    more = (Message("assistant", misfit.reply), Message("user", demand))
    request = cast(Request, question.request)
    return replace(question, request=replace(request, messages=request.messages + more))
