#!/bin/sh
# Leaves nothing of this machine in the image, and proves that. As root, and last: what a later step leaves is not seen.
set -eu

# What identifies any machine; made anew at the first boot.
if command -v cloud-init >/dev/null 2>&1; then
	cloud-init clean --logs --seed
	rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub
fi
if [ -s /etc/machine-id ]; then : >/etc/machine-id; fi
rm -f /var/lib/dbus/machine-id /var/lib/systemd/random-seed

# What the build left.
if command -v apt-get >/dev/null 2>&1; then apt-get clean; else dnf clean all; fi

wingman image check
