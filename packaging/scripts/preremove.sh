#!/bin/sh
# Before the files go: deb "remove" or "upgrade NEW" (and "failed-upgrade", "deconfigure"), rpm 0 (removal) or 1 (upgrade).
# A removal leaves the mesh politely; an upgrade changes nothing here.
set -e

units="wingman.service wingman-rules.service"
stopped=/run/wingman-removal

# act VERB UNIT …: systemctl, by way of Debian's wrapper where there is one, which asks policy-rc.d first.
act() {
	if command -v deb-systemd-invoke >/dev/null 2>&1; then
		deb-systemd-invoke "$@" || true
	else
		systemctl "$@" || true
	fi
}

# outside COMMAND …: runs it where systemd is. rpm 4.20 gives its scripts a network of their own (its plugin unshare), where there is no rule to take out.
outside() {
	systemd-run --quiet --collect --wait --property=RuntimeMaxSec=60 -- "$@"
}

case "${1:-}" in
remove | 0) ;;
*) exit 0 ;;
esac

# rpm keeps no record of what was enabled; deb does, and masks the units after the removal.
if [ "$1" = 0 ]; then
	# shellcheck disable=SC2086 # a list
	systemctl --no-reload disable $units >/dev/null 2>&1 || true
fi
if [ -n "${DPKG_ROOT:-}" ] || [ ! -d /run/systemd/system ]; then exit 0; fi

# On a machine that was taken over from istio-sidecar that one's agent comes back: traffic goes on.
if [ -e /var/lib/wingman-adopt/record.json ]; then
	timeout 120 wingman adopt --undo || echo "wingman: istio.service was not given its place back: systemctl unmask istio.service, then start it" >&2
fi

# For the case that the removal is broken off. rpm's never is.
if [ "$1" = remove ]; then
	case $(systemctl show --property=ActiveState --value wingman.service) in
	inactive | failed) ;;
	*) : >"$stopped" ;;
	esac
fi

# Unhealthy first, then Envoy drains, rules out, entry gone: what a stop does. An agent that waits for its files has no process, but a path.
act stop wingman.service wingman.path wingman-proxy.service

# Rules of a machine whose agent could not take them out, as it crashed, hung or is masked, whatever became of Envoy: the guard needs
# no program of ours for it. Then those that nobody noted.
# Istio's own agent names its chains alike: only where this agent has joined can they be ours, and not where that one runs (again).
outside /usr/lib/wingman/crash-guard --stopped || true
case $(systemctl show --property=ActiveState --value istio.service) in
active | activating | reloading) theirs=yes ;;
*) theirs= ;;
esac
if [ -z "$theirs" ] && [ -e /var/lib/wingman/joined.json ]; then
	outside wingman rules remove || echo "wingman: traffic rules may still be there; they go with the next reboot" >&2
fi
act stop wingman-rules.service
