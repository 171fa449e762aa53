#!/bin/sh
# After the files are in place: deb "configure [OLD]" and every "abort-…", rpm 1 (installation) or 2 (upgrade).
# Every step may run again, and nothing here starts or enables an agent that its owner did not.
set -e

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

systemd-sysusers wingman.conf
systemd-tmpfiles --create wingman.conf || true # of /run, which an image build may not have

if command -v deb-systemd-helper >/dev/null 2>&1; then
	for unit in wingman.service wingman-rules.service; do
		# A removal masked the units; only those of an earlier installation are known to the helper.
		if deb-systemd-helper debian-installed "$unit"; then
			deb-systemd-helper unmask "$unit" >/dev/null || true
		fi
		deb-systemd-helper update-state "$unit" >/dev/null || true
	done
fi

# Without a running systemd (a chroot, an image build) there is nothing to tell.
[ -d /run/systemd/system ] || exit 0
systemctl --system daemon-reload >/dev/null || true
if [ -n "$upgrade" ]; then
	# Only an agent that runs is restarted; Envoy never is: its connections go on.
	act try-restart wingman.service
fi
