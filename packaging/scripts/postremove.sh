#!/bin/sh
# After the files are gone: deb "remove", "purge" (and "upgrade", "disappear", "abort-…"), rpm 0 (removal) or 1 (upgrade).
set -e

units="wingman.service wingman-rules.service"
root=${DPKG_ROOT:-}

state=$root/var/lib/wingman

# Nobody's any more, if it is empty.
drop() {
	if [ -d "$1" ] && [ ! -L "$1" ]; then rmdir --ignore-fail-on-non-empty "$1"; fi
}

# inside PATH: it is absolute, and its links lead to nothing outside of the root that is worked on.
inside() {
	case $1 in /*) ;; *) return 1 ;; esac
	[ -z "$root" ] || case $(readlink -f "$root${1%/*}/")/ in "$(readlink -f "$root")"/*) ;; *) return 1 ;; esac
}

# noted WORD: what the agent has noted of that kind, a line each. The list is that user's who may be anybody by now: what it names is judged by what it is.
noted() {
	if [ -f "$state/elsewhere" ] && [ ! -L "$state/elsewhere" ]; then sed -n "s/^$1 //p" "$state/elsewhere"; fi
}

# take_output: reads folders for certificates. The agent's links go, and what stood in their places comes back; its copies for groups have a link "current"
# to a folder with a number. What else is there is somebody's. The agent's user may have made links there, which lead root nowhere.
take_output() {
	while read -r out; do
		inside "$out/" || continue
		out=$root$out
		for name in key.pem cert-chain.pem root-cert.pem; do
			for link in "$out/.$name.wingman" "$out/$name"; do
				case $(readlink "$link") in
				*wingman/identity/current/"$name") rm -f "$link" ;;
				*) continue ;;
				esac
				if [ -f "$link.before-wingman" ]; then mv "$link.before-wingman" "$link"; fi
			done
		done
		[ -L "$out/groups" ] || for folder in "$out/groups"/*/; do
			if [ ! -d "$folder" ] || [ -L "${folder%/}" ]; then continue; fi
			case $(readlink "${folder}current") in
			'' | *[!0-9]*) ;;
			*)
				for name in current key.pem cert-chain.pem root-cert.pem; do rm -rf "$folder$name" "$folder$name.new"; done
				rm -rf "${folder}new" "$folder"[0-9]*
				;;
			esac
			drop "${folder%/}"
		done
		if [ ! -L "$out/groups" ]; then drop "$out/groups"; fi
	done
}

# take_logs: reads files that the agent logged to. They go with those that were rotated away, where they are its user's.
take_logs() {
	user=$(sed -n 's/^istio-proxy:[^:]*:\([0-9]*\):.*/\1/p' "$root/etc/passwd" 2>/dev/null) || return 0 # nobody's
	while read -r log; do
		inside "$log" || continue
		for file in "$root$log" "$root$log".[0-9]* "$root$log"-[0-9]*; do
			if [ -f "$file" ] && [ ! -L "$file" ] && [ "$(stat -c %u "$file")" = "$user" ]; then rm -f "$file"; fi
		done
	done
}

# take_joined: undoes wingman join by its list, which only root can have written: files go, or become what they were; those that were changed since stay.
take_joined() {
	list=$state/placed.list
	if [ ! -f "$list" ] || [ -L "$list" ]; then return 0; fi
	exec 3<"$list"
	# The folder is the agent's user's, who may have put another file there: it counts whose this one is. (Below DPKG_ROOT: who works on it.)
	if [ "$(stat -L -c %u /dev/fd/3)" = "$(id -u)" ]; then
		while read -r word sum backup file; do
			case $word in
			dir)
				if inside "$file"; then drop "$root$file"; fi
				;;
			file)
				inside "$file" || continue
				file=$root$file
				case $backup in
				0) backup= ;;
				1) backup=$file.before-join ;;
				*) backup=$file.before-join-$backup ;;
				esac
				if [ -L "$file" ] || { [ -e "$file" ] && [ "$(sha256sum <"$file")" != "$sum  -" ]; }; then continue; fi
				rm -f "$file"
				if [ -n "$backup" ] && { [ -e "$backup" ] || [ -L "$backup" ]; }; then mv "$backup" "$file"; fi
				;;
			esac
		done <&3
	fi
	exec 3<&-
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
	# What lies elsewhere, then identity, saved names, join.
	{ echo /etc/certs; noted output; } | take_output
	noted log | take_logs
	take_joined
	rm -rf "$state"
	# Of an adopt that the removal did not undo: the package's files alone were here, or it was told not to. An agent that is gone takes no place.
	if [ -e "$root/var/lib/wingman-adopt/record.json" ] && [ "$(readlink "$root/etc/systemd/system/istio.service")" = /dev/null ]; then
		rm -f "$root/etc/systemd/system/istio.service"
	fi
	rm -rf "$root/var/lib/wingman-adopt"
	drop "$root/etc/certs"
	# The key by which the identity was sealed: nothing is left that it opens.
	rm -f "$root/etc/credstore.encrypted/wingman-seal-key"
	drop "$root/etc/wingman"
	;;
0)
	# There is no purge: keys that nobody renews go now, and the rest is all in the folder of state.
	{ echo /etc/certs; noted output; } | take_output
	drop "$root/etc/certs"
	;;
*) exit 0 ;;
esac

# Notes that go with the next boot anyhow.
case "$1" in
remove | 0) rm -rf "$root/run/wingman" "$root/run/wingman-proxy" "$root/run/wingman-guard" "$root/run/wingman-machine" "$root/run/wingman-removal" ;;
esac
if [ -z "$root" ] && [ -d /run/systemd/system ]; then
	systemctl --system daemon-reload >/dev/null || true
fi
