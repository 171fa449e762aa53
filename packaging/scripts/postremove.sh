#!/bin/sh
# After the files are gone: deb "remove", "purge" (and "upgrade", "disappear", "abort-…"), rpm 0 (removal) or 1 (upgrade).
set -e

case "${1:-}" in
remove)
	if command -v deb-systemd-helper >/dev/null 2>&1; then
		for unit in wingman.service wingman-rules.service; do
			deb-systemd-helper mask "$unit" >/dev/null || true
		done
	fi
	;;
purge)
	if command -v deb-systemd-helper >/dev/null 2>&1; then
		for unit in wingman.service wingman-rules.service; do
			deb-systemd-helper purge "$unit" >/dev/null || true
			deb-systemd-helper unmask "$unit" >/dev/null || true
		done
	fi
	# Links of an owner who enabled the units by hand, and what such an owner added to them.
	rm -f /etc/systemd/system/*.wants/wingman.service /etc/systemd/system/*.wants/wingman-rules.service
	rm -rf /etc/systemd/system/wingman.service.d /etc/systemd/system/wingman-proxy.service.d
	# Identity, saved names, join. The links into it go with it, and what stood in their places comes back.
	for name in key.pem cert-chain.pem root-cert.pem; do
		case $(readlink "/etc/certs/$name" 2>/dev/null) in
		*/var/lib/wingman/*)
			rm -f "/etc/certs/$name"
			if [ -f "/etc/certs/$name.before-wingman" ]; then mv "/etc/certs/$name.before-wingman" "/etc/certs/$name"; fi
			;;
		esac
	done
	rmdir --ignore-fail-on-non-empty /etc/certs 2>/dev/null || true
	rm -rf /var/lib/wingman /run/wingman /run/wingman-proxy /run/wingman-guard /run/wingman-machine
	if [ -d /etc/wingman ]; then rmdir --ignore-fail-on-non-empty /etc/wingman; fi
	;;
0) ;;
*) exit 0 ;;
esac

if [ -d /run/systemd/system ]; then
	systemctl --system daemon-reload >/dev/null || true
fi
