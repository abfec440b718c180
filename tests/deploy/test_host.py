"""The machine itself: what a container may do, where secrets are, new ones, a power cut, a backup."""

import re
from pathlib import Path
from typing import Final

import pytest

from tests.deploy.host import THERE, Host, run, until
from tests.deploy.product import SECRET, Product, containers, curl, key, live, load, query, send_nap, served, succeeded

pytestmark = pytest.mark.host

IMAGE_BYTES_MAX: Final = 200_000_000


def test_a_container_may_do_nothing_that_it_need_not(host: Host, product: Product) -> None:
    for name in (live(host), containers(host, "worker")[0]):
        process = host.ssh(f"docker exec {name} cat /proc/self/status")
        assert re.search(r"^Uid:\s+10001\s+10001", process, re.MULTILINE)
        assert re.search(r"^CapBnd:\s+0+$", process, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\s+1$", process, re.MULTILINE)
        assert "Read-only file system" in host.ssh(f"docker exec {name} touch /app/x 2>&1 || true")
        assert host.ssh(f"docker exec {name} getent hosts host.docker.internal")
    image = f"localhost/callboard:{served(host)}"
    assert int(host.ssh(f"docker image inspect -f '{{{{.Size}}}}' {image}")) < IMAGE_BYTES_MAX
    listening = set(re.findall(r":(\d+) ", host.ssh("ss -Hltn 'not src 127.0.0.0/8' | awk '{print $4 \" \"}'")))
    assert listening == {"22", "80", "443"}


def test_the_compose_file_is_whole(host: Host, product: Product) -> None:
    """With the settings of this machine, and without any."""
    for options in ("--env-file settings --profile green --profile tool", "--env-file /dev/null"):
        assert host.ssh(f"cd {THERE} && docker compose {options} config -q 2>&1") == ""


def test_secrets_are_files_and_nothing_else(host: Host, product: Product) -> None:
    secrets = [
        SECRET,
        key(host),
        *(host.ssh(f"cat {THERE}/secrets/{name}_password").strip() for name in ("postgres", "redis")),
        *host.ssh(f"cat {THERE}/secrets/database_url | sed 's/.*:\\(.*\\)@.*/\\1/'").split(),
    ]
    shown = host.ssh(
        "docker inspect $(docker ps -aq); docker history --no-trunc $(docker image ls -q localhost/callboard);"
        f"ps axeww; for each in $(docker ps -aq); do docker logs $each 2>&1; done; cat {THERE}/log; journalctl -b"
    )
    tracked = product.git("grep", "-h", "", "HEAD", "--", ".")
    assert [secret for secret in secrets if secret in shown or secret in tracked] == []
    assert host.ssh(f"stat -c %a {THERE} {THERE}/secrets").split() == ["700", "700"]
    assert curl(host, "/types") == "200", "the secrets are those in use"


def test_new_passwords_and_keys_fail_nobody(host: Host, product: Product) -> None:
    """Twice, since the roles of Postgres take turns."""
    old_key, old = key(host), passwords(host)
    with load(host):
        product.make("rotate", "NAME=postgres redis")
    between = passwords(host)
    assert query(host, RUNNERS) == "callboard_a|callboard_runner|f"
    assert [may(host, old), may(host, between)] == [["no", "no"], ["1", "PONG"]]
    product.make("rotate", "NAME=redis postgres api_key")
    assert [may(host, old), may(host, between), may(host, passwords(host))] == [["no", "no"]] * 2 + [["1", "PONG"]]
    assert curl(host, "/types") == "200"
    until(lambda: curl(host, "/types", known=old_key) == "401", 10)


RUNNERS: Final = (
    "select m.member::regrole, m.roleid::regrole, r.rolsuper from pg_auth_members m join pg_roles r on r.oid = m.member"
    " where r.rolcanlogin"
)


def passwords(host: Host) -> list[str]:
    """An address of Postgres, and a password of Redis."""
    return host.ssh(
        f"cd {THERE}/secrets && sed 's/@postgres/@127.0.0.1/' database_url; echo; cat redis_password"
    ).split()


def may(host: Host, given: list[str]) -> list[str]:
    """What Postgres and Redis answer to these."""
    asked = (
        f"docker exec callboard-postgres-1 psql {given[0]} -Atc 'select 1' 2>&1 || true",
        f"docker exec -e REDISCLI_AUTH={given[1]} callboard-redis-1 redis-cli ping 2>&1 || true",
    )
    return [told if (told := host.ssh(each).strip()) in ("1", "PONG") else "no" for each in asked]


def test_after_a_power_cut_it_serves_again_by_itself(host: Host, product: Product) -> None:
    version, events = served(host), query(host, "select count(*) from events")
    slow = send_nap(host, 3.0)
    host.cut_power()
    host.boot()
    until(lambda: curl(host, "/types") == "200", 60)
    assert served(host) == version
    assert int(query(host, "select count(*) from events")) == int(events) + 1
    succeeded(host, slow)


def test_a_backup_is_whole_and_comes_back_without_redis(host: Host, product: Product) -> None:
    vectors = "('kept', 'a', 'a', '[1,2,3]'), ('kept', 'b', 'b', '[3,2,1]')"
    query(host, f"insert into documents (collection, id, text, embedding) values {vectors}")
    product.make("backup")
    kept = query(host, "select count(*) from events")
    assert "search: ok" in product.make("restore-check")
    late = send_nap(host, 0.0)
    dump = host.ssh(f"cd {THERE} && find backups -name '*.dump' | sort | tail -n 1").strip()
    host.ssh(f"{THERE}/host.sh restore {dump}", timeout_s=180)
    assert query(host, "select count(*) from events") == kept
    assert query(host, f"select count(*) from events where event_id = '{late}'") == "0"
    succeeded(host, send_nap(host, 0.1))


def test_the_nightly_backup_is_tried_and_copied_elsewhere(host: Host, product: Product, tmp_path: Path) -> None:
    host.ssh("systemctl start callboard-backup")
    assert "search: ok" in host.ssh("systemctl status callboard-backup || true")
    run("rsync", "-a", "-e", host.ssh_command, f"box:{THERE}/backups/", f"{tmp_path}/")
    dumps = host.ssh(f"cd {THERE}/backups && cksum *.dump").splitlines()
    assert dumps
    assert run("sh", "-c", "cksum *.dump", cwd=tmp_path).splitlines() == dumps
