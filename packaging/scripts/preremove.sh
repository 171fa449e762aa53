#!/bin/sh
# Before the files go: deb "remove" or "upgrade NEW" (and "failed-upgrade", "deconfigure"), rpm 0 (removal) or 1 (upgrade).
# A removal leaves the mesh politely; an upgrade changes nothing here.
set -e

units="wingman.service wingman-rules.service"
stopped=/run/wingman-removal
adopt=/var/lib/wingman-adopt

# act VERB UNIT …: systemctl, by way of Debian's wrapper where there is one, which asks policy-rc.d first.
act() {
	if command -v deb-systemd-invoke >/dev/null 2>&1; then
		deb-systemd-invoke "$@" || true
	else
		systemctl "$@" || true
	fi
}

# outside SECONDS COMMAND …: runs it where systemd is. rpm 4.20 gives its scripts a network of their own (its plugin unshare), where there is no rule to
# take out. What ignores the end of its time is killed 5 s later.
outside() {
	limit=$1
	shift
	systemd-run --quiet --collect --wait --property=RuntimeMaxSec="$limit" --property=TimeoutStopSec=5 -- "$@"
}

# has_istio reports whether there is an istio.service, masked or not.
has_istio() {
	for dir in /usr/lib /lib /etc; do
		if [ -f $dir/systemd/system/istio.service ]; then return 0; fi
	done
	return 1
}

case "${1:-}" in
remove | 0) ;;
*) exit 0 ;;
esac

# On a machine that was taken over from istio-sidecar, and still has it, that one's agent comes back: traffic goes on. Without either nobody would be
# behind it, so there is no removal rather than that. It is the first thing done: where it fails nothing else has changed.
booted=
if [ -z "${DPKG_ROOT:-}" ] && [ -d /run/systemd/system ]; then booted=yes; fi
if [ -n "$booted" ] && [ -e $adopt/record.json ] && has_istio && ! outside 180 /usr/bin/wingman adopt --undo; then
	echo "wingman: this machine was taken over from istio.service, which could not be given its place back: journalctl says why." >&2
	echo "wingman: run wingman adopt --undo; or, to remove the package with istio.service as it is, rm -r $adopt first" >&2
	exit 1
fi

# rpm keeps no record of what was enabled; deb does, and masks the units after the removal.
if [ "$1" = 0 ]; then
	# shellcheck disable=SC2086 # a list
	systemctl --no-reload disable $units >/dev/null 2>&1 || true
fi
[ -n "$booted" ] || exit 0

# For the case that the removal is broken off: an agent that runs, or waits for its files. rpm's never is.
if [ "$1" = remove ]; then
	for unit in wingman.service wingman.path; do
		case $(systemctl show --property=ActiveState --value $unit) in
		inactive | failed) ;;
		*) : >"$stopped" ;;
		esac
	done
fi

# Unhealthy first, then Envoy drains, rules out, entry gone: what a stop does. An agent that waits for its files has no process, but a path.
act stop wingman.service wingman.path wingman-proxy.service wingman-cleanup.service

# Rules of a machine whose agent could not take them out, as it crashed, hung or is masked, whatever became of Envoy: the guard needs
# no program of ours for it. Then those that nobody noted.
# Istio's own agent names its chains alike: only where this agent has joined can they be ours, and not where that one runs (again).
outside 60 /usr/lib/wingman/crash-guard --stopped || true
case $(systemctl show --property=ActiveState --value istio.service) in
active | activating | reloading) theirs=yes ;;
*) theirs= ;;
esac
if [ -z "$theirs" ] && [ -e /var/lib/wingman/joined.json ]; then
	outside 60 /usr/bin/wingman rules remove || echo "wingman: traffic rules may still be there; they go with the next reboot" >&2
fi
act stop wingman-rules.service
