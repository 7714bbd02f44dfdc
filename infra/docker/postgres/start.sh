#!/bin/bash
# As the official image does: an empty PGDATA becomes a cluster of POSTGRES_USER with POSTGRES_DB, then the
# command runs. No password, no start.
set -euo pipefail
if [[ ! -s $PGDATA/PG_VERSION ]]; then
    : "${POSTGRES_PASSWORD:?set POSTGRES_PASSWORD}"
    # Beside the final folder: what an interruption leaves is never taken for a cluster.
    fresh=$PGDATA.new
    rm -rf "$fresh" "$PGDATA"
    initdb --pgdata="$fresh" --username="$POSTGRES_USER" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") \
        --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8
    printf 'host all all all scram-sha-256\n' >>"$fresh/pg_hba.conf"
    printf 'CREATE DATABASE "%s";\n' "$POSTGRES_DB" | postgres --single -D "$fresh" postgres
    mv "$fresh" "$PGDATA"
fi
exec "$@" -clisten_addresses='*'
