#!/usr/bin/env bash
# Says what of this checkout's cluster runs.
. "$(dirname "$0")/env.sh"; . "$here/services.sh"
init=$(init_pid) || fail "the cluster is not up: run make up"
printf 'state     %s\ncgroups   %s\nkubectl   e2e/cluster/kubectl, or KUBECONFIG=%s in the network of process %s\n' "$state" "$node" "$kubeconfig" "$init"
code=0
for name in "${services[@]}"; do
  if runs "$name"; then printf '%-20s runs\n' "$name"; else printf '%-20s has ended: %s\n' "$name" "$state/logs/$name.log"; code=1; fi
done
"$here/kubectl" get nodes || code=1
exit $code
