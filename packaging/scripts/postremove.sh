#!/bin/sh
# After the files are gone: deb "remove", "purge" (and "upgrade", "disappear", "abort-…"), rpm 0 (removal) or 1 (upgrade).
set -e

units="wingman.service wingman-rules.service"
root=${DPKG_ROOT:-}

# Nobody's any more, if it is empty.
drop() {
	if [ -d "$1" ] && [ ! -L "$1" ]; then rmdir --ignore-fail-on-non-empty "$1"; fi
}

case "${1:-}" in
remove)
	if command -v deb-systemd-helper >/dev/null 2>&1; then
		for unit in $units; do
			deb-systemd-helper mask "$unit" >/dev/null || true
		done
	fi
	;;
purge)
	if command -v deb-systemd-helper >/dev/null 2>&1; then
		for unit in $units; do
			deb-systemd-helper purge "$unit" >/dev/null || true
			deb-systemd-helper unmask "$unit" >/dev/null || true
		done
	fi
	# Links of an owner who enabled or masked the units by hand, and what such an owner added to them.
	for unit in $units wingman.path wingman-proxy.service wingman-cleanup.service wingman-mesh-ready.service istio-mesh-ready.target; do
		rm -f "$root"/etc/systemd/system/*.wants/"$unit"
		rm -rf "$root/etc/systemd/system/$unit.d"
		if [ "$(readlink "$root/etc/systemd/system/$unit")" = /dev/null ]; then rm -f "$root/etc/systemd/system/$unit"; fi
	done
	# Identity, saved names, join. The links into it go with it, and what stood in their places comes back.
	for name in key.pem cert-chain.pem root-cert.pem; do
		link=$root/etc/certs/$name
		case $(readlink "$link") in
		*/var/lib/wingman/*)
			rm -f "$link"
			if [ -f "$link.before-wingman" ]; then mv "$link.before-wingman" "$link"; fi
			;;
		esac
	done
	rm -rf "$root/var/lib/wingman"
	# Of an adopt that the removal did not undo: the package's files alone were here, or it was told not to. An agent that is gone takes no place.
	if [ -e "$root/var/lib/wingman-adopt/record.json" ] && [ "$(readlink "$root/etc/systemd/system/istio.service")" = /dev/null ]; then
		rm -f "$root/etc/systemd/system/istio.service"
	fi
	rm -rf "$root/var/lib/wingman-adopt"
	# Copies for groups have a link "current" to a folder with a number; what else is there is somebody's.
	# The agent's user may have made links there, which lead root nowhere.
	groups=$root/etc/certs/groups
	[ -L "$groups" ] || for folder in "$groups"/*/; do
		if [ ! -d "$folder" ] || [ -L "${folder%/}" ]; then continue; fi
		case $(readlink "${folder}current") in
		'' | *[!0-9]*) ;;
		*) rm -rf "${folder}current" "${folder}key.pem" "${folder}cert-chain.pem" "${folder}root-cert.pem" "${folder}new" "$folder"[0-9]* ;;
		esac
		drop "${folder%/}"
	done
	drop "$groups"
	drop "$root/etc/certs"
	# The key by which the identity was sealed: nothing is left that it opens.
	rm -f "$root/etc/credstore.encrypted/wingman-seal-key"
	drop "$root/etc/wingman"
	;;
0) drop "$root/etc/certs" ;;
*) exit 0 ;;
esac

# Notes that go with the next boot anyhow.
case "$1" in
remove | 0) rm -rf "$root/run/wingman" "$root/run/wingman-proxy" "$root/run/wingman-guard" "$root/run/wingman-machine" "$root/run/wingman-removal" ;;
esac
if [ -z "$root" ] && [ -d /run/systemd/system ]; then
	systemctl --system daemon-reload >/dev/null || true
fi
