"""The prompt loader, and every prompt that ships."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import Struct

from prompts import Limits, PromptError, Prompts, load, render

SHIPPED = Path(__file__).parents[2] / "prompts"
MODELS = 'fast = [{ provider = "openai", model = "m" }]\n'
HEAD = '+++\nmodel = "fast"\nmax_tokens = 10\nvariables = [{}]\n+++\n'


class Blank(float):
    """Stands in for any variable: text, number, list or Struct. Blank(0) is empty."""

    def __getattr__(self, name: str) -> "Blank":
        return self

    def __getitem__(self, index: object) -> "Blank":
        return self

    def __iter__(self) -> Iterator["Blank"]:
        return iter([Blank(1)] * int(self))

    def __len__(self) -> int:
        return int(self)

    def __str__(self) -> str:
        return "{{ 7 * 7 }}"


class Ticket(Struct, frozen=True):
    subject: str = "Refund"


def write(folder: Path, prompts: dict[str, str], models: str = MODELS) -> Path:
    (folder / "models.toml").write_text(models)
    for name, text in prompts.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def every_version(prompts: Prompts) -> list[str]:
    return [f"{name}@{version}" for name, versions in prompts.versions.items() for version in versions]


@pytest.mark.parametrize("name", every_version(load(SHIPPED)))
@pytest.mark.parametrize("filled", [1, 0], ids=["filled", "empty"])
def test_shipped_prompt_renders_from_what_its_head_declares(name: str, filled: int) -> None:
    prompt = load(SHIPPED).get(name)
    rendered = render(prompt, {variable: Blank(filled) for variable in prompt.variables})
    assert "{{ 7 * 7 }}" in rendered.user, "what a customer writes is no template"
    assert rendered.system


def test_newest_version_unless_named(tmp_path: Path) -> None:
    versions = {f"tickets/ask/v{number}.md": HEAD.format("") + f"number {number}" for number in (1, 2, 10)}
    prompts = load(write(tmp_path, versions))
    newest, named = prompts.get("tickets/ask"), prompts.get("tickets/ask@2")
    assert (newest.version, render(newest, {}).user) == (10, "number 10")
    assert (named.version, render(named, {}).user) == (2, "number 2")
    assert newest.hash != named.hash
    assert len(newest.hash) == 64


def test_system_and_user_part(tmp_path: Path) -> None:
    body = '--- system ---\nYou are {{ who }}.\n--- user ---\nSay "{{ what }}".\n'
    prompt = load(write(tmp_path, {"ask/v1.md": HEAD.format('"who", "what"') + body})).get("ask")
    rendered = render(prompt, {"who": "brief", "what": "--- system ---"})
    assert (rendered.system, rendered.user) == ("You are brief.", 'Say "--- system ---".')


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("ask/v1.md", "no head", "TOML head"),
        ("ask/v1.md", HEAD.format('"a"') + "{{ b }}", '"b"'),
        ("ask/v1.md", HEAD.format('"a", "b"') + "{{ b }}", '"a"'),
        ("ask/v1.md", HEAD.format("") + "{{ }", "Jinja2"),
        ("ask/v1.md", HEAD.format("").replace("max_tokens", "maxtokens") + "x", "maxtokens"),
        ("ask/v1.md", HEAD.format("").replace("10", '"many"') + "x", "max_tokens"),
        ("ask/v1.md", HEAD.format("").replace("fast", "slow") + "x", '"slow"'),
        ("ask/v1.md", HEAD.format("") + "x\n--- user ---\ny", "nothing before"),
        ("ask/v1.md", HEAD.format("") + "--- user ---\nx\n--- system ---\ny", "--- system ---"),
        ("ask/v01.md", HEAD.format("") + "x", "v<N>.md"),
        ("ask/newest.md", HEAD.format("") + "x", "v<N>.md"),
        ("Ask me/v1.md", HEAD.format("") + "x", "lower-case"),
        ("v1.md", HEAD.format("") + "x", "v<N>.md"),
    ],
)
def test_what_does_not_fit_stops_the_boot(tmp_path: Path, file: str, text: str, says: str) -> None:
    with pytest.raises(PromptError) as caught:
        load(write(tmp_path, {file: text}))
    assert says in str(caught.value)
    assert file in str(caught.value)


@pytest.mark.parametrize("models", ["fast = []", "fast = 1", "fast = [{ provider = 'a' }]", "fast ="])
def test_models_that_do_not_fit(tmp_path: Path, models: str) -> None:
    with pytest.raises(PromptError, match=r"models\.toml"):
        load(write(tmp_path, {}, models))


def test_no_models(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"models\.toml can't be read"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "ticket"),
        ({"ticket": Ticket(), "tickets": 1}, "tickets"),
        ({"ticket": "no struct"}, "subject"),
    ],
)
def test_wrong_variables_are_named_with_prompt_and_file(
    tmp_path: Path, variables: dict[str, object], says: str
) -> None:
    prompt = load(write(tmp_path, {"a/ask/v3.md": HEAD.format('"ticket"') + "{{ ticket.subject }}"})).get("a/ask")
    with pytest.raises(PromptError) as caught:
        render(prompt, variables)
    assert all(each in str(caught.value) for each in (says, "a/ask", "v3.md"))


def test_templates_are_sandboxed(tmp_path: Path) -> None:
    body = "{{ ticket.__class__.__mro__ }}"
    prompt = load(write(tmp_path, {"ask/v1.md": HEAD.format('"ticket"') + body})).get("ask")
    with pytest.raises(PromptError):
        render(prompt, {"ticket": Ticket()})


@pytest.mark.parametrize("name", ["nothing", "tickets/check@9", "tickets/check@new"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(PromptError, match=name.partition("@")[0]):
        load(SHIPPED).get(name)


def test_shipped_aliases() -> None:
    named = {alias: {target.provider for target in chain} for alias, chain in load(SHIPPED).models.items()}
    both = {"anthropic", "openai"}
    assert named == {"fast": both, "smart": both, "local": {"local"}, "embed": {"openai"}}


def test_a_model_has_one_price(tmp_path: Path) -> None:
    priced = '{ provider = "ours", model = "m", usd_per_million = { input = 1, output = %d } }'
    (tmp_path / "models.toml").write_text(f"fast = [{priced % 2}]\nsmart = [{priced % 3}]\n")
    with pytest.raises(PromptError, match="ours m has two prices"):
        load(tmp_path)


def test_limits_of_a_model(tmp_path: Path) -> None:
    one = '{ provider = "p", model = "m", limits = { requests_per_min = 5, concurrency = 2 } }'
    (tmp_path / "models.toml").write_text(f"fast = [{one}]\nsmart = [{one}]\n")
    (target,) = load(tmp_path).chain("fast")
    assert target.limits == Limits(requests_per_min=5, concurrency=2)
    for wrong in ("{ requests_per_min = 0 }", "{ requests = 5 }"):
        (tmp_path / "models.toml").write_text(f'fast = [{{ provider = "p", model = "m", limits = {wrong} }}]\n')
        with pytest.raises(PromptError, match="limits"):
            load(tmp_path)
    (tmp_path / "models.toml").write_text(f'fast = [{one}]\nsmart = [{{ provider = "p", model = "m" }}]\n')
    with pytest.raises(PromptError, match="two limits"):
        load(tmp_path)
