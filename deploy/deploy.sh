#!/usr/bin/env bash
# On your machine: builds the image of what is committed, ships it to a host by ssh, and has host.sh do its work there.
#
#   deploy.sh image                build callboard:VERSION and stop
#   deploy.sh bootstrap HOST       a fresh Debian 13: Docker, /srv/callboard, secrets, the nightly backup
#   deploy.sh ship HOST            build and take it there, into Docker; nothing is started
#   deploy.sh deploy HOST          build, ship, roll out without an outage; the old release serves until the new one is ready
#                                  (or is stopped first, where a migration needs that: deploy/README.md)
#   deploy.sh refresh HOST         deploy, from newer images of Debian, the proxy, Postgres and Redis: their security updates
#   deploy.sh COMMAND HOST …       host.sh COMMAND … there: rollback backup restore-check restore secret rotate status logs
#
# HOST is an ssh address, root@box or somebody who may sudo without a password. BUILD=docker|podman|buildah chooses the
# builder, VERSION= another name for the release, SSH= how to call ssh. If it fails, what it says last is why; the
# old release goes on serving, and running it again is always safe.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SSH=${SSH:-ssh}
VERSION=${VERSION:-$(git rev-parse --short=12 HEAD)}
THERE=/srv/callboard
ARCHIVE=.callboard/deploy/image.tar
export DOCKER_BUILDKIT=1 # a Docker without it says so, where its old builder would stumble over a --mount

stop() { printf 'make deploy: %s\n' "$*" >&2; exit 1; }

builder() {
    if [ -n "${BUILD:-}" ]; then echo "$BUILD"; return; fi
    if docker info >/dev/null 2>&1; then echo docker; return; fi
    for each in podman buildah; do
        if command -v "$each" >/dev/null; then echo "$each"; return; fi
    done
    stop "Building needs Docker (running), podman or buildah on this machine: install one, or name it: BUILD=podman."
}

# What is committed, and a file VERSION; nothing else gets into the image.
build() {
    local engine context=$scratch/context options=(-f deploy/Dockerfile)
    engine=$(builder)
    [ -z "$(git status --porcelain -- schemas prompts sql service workers pyproject.toml requirements.lock)" ] ||
        printf 'Note: there are changes that are not committed; they are not deployed.\n' >&2
    mkdir "$context"
    git archive HEAD schemas prompts sql service workers deploy pyproject.toml requirements.lock | tar -x -C "$context"
    printf '%s\n' "$VERSION" > "$context/VERSION"
    [ "$engine" = docker ] || options+=(--format docker --layers)
    [ -z "${BASE:-}" ] || options+=(--build-arg "BASE=$BASE")
    # A layer that installs packages is otherwise that of the first day, and so is its base.
    [ "$command" != refresh ] || options+=(--pull --no-cache)
    for each in HTTP_PROXY HTTPS_PROXY NO_PROXY; do
        [ -z "${!each:-}" ] || options+=(--build-arg "$each=${!each}")
    done
    if [ -n "${PIP_CERT:-}${PIP_INDEX_URL:-}" ]; then
        { echo "[global]"; [ -z "${PIP_CERT:-}" ] || echo "cert = /run/secrets/ca"
          [ -z "${PIP_INDEX_URL:-}" ] || echo "index-url = $PIP_INDEX_URL"; } > "$scratch/pip.conf"
        options+=(--secret "id=pip,src=$scratch/pip.conf")
        [ -z "${PIP_CERT:-}" ] || options+=(--secret "id=ca,src=$PIP_CERT")
    fi
    echo "Building callboard:$VERSION with $engine."
    (cd "$context" && "$engine" build -q "${options[@]}" -t "localhost/callboard:$VERSION" . >/dev/null)
}

# Not compressed, so that rsync sees what has not changed.
archive() {
    local name=localhost/callboard:$VERSION
    mkdir -p "$(dirname "$ARCHIVE")"
    rm -f "$ARCHIVE"
    case $(builder) in
        docker) docker save -o "$ARCHIVE" "$name" ;;
        podman) podman save -q --format docker-archive -o "$ARCHIVE" "$name" >/dev/null ;;
        buildah) buildah push -q "$name" "docker-archive:$ARCHIVE:$name" ;;
    esac
}

there() { # words for the other side, quoted for its shell
    # shellcheck disable=SC2029
    $SSH "$HOST" "$as $(printf '%q ' "$@")"
}

send() { # FOLDER [OPTIONS] FILES…: into that below /srv/callboard; of a file that is there already only what has changed travels
    rsync -z --chmod=u+rwX,go-rwx -e "$SSH" --rsync-path="$as rsync" "${@:2}" "$HOST:$THERE/$1/"
}

command=${1:-}
HOST=${2:-}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ "$command" = image ]; then
    build
    exit
fi
if [ -z "$HOST" ]; then stop "Say where: make ${command:-deploy} HOST=root@box"; fi
# shellcheck disable=SC2016
as=$($SSH "$HOST" 'test "$(id -u)" = 0 || echo sudo -n') || stop "No way to $HOST by \`$SSH $HOST\`."
shift 2
case $command in
    bootstrap)
        # shellcheck disable=SC2029
        $SSH "$HOST" "$as bash -s" < deploy/bootstrap.sh
        send . deploy/host.sh deploy/compose.yaml Caddyfile
        there "$THERE/host.sh" prepare
        ;;
    ship | deploy | refresh)
        there test -x "$THERE/host.sh" || stop "$HOST is not prepared: make bootstrap HOST=$HOST, once."
        build
        archive
        there flock -n "$THERE/lock" true || { echo "Another one is at work: $(there cat "$THERE/lock"). Nothing was changed."; exit 75; }
        echo "Shipping it to $HOST."
        send . --inplace "$ARCHIVE"
        send . deploy/host.sh
        case $command in
            ship)
                send . deploy/swarm/stack.yaml Caddyfile
                there docker load -q -i "$THERE/image.tar"
                ;;
            *)
                send next deploy/compose.yaml Caddyfile
                there "$THERE/host.sh" "$command" "$VERSION"
                ;;
        esac
        ;;
    secret)
        name=${1:-}
        { [[ $name =~ ^[a-z][a-z0-9_]*$ ]] && { grep -qE "^OURS=.*[\" ]${name}[\" ]" deploy/host.sh ||
            grep -rq "\"${name^^}\"" workers/providers || grep -rqE "^    $name:" workers/nodes workers/pipelines; }; } ||
            stop "Nothing names the secret $name: no KEYS of workers/providers/, no Settings of yours; ours are $(sed -n 's/^OURS=//p' deploy/host.sh)."
        there "$THERE/host.sh" secret "$name"
        ;;
    *)
        there "$THERE/host.sh" "$command" "$@"
        ;;
esac
