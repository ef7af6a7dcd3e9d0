#!/usr/bin/env bash
# with_docker.sh COMMAND...: runs it beside a Docker engine of its own, which ends with it, where none answers yet.
# Where none can be started it says why and runs the command all the same. Ends as the command does.
set -uo pipefail
if docker info >/dev/null 2>&1; then exec "$@"; fi
if [[ $(id -u) != 0 ]] || ! command -v dockerd >/dev/null; then
    echo "no Docker engine answers, and none is started: that takes root and Debian's package docker.io"
    exec "$@"
fi
folder=$(mktemp -d)
export DOCKER_HOST="unix://$folder/socket"
dockerd --host "$DOCKER_HOST" --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/pid" \
    >"$folder/log" 2>&1 &
engine=$!
end() {
    kill "$engine" 2>/dev/null && wait "$engine"
    rm -rf "$folder"
}
trap end EXIT
for _ in $(seq 60); do
    docker info >/dev/null 2>&1 && break
    kill -0 "$engine" 2>/dev/null || break
    sleep 0.5
done
if ! docker info >/dev/null 2>&1; then
    echo "the Docker engine does not start:"
    tail -n 3 "$folder/log"
fi
"$@"
