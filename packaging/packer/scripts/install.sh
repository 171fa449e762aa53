#!/bin/sh
# Installs /tmp/wingman-package on the machine that becomes an image, and enables the unit. As root; may run again.
#
# WINGMAN_SETTINGS, when not empty, becomes /etc/wingman/wingman.yaml.
set -eu
package=/tmp/wingman-package

# Both package managers go by a file's name.
case $(head -c 7 "$package") in
'!<arch>')
	mv "$package" "$package.deb"
	trap 'rm -f "$package.deb"' EXIT
	# What it depends on is in every image; a list is read only where it is not.
	dpkg --force-confdef --force-confold --install "$package.deb" || {
		apt-get update
		DEBIAN_FRONTEND=noninteractive apt-get install --yes --fix-broken "$package.deb"
	}
	;;
*)
	mv "$package" "$package.rpm"
	trap 'rm -f "$package.rpm"' EXIT
	dnf install --assumeyes --nogpgcheck "$package.rpm"
	;;
esac

if [ -n "${WINGMAN_SETTINGS:-}" ]; then
	new=$(mktemp)
	printf '%s\n' "$WINGMAN_SETTINGS" >"$new"
	wingman config check --settings "$new"
	install -m 0644 "$new" /etc/wingman/wingman.yaml
	rm -f "$new"
fi

# Not --now: the machine that the image is built on never joins.
systemctl enable wingman.service
