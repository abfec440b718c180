#!/usr/bin/env bash
# `make bootstrap HOST=…` runs this on a fresh Debian 13, as root: Docker, the folder, the nightly backup. Safe to repeat;
# secrets that are there stay. When apt fails, mend that (network, mirror, disk) and run it again.
set -euo pipefail

needed=(docker.io docker-cli docker-compose rsync curl)
if ! docker compose version >/dev/null 2>&1 || ! command -v rsync curl >/dev/null; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${needed[@]}"
fi
systemctl enable -q --now docker
docker info >/dev/null || { echo "Docker does not run: journalctl -u docker says why." >&2; exit 1; }

install -d -m 0700 /srv/callboard

cat > /etc/systemd/system/callboard-backup.service <<'UNIT'
[Unit]
Description=Callboard: dump Postgres, restore the dump into a scratch database, search there
After=docker.service

[Service]
Type=oneshot
ExecStart=/srv/callboard/host.sh backup
ExecStart=/srv/callboard/host.sh restore-check
UNIT
cat > /etc/systemd/system/callboard-backup.timer <<'UNIT'
[Unit]
Description=Callboard: every night

[Timer]
OnCalendar=*-*-* 02:30
RandomizedDelaySec=20min
Persistent=true

[Install]
WantedBy=timers.target
UNIT
systemctl daemon-reload
systemctl enable -q --now callboard-backup.timer
