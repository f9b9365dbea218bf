#!/usr/bin/env bash
# Ends this checkout's cluster and removes what it or a killed run left: processes, cgroups, state. Nothing to do is fine.
. "$(dirname "$0")/env.sh"
if [ "${1-}" != --locked ] && [ -d "$checkout/.strata" ]; then exec {lock}> "$checkout/.strata/lock"; flock $lock; fi
start=$(now)
if [ -d "$processes" ]; then
  # all that ever ran in the node is in its cgroups, whoever remembers it
  for _ in $(seq 200); do
    # groups vanish while they are listed
    pids=$({ find "$processes" -name cgroup.procs -exec cat {} + 2> /dev/null || true; } | sort -un)
    [ -n "$pids" ] || break
    kill -KILL $pids 2> /dev/null || true; sleep 0.05
  done
  [ -z "$pids" ] || fail "these processes of the node don't end: $pids"
fi
for h in "${hierarchies[@]}"; do
  [ ! -d "/sys/fs/cgroup/$h/$node" ] || find "/sys/fs/cgroup/$h/$node" -depth -type d -exec rmdir {} +
done
# the state holds unpacked images, which take their time to remove: out of the way first, and nobody who brings a cluster up waits for it
[ ! -d "$state" ] || { trash=$(mktemp -d "$checkout/.strata/trash.XXXXXX"); mv "$state" "$trash/"; rm -f "$kubeconfig"; removed=yes; }
if [ "${1-}" = --locked ]; then
  setsid nice rm -rf "$checkout/.strata/trash."* > /dev/null 2>&1 < /dev/null &
else
  rm -rf "$checkout/.strata/trash."*
fi
[ -z "${removed-}" ] || say "cluster removed in $(took "$start")"
