#!/usr/bin/env bash
# The Docker way, tried for real on a machine that can pull no image; `make test-docker` runs it, as root:
# a daemon of its own, our own images, compose with one pipeline end to end, then tests on testcontainers.
#   MILLRACE_EXTRA_CA  certificates for the build of the images, see build.sh
# A daemon that is there already is never spoken to. Images stay in .millrace/docker for the next run; of
# processes, mounts and network devices nothing stays, which the end checks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
say() { printf 'test-docker: %s\n' "$*"; }
stop() { printf 'test-docker: %s\n' "$*" >&2; exit 1; }

((EUID == 0)) || stop "debootstrap and a Docker daemon of its own need root; run: sudo make test-docker"
export PATH=$PATH:/usr/local/sbin:/usr/sbin

STARTED_S=60 # the daemon answers
STOPPED_S=60 # it ends after its containers have ended

times=()
part() { # part NAME COMMAND...: runs it and keeps its time
    local name=$1 began=$SECONDS
    shift
    say "$name"
    times+=("   ?  $name")
    "$@"
    times[-1]=$(printf '%4d s  %s' $((SECONDS - began)) "$name")
}

# --- the daemon ------------------------------------------------------------------------------------------

state=$PWD/.millrace/docker
mkdir -p "$state"
exec 9>"$state/lock"
flock -n 9 || stop "another run is under way in this checkout; wait until it has ended"
if [[ -f $state/run ]]; then # of a run that was killed
    rm -rf --one-file-system "/tmp/$(basename "$(<"$state/run")")"
fi
run=$(mktemp -d /tmp/millrace-docker.XXXXXX) # short: the path of a socket has 107 bytes at most
printf '%s\n' "$run" >"$state/run"
export DOCKER_HOST=unix://$run/docker.sock
unset DOCKER_CONTEXT DOCKER_TLS_VERIFY DOCKER_CERT_PATH
daemon=

devices() { # the network devices that Docker makes
    find /sys/class/net -mindepth 1 \( -name 'br-*' -o -name 'veth*' -o -name 'docker*' \) -printf '%f\n' | sort
}

start_daemon() {
    # In namespaces of its own, whose first process ends with this script: also after a kill -9 no process of
    # a container lives on, and no mount is seen outside. The firewall and forwarding stay as they are: what is
    # published goes through Docker's userland proxy.
    local command=(dockerd --storage-driver=vfs --data-root="$state/data" --exec-root="$run/exec"
        --pidfile="$run/dockerd.pid" --host="$DOCKER_HOST" --group="$(id -gn)"
        --containerd-namespace=millrace-test --containerd-plugins-namespace=millrace-test-plugins
        --bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false)
    setpriv --pdeathsig KILL unshare --mount --propagation slave --pid --fork --kill-child --mount-proc \
        bash -c 'trap "kill \$!" TERM; "$@" & until wait "$!"; do kill -0 "$!" 2>/dev/null || break; done' \
        -- "${command[@]}" >"$state/dockerd.log" 2>&1 9>&- &
    daemon=$!
    local end=$((SECONDS + STARTED_S))
    until docker info >/dev/null 2>&1; do
        kill -0 "$daemon" 2>/dev/null || stop "dockerd ended: $(tail -1 "$state/dockerd.log")"
        ((SECONDS < end)) || stop "dockerd did not answer within $STARTED_S s; see $state/dockerd.log"
        sleep 0.3
    done
    empty_daemon # what a killed run left
}

empty_daemon() { # no container, volume or network; the images stay
    docker ps -aq | xargs -r docker rm -fv >/dev/null
    docker volume ls -q | xargs -r docker volume rm -f >/dev/null
    docker network prune -f >/dev/null
}

stop_daemon() {
    [[ -n $daemon ]] || return 0
    local first end=$((SECONDS + STOPPED_S))
    timeout "$STOPPED_S" bash -c "$(declare -f empty_daemon); empty_daemon" || true
    first=$(cat "/proc/$daemon/task/$daemon/children" 2>/dev/null || true)
    [[ -z $first ]] || kill -TERM $first 2>/dev/null || true
    while kill -0 "$daemon" 2>/dev/null && ((SECONDS < end)); do sleep 0.2; done
    kill -KILL "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
    daemon=
    rm -rf --one-file-system "$run" "$state/run"
}

left() { # what the run left behind, one line each
    pgrep -af -- "$run|$state/data" | grep -vw "$$" || true
    findmnt -rno TARGET | grep -F -e "$run" -e "$state/data" || true
    comm -13 <(printf '%s\n' "$before") <(devices)
}

finish() {
    local status=$?
    trap '' INT TERM
    part "stop the daemon" stop_daemon
    local found
    found=$(left)
    [[ -z $found ]] || { say "left behind: ${found//$'\n'/; }"; status=1; }
    say "times"
    printf '  %s\n' "${times[@]}"
    ((status)) && say "failed" || say "passed, nothing left behind"
    exit "$status"
}

# --- the run ---------------------------------------------------------------------------------------------

images() {
    infra/docker/build.sh >"$run/images"
    # shellcheck disable=SC1091
    source "$run/images"
}

before=$(devices)
trap finish EXIT
trap 'exit 130' INT TERM
part "start a daemon" start_daemon
part "build the images" images
export MILLRACE_SERVICES=docker MILLRACE_TEST_PORT_BASE=${MILLRACE_TEST_PORT_BASE:-28000}
pytest=(.venv/bin/python -m pytest -q -m "")
part "compose: health, one pipeline, down and up, purge" "${pytest[@]}" tests/docker/test_compose.py
part "testcontainers: the tests' fixture, registry, runtime, sink" "${pytest[@]}" \
    tests/docker/test_containers.py tests/streams/test_runtime.py tests/sinks/test_writer.py
