#!/bin/sh
# Installs what a suite needs beside Go, where that is possible, else says what to install. Changes nothing when all is there.
#
#   setup.sh        what demo and `make test` need
#   setup.sh dns    and what the DNS proxy is tested with: resolvers, and clients to compile
#   setup.sh vm     and what the suite with real systemd machines needs
#   setup.sh envoy  and what the suite with the real Envoy needs
#   setup.sh automation  and what the suite with cloud-init, Ansible and the like needs
#   setup.sh packages  and what checks the packages
#   setup.sh mesh   and what the suite with the real control plane needs
set -eu
PATH=$PATH:/usr/sbin:/sbin

missing=
# need COMMAND PACKAGE
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need iptables iptables
need ip6tables iptables
need nft nftables
need ip iproute2
case ${1:-} in
dns)
	need dig bind9-dnsutils
	need unbound unbound
	need dnsmasq dnsmasq-base
	need gcc gcc
	need musl-gcc musl-tools
	[ -e /usr/include/ares.h ] || missing="$missing libc-ares-dev"
	;;
vm)
	need debootstrap debootstrap
	need systemd-nspawn systemd-container
	need rpm rpm
	need python3 python3
	need pip3 python3-pip
	;;
automation)
	need ssh openssh-client
	need ssh-keygen openssh-client
	need gpg gnupg
	need apt-ftparchive apt-utils
	need createrepo_c createrepo-c
	need dnf dnf
	need rpm rpm
	need packer packer
	python3 -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
	need debootstrap debootstrap
	need systemd-nspawn systemd-container
	need python3 python3
	need pip3 python3-pip
	;;
packages)
	need lintian lintian
	need rpmlint rpmlint
	need shellcheck shellcheck
	;;
envoy | mesh)
	need python3 python3
	need pip3 python3-pip
	;;
esac

[ -z "$missing" ] && exit 0
# shellcheck disable=SC2086 # a list
missing=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')

if command -v apt-get >/dev/null 2>&1; then
	install="apt-get install -y --no-install-recommends $missing"
	update="apt-get update"
elif command -v dnf >/dev/null 2>&1; then
	install="dnf install -y $(echo "$missing" | sed 's/iproute2/iproute/; s/bind9-dnsutils/bind-utils/; s/dnsmasq-base/dnsmasq/; s/musl-tools/musl-gcc/; s/shellcheck/ShellCheck/; s/libc-ares-dev/c-ares-devel/')"
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
export DEBIAN_FRONTEND=noninteractive
# The package lists may be old or absent: try first, refresh once.
$install >/dev/null 2>&1 || { $update >&2; $install >&2; }
