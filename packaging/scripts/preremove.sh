#!/bin/sh
# Before the files go: deb "remove" or "upgrade NEW" (and "failed-upgrade", "deconfigure"), rpm 0 (removal) or 1 (upgrade).
# A removal leaves the mesh politely; an upgrade changes nothing here.
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
remove | 0) ;;
*) exit 0 ;;
esac
[ -d /run/systemd/system ] || exit 0

# Unhealthy first, then Envoy drains, rules out, entry gone: what a stop does.
act stop wingman.service wingman-proxy.service

# Rules of a machine whose agent was down, as it crashed or was stopped by force. Istio's own agent names its chains alike: only
# where this agent has joined can they be ours.
if [ -e /var/lib/wingman/joined.json ]; then
	wingman rules remove || echo "wingman: traffic rules may still be there; they go with the next reboot" >&2
fi
act stop wingman-rules.service

# rpm keeps no record of what was enabled; deb does, and masks the units after the removal.
if [ "$1" = 0 ]; then
	systemctl --no-reload disable wingman.service wingman-rules.service >/dev/null 2>&1 || true
fi
