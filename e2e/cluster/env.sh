# Sourced by the scripts beside it: where things live, and how a command gets into the node.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
checkout=$(cd "$here/../.." && pwd -P)
# everything that is built once and used by every checkout
cache=${STRATA_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/strata}
# everything that belongs to this checkout's cluster; the node's name makes its cgroups its own
state=$checkout/.strata/cluster
node=strata-$(printf %s "$checkout" | sha256sum | cut -c1-8)
kubeconfig=$checkout/.strata/kubeconfig
address=10.250.0.1

say() { printf '  %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }
now() { date +%s%3N; }
# `took START` prints the time since START as "1.2 s"
took() { local ms=$(($(now) - $1)); printf '%d.%d s' $((ms / 1000)) $((ms % 1000 / 100)); }

# The cgroup hierarchies of this machine: folders under /sys/fs/cgroup; the only one of a machine with cgroup v2 is "".
if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
  cgroup_version=2 hierarchies=("") processes=/sys/fs/cgroup/$node
else
  cgroup_version=1 processes=/sys/fs/cgroup/pids/$node hierarchies=()
  for mount in /sys/fs/cgroup/*/; do
    [ -L "${mount%/}" ] || hierarchies+=("$(basename "$mount")")
  done
fi

# Moves the calling (sub)shell into the node's cgroups.
join_cgroups() {
  local h leaf=; [ $cgroup_version = 1 ] || leaf=/init
  for h in "${hierarchies[@]}"; do echo $BASHPID > "/sys/fs/cgroup/$h/$node$leaf/cgroup.procs"; done
}

# The process id of the node's init, if it runs.
init_pid() {
  local pid; pid=$(cat "$state/run/init.pid" 2> /dev/null) || return 1
  grep -q "/$node" "/proc/$pid/cgroup" 2> /dev/null || return 1
  echo "$pid"
}

# `in_node COMMAND…` runs a command with all of the node's namespaces and cgroups; absolute paths only.
in_node() { (join_cgroups; exec nsenter -t "$(init_pid)" -m -n -p -u -i -C -- "$@"); }

# `part NAME` prints the folder of a part that build.sh made; a part's name ends in the hash of its recipe.
part() { local p; p=$cache/$1-$("$here/recipe.sh" "$1"); [ -d "$p" ] || fail "$1 is not built: run make up"; echo "$p"; }
