#!/bin/sh
# Makes the .deb and .rpm packages of every architecture, in dist/: `make packages`. Needs Go alone.
#
# Two runs on one commit leave the same bytes, wherever the checkout is: the program is built without paths, and every time in
# a package is that of the commit.
#
#   packaging/build.sh [ARCH …]     default: amd64 arm64
#
# VERSION overrides what the tag says, DIST the folder, KINDS the kinds of package (deb rpm).
set -eu
cd "$(dirname "$0")/.."
tags=grpcnotrace
# Bytes that a package may have; more fails.
most=7000000

VERSION=${VERSION:-$(packaging/version.sh)}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
. packaging/common.sh

[ $# -gt 0 ] || set -- amd64 arm64

shared=$DIST/shared
rm -rf "$shared"
rm -f "$DIST"/wingman_*.deb "$DIST"/wingman-[0-9]*.rpm # of other versions, which dist/*.deb would take too
mkdir -p "$shared/man1" "$shared/completion"
$go run -tags "$tags" ./packaging/generate -version "$VERSION" -date "$date" -maintainer "$MAINTAINER" -to "$shared"
$go run -tags "$tags,manpages" -ldflags "-X main.release=$VERSION" ./cmd/wingman man "$shared/man1" "${date%T*}"
compress "$shared"/man1/*.1 "$shared/wingman.yaml.5"

for ARCH; do
	mkdir -p "$DIST/$ARCH"
	GO=$go packaging/compile.sh "$ARCH" "$VERSION" "$DIST/$ARCH/wingman"
done
$go build -tags "$tags" -o "$DIST/host-wingman" ./cmd/wingman
"$DIST/host-wingman" completion bash >"$shared/completion/wingman.bash"
"$DIST/host-wingman" completion zsh >"$shared/completion/_wingman"
"$DIST/host-wingman" completion fish >"$shared/completion/wingman.fish"
rm "$DIST/host-wingman"

for ARCH; do
	pages=$(cd "$shared/man1" && echo *.gz)
	awk -v pages="$pages" '/\${PAGE}/ { n = split(pages, page, " "); for (i = 1; i <= n; i++) { line = $0; gsub(/\${PAGE}/, page[i], line); print line }; next } { print }' packaging/nfpm.yaml | package nfpm.yaml
done
