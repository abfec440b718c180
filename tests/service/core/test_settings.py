"""Settings: read once from the environment; a wrong one stops the boot with a sentence that names it."""

import re
import shutil
from pathlib import Path

import pytest

from service.cli.parts import decided
from service.core.declared import complete, variables_of_providers
from service.core.errors import SettingsError
from service.core.settings import Settings, load, variable, variables
from tests.processes import ROOT


def every_variable() -> list[str]:
    providers = variables_of_providers().values()
    return [*variables(), *(name for known in providers for name in (*known.keys, *known.options))]


SECRETS = ("DATABASE_URL", "REDIS_URL", "ANTHROPIC_API_KEY", "OPENAI_API_KEY", "CALLBOARD_API_KEY")


def test_nothing_set_is_the_contract() -> None:
    settings = load({"PATH": "/bin", "HOME": "/nowhere"})
    assert settings == Settings()
    assert (settings.host, settings.port, settings.data_dir) == ("127.0.0.1", 8000, ".callboard")
    assert (settings.url, settings.api_key) == ("http://127.0.0.1:8000", "")
    assert (settings.concurrency, settings.grace_s) == (200, 30)
    assert (settings.body_max, settings.batch_max, settings.result_max) == (1_048_576, 1000, 1_048_576)
    assert (settings.retention_days, settings.dead_retention_days, settings.budget_day_usd) == (30, 90, 5)
    assert (settings.simulate, settings.database_url, settings.redis_url) == ("auto", "", "")


def test_names_have_our_prefix_but_for_those_that_everybody_knows() -> None:
    names = {"CALLBOARD_PORT": "9000", "DATABASE_URL": "postgresql://x", "CALLBOARD_BUDGET_DAY_USD": "0.5"}
    settings = load({**names, "PORT": "1", "HOST": "example.org", "CONCURRENCY": "7"})
    assert (settings.port, settings.host, settings.concurrency) == (9000, "127.0.0.1", 200)
    assert (settings.database_url, settings.budget_day_usd) == ("postgresql://x", 0.5)
    assert (variable("port"), variable("redis_url")) == ("CALLBOARD_PORT", "REDIS_URL")


@pytest.mark.parametrize("name", ["CALLBOARD_PROT", "CALLBOARD_DATABASE_URL", "CALLBOARD_", "CALLBOARD_PROT_FILE"])
def test_an_unknown_name_of_ours(name: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} is not a setting"):
        load({name: "1"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("CALLBOARD_PORT", value) for value in ("http", "-1", "65536", "80.5")),
        *(("CALLBOARD_CONCURRENCY", value) for value in ("0", "many", "1.5")),
        *(("CALLBOARD_BUDGET_DAY_USD", value) for value in ("-1", "five")),
        ("CALLBOARD_SIMULATE", "yes"),
    ],
)
def test_a_value_that_does_not_fit(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}={value} does not fit: "):
        load({name: value})


def test_all_that_is_wrong_is_said_at_once() -> None:
    wrong = {
        "CALLBOARD_PORT": "http",
        "CALLBOARD_PROT": "1",
        "CALLBOARD_POOL": "0",
        "DATABASE_URL": "mysql://u:pw@h/db",
    }
    with pytest.raises(SettingsError) as caught:
        load(wrong)
    lines = str(caught.value).splitlines()
    assert [line.partition(" ")[0] for line in lines] == [
        *("CALLBOARD_PROT", "CALLBOARD_PORT=http", "CALLBOARD_POOL=0", "DATABASE_URL")
    ]
    assert "pw" not in str(caught.value)


def test_empty_is_unset() -> None:
    assert (
        load({"CALLBOARD_PORT": "", "DATABASE_URL": "", "REDIS_URL_FILE": "", "CALLBOARD_SIMULATE": ""}) == Settings()
    )


@pytest.mark.parametrize("value", ["sk-1\n", "sk-1\r\n", "  sk-1", "\tsk-1 \n\n"])
def test_white_space_around_a_value_is_none_of_it(value: str, tmp_path: Path) -> None:
    """`echo key | base64`, a .env with CRLF."""
    (tmp_path / "key").write_text(value, encoding="utf-8")
    assert load({"OPENAI_API_KEY": value}).providers["OPENAI_API_KEY"] == "sk-1"
    assert load({"OPENAI_API_KEY_FILE": f"{tmp_path / 'key'}\n"}).providers["OPENAI_API_KEY"] == "sk-1"
    assert load({"OPENAI_API_KEY": " \r\n", "CALLBOARD_PORT": " 9000\n"}) == Settings(port=9000)


KEYS = [name for name in every_variable() if name.endswith("API_KEY")]


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("inside", ["\n", "\r\n", "\x00", "\x7f", "\t", "é", "\u2028", "\ufeff", "\udce9"])
def test_a_key_that_no_header_can_hold(name: str, inside: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} holds characters that no key has") as error:
        load({name: f"sk-hush{inside}sk-more"})
    assert not {"hush", "more", inside} & {*str(error.value).split(), *str(error.value)}


ADDRESSES = ["OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "AZURE_OPENAI_ENDPOINT", "LOCAL_BASE_URL"]
NO_ADDRESS = [
    "nonsense", "api.openai.com/v1", "ftp://h/", "http://", "https:///v1", "http://:80/", "//h/v1", "http:/h",
    "http://u:hush@", "http://[::1/v1", "http://h:99999/", "http://h:0/", "http://h:port/", "file:///etc/hush",
]  # fmt: skip


@pytest.mark.parametrize("name", [*ADDRESSES, "CALLBOARD_URL"])
@pytest.mark.parametrize("value", NO_ADDRESS)
def test_an_address_that_is_none(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} is no address of a server: ") as error:
        load({name: value})
    assert "hush" not in str(error.value)


@pytest.mark.parametrize(
    "value", ["*", "*.", "http://h/", "10.0.0.1/8", "10.0.0", "a b", "h:80", "*.10.0.0.1", "ü.example"]
)
def test_what_run_web_may_reach_inside_is_read_at_boot(value: str) -> None:
    with pytest.raises(SettingsError, match=r"^CALLBOARD_WEB_ALLOW: '.+' is neither a host's name"):
        load({"CALLBOARD_WEB_ALLOW": f"hooks.internal, {value}"})
    assert load({"CALLBOARD_WEB_ALLOW": "a.b,*.c,10.0.0.0/8,::1"}).web_allow == "a.b,*.c,10.0.0.0/8,::1"


@pytest.mark.parametrize("value", ["http://u:hush@h\n/v1", "http://exa mple/v1", "http://h/\x00", "http://h\u2028/x"])
def test_an_address_with_white_space_inside(value: str) -> None:
    with pytest.raises(SettingsError, match=r"^OPENAI_BASE_URL holds white space or other characters") as error:
        load({"OPENAI_BASE_URL": value})
    assert "hush" not in str(error.value)


@pytest.mark.parametrize(
    "value", ["http://127.0.0.1:8000/v1", "https://[::1]/", "HTTPS://Host/x", "http://u:p@münchen.de"]
)
def test_an_address_that_is_one(value: str) -> None:
    assert load(dict.fromkeys(ADDRESSES, value)).providers["LOCAL_BASE_URL"] == value


def test_each_fault_is_a_sentence_of_its_own() -> None:
    wrong = {"OPENAI_API_KEY": "a\nb", "OPENAI_BASE_URL": "x", "CALLBOARD_PORT": "http", "CALLBOARD_PROT": "1"}
    with pytest.raises(SettingsError) as error:
        load(wrong)
    assert sorted(line.split()[0].partition("=")[0] for line in str(error.value).splitlines()) == sorted(wrong)


def test_a_value_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("postgresql://from-the-file\n", encoding="utf-8")
    assert load({"DATABASE_URL_FILE": str(file)}).database_url == "postgresql://from-the-file"
    assert load({"DATABASE_URL_FILE": str(file), "DATABASE_URL": ""}).database_url == "postgresql://from-the-file"
    assert load({"DATABASE_URL_FILE": str(file), "DATABASE_URL": "postgresql://x"}).database_url == "postgresql://x"
    file.write_text("9000", encoding="utf-8")
    assert load({"CALLBOARD_PORT_FILE": str(file)}).port == 9000
    file.write_bytes(b"\xff")
    for path in (file, tmp_path, tmp_path / "gone"):
        with pytest.raises(SettingsError, match=f"^REDIS_URL_FILE={path} can't be read"):
            load({"REDIS_URL_FILE": str(path)})


def test_a_folder_of_files_by_the_names_of_settings(tmp_path: Path) -> None:
    """As Swarm and Kubernetes mount secrets: the environment comes first, what is not there is unset."""
    texts = {"database_url": "postgresql://folder\n", "mistral_api_key": "sk-1\n", "callboard_port": "9000", "x": "y"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "gemini_api_key").touch()
    folder = {"CALLBOARD_SECRETS_DIR": str(tmp_path)}
    settings = load({**folder, "DATABASE_URL": ""})
    assert (settings.database_url, settings.port, settings.redis_url) == ("postgresql://folder", 9000, "")
    assert settings.providers == {"MISTRAL_API_KEY": "sk-1"}
    assert load({**folder, "DATABASE_URL": "postgresql://x"}).database_url == "postgresql://x"
    (tmp_path / "redis_url").mkdir()
    with pytest.raises(SettingsError, match=r"^REDIS_URL_FILE=.*/redis_url can't be read"):
        load(folder)


@pytest.mark.parametrize("value", ['["OURS_API_KEY"]', '"OURS_API_KEY"', "names()", '("ours_api_key",)'])
def test_keys_that_are_no_tuple_of_names(tmp_path: Path, value: str) -> None:
    (tmp_path / "providers").mkdir()
    (tmp_path / "providers" / "ours.py").write_text(f'"""Ours."""\n\nKEYS = {value}\n')
    where = f"{tmp_path}/providers/ours.py:3"
    with pytest.raises(SettingsError, match=rf"^{where} is no tuple of the names of variables\. Write KEYS = "):
        variables_of_providers(tmp_path)


def test_env_example_is_completed_by_what_files_of_ones_own_name(tmp_path: Path) -> None:
    example, folder = tmp_path / "env.example", tmp_path / "workers"
    shutil.copy(ROOT / "deploy" / "env.example", example)
    for place in ("nodes", "pipelines", "providers"):
        shutil.copytree(ROOT / "workers" / place, folder / place)
    before = example.read_text(encoding="utf-8")
    assert complete(example, folder) == []
    assert example.read_text(encoding="utf-8") == before
    (folder / "providers" / "ours.py").write_text('KEYS = ("OURS_API_KEY",)\n')
    (folder / "nodes" / "crm.py").write_text(
        "class Crm(Settings, frozen=True):\n    crm_url: str\n    crm_token: str\n"
    )
    assert complete(example, folder) == ["CRM_TOKEN", "CRM_URL", "OURS_API_KEY"]
    added = example.read_text(encoding="utf-8").removeprefix(before.rstrip("\n"))
    assert re.findall(r"^# ([A-Z_]+)=$", added, re.MULTILINE) == ["OURS_API_KEY", "CRM_URL", "CRM_TOKEN"]
    assert f"# Crm, {folder}/nodes/crm.py:1\n# CRM_URL=\n" in added
    assert complete(example, folder) == []


def test_no_secret_is_shown(tmp_path: Path) -> None:
    settings = load({name: f"secret-{name}" for name in SECRETS})
    assert settings.database_url == "secret-DATABASE_URL"
    for shown in (repr(settings), str(settings), f"{settings}", f"{[settings]}"):
        assert "secret" not in shown


def test_whose_answers_are_simulated() -> None:
    """Nobody's who did not ask for it, but for those of a `callboard up` on its own database."""
    key, database = {"ANTHROPIC_API_KEY": "k"}, {"DATABASE_URL": "postgresql://db.example/x"}
    assert not load({}).simulated
    assert load({"CALLBOARD_SIMULATE": "on", "CALLBOARD_HOST": "0.0.0.0", **key}).simulated
    assert decided(load({})).simulated
    assert not decided(load(key)).simulated
    assert not decided(load(database)).simulated
    assert not decided(load({"CALLBOARD_SIMULATE": "off"})).simulated
    assert decided(load({"CALLBOARD_SIMULATE": "on", **database})).simulated


def test_every_key_and_every_password_in_an_address_is_a_secret() -> None:
    assert len(KEYS) == 7
    told = load({**{name: f"sk-{name}-value" for name in KEYS}, "LOCAL_BASE_URL": "http://ann:pass-word-1@here/v1"})
    assert {*(f"sk-{name}-value" for name in KEYS), "pass-word-1"} <= set(told.secrets)
