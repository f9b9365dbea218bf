#!/usr/bin/env bash
# Makes a registry's storage folder that holds one image, and prints the image's digest: `make-registry.sh LAYOUT[:TAG] NAME:TAG STORAGE`.
# A registry runs for it in a network namespace of its own, so no port of the machine is used. The layers stay as they are, byte for byte.
set -euo pipefail
layout=${1:?} name=${2:?} storage=${3:?}
mkdir -p "$storage"
settings=$(mktemp); trap 'rm -f "$settings"' EXIT
cat > "$settings" <<C
version: 0.1
storage: {filesystem: {rootdirectory: $storage}}
http: {addr: "127.0.0.1:5000"}
log: {level: error, accesslog: {disabled: true}}
C
export settings layout name
# the pid namespace ends the registry with this script, however it ends
unshare --net --pid --fork --kill-child bash -euc '
  ip link set lo up
  docker-registry serve "$settings" > /dev/null 2>&1 & registry=$!
  for _ in $(seq 100); do (exec 3<> /dev/tcp/127.0.0.1/5000) 2> /dev/null && break; sleep 0.05; done
  skopeo copy --preserve-digests --dest-tls-verify=false "oci:$layout" "docker://127.0.0.1:5000/$name" >&2
  skopeo inspect --tls-verify=false --format "{{.Digest}}" "docker://127.0.0.1:5000/$name"
  kill $registry'
