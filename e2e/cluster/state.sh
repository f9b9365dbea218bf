#!/usr/bin/env bash
# Tells what the cluster does at this moment, for whoever reads of a wait in vain: free space, programs, pods, the newest events, Strata's builds and the end of its log. Never fails.
. "$(dirname "$0")/env.sh"
set +e
namespace=openshift-machine-config-operator
kubectl() { timeout 10 "$here/kubectl" "$@" 2>&1; }
part() { printf -- '-- %s\n' "$1"; tail -n "$2"; }
df -h "$state" | part space 1
"$here/status.sh" 2>&1 | grep -v ' runs$' | part 'programs that have ended' 12
kubectl -n $namespace get pods -o wide | part pods 30
kubectl get machineosbuilds -o wide | part builds 30
kubectl -n $namespace get events --sort-by=.metadata.creationTimestamp -o custom-columns=TIME:.lastTimestamp,KIND:.involvedObject.kind,NAME:.involvedObject.name,REASON:.reason,MESSAGE:.message | part events 30
kubectl -n $namespace logs deployment/strata-controller --tail=30 | cut -c1-600 | part "the controller's log" 30
exit 0
