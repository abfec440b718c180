"""deploy/kubernetes and deploy/swarm fit the programs that they start. Their form is what `make deploy-test` asks."""

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from starlette.routing import Route

from service.core.declared import variables_of_providers
from service.core.settings import Settings, load, variables
from service.http.app import create_app

DEPLOY: Final = Path(__file__).parent.parent / "deploy"
MANIFESTS: Final[list[dict[str, Any]]] = [
    manifest
    for file in sorted(DEPLOY.glob("kubernetes/*.yaml"))
    for manifest in yaml.safe_load_all(file.read_text("utf-8"))
]
SETTINGS: Final = dict(next(manifest["data"] for manifest in MANIFESTS if manifest["kind"] == "ConfigMap"))
COMPOSE: Final = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
STACK: Final = yaml.safe_load((DEPLOY / "swarm/stack.yaml").read_text("utf-8"))
OF_PROVIDERS: Final = [name for known in variables_of_providers().values() for name in (*known.keys, *known.options)]
PODS: Final = {
    manifest["metadata"]["name"]: manifest["spec"]["template"]
    for manifest in MANIFESTS
    if "template" in manifest.get("spec", {})
}


def container(name: str) -> dict[str, Any]:
    found: dict[str, Any]
    (found,) = PODS[name]["spec"]["containers"]
    return found


def environment(name: str) -> dict[str, str]:
    own = {setting["name"]: setting["value"] for setting in container(name).get("env", [])}
    return (SETTINGS if "envFrom" in container(name) else {}) | own


def test_what_is_named_is_there() -> None:
    assert {*PODS} == {"api", "worker", "migrate-VERSION"}
    for each in MANIFESTS:
        selector = each.get("spec", {}).get("selector", {})
        if labels := selector.get("matchLabels", selector):
            assert labels in [pod["metadata"].get("labels") for pod in PODS.values() if "metadata" in pod], each
    services = {manifest["metadata"]["name"] for manifest in MANIFESTS if manifest["kind"] == "Service"}
    (rule,) = next(manifest["spec"]["rules"] for manifest in MANIFESTS if manifest["kind"] == "Ingress")
    leads = {path["path"]: path["backend"]["service"]["name"] for path in rule["http"]["paths"]}
    assert {*leads.values()} == services
    (inside,) = re.findall(r"@inside path (.*)", (DEPLOY.parent / "Caddyfile").read_text("utf-8"))
    assert leads == {"/": "api"} | dict.fromkeys(inside.replace("*", "").split(), "nowhere")


@pytest.mark.parametrize("name", PODS)
def test_a_pod_may_do_nothing_that_it_need_not(name: str) -> None:
    spec, it = PODS[name]["spec"], container(name)
    uid = int(re.findall(r"^USER (\d+)", (DEPLOY / "Dockerfile").read_text("utf-8"), re.MULTILINE)[0])
    assert spec["automountServiceAccountToken"] is False
    # Of a Service `callboard` it would make CALLBOARD_PORT=tcp://…, which is no port.
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": uid, "runAsGroup": uid, "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    assert it["securityContext"] == {
        "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert it["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", PODS)
def test_its_settings_are_ours_and_its_secrets_are_files(name: str, tmp_path: Path) -> None:
    environ = environment(name)
    (mounted,) = [mount["mountPath"] for mount in container(name)["volumeMounts"] if mount["name"] == "secrets"]
    paths = {key: Path(value) for key, value in environ.items() if key.endswith("_FILE")}
    folder = environ.get("CALLBOARD_SECRETS_DIR")
    assert {*(path.parent for path in paths.values()), *filter(None, [folder and Path(folder)])} == {Path(mounted)}
    for key, path in paths.items():
        assert key == f"{path.name}_FILE".upper()
    for each in ("database_url", "redis_url", "anthropic_api_key"):
        (tmp_path / each).write_text("postgresql://given", "utf-8")
    (tmp_path / "database_owner_url").write_text("postgresql://given", "utf-8")
    moved = {key: value.replace(mounted, str(tmp_path)) for key, value in environ.items()}
    assert load(moved).database_url == "postgresql://given"
    ours = {*variables(), *OF_PROVIDERS}
    assert {key.removesuffix("_FILE") for key in environ} <= ours | {"FORWARDED_ALLOW_IPS"}


def test_the_owner_of_the_database_is_known_to_who_migrates_alone() -> None:
    secrets = {
        name: {match for volume in pod["spec"]["volumes"] for match in re.findall(r"callboard[a-z-]*", str(volume))}
        for name, pod in PODS.items()
    }
    assert {name for name, named in secrets.items() if "callboard-owner" in named} == {"migrate-VERSION"}
    assert {name for name in PODS if "DATABASE_OWNER_URL_FILE" in environment(name)} == {"migrate-VERSION"}
    assert "database_owner_url" not in str(STACK)


def test_it_runs_what_compose_runs_and_gives_it_as_long() -> None:
    services = COMPOSE["services"]
    for name, like in (("api", "web-blue"), ("worker", "worker"), ("migrate-VERSION", "tool")):
        assert container(name)["command"] == services[like]["command"]
    assert container("worker")["readinessProbe"]["exec"]["command"] == services["worker"]["healthcheck"]["test"][1:]
    grace_s = int(SETTINGS["CALLBOARD_GRACE_S"])
    lame_duck_s = int(environment("api")["CALLBOARD_LAME_DUCK_S"])
    assert PODS["api"]["spec"]["terminationGracePeriodSeconds"] >= lame_duck_s + grace_s + 5
    assert PODS["worker"]["spec"]["terminationGracePeriodSeconds"] >= grace_s + 10


def test_the_probes_ask_what_the_api_answers() -> None:
    app = create_app(Settings(database_url="postgresql://none", redis_url="redis://none"))
    routes = {route.path for route in app.routes if isinstance(route, Route)}
    (port,) = container("api")["ports"]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container("api")[kind]["httpGet"]
        assert asked["path"] in routes
        assert asked["port"] == port["name"]
    assert str(port["containerPort"]) == environment("api")["CALLBOARD_PORT"]


@pytest.mark.parametrize(("name", "like"), [("proxy", "proxy"), ("api", "web-blue"), ("worker", "worker")])
def test_a_service_of_the_stack_is_as_in_compose(name: str, like: str) -> None:
    service, known = STACK["services"][name], COMPOSE["services"][like]
    same = ("command", "read_only", "cap_drop", "cap_add", "init", "logging", "stop_grace_period")
    assert {each: service.get(each) for each in same} == {each: known.get(each) for each in same}
    ours = {*variables(), *OF_PROVIDERS, "FORWARDED_ALLOW_IPS"}
    asked = set(re.findall(r"{\$(\w+):", (DEPLOY.parent / "Caddyfile").read_text("utf-8")))
    given = {key.removesuffix("_FILE") for key in service["environment"]}
    assert given <= (asked if name == "proxy" else ours)
    secrets = {secret["source"] if name == "proxy" else secret for secret in service["secrets"]}
    assert secrets <= STACK["secrets"].keys()
    assert "CALLBOARD_SECRETS_DIR" not in service["environment"], "the release before would refuse it"
