#!/bin/sh
# Before the files go: deb "remove" (and "upgrade NEW", …), rpm 0 (removal) or 1 (upgrade). An Envoy that runs is left alone: with its traffic
# captured the machine would be cut off.
set -e

case "${1:-}" in
remove | 0) ;;
*) exit 0 ;;
esac
if grep -qs '"program": "/usr/libexec/wingman-envoy/envoy"' /run/wingman-proxy/state.json; then
	echo "wingman-envoy: the Envoy that runs goes on until it is ended or the machine is; then there is none" >&2
fi
