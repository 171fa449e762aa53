#!/bin/sh
# After the files are in place: deb "configure [OLD]" and every "abort-…", rpm 1 (installation) or 2 (upgrade).
# Every step may run again, and nothing here starts or enables an agent that its owner did not.
set -e

# What may be enabled.
units="wingman.service wingman-rules.service"
# Made by a removal that stopped the agent, until it is through.
stopped=/run/wingman-removal

# act VERB UNIT …: systemctl, by way of Debian's wrapper where there is one, which asks policy-rc.d first.
act() {
	if command -v deb-systemd-invoke >/dev/null 2>&1; then
		deb-systemd-invoke "$@" || true
	else
		systemctl "$@" || true
	fi
}

case "${1:-}" in
configure) upgrade=${2:-} ;;
abort-upgrade | abort-remove | abort-deconfigure) upgrade=yes ;;
1) upgrade= ;;
2) upgrade=yes ;;
*) exit 0 ;;
esac

# Without a running systemd (a chroot, an image build; DPKG_ROOT: files of another system) there is nobody to tell.
booted=
if [ -z "${DPKG_ROOT:-}" ] && [ -d /run/systemd/system ]; then booted=yes; fi

systemd-sysusers ${DPKG_ROOT:+--root="$DPKG_ROOT"} wingman.conf
# An image has nothing in /run, and may not have the folder.
if [ -n "$booted" ]; then
	systemd-tmpfiles --create wingman.conf || true
else
	systemd-tmpfiles ${DPKG_ROOT:+--root="$DPKG_ROOT"} --exclude-prefix=/run --create wingman.conf || true
fi

# Where the agent puts the certificate: made, or taken with nothing in it but the root that came before the package. Any other is somebody's, with
# an owner and a mode that he chose. tmpfiles.d would set both, at each boot again, before systemd 254.
certs=${DPKG_ROOT:-}/etc/certs
owner=$(sed -n 's/^istio-proxy:[^:]*:\([0-9]*:[0-9]*\):.*/\1/p' "${DPKG_ROOT:-}/etc/passwd")
[ -e "$certs" ] || [ -L "$certs" ] || mkdir -m 0755 "$certs"
if [ -n "$owner" ] && [ ! -L "$certs" ] && [ "$(stat -c %a:%u "$certs")" = 755:0 ]; then
	case $(ls -A "$certs") in
	'' | root-cert.pem) chown "$owner" "$certs" ;;
	esac
fi

if command -v deb-systemd-helper >/dev/null 2>&1; then
	for unit in $units; do
		# A removal masked the units; only those of an earlier installation are known to the helper. What their owner enabled is
		# enabled as this version's files say, and nothing else.
		if deb-systemd-helper debian-installed "$unit"; then
			deb-systemd-helper unmask "$unit" >/dev/null || true
			if deb-systemd-helper --quiet was-enabled "$unit"; then
				deb-systemd-helper enable "$unit" >/dev/null || true
			fi
		fi
		deb-systemd-helper update-state "$unit" >/dev/null || true
	done
elif [ "$1" = 1 ]; then
	# Ours says no; an owner's preset, which goes first, may say yes.
	# shellcheck disable=SC2086 # a list
	systemctl --no-reload preset $units >/dev/null 2>&1 || true
fi

[ -n "$booted" ] || exit 0
systemctl --system daemon-reload >/dev/null || true
if [ -n "$upgrade" ]; then
	# Only an agent that runs is restarted; Envoy never is: its connections go on.
	act try-restart wingman.service
fi
# A removal that was broken off had stopped an agent that ran, or one that waited for its files.
if [ -e "$stopped" ]; then
	case "$1" in
	abort-*) act start wingman.service ;; # it wants wingman.path, which Debian's wrapper would not start by itself
	esac
	rm -f "$stopped"
fi
