#!/bin/sh
# Leaves nothing of this machine in the image, and proves that. As root, and last: what a later step leaves is not seen.
set -eu

# What identifies any machine; made anew at the first boot.
if command -v cloud-init >/dev/null 2>&1; then
	cloud-init clean --logs --seed
	rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub
	# The build came in by these; cloud-init writes those of each machine's owner. This connection goes on.
	for user in root "${SUDO_USER:-root}"; do
		home=$(getent passwd "$user" | cut -d: -f6)
		if [ -n "$home" ]; then rm -f "$home/.ssh/authorized_keys" "$home/.ssh/authorized_keys2"; fi
	done
fi
for file in /etc/machine-id /etc/hostname; do # emptied, not removed: in a container they are mounts
	if [ -s "$file" ]; then : >"$file"; fi
done
# Its stop writes the seed anew, as the shutdown would that ends a build: so first that, for good.
if [ -d /run/systemd/system ]; then
	systemctl mask --runtime --quiet systemd-random-seed.service
	systemctl stop systemd-random-seed.service
fi
rm -f /var/lib/dbus/machine-id /var/lib/systemd/random-seed /var/lib/systemd/credential.secret

# What the build left.
if command -v apt-get >/dev/null 2>&1; then apt-get clean; else dnf clean all; fi

wingman image check
