#!/usr/bin/env bash
# On the host, as root, in /srv/callboard: does what `make COMMAND HOST=…` asks for. deploy.sh puts it here.
#
#   deploy VERSION · refresh VERSION · rollback · status · logs [-f] · backup · restore-check [FILE] · restore FILE · scale WORKERS
#   secret NAME <value · rotate postgres|redis|api_key … · upgrade-postgres IMAGE
#   callboard …    the command line against what serves now, with the first key
#
# Kept here: settings (yours), secrets/ (a file each), certs/ (tls.crt, tls.key), backups/, log, and `releases`, a line for each
# switch: when, version, colour. Its last line is what serves. Nothing else is remembered: what was cut off is run again.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
umask 077

SETTLE_S=5 # the proxy looks every second; a look that began before what changed takes three at most, and says what was
KEEP_IMAGES=3
KEEP_BACKUPS=14
REPOSITORY=localhost/callboard
SERVER=callboard-postgres-1
NEXT=callboard-postgres-next # while Postgres is upgraded
DUMP=''
# Empty ones count as not set. What else there is belongs to providers and to the user's own nodes, and is in secrets/app.
# 0.1 wants each of these files; a rollback may start it again.
OF_0_1="app/anthropic_api_key app/openai_api_key app/azure_openai_api_key app/azure_openai_endpoint app/gemini_api_key
    app/mistral_api_key app/local_base_url app/local_api_key app/page_url"
OURS="api_key database_url database_owner_url redis_url postgres_ca redis_ca postgres_password redis_password"

say() { printf '%s  %s\n' "$(date -u +%T)" "$*"; }
stop() { say "STOPPED: $*" >&2; exit 1; }

setting() { # NAME DEFAULT
    local value
    value=$(sed -n "s/^$1=//p" settings | tail -n 1)
    printf '%s' "${value:-$2}"
}
serving() { # version|colour
    tail -n 1 releases 2>/dev/null | cut -d ' ' -f "$([ "$1" = version ] && echo 2 || echo 3)"
}
compose() {
    local from=${FROM:-.}
    IMAGE=${IMAGE:-$REPOSITORY:$(serving version)} LIVE=web-$(serving colour) CADDYFILE=$from/Caddyfile COMPOSE_PROFILES=green,tool \
        CADDYFILE_SUM=$(cksum < "$from/Caddyfile") \
        docker compose --progress quiet --env-file settings --project-directory . -f "$from/compose.yaml" "$@"
}
# It reads its caller's stdin to the end, in a pipe or a loop what others were to read: there give it /dev/null.
tool() { compose run --rm -T --no-deps tool "$@"; }
in_postgres() { docker exec -i "$SERVER" "$@"; }
query() { in_postgres psql -qXAt -v ON_ERROR_STOP=1 -U callboard "$@"; }
managed() { [ "$(setting SERVERS here)" = elsewhere ]; }
give() { install -m 0444 /dev/stdin "secrets/$1.new" && mv "secrets/$1.new" "secrets/$1"; } # NAME <value
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

prepare() {
    mkdir -p secrets certs backups
    # Until 0.1 each was mounted by itself, and the release that serves may still have it so.
    [ -d secrets/app ] || { install -d -m 0755 secrets/app; cp -p secrets/{*_api_key,*_base_url,*_endpoint,page_url} secrets/app 2>/dev/null || true; }
    touch settings releases
    [ -s secrets/redis_password ] || write_redis "$(random)"
    [ -s secrets/postgres_password ] || { write_owner "$(random)"; write_runner callboard_runner "$(random)"; }
    for each in $OURS $OF_0_1; do [ -e "secrets/$each" ] || give "$each" </dev/null; done
}

write_redis() { # PASSWORD
    printf '%s' "$1" | give redis_password
    printf 'redis://:%s@redis:6379/0' "$1" | give redis_url
}
# Who migrates owns all and is the server's administrator; whom the programs run as reads and writes rows.
write_owner() { # PASSWORD
    printf '%s' "$1" | give postgres_password
    postgres_url callboard "$1" | give database_owner_url
}
write_runner() { postgres_url "$1" "$2" | give database_url; } # USER PASSWORD
postgres_url() { printf 'postgresql://%s:%s@postgres:5432/callboard' "$1" "$2"; }

first_key() {
    local key
    key=$(tool callboard keys create --name first --scope ingest --scope read --scope operate)
    printf '%s' "$key" | give api_key
}

# -- New passwords: the servers take the new one beside the old one until the release has started anew with it. None gets into
# an argument list of a program.

rotate() { # postgres|redis|api_key …
    local each old
    for each in "$@"; do
        case $each in
            postgres | redis)
                ! managed || stop "$each is elsewhere: change it there, then \`make secret\` and \`make deploy\`."
                "add_$each" "$(random)"
                ;;
            api_key)
                old=$(head -c 11 secrets/api_key)
                first_key
                tool callboard keys revoke "$old"
                ;;
            *) stop "What? One or more of: postgres redis api_key" ;;
        esac
    done
    case $* in *postgres* | *redis*) roll_out "$(serving version)" ;; esac
    for each in "$@"; do [ "$each" = api_key ] || "keep_$each"; done
}

# A role has one password, so there are two that take turns and act as callboard_runner. As the owner nobody is connected.
turn() { if grep -q callboard_a: secrets/database_url; then echo callboard_b; else echo callboard_a; fi; }
add_postgres() { # PASSWORD
    local user
    hand_over
    user=$(turn)
    query -d postgres <<<"drop role if exists $user; create role $user login password '$1' in role callboard_runner;
        alter role $user set role callboard_runner"
    write_runner "$user" "$1"
    renew_owner
}
renew_owner() {
    local password
    password=$(random)
    query -d postgres <<<"alter role callboard password '$password'"
    write_owner "$password"
}
keep_postgres() {
    query -d postgres <<<"drop role if exists $(turn); alter role callboard_runner password null"
}
add_redis() { # PASSWORD
    redis_does "acl setuser default >$1"
    write_redis "$1"
}
keep_redis() { redis_does "acl setuser default resetpass >$(cat secrets/redis_password)"; }
redis_does() { # COMMAND
    local told
    told=$(printf 'auth %s\n%s\n' "$(cat secrets/redis_password)" "$1" | compose exec -T redis redis-cli)
    [ "$told" = $'OK\nOK' ] || stop "Redis says: $told. \`docker restart callboard-redis-1\` gives it the password in secrets."
}

# -- On a host of 0.1 one role did everything. The programs' own is a member of it until `callboard migrate` has given it its
# rights: whatever starts meanwhile, of whichever release, can go on under the new name.

hand_over() {
    local former password
    if managed || [ -s secrets/database_owner_url ]; then return; fi
    say "The programs get a role of their own in Postgres, which owns nothing."
    former=$(cat secrets/database_url) password=$(random)
    query -d postgres <<<"drop role if exists callboard_runner; create role callboard_runner login password '$password' in role callboard"
    write_runner callboard_runner "$password"
    # The owner's address comes last: where it stands, all this was done.
    case $former in
        *//callboard:*) printf '%s' "$former" | give database_owner_url ;;
        *) renew_owner ;;
    esac
}
members() { # of the owner, one a line: callboard_runner on its way, and the roles that a rotation had made before
    managed || query -d postgres -c "select member::regrole from pg_auth_members where roleid = 'callboard'::regrole"
}

# -- A release ---------------------------------------------------------------------------------------------------

address() { docker inspect -f '{{(index .NetworkSettings.Networks "callboard_back").IPAddress}}:8000' "$1"; }
asks() { # URL with the first key, which gets into no argument list
    curl -fsS -m 5 -H @<(printf 'Authorization: Bearer %s\n' "$(cat secrets/api_key)") "$@"
}
ready() { curl -fsS -m 3 "http://$(address "$1")/readyz"; }
healthy() { timeout 15 docker exec "$1" python3 -m workers health; }

wait_for() { # TEST CONTAINER
    local end=$((SECONDS + $(setting READY_S 90)))
    until "$1" "$2" >/dev/null 2>&1; do
        if [ "$SECONDS" -ge "$end" ] || docker inspect -f '{{.RestartCount}} {{.State.Status}}' "$2" | grep -Eq '^([3-9]|0 exited)'; then
            docker logs --tail 20 "$2" >&2
            "$1" "$2" >&2 || true
            stop "$(docker inspect -f '{{.Name}}' "$2") of this release is not $1: see its last lines above."
        fi
        sleep 0.5
    done
}

smoke() { # CONTAINER VERSION
    local base
    base=http://$(address "$1")
    curl -fsS -m 5 "$base/healthz" | grep -qF "\"version\":\"$2\"" || stop "It serves another version than $2."
    for each in /types '/events?limit=1' /workers; do
        asks "$base$each" >/dev/null || stop "GET $each fails in the new release."
    done
}

abort() {
    [ "$?" != 0 ] || return 0
    # shellcheck disable=SC2086
    { [ -z "$candidate" ] || docker rm -f $candidate; [ -z "$workers" ] || { docker stop $workers; docker rm $workers; }; } >/dev/null
    [ -z "$stopped" ] || go_back >&2
    say "Aborted; $(serving version | grep . || echo 'what was there') goes on serving." >&2
}

# -- A migration that begins with `-- stop:` changes what the release before reads and writes: that one runs neither beside it
# nor behind it.

in_image() { docker run --rm --network none "$REPOSITORY:$1" sh -c "cd sql/migrations && $2"; } # VERSION COMMAND
lacking() { # VERSION OTHER: of the migrations of OTHER that need a stop those that VERSION has not, so that it can't run behind them
    in_image "$2" 'grep -l "^-- stop: " *.sql || true' | grep -vxFf <(in_image "$1" ls) || true
}
need_stop() { tool callboard migrate --dry-run </dev/null | sed -n 's/ stop$//p'; }
check_schema() { # VERSION
    local changes
    [ -n "$(serving version)" ] || return 0
    changes=$(lacking "$1" "$(serving version)" | xargs)
    [ -z "$changes" ] || stop "$1 can't run on the schema that is there: $changes changed what it reads and writes, and nothing migrates down." \
        "Nothing was touched. Mend the fault in a release of today and deploy that."
}
all_stop() { # MIGRATIONS
    say "All stop: $1 changes what $(serving version) reads and writes. From here on the proxy answers 503, and nothing runs."
    stopped=$SECONDS
    compose stop "web-$live" worker
}
go_back() { # to what was stopped. The backup was made behind the stop, so it has all but what new workers did
    local changes
    changes=$(lacking "$(serving version)" "${IMAGE##*:}" | grep -vxFf <(need_stop) | xargs || true)
    if [ -n "$changes" ]; then
        if [ -z "$DUMP" ] || [ -n "$workers" ]; then
            say "NOTHING SERVES: $changes has run, and $(serving version) can't run behind it. Deploy a release that starts; or, if what its" \
                "workers did may be lost, \`make restore\` the backup before it: then $(serving version) serves."
            exit 1
        fi
        say "The database as it was: $DUMP."
        fill restored "$DUMP"
        put_in_place
        [ -z "$member" ] || query -d postgres -c 'grant callboard to callboard_runner'
    fi
    IMAGE=$REPOSITORY:$(serving version)
    go_on
    say "Nothing was taken in for $((SECONDS - stopped)) s."
}

# What was shipped is tried before anything is touched: a proxy and a worker that could not start would be missed later.
take() { # VERSION
    local told
    docker load -q -i image.tar >/dev/null
    prepare # the release before had fewer secrets
    told=$(FROM=./next compose run --rm -T --no-deps proxy caddy validate --adapter caddyfile --config /etc/caddy/Caddyfile 2>&1) ||
        stop "The proxy would not start with this Caddyfile and these settings: $(tail -n 1 <<<"$told")"
    told=$(FROM=./next IMAGE=$REPOSITORY:$1 tool timeout 120 python3 -m workers check 2>&1) ||
        stop "A worker would not start (a provider's key is given by \`make secret\`). $(tail -n 1 <<<"$told")"
    mv next/* .
    roll_out "$1"
}

# Under the names that the settings have; one with a digest stays what it is.
refresh() { # VERSION
    local servers=(proxy) each name
    managed || servers+=(postgres redis)
    for each in "${servers[@]}"; do
        name=$(FROM=./next compose config --images "$each")
        docker pull -q "$name" >/dev/null || stop "There is no $name to be had; nothing was changed."
        say "$each: $(docker image inspect -f '{{index .RepoDigests 0}}' "$name")"
    done
    take "$1"
}

roll_out() { # VERSION
    local idle pending changes old_workers
    export IMAGE=$REPOSITORY:$1
    candidate='' workers='' stopped=''
    docker image inspect "$IMAGE" >/dev/null 2>&1 || stop "There is no image of $1 here any more: git checkout $1 && make deploy HOST=… ships it."
    [ "$(docker run --rm --network none "$IMAGE" cat VERSION)" = "$1" ] || stop "The image named $1 holds another version."
    check_schema "$1"
    live=$(serving colour)
    idle=blue
    [ "$live" != blue ] || idle=green
    trap abort EXIT

    say "Servers."
    managed || { compose up -d --no-deps --wait postgres redis; forget_next; }
    hand_over
    pending=$(tool callboard migrate --dry-run)
    member=$(members | grep -x callboard_runner || true)
    # Not by what is pending: where a deployment was cut off behind such a migration, what is stopped must not start again.
    changes=$([ -z "$live" ] || lacking "$(serving version)" "$1" | xargs)
    [ -z "$changes" ] || all_stop "$changes"
    if [ -n "$pending" ]; then
        [ -z "$live" ] || backup "before-$1"
        say "Migrations: $pending."
    fi
    [ -z "$pending$member" ] || tool callboard migrate >/dev/null
    [ -s secrets/api_key ] || first_key

    say "web-$idle starts, out of the proxy's sight."
    compose rm -sf "web-$idle" >/dev/null 2>&1
    compose up --no-start --no-deps "web-$idle"
    candidate=$(compose ps -aq "web-$idle")
    docker network disconnect callboard_edge "$candidate"
    docker start "$candidate" >/dev/null
    wait_for ready "$candidate"
    smoke "$candidate" "$1"

    old_workers=$(compose ps -aq worker)
    if [ -z "$stopped" ]; then
        say "Its workers start beside the old ones."
    else
        say "Its workers start."
        # shellcheck disable=SC2086
        [ -z "$old_workers" ] || docker rm $old_workers >/dev/null # or they would start again
        old_workers=''
    fi
    compose up -d --no-deps --no-recreate --scale "worker=$(($(wc -w <<<"$old_workers") + $(setting WORKERS 1)))" worker
    workers=$(comm -13 <(sort <<<"$old_workers") <(compose ps -aq worker | sort))
    for each in $workers; do wait_for healthy "$each"; done

    say "Switch to web-$idle."
    docker network connect --alias "web-$idle" callboard_edge "$candidate"
    compose up -d --no-deps proxy
    sleep "$SETTLE_S"
    printf '%s %s %s\n' "$(date -u +%FT%TZ)" "$1" "$idle" >> releases
    trap - EXIT

    if [ -z "$stopped" ]; then
        say "The old release finishes what it has in hand."
    else
        say "Nothing was taken in and nothing ran for $((SECONDS - stopped)) s."
    fi
    # shellcheck disable=SC2046,SC2086
    set -- "$1" $([ -z "$live" ] || compose ps -aq "web-$live") $old_workers
    if [ $# -gt 1 ]; then docker stop "${@:2}" >/dev/null; docker rm "${@:2}" >/dev/null; fi
    for each in $(members | grep -vx callboard_runner); do query -d postgres -c "drop role $each"; done
    forget_images
    through_proxy || stop "$1 is deployed, but the proxy does not answer: \`make logs HOST=… ARGS=proxy\` (a certificate?)."
    say "$1 serves."
}

through_proxy() {
    local site port
    site=$(setting SITE localhost)
    port=$(setting HTTPS_PORT 443)
    asks -k --retry 10 --retry-all-errors --retry-delay 1 --resolve "$site:$port:127.0.0.1" "https://$site:$port/types" >/dev/null
}

forget_images() {
    local kept
    kept=$(tac releases | cut -d ' ' -f 2 | awk '!seen[$0]++' | head -n "$KEEP_IMAGES")
    docker image ls --format '{{.Tag}}' "$REPOSITORY" | { grep -vxF "$kept" || true; } | while read -r each; do
        docker image rm "$REPOSITORY:$each" >/dev/null || true
    done
}

# -- Backups -----------------------------------------------------------------------------------------------------

backup() { # WHY
    ! managed || { say "Postgres is elsewhere: its backups are there too."; return; }
    DUMP=backups/$(date -u +%Y%m%dT%H%M%SZ)-${1:-nightly}.dump
    in_postgres pg_dump -U callboard -Fc callboard > "$DUMP.part"
    mv "$DUMP.part" "$DUMP"
    find backups -name '*.dump' | sort -r | tail -n "+$((KEEP_BACKUPS + 1))" | xargs -r rm
    say "Backup: $DUMP, $(du -h "$DUMP" | cut -f 1)."
}

latest() { find backups -name '*.dump' | sort | tail -n 1; }

fill() { # DATABASE FILE: from nothing
    in_postgres dropdb -U callboard --if-exists --force "$1"
    in_postgres createdb -U callboard "$1"
    in_postgres pg_restore -U callboard -d "$1" --exit-on-error < "$2"
}

restore_check() { # [FILE]
    ! managed || { say "Postgres is elsewhere: its backups are there too."; return; }
    local file=${1:-$(latest)} found
    [ -n "$file" ] || stop "There is no backup yet: make backup HOST=…"
    fill scratch "$file"
    # The nearest document to one of them must be that one: the vectors are there and the extension works.
    found=$(query -d scratch <<'SQL'
select format('%s migrations, %s events, %s documents; search: %s',
    (select count(*) from migrations), (select count(*) from events), (select count(*) from documents),
    coalesce((select case when found.id = wanted.id or found.far < 1e-6 then 'ok' else 'WRONG' end
        from (select * from documents order by written_at desc limit 1) as wanted, lateral (
            select each.id, each.embedding <=> wanted.embedding as far from documents as each
            where (each.tenant, each.collection) = (wanted.tenant, wanted.collection)
            order by far, each.id = wanted.id desc limit 1) as found), 'nothing to find'))
SQL
)
    in_postgres dropdb -U callboard --force scratch
    say "$file: $found"
    case $found in 0\ * | *WRONG) stop "This backup is not whole." ;; esac
}

put_in_place() { # the database `restored`; nobody is connected to the one that is there, which is kept as callboard_before
    in_postgres dropdb -U callboard --if-exists --force callboard_before
    query -1 -d postgres -c 'alter database callboard rename to callboard_before' -c 'alter database restored rename to callboard'
}

restore() { # FILE: the database as it was then, an empty Redis; what is there now is kept as callboard_before
    [ -f "${1:-}" ] || stop "Which? $(find backups -name '*.dump' | sort | tail -n 5 | tr '\n' ' ')"
    fill restored "$1"
    say "All stop. From here to the end nothing is taken in."
    compose stop "web-$(serving colour)" worker
    put_in_place
    compose rm -sf redis >/dev/null
    docker volume rm callboard_redis >/dev/null
    compose up -d --no-deps --wait redis
    tool callboard migrate >/dev/null # of before the release that serves, or of before there were two roles
    go_on
    say "$1 is what there is now; the database before it is callboard_before, drop it when you don't need it."
}

# The files of one major version can't be read by another: all goes over by a dump, roles too, into a server beside the old one,
# on a volume of its own. Two lines in `settings`, written at once, make it the one that counts. Cut off before them, the old one
# still does; behind them, the new one. The container $NEXT is there from the beginning to the end, for the next command to see.
upgrade_postgres() { # IMAGE
    ! managed || stop "Postgres is elsewhere: it is upgraded there."
    local image=${1:-} before volume roles
    [ -n "$image" ] || stop "To which one? docker.io/pgvector/pgvector:pg18, say."
    grep -q POSTGRES_VOLUME compose.yaml || stop "The compose.yaml here is older than this command: \`make deploy\` first."
    docker image inspect "$image" >/dev/null 2>&1 || docker pull -q "$image" >/dev/null
    compose up -d --no-deps --wait postgres
    if [ "$image" != "$(setting POSTGRES_IMAGE '')" ]; then
        forget_next
        stopped=''
        trap not_upgraded EXIT
        before=$(setting POSTGRES_VOLUME callboard_postgres) volume=callboard_postgres_$(date -u +%Y%m%dT%H%M%SZ)
        POSTGRES_IMAGE=$image POSTGRES_VOLUME=$volume compose run -d --no-deps --name "$NEXT" postgres >/dev/null
        wait_for accepting "$NEXT"
        say "All stop. From here to the end nothing is taken in."
        stopped=true
        compose stop "web-$(serving colour)" worker
        backup before-upgrade
        roles=$(in_postgres pg_dumpall -U callboard --roles-only)
        SERVER=$NEXT in_postgres psql -qX -U callboard -d postgres <<<"$roles" >/dev/null 2>&1 # callboard is there already
        SERVER=$NEXT fill callboard "$DUMP"
        docker stop "$NEXT" >/dev/null
        compose rm -sf postgres >/dev/null
        { cat settings; printf '\nPOSTGRES_IMAGE=%s\nPOSTGRES_VOLUME=%s\n' "$image" "$volume"; } > settings.new
        sync
        mv settings.new settings
        trap - EXIT
        sync
        say "Its files before are the volume $before: docker volume rm $before, when you don't need them."
    fi
    compose up -d --no-deps --wait postgres
    go_on
    forget_next
    say "$(query -d callboard -c 'select version()' | cut -d ' ' -f 1-2) serves."
}
not_upgraded() {
    say "It did not go well, see above. Back to what was there." >&2
    if [ -n "$stopped" ]; then
        compose up -d --no-deps --wait postgres
        compose stop "web-$(serving colour)" worker # Ctrl-C may have left them half-way
        go_on
    fi
    forget_next
    say "What was there serves." >&2
}
accepting() { docker exec "$1" pg_isready -q -h 127.0.0.1 -U callboard; }
forget_next() { # and what is in it, unless it counts
    local volume
    docker inspect "$NEXT" >/dev/null 2>&1 || return 0
    volume=$(docker inspect -f '{{range .Mounts}}{{println .Name}}{{end}}' "$NEXT" | grep ^callboard_postgres)
    docker rm -fv "$NEXT" >/dev/null
    [ "$volume" = "$(setting POSTGRES_VOLUME callboard_postgres)" ] || docker volume rm "$volume" >/dev/null
}
go_on() {
    [ -n "$(compose ps -aq worker)" ] || compose up --no-start --no-deps --scale "worker=$(setting WORKERS 1)" worker
    compose start "web-$(serving colour)" worker
    wait_for ready "$(compose ps -q "web-$(serving colour)")"
    sleep "$SETTLE_S"
}

status() {
    say "Serving $(serving version) on web-$(serving colour), since $(tail -n 1 releases | cut -d ' ' -f 1)."
    ! docker inspect "$NEXT" >/dev/null 2>&1 || say "An upgrade of Postgres is at work or was cut off: then, the same again, or \`make deploy\`."
    compose ps --format 'table {{.Name}}\t{{.Image}}\t{{.Status}}'
    managed || query -d callboard -c "select format('%s events %s', count(*), status) from events group by status order by status"
    df -h . | tail -n 1 | awk '{ print "disk: " $4 " free, " $5 " used" }'
    echo "latest backup: $(latest || true)"
    tail -n 3 releases
}

alone() { # COMMAND…: one at a time, written to `log`, to its end even if the caller goes away
    trap '' HUP PIPE
    exec > >(exec tee -pai log) 2>&1
    exec 9<>lock
    flock -n 9 || { say "Another one is at work: $(cat lock). Nothing was changed."; exit 75; }
    printf '%s since %s' "$*" "$(date -u +%FT%TZ)" > lock
    "$@"
}

command=${1:-help}
[ "$#" = 0 ] || shift
case $command in
    prepare)
        prepare
        say "Prepared. Next: SITE= and what else differs in $PWD/settings, a provider's key by \`make secret\`, then \`make deploy\`."
        ;;
    deploy) alone take "$1" ;;
    refresh) alone refresh "$1" ;;
    rollback)
        before=$(awk -v now="$(serving version)" '$2 != now { found = $2 } END { print found }' releases)
        [ -n "$before" ] || stop "There is no release before this one."
        alone roll_out "$before"
        ;;
    backup) backup "$@" ;;
    restore-check) restore_check "$@" ;;
    restore) alone restore "$@" ;;
    secret)
        [[ ${1:-} =~ ^[a-z][a-z0-9_]*$ ]] || stop "Which? A name in small letters: of a setting, as in anthropic_api_key."
        case " $OURS " in *" $1 "*) name=$1 ;; *) name=app/$1 ;; esac
        # A certificate has lines; a key that came with a line break would be refused by a header.
        case $1 in *_ca) tr -d '\r' ;; *) tr -d '\r\n' ;; esac | give "$name"
        # Of a server elsewhere; the owner's of the one here is none of it.
        if [ "$1" = database_url ] && grep -q @postgres:5432/ secrets/database_owner_url; then give database_owner_url </dev/null; fi
        ;;
    status) status ;;
    rotate) alone rotate "$@" ;;
    upgrade-postgres) alone upgrade_postgres "$@" ;;
    scale) compose up -d --no-deps --no-recreate --scale "worker=$1" worker ;;
    logs) compose logs --tail 200 "$@" ;;
    callboard) tool callboard "$@" ;;
    *) sed -n '2,6p' "$0"; exit 2 ;;
esac
