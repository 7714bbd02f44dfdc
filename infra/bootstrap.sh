#!/usr/bin/env bash
# Installs what Millrace needs on Debian or Ubuntu, then what it needs in this checkout. `make setup` runs it;
# with the argument `test` also what `make test` needs, with `docker` what `make test-docker` does.
# Each step is skipped when it has nothing to do: a second run takes well under a second.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

with=${1:-}
venv=.venv
cache=${MILLRACE_CACHE:-.millrace/cache}
say() { printf 'setup: %s\n' "$*"; }
stop() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# --- what the system has -------------------------------------------------------------------------------

find_python() { # the first Python on the PATH that is new enough and can make virtual environments
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null &&
            "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    return 1
}

find_java() { # Kafka 4 needs Java 17; asked only once per program, as starting a JVM takes a while
    local java stamp=$cache/java.stamp version
    java=${JAVA_HOME:+$JAVA_HOME/bin/java}
    [[ -x ${java:-} ]] || java=$(command -v java) || return 1
    [[ -f $stamp && $(<"$stamp") == "$(readlink -f "$java")" ]] && return
    version=$("$java" -version 2>&1 | sed -nE '1s/.*"([0-9]+).*/\1/p')
    ((${version:-0} >= 17)) || return 1
    mkdir -p "$cache"
    readlink -f "$java" >"$stamp"
}

find_postgis() {
    local bin
    for bin in /usr/lib/postgresql/*/bin/initdb; do
        bin=${bin%/bin/initdb}
        [[ -x $bin/bin/initdb && -f /usr/share/postgresql/${bin##*/}/extension/postgis.control ]] && return
    done
    return 1
}

find_headers() { # Python.h of the Python that .venv is made with, for the compiled loops
    local python
    python=$(find_python) || return 1
    [[ -f $("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]]
}

installed() { PATH=$PATH:/usr/local/sbin:/usr/sbin command -v "$1" >/dev/null; }

missing() {
    if find_python >/dev/null; then
        find_headers || echo headers
    else
        echo python
    fi
    installed gcc && [[ -e /usr/include/stdio.h ]] || echo compiler
    find_java || echo java
    installed mvn || echo maven
    find_postgis || echo postgis
    installed redis-server || echo redis-server
    installed mosquitto || echo mosquitto
    if [[ $with == test ]]; then
        installed promtool || echo prometheus
        installed chromium || echo chromium
        installed npm || echo npm
    fi
    [[ $with == docker ]] || return 0
    installed dockerd && installed docker || echo docker
    installed docker-compose || docker compose version >/dev/null 2>&1 || echo docker-compose
    installed debootstrap || echo debootstrap
}

# --- system packages -----------------------------------------------------------------------------------

packages() { # the Debian packages of what is missing; needs fresh package lists
    local what version
    for what in "$@"; do
        case $what in
        python)
            if [[ $(apt-cache policy python3) =~ Candidate:\ 3\.(1[1-9]|[2-9][0-9]) ]]; then
                printf "%s\n" python3 python3-venv python3-dev
            else
                for version in 3.13 3.12 3.11; do
                    if [[ -n $(apt-cache search --names-only "^python$version-venv$") ]]; then
                        printf "%s\n" "python$version-venv" "python$version-dev"
                        break
                    fi
                done
            fi
            ;;
        headers)
            version=$("$(find_python)" -c 'import sys; print("{}.{}".format(*sys.version_info))')
            echo "python$version-dev"
            ;;
        compiler) printf "%s\n" gcc libc6-dev ;;
        java)
            for version in 17 21 25; do
                if [[ -n $(apt-cache search --names-only "^openjdk-$version-jre-headless$") ]]; then
                    echo "openjdk-$version-jre-headless"
                    break
                fi
            done
            ;;
        postgis)
            version=$(find /usr/lib/postgresql -mindepth 1 -maxdepth 1 -printf "%f\n" 2>/dev/null | sort -n | tail -1 || true)
            [[ -n $version ]] || version=$(apt-cache depends postgresql | sed -nE 's/.*Depends: postgresql-([0-9]+)$/\1/p' | tail -1)
            printf "%s\n" postgresql "postgresql-$version" "postgresql-$version-postgis-3"
            ;;
        docker)
            echo docker.io
            apt-cache search --names-only '^docker-cli$' | sed 's/ .*//' # of its own since Debian 13
            ;;
        *) echo "$what" ;;
        esac
    done
}

as_root=()
policy=/usr/sbin/policy-rc.d

restore_policy() {
    if "${as_root[@]}" test -e "$policy.before-millrace"; then
        "${as_root[@]}" mv "$policy.before-millrace" "$policy"
    else
        "${as_root[@]}" rm -f "$policy"
    fi
}

system() {
    local lacking list names log=$cache/apt.log
    mapfile -t lacking < <(missing)
    ((${#lacking[@]})) || return 0
    command -v apt-get >/dev/null ||
        stop "missing: ${lacking[*]}; install them with this system's package manager, then run make setup again"
    if ((EUID)); then
        if command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [[ -t 0 ]]; }; then
            as_root=(sudo)
        else
            stop "missing: ${lacking[*]}; as root run: apt-get update && apt-get install -y --no-install-recommends $(packages "${lacking[@]}" | xargs)"
        fi
    fi
    mkdir -p "$cache"
    say "missing: ${lacking[*]}; reading the package lists"
    "${as_root[@]}" apt-get update -q >"$log" 2>&1 || stop "apt-get update failed: $(tail -1 "$log")"
    list=$(packages "${lacking[@]}")
    mapfile -t names <<<"$list"
    say "installing ${names[*]} (log: $log)"

    # Debian starts a service as soon as it is installed, and at every boot. Ours run on ports of their
    # own, so neither is wanted: policy-rc.d forbids it for the time of the install only.
    if [[ -e $policy && ! -e $policy.before-millrace ]]; then
        "${as_root[@]}" cp -p "$policy" "$policy.before-millrace"
    fi
    trap restore_policy EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends --no-upgrade \
        -o DPkg::Lock::Timeout=300 "${names[@]}" >>"$log" 2>&1 ||
        stop "apt-get install failed: $(grep -E '^E:' "$log" | tail -1)"
    restore_policy
    trap - EXIT
    if command -v systemctl >/dev/null; then
        local unit
        for unit in "${names[@]}"; do
            case $unit in
            postgresql | redis-server | mosquitto | prometheus) "${as_root[@]}" systemctl disable -q "$unit" >>"$log" 2>&1 || true ;;
            docker.io) "${as_root[@]}" systemctl disable -q docker.socket docker containerd >>"$log" 2>&1 || true ;;
            esac
        done
    fi
    mapfile -t lacking < <(missing)
    ((${#lacking[@]} == 0)) || stop "still missing after the install: ${lacking[*]}; see $log"
}

# --- this checkout -------------------------------------------------------------------------------------

fresh() { # fresh STAMP FILE...: does the stamp hold the checksum of these files?
    local stamp=$1
    shift
    [[ -f $stamp && $(<"$stamp") == "$(cat "$@" | sha256sum)" ]]
}

environment() {
    local stamp=$venv/setup.stamp python log=$cache/python.log
    fresh "$stamp" requirements.lock pyproject.toml && return
    mkdir -p "$cache"
    python=$(find_python)
    if [[ ! -x $venv/bin/python ]]; then
        say "creating $venv with $("$python" --version)"
        "$python" -m venv "$venv"
    fi
    say "installing Python packages from requirements.lock (log: $log)"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check "uv>=0.5" >"$log" 2>&1 ||
        stop "pip could not install uv: $(tail -1 "$log")"
    # pip is slower, but knows the mirrors of pip.conf, which uv does not read.
    "$venv/bin/uv" pip install -q --python "$venv/bin/python" --require-hashes -r requirements.lock >>"$log" 2>&1 ||
        "$venv/bin/python" -m pip install -q --require-hashes -r requirements.lock >>"$log" 2>&1 ||
        stop "the Python packages could not be installed: $(tail -1 "$log")"
    "$venv/bin/uv" pip install -q --python "$venv/bin/python" --no-deps --no-build-isolation -e . >>"$log" 2>&1 ||
        stop "the project itself could not be installed: $(tail -1 "$log")"
    cat requirements.lock pyproject.toml | sha256sum >"$stamp"
}

loops() { # the install compiles them too; this is for when a source has changed since, or a result is gone
    local stamp=$venv/loops.stamp log=$cache/loops.log source sources lacking=
    mapfile -t sources < <(find models streams -name '*.pyx' | sort)
    for source in "${sources[@]}"; do
        compgen -G "${source%.pyx}.*.so" >/dev/null || lacking=$source
    done
    [[ -z $lacking ]] && fresh "$stamp" hatch_build.py requirements.lock "${sources[@]}" && return
    mkdir -p "$cache"
    say "compiling ${sources[*]} (log: $log)"
    "$venv/bin/python" hatch_build.py >"$log" 2>&1 || stop "the loops could not be compiled: $(tail -1 "$log"); see $log"
    cat hatch_build.py requirements.lock "${sources[@]}" | sha256sum >"$stamp"
}

broker() {
    local stamp=$cache/kafka-libs/setup.stamp pom=infra/services/pom.xml log=$cache/maven.log
    fresh "$stamp" "$pom" && return
    mkdir -p "$cache"
    say "fetching Kafka's jars with Maven (log: $log)"
    rm -rf "$cache/kafka-libs.part"
    mvn -q -B -ntp -f "$pom" dependency:copy-dependencies -DincludeScope=runtime \
        -DoutputDirectory="$(realpath "$cache")/kafka-libs.part" >"$log" 2>&1 ||
        stop "Maven could not fetch Kafka: $(grep -m1 ERROR "$log")"
    rm -rf "$cache/kafka-libs"
    mv "$cache/kafka-libs.part" "$cache/kafka-libs"
    # A convenience: brokers start without it too.
    "$venv/bin/python" -m infra.services.class_archive >>"$log" 2>&1 ||
        say "Kafka's classes could not be archived, so brokers start 2 s later: $(tail -1 "$log")"
    sha256sum <"$pom" >"$stamp"
}

checker() { # axe-core, which the console's tests hold every page against; pinned by its hash
    local from=tests/console/package-lock.json to=$cache/axe log=$cache/npm.log
    fresh "$to/setup.stamp" "$from" && return
    say "fetching axe-core with npm (log: $log)"
    rm -rf "$to"
    mkdir -p "$to"
    cp "$from" "${from/-lock/}" "$to"
    npm --prefix "$to" ci --ignore-scripts --no-audit --no-fund >"$log" 2>&1 ||
        stop "npm could not fetch axe-core: $(grep -m1 'npm error' "$log"); see $log"
    sha256sum <"$from" >"$to/setup.stamp"
}

system
environment
loops
broker
[[ $with != test ]] || checker
