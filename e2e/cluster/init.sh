#!/usr/bin/env bash
# The node's first process: makes its namespaces look like a machine of its own, says so in STATE/run/ready, and waits: `init.sh STATE CGROUP_VERSION STORAGE`.
# STORAGE is what the open registry holds from the start.
set -euo pipefail
state=${1:?} cgroup_version=${2:?} storage=${3-}
hostname node1

# a fresh sysfs shows this network namespace's devices; the cgroup file systems show this cgroup namespace's part
mounted=(/sys/fs/cgroup/*/)
options() { findmnt -no FS-OPTIONS "$1" | tr , '\n' | sed -E '/^(rw|ro|relatime|seclabel|xattr|clone_children|release_agent=.*)$/d' | paste -sd,; }
if [ "$cgroup_version" = 1 ]; then
  declare -A hierarchy=()
  for folder in "${mounted[@]%/}"; do
    [ -L "$folder" ] || [ "$(findmnt -no FSTYPE "$folder")" != cgroup ] || hierarchy[$(basename "$folder")]=$(options "$folder")
  done
fi
umount -l -R /sys/fs/cgroup; umount -R /sys 2> /dev/null || true
mount -t sysfs sysfs /sys
if [ "$cgroup_version" = 1 ]; then
  mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  for name in "${!hierarchy[@]}"; do
    controllers=${hierarchy[$name]}; [[ $controllers != name=* ]] || controllers=none,$controllers
    mkdir "/sys/fs/cgroup/$name"; mount -t cgroup -o "$controllers" cgroup "/sys/fs/cgroup/$name"
    # controllers that share a hierarchy are also reached by their single names
    [[ $name != *,* ]] || for single in ${name//,/ }; do ln -s "$name" "/sys/fs/cgroup/$single"; done
  done
else
  # Not tried with controllers: the machines this was written on have them on v1. up.sh moves this process into a group of its own first.
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  controllers=$(sed 's/[^ ]\+/+&/g' /sys/fs/cgroup/cgroup.controllers)
  for _ in $(seq 100); do echo "$controllers" 2> /dev/null > /sys/fs/cgroup/cgroup.subtree_control && break; sleep 0.05; done
fi

mount --make-rshared /
mount -t tmpfs -o mode=755 tmpfs /run; mkdir -p /run/containerd /run/lock /run/netns /run/strata/registry /run/strata/proc
for folder in kubelet cni; do mkdir -p "$state/node/$folder" "/var/lib/$folder"; mount --bind "$state/node/$folder" "/var/lib/$folder"; done
for folder in pods containers; do mkdir -p "$state/node/log/$folder" "/var/log/$folder"; mount --bind "$state/node/log/$folder" "/var/log/$folder"; done

# the open registry starts from the cache's storage and writes to its own
mkdir -p "$state"/node/{containerd,etcd,registry-auth} "$state"/node/registry/{upper,work}
if [ -n "$storage" ]; then
  mount -t overlay -o "lowerdir=$storage,upperdir=$state/node/registry/upper,workdir=$state/node/registry/work" overlay /run/strata/registry
else
  mount --bind "$state/node/registry/upper" /run/strata/registry
fi

# the kubelet insists on these settings of the whole machine: it finds them as it wants them and writes nothing
setting() { mkdir -p "$state/run/sysctl"; echo "$2" > "$state/run/sysctl/${1##*/}"; mount --bind "$state/run/sysctl/${1##*/}" "/proc/sys/$1"; }
setting vm/overcommit_memory 1; setting kernel/panic 10; setting kernel/panic_on_oops 1
# one proc without anything mounted over it: else the kernel lets no user namespace in here mount its own
mount -t proc proc /run/strata/proc

# the network: one address and no way out; service addresses must be routable before they are translated
ip link set lo up
ip link add node0 type bridge; ip address add 10.250.0.1/24 dev node0; ip link set node0 up
ip route add default dev node0
echo 1 > /proc/sys/net/ipv4/ip_forward

echo ready > "$state/run/ready"
trap 'exit 0' TERM
while :; do sleep 3600 & wait $! || true; done
