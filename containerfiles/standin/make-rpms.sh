#!/usr/bin/env bash
# Builds four small packages and their repository: cowsay (Debian's script and cows, repackaged), rng-tools (a unit and scriptlets), tree (compiled), hightop (400 files).
# The repository is OUT/repo.
#
# usage: make-rpms.sh OUT        needs rpmbuild, createrepo_c, cc, python3 and Debian's cowsay
set -euo pipefail
out=${1:?output folder}
top=$out/build; trap 'rm -rf "$top"' EXIT
mkdir -p "$top"/{SPECS,SOURCES,RPMS,BUILD,BUILDROOT,SRPMS} "$out/repo/Packages"
common='%define debug_package %{nil}
%define __os_install_post %{nil}
%define _build_id_links none
%define _binary_payload w19.zstdio
%define _prefix /usr
'
cowsay=$(command -v cowsay || echo /usr/games/cowsay)

cat > "$top/SPECS/cowsay.spec" <<SPEC
$common
Name: cowsay
Version: 3.7.0
Release: 10.standin
Summary: Speaking cow (repackaged for tests)
License: GPL-3.0-or-later
BuildArch: noarch
AutoReqProv: no
Requires: perl
%description
A configurable speaking and thinking cow.
%install
mkdir -p %{buildroot}/usr/bin %{buildroot}/usr/share/cowsay
install -m 0755 $cowsay %{buildroot}/usr/bin/cowsay
ln -s cowsay %{buildroot}/usr/bin/cowthink
cp -a /usr/share/cowsay/cows %{buildroot}/usr/share/cowsay/
%files
/usr/bin/cowsay
/usr/bin/cowthink
/usr/share/cowsay
SPEC

cat > "$top/SPECS/rng-tools.spec" <<SPEC
$common
Name: rng-tools
Version: 6.17
Release: 1.standin
Summary: Stand-in random number daemon with a unit
License: GPL-2.0-or-later
AutoReqProv: no
Requires: systemd
%description
A stub with a systemd unit and scriptlets, for image builds.
%install
mkdir -p %{buildroot}/usr/sbin %{buildroot}/usr/lib/systemd/system %{buildroot}/etc/sysconfig
printf '#!/bin/sh\nexec sleep infinity\n' > %{buildroot}/usr/sbin/rngd
chmod 0755 %{buildroot}/usr/sbin/rngd
printf '[Unit]\nDescription=Stand-in entropy daemon\n[Service]\nEnvironmentFile=-/etc/sysconfig/rngd\nExecStart=/usr/sbin/rngd\n[Install]\nWantedBy=multi-user.target\n' > %{buildroot}/usr/lib/systemd/system/rngd.service
printf 'RNGD_ARGS=""\n' > %{buildroot}/etc/sysconfig/rngd
%post
mkdir -p /etc/systemd/system/multi-user.target.wants
ln -sf /usr/lib/systemd/system/rngd.service /etc/systemd/system/multi-user.target.wants/rngd.service
%preun
[ "\$1" -ne 0 ] || rm -f /etc/systemd/system/multi-user.target.wants/rngd.service
%files
/usr/sbin/rngd
/usr/lib/systemd/system/rngd.service
%config(noreplace) /etc/sysconfig/rngd
SPEC

cat > "$top/SOURCES/tree.c" <<'C'
#include <dirent.h>
#include <stdio.h>
#include <string.h>
static void walk(const char *p, int d) {
  DIR *h = opendir(p); if (!h || d > 12) { if (h) closedir(h); return; }
  for (struct dirent *e; (e = readdir(h));) {
    if (e->d_name[0] == '.') continue;
    printf("%*s%s\n", d * 2, "", e->d_name);
    if (e->d_type == DT_DIR) { char b[4096]; if (snprintf(b, sizeof b, "%s/%s", p, e->d_name) < (int)sizeof b) walk(b, d + 1); }
  }
  closedir(h);
}
int main(int c, char **v) { walk(c > 1 ? v[1] : ".", 0); return 0; }
C
cat > "$top/SPECS/tree.spec" <<SPEC
$common
Name: tree
Version: 2.1.0
Release: 1.standin
Summary: Prints a directory tree (stand-in)
License: GPL-2.0-or-later
AutoReqProv: no
%description
A small compiled program.
%install
mkdir -p %{buildroot}/usr/bin
cc -O2 -o %{buildroot}/usr/bin/tree %{_sourcedir}/tree.c
%files
/usr/bin/tree
SPEC

cat > "$top/SPECS/hightop.spec" <<SPEC
$common
Name: hightop
Version: 3.2.2
Release: 1.standin
Summary: A process viewer's size and shape (stand-in)
License: GPL-2.0-or-later
AutoReqProv: no
Requires: tree
%description
A small program with a few MB of data and 400 files.
%install
mkdir -p %{buildroot}/usr/bin %{buildroot}/usr/share/hightop
printf '#!/bin/sh\ntop "\$@"\n' > %{buildroot}/usr/bin/hightop; chmod 0755 %{buildroot}/usr/bin/hightop
python3 - %{buildroot}/usr/share/hightop <<'PY'
import random, sys
r = random.Random(7)
for i in range(400):
    with open(f"{sys.argv[1]}/d{i:03}.dat", "wb") as f:
        f.write(r.randbytes(4096) + bytes(str(i) * 2000, "ascii"))
PY
%files
/usr/bin/hightop
/usr/share/hightop
SPEC

for s in "$top"/SPECS/*.spec; do
  rpmbuild --quiet --define "_topdir $top" --define "_sourcedir $top/SOURCES" --target x86_64 -bb "$s" ||
    rpmbuild --quiet --define "_topdir $top" --target noarch -bb "$s" # refused above: BuildArch is noarch
done
find "$top/RPMS" -name '*.rpm' -exec cp {} "$out/repo/Packages/" \;
createrepo_c --quiet --general-compress-type=gz "$out/repo"
