#!/usr/bin/env bash
# Prints the hash of all that decides what a part of the test cluster becomes: `recipe.sh PART`.
set -euo pipefail
cd "$(dirname "$0")/../.."
cluster=e2e/cluster standin=containerfiles/standin
case ${1:?part} in
  kubernetes) inputs=("$cluster/kubernetes") ;;
  runtime) inputs=("$cluster/runtime") ;;
  distribution) inputs=(e2e/distribution) ;;
  images) inputs=("$cluster/images") ;;
  peers) inputs=(e2e/bench/peers) ;;
  ostree-container) inputs=("$standin/ostree-container") ;;
  rpms) inputs=("$standin/make-rpms.sh") ;;
  base) inputs=("$standin"/{ostree-container,make-base.sh,update-ca-trust,rpmdb-spec.py,contentmeta.py} "$cluster/make-registry.sh") ;;
  *) echo "no such part: $1" >&2; exit 64 ;;
esac
# build.sh decides how each part is called
files() { find "${inputs[@]}" -type f -not -path '*/target/*' | LC_ALL=C sort; }
{ files | xargs sha256sum; sed -n "/^make_${1//-/_}()/,/^}/p" "$cluster/build.sh"; } | sha256sum | cut -c1-12
