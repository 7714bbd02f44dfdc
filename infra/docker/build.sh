#!/usr/bin/env bash
# Our own images of the services, for machines that can pull none: builds them from a true Debian base and
# prints the exports that make docker-compose.yml use them in place of the official ones:
#   eval "$(infra/docker/build.sh)" && MILLRACE_SERVICES=docker millrace up
# They take the same variables, paths and health checks. What did not change comes from Docker's build cache.
# Needs root once, for debootstrap.
#   MILLRACE_EXTRA_CA  PEM certificates to trust, behind a proxy that re-signs TLS: a file, or a folder of *.crt
#                      such as Debian's /usr/local/share/ca-certificates
#
# In the Dockerfiles, settings stand above what installs: with vfs each step copies all that is below it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

suite=bookworm
debian=millrace/debian:$suite
images=(kafka registry postgres redis mosquitto prometheus)
say() { printf 'images: %s\n' "$*" >&2; }

work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT

if ! docker image inspect "$debian" >/dev/null 2>&1; then
    began=$SECONDS
    debootstrap --variant=minbase "$suite" "$work/root" >"$work/log" 2>&1 || {
        say "debootstrap failed: $(tail -1 "$work/log")"
        exit 1
    }
    tar -C "$work/root" --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' \
        --exclude='./usr/share/doc/*' --exclude='./usr/share/locale/*' -c . | docker import - "$debian" >/dev/null
    rm -rf --one-file-system "$work/root"
    say "$debian, with debootstrap ($((SECONDS - began)) s)"
fi

build() { # build IMAGE ARGUMENT...
    local began=$SECONDS image=$1
    shift
    # The host's network: a build reaches what this machine reaches, with no forwarding for a bridge.
    docker build --network host -t "millrace/$image" -f "infra/docker/$image/Dockerfile" "$@" . \
        >"$work/log" 2>&1 || {
        say "building millrace/$image failed:"
        tail -20 "$work/log" >&2
        # The second is what Maven says where it trusts nobody.
        ! grep -qE 'certificate verif|No plugin found' "$work/log" ||
            say "if a proxy re-signs TLS here, name its certificates with MILLRACE_EXTRA_CA and build again"
        exit 1
    }
    say "millrace/$image ($((SECONDS - began)) s)"
}

certificates=
if [[ -d ${MILLRACE_EXTRA_CA:-} ]]; then
    certificates=$(cat "$MILLRACE_EXTRA_CA"/*.crt)
elif [[ -n ${MILLRACE_EXTRA_CA:-} ]]; then
    certificates=$(<"$MILLRACE_EXTRA_CA")
fi
build base --build-arg DEBIAN="$debian" --build-arg EXTRA_CA="$certificates"
for image in "${images[@]}"; do
    build "$image"
    printf 'export %s_IMAGE=millrace/%s\n' "${image^^}" "$image"
done
# Debian has no Grafana.
printf 'export MILLRACE_DOCKER_SERVICES="%s"\n' "${images[*]}"
