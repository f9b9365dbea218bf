#!/usr/bin/env bash
# Makes a stand-in for the RHEL CoreOS base image: a root filesystem in the shape of bootable containers, filled from Debian's packages, with working rpm,
# dnf, ostree, ignition, jq and update-ca-trust, which ostree-ext packs into an OCI image of some forty layers (every file is an object of
# /sysroot/ostree/repo with a hard link at its path, as in the real image). The result is the OCI layout OUT/oci, tag "base".
#
# usage: make-base.sh OUT OSTREE_CONTAINER_PROGRAM RPM_REPOSITORY_URL
# needs root, mmdebstrap, rpm, ostree, skopeo, python3; 2 minutes, 3 GB while it runs
set -euo pipefail
out=${1:?output folder} program=${2:?ostree-container program} url=${3:?URL of the RPM repository as RUN steps see it}
here=$(cd "$(dirname "$0")" && pwd)
work=$out/work root=$work/rootfs; mkdir -p "$work"; trap 'rm -rf "$work"' EXIT

packages=(
  systemd systemd-sysv dbus udev dnf rpm ostree python3 ignition jq ca-certificates curl gzip bash coreutils iproute2 iputils-ping openssh-server vim-tiny sudo
  nftables iptables network-manager chrony skopeo crun conmon linux-image-cloud-amd64 lvm2 cryptsetup mdadm multipath-tools open-iscsi nfs-common
  selinux-utils policycoreutils p11-kit less xfsprogs e2fsprogs dosfstools zstd xz-utils cpio tar rsync socat ethtool bash-completion man-db locales perl git
  podman buildah tuned irqbalance pciutils usbutils polkitd gdb-minimal strace tcpdump libtext-charwidth-perl
)
mmdebstrap --variant=minbase --format=directory --include="$(IFS=,; echo "${packages[*]}")" \
  --dpkgopt='path-exclude=/usr/share/doc/*' --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' bookworm "$root"
cd "$root"

# identity, the RPM repository, settings of dnf and rpm
cat > usr/lib/os-release <<'R'
NAME="RHCOS stand-in (Debian packages)"
ID=rhcos-standin
ID_LIKE="rhel fedora"
VERSION="9.4-standin"
VERSION_ID=9.4
PLATFORM_ID="platform:el9"
VARIANT_ID=coreos
OSTREE_VERSION=418.94.standin
PRETTY_NAME="Stand-in for the RHCOS base image, for tests only"
R
mkdir -p etc/rpm etc/yum.repos.d etc/dnf/vars usr/share/rpm usr/lib/sysimage
echo '%_dbpath /usr/share/rpm' > etc/rpm/macros.dbpath # Debian's rpm keeps its database in the caller's home
ln -sfn ../../share/rpm usr/lib/sysimage/rpm
echo 9.4 > etc/dnf/vars/releasever
cat > etc/dnf/dnf.conf <<'R'
[main]
gpgcheck=0
installonly_limit=3
clean_requirements_on_remove=True
best=True
skip_if_unavailable=False
module_platform_id=platform:el9
R
printf '[standin]\nname=Stand-in repository\nbaseurl=%s\nenabled=1\ngpgcheck=0\n' "$url" > etc/yum.repos.d/standin.repo

# libostree looks for the program of `ostree container` here first
install -D -m 0755 "$program" usr/libexec/libostree/ext/ostree-container
install -m 0755 "$here/update-ca-trust" usr/bin/update-ca-trust; mkdir -p etc/pki/ca-trust/source/anchors
ln -sfn bash usr/bin/sh # as on RHEL; the rendered Containerfile relies on it
# ostree sets every modification time to 0: bytecode that is checked by time would be written again by each RUN of dnf
chroot . python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3 /usr/lib/python3.11 || echo "some files don't compile, as in Debian"
# the kernel where ostree wants it
for kernel in boot/vmlinuz-*; do
  version=${kernel#boot/vmlinuz-}; mv "$kernel" "usr/lib/modules/$version/vmlinuz"
  [ ! -e "boot/initrd.img-$version" ] || mv "boot/initrd.img-$version" "usr/lib/modules/$version/initramfs.img"
done
rm -rf boot/* initrd.img* vmlinuz*

# an RPM database with an entry for each Debian package
mkdir "$work/rpmdb"
python3 "$here/rpmdb-spec.py" "$root" "$work/rpmdb/os.spec" "$work/rpmdb/lists" "$work/rpmdb/owners"
rpmbuild --quiet --define "_topdir $work/rpmdb/top" --target x86_64 -bb "$work/rpmdb/os.spec" > "$work/rpmdb/log" 2>&1 || { tail -n 20 "$work/rpmdb/log"; exit 1; }
database=(rpm --dbpath "$root/usr/share/rpm" --define '_db_backend sqlite')
"${database[@]}" --initdb
find "$work/rpmdb/top/RPMS" -name '*.rpm' ! -name 'standin-os-*' -print0 |
  xargs -0 "${database[@]}" -i --justdb --nodeps --noscripts --notriggers --ignorearch --replacefiles

# the shape of an ostree tree: no state in it, /etc as /usr/etc, links at the top
rm -rf var tmp run dev proc sys home root opt srv mnt media usr/local ostree sysroot
mkdir -p var tmp run dev proc sys sysroot boot # no var/tmp: ostree-ext writes that entry itself, and some readers refuse a layer with two
chmod 1777 tmp
for link in home:var/home root:var/roothome opt:var/opt srv:var/srv mnt:var/mnt media:run/media ostree:sysroot/ostree usr/local:../var/usrlocal; do
  ln -s "${link#*:}" "${link%%:*}"
done
rm -f etc/machine-id etc/hostname etc/resolv.conf etc/ssh/ssh_host_*; : > etc/machine-id
mv etc usr/etc

cd "$work"
ostree --repo=repo init --mode=bare-user
ostree --repo=repo commit -b standin/coreos --tree=dir="$root" --add-metadata-string=version=418.94.standin -s 'stand-in' --timestamp=2026-01-01T00:00:00Z
python3 "$here/contentmeta.py" repo standin/coreos rpmdb/owners 40 > contentmeta.json
"$program" container encapsulate --repo=repo standin/coreos "oci:$out/oci:base" --contentmeta=contentmeta.json --cmd /bin/bash \
  --label containers.bootc=1 --label ostree.bootable=1 --label org.opencontainers.image.version=418.94.standin --label io.openshift.os.streamclass=standin
