#!/usr/bin/env bash
# Builds our own images of the services from a true Debian base, pulling nothing, and prints the exports that
# make docker-compose.yml use them:
#   eval "$(infra/docker/build.sh)" && MILLRACE_SERVICES=docker millrace up
# What did not change comes from Docker's build cache. Needs root once, for debootstrap.
#   MILLRACE_EXTRA_CA  PEM certificates to trust, behind a proxy that re-signs TLS: a file, or a folder of *.crt
#                      such as Debian's /usr/local/share/ca-certificates
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

suite=bookworm
debian=millrace/debian:$suite
images=(kafka registry postgres redis mosquitto prometheus)
say() { printf 'images: %s\n' "$*" >&2; }

if ! docker image inspect "$debian" >/dev/null 2>&1; then
    say "making the base $debian with debootstrap"
    folder=$(mktemp -d)
    trap 'rm -rf --one-file-system "$folder"' EXIT
    debootstrap --variant=minbase "$suite" "$folder/root" >"$folder/log" 2>&1 || {
        say "debootstrap failed: $(tail -1 "$folder/log")"
        exit 1
    }
    tar -C "$folder/root" -c . | docker import - "$debian" >/dev/null
fi

certificates=
if [[ -d ${MILLRACE_EXTRA_CA:-} ]]; then
    certificates=$(cat "$MILLRACE_EXTRA_CA"/*.crt)
elif [[ -n ${MILLRACE_EXTRA_CA:-} ]]; then
    certificates=$(<"$MILLRACE_EXTRA_CA")
fi
log=$(mktemp)
for image in "${images[@]}"; do
    began=$SECONDS
    # The host's network: a build reaches what this machine reaches, with no forwarding for a bridge.
    docker build --network host --target "$image" -t "millrace/$image" -f infra/docker/Dockerfile \
        --build-arg BASE="$debian" --build-arg EXTRA_CA="$certificates" . >"$log" 2>&1 || {
        say "building millrace/$image failed; the end of $log:"
        tail -20 "$log" >&2
        ! grep -qE 'PKIX path|certificate verif' "$log" ||
            say "a proxy re-signs TLS here: name its certificates with MILLRACE_EXTRA_CA and build again"
        exit 1
    }
    say "millrace/$image ($((SECONDS - began)) s)"
    printf 'export %s_IMAGE=millrace/%s\n' "${image^^}" "$image"
done
rm -f "$log"
# Debian has no Grafana.
printf 'export MILLRACE_DOCKER_SERVICES="%s"\n' "${images[*]}"
