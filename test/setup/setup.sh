#!/bin/sh
# Installs what demo and tests need beside Go, where that is possible, else says what to install. Changes nothing when all is there.
set -eu
PATH=$PATH:/usr/sbin:/sbin

missing=
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need iptables iptables
need ip6tables iptables
need nft nftables
need ip iproute2

[ -z "$missing" ] && exit 0
missing=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')

if command -v apt-get >/dev/null 2>&1; then
	install="apt-get install -y --no-install-recommends $missing"
	update="apt-get update"
elif command -v dnf >/dev/null 2>&1; then
	install="dnf install -y $(echo "$missing" | sed 's/iproute2/iproute/')"
	update=true
else
	echo "missing: $missing; install them with this system's package manager" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "missing: $missing; install them with: sudo $install" >&2
	exit 1
fi
echo "installing $missing" >&2
# The package lists may be old or absent: try first, refresh once.
DEBIAN_FRONTEND=noninteractive $install >/dev/null 2>&1 || { $update >&2; DEBIAN_FRONTEND=noninteractive $install >&2; }
