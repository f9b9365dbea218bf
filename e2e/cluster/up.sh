#!/usr/bin/env bash
# Brings this checkout's cluster up, or back to health: one node in namespaces of its own, a registry without and one with credentials, an RPM repository, names.
# Done at once when all of it runs already. See README.md beside it.
. "$(dirname "$0")/env.sh"; . "$here/services.sh"
mkdir -p "$checkout/.strata"
exec {lock}> "$checkout/.strata/lock"
flock -n $lock || { say "another run works on this cluster: waiting for it"; flock $lock; }
"$here/build.sh" {lock}>&-
kubernetes=$(part kubernetes) runtime=$(part runtime) rpms=$(part rpms) images=$(part images) base=$(part base)
recipe=$(cat "$here"/*.sh <(find "$here/conf" -type f -exec cat {} +) <(echo "$kubernetes $runtime $rpms $images $base") | sha256sum | cut -c1-12)
kubectl() { nsenter -t "$(init_pid)" -n "$kubernetes/bin/kubectl" --kubeconfig "$kubeconfig" "$@"; }

if [ "$(cat "$state/up" 2> /dev/null)" = "$recipe" ] && init_pid > /dev/null; then
  healthy=yes; for name in "${services[@]}"; do runs "$name" || healthy=no; done
  if [ $healthy = yes ] && [ "$(kubectl get --raw /readyz 2> /dev/null)" = ok ]; then say "the cluster is up"; exit; fi
fi

start=$(now)
# what a killed run left, or a cluster that is not well or not made by this recipe
"$here/down.sh" --locked {lock}>&-
mkdir -p "$state"/{run,logs,names}; cp -r "$here/conf" "$state/"
find "$state/conf" -type f -exec sed -i "s#@STATE@#$state#g; s#@RUNTIME@#$runtime#g" {} +
"$here/pki.sh" "$state/pki"; install -m 600 "$state/pki/admin.kubeconfig" "$kubeconfig"

# the node: a shell moves into new cgroups and then unshares, so that they are the roots which the node sees
for h in "${hierarchies[@]}"; do mkdir -p "/sys/fs/cgroup/$h/$node"; done
if [ $cgroup_version = 1 ]; then
  cpuset=/sys/fs/cgroup/cpuset
  cat $cpuset/cpuset.cpus > "$cpuset/$node/cpuset.cpus"; cat $cpuset/cpuset.mems > "$cpuset/$node/cpuset.mems"
  echo 1 > "$cpuset/$node/cgroup.clone_children"
else
  mkdir "/sys/fs/cgroup/$node/init"
fi
(
  if [ $cgroup_version = 1 ]; then join_cgroups; else echo $BASHPID > "/sys/fs/cgroup/$node/cgroup.procs"; fi
  exec setsid unshare -m -n -p -u -i -C --fork --kill-child --mount-proc "$here/init.sh" "$state" $cgroup_version "$base/registry"
) > "$state/logs/init.log" 2>&1 < /dev/null {lock}>&- &
unshare=$!
if [ $cgroup_version = 2 ]; then
  # a group whose children have controllers may have no processes of its own: both go to a child, once the namespace has its root
  until init=$(tr -d ' ' < "/proc/$unshare/task/$unshare/children") && [ -n "$init" ]; do sleep 0.05; done
  for pid in $unshare $init; do echo "$pid" > "/sys/fs/cgroup/$node/init/cgroup.procs"; done
fi
for _ in $(seq 200); do [ -s "$state/run/ready" ] && break; kill -0 $unshare 2> /dev/null || break; sleep 0.05; done
[ -s "$state/run/ready" ] || { cat "$state/logs/init.log" >&2; fail "the node's namespaces can't be made"; }
tr -d ' ' < "/proc/$unshare/task/$unshare/children" > "$state/run/init.pid"

# `until_true WHAT SERVICE COMMAND…` asks until the answer is yes, for a minute, as long as the service lives
until_true() {
  local what=$1 service=$2 begin; begin=$(now); shift 2
  until "$@" > /dev/null 2>&1; do
    runs "$service" || { tail -n 20 "$state/logs/$service.log" >&2; fail "$service has ended; its log is $state/logs/$service.log"; }
    [ $(($(now) - begin)) -lt 60000 ] || { tail -n 20 "$state/logs/$service.log" >&2; fail "$what: not within a minute; the logs are in $state/logs"; }
    sleep 0.1
  done
}
node_ready() { [ "$(kubectl get node node1 -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}')" = True ]; }
listens() { nsenter -t "$(init_pid)" -n bash -c "exec 3<> /dev/tcp/$address/$1"; }

for name in etcd containerd registry registry-auth rpms dns apiserver; do start $name; done
until_true "containerd answers" containerd in_node "$runtime/bin/ctr" version
for image in "$images"/*.tar; do in_node "$runtime/bin/ctr" -n k8s.io images import "$image" > "$state/logs/import.log" 2>&1; done
until_true "the apiserver is ready" apiserver kubectl get --raw /readyz
say "apiserver ready after $(took "$start")"
for name in controller-manager scheduler kubelet proxy; do start $name; done
until_true "the node is ready" kubelet node_ready
until_true "the default ServiceAccount exists" controller-manager kubectl -n default get serviceaccount default
for port in 5000 5001 8081; do until_true "port $port answers" registry listens $port; done
echo "$recipe" > "$state/up"
say "cluster up in $(took "$start"): e2e/cluster/kubectl reaches it"
