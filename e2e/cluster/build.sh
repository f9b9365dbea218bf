#!/usr/bin/env bash
# Builds the parts of the test cluster that are not built yet, into the cache that all checkouts share: `build.sh [PART…]`, all by default.
# The part `distribution` is no part of it, but a registry that tests of the builder use; it is asked for by name.
#
# A part is a folder named after the hash of its recipe. It is made under another name and renamed when it is whole, so a killed run leaves nothing
# that could be taken for a part; a lock per part keeps two runs from making the same one.
. "$(dirname "$0")/env.sh"
standin=$checkout/containerfiles/standin

make_kubernetes() {
  local version; version=$(cd "$here/kubernetes" && go list -m -f '{{.Version}}' k8s.io/kubernetes)
  # without a version the components call themselves v0.0.0, and clients that ask for the server's version are misled
  local stamp="-X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1"
  stamp+=" -X k8s.io/component-base/version.gitMinor=$(cut -d. -f2 <<< "$version")"
  mkdir "$1/bin"
  (cd "$here/kubernetes" && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w $stamp" -o "$1/bin/kubernetes" .)
  for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do ln -s kubernetes "$1/bin/$name"; done
}

make_runtime() {
  local commands=github.com/containerd/containerd/v2/cmd; mkdir "$1/bin"
  cd "$here/runtime"
  go build -trimpath -tags no_btrfs,no_devmapper,no_zfs -ldflags '-s -w' -o "$1/bin/" $commands/containerd $commands/containerd-shim-runc-v2 $commands/ctr
  go build -trimpath -tags seccomp -ldflags '-s -w' -o "$1/bin/runc" github.com/opencontainers/runc
}

make_distribution() {
  (cd "$checkout/e2e/distribution" && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$1/registry" .)
}

make_peers() {
  cd "$here/../bench/peers"
  CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$1/" github.com/moby/buildkit/cmd/buildkitd github.com/moby/buildkit/cmd/buildctl
}

make_images() {
  mkdir -p "$1/pause" "$1/busybox"/{bin,etc,tmp,proc,sys,dev,var}
  gcc -static -Os -o "$1/pause/pause" "$here/images/pause.c"
  cp /bin/busybox "$1/busybox/bin/"
  for name in $(/bin/busybox --list); do [ "$name" = busybox ] || ln -s busybox "$1/busybox/bin/$name"; done
  echo 'root:x:0:0:root:/:/bin/sh' > "$1/busybox/etc/passwd"
  python3 "$here/images/pack.py" "$1/pause" localhost/pause:1 "$1/pause.tar" /pause
  python3 "$here/images/pack.py" "$1/busybox" localhost/busybox:1 "$1/busybox.tar" /bin/sh
  rm -r "$1/pause" "$1/busybox"
}

make_ostree_container() {
  # a folder of its own, so that a run that was killed is taken up; of no use afterwards
  local target=$cache/target-ostree-container
  CARGO_TARGET_DIR=$target cargo build --locked --release --manifest-path "$standin/ostree-container/Cargo.toml"
  cp "$target/release/ostree-container" "$1/"; rm -r "$target"
}

make_rpms() { "$standin/make-rpms.sh" "$1"; }

make_base() {
  "$standin/make-base.sh" "$1" "$(part ostree-container)/ostree-container" "http://$address:8081"
  "$here/make-registry.sh" "$1/oci:base" standin/rhcos:base "$1/registry" > "$1/digest"
  rm -r "$1/oci"
}

describe() {
  case $1 in
    kubernetes) echo "Kubernetes from its Go modules, 5 minutes cold" ;;
    runtime) echo "containerd and runc from their Go modules, 1 minute cold" ;;
    distribution) echo "the registry distribution v3 from its Go module, half a minute cold" ;;
    images) echo "the images pause and busybox" ;;
    peers) echo "BuildKit from its Go module, 2 minutes cold" ;;
    ostree-container) echo "the ostree container program, 2 to 5 minutes cold" ;;
    rpms) echo "the RPM repository" ;;
    base) echo "the stand-in base OS image, 2 minutes" ;;
  esac
}

build() {
  local name=$1 whole start temporary; whole=$cache/$name-$("$here/recipe.sh" "$name")
  [ ! -d "$whole" ] || return 0
  mkdir -p "$cache"
  exec {lock}> "$cache/$name.lock"
  flock -n $lock || { say "another run is building $name: waiting for it"; flock $lock; }
  if [ ! -d "$whole" ]; then
    start=$(now); say "building $(describe "$name") …"
    rm -rf "$cache/.$name."*; temporary=$(mktemp -d "$cache/.$name.XXXXXX"); chmod 755 "$temporary"
    # a subshell of its own: set -e holds in it, which it doesn't inside a condition. A process group of its own: it ends whole when this script is stopped,
    # while mere background jobs would ignore Ctrl-C
    set -m; (set -e; "make_${name//-/_}" "$temporary") > "$cache/$name.log" 2>&1 < /dev/null {lock}>&- & child=$!; set +m
    wait $child || { tail -n 30 "$cache/$name.log" >&2; fail "building $name failed; the whole log is $cache/$name.log"; }
    child=
    mv -T "$temporary" "$whole"; say "built $name in $(took "$start")"
  fi
  exec {lock}>&-
}

child=
trap '[ -z "$child" ] || { kill -- "-$child"; wait "$child"; } 2> /dev/null || true' EXIT
trap 'exit 130' INT; trap 'exit 143' TERM
[ $# -gt 0 ] || set -- kubernetes runtime images rpms ostree-container base
for name; do build "$name"; done
