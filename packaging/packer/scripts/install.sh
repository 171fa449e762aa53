#!/bin/sh
# Installs the packages in /tmp/wingman-packages on the machine that becomes an image, and enables the unit. As root; may run again.
#
# WINGMAN_SETTINGS, when not empty, becomes /etc/wingman/wingman.yaml.
set -eu
packages=/tmp/wingman-packages
trap 'rm -rf "$packages"' EXIT

if command -v dpkg >/dev/null 2>&1; then
	# What they depend on is in every image; a list is read only where it is not.
	dpkg --force-confdef --force-confold --install "$packages"/*.deb || {
		apt-get update
		DEBIAN_FRONTEND=noninteractive apt-get install --yes --fix-broken "$packages"/*.deb
	}
else
	dnf install --assumeyes --nogpgcheck "$packages"/*.rpm
fi

if [ -n "${WINGMAN_SETTINGS:-}" ]; then
	new=$(mktemp)
	printf '%s\n' "$WINGMAN_SETTINGS" >"$new"
	wingman config check --settings "$new"
	install -m 0644 "$new" /etc/wingman/wingman.yaml
	rm -f "$new"
fi

# Not --now: the machine that the image is built on never joins.
systemctl enable wingman.service
