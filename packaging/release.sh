#!/bin/sh
# Makes a release in dist/release, and nothing else is in there: packages of the agent and of Envoy, bills of materials, SHA256SUMS: `make release`.
#
# The version is the tag's. Files that are changed or that git does not know are refused, for nobody could make the same again; a commit without a tag
# is a snapshot, and said to be one. Nothing of what packaging/build.sh and the like take from the environment is taken here, but GO: who makes the packages
# and where they are at home stands in packaging/common.sh. While that is under .invalid there is no release, but with PLACEHOLDERS=yes (for tests).
#
#   packaging/release.sh [ARCH …]     default: amd64 arm64
#
# SIGN is a command that signs a file that it is given, beside it: SIGN='gpg --armor --detach-sign' leaves SHA256SUMS.asc. DIST overrides the folder,
# which must not be there or be a release.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- amd64 arm64
DIST=${DIST:-dist/release}
export DIST LC_ALL=C
unset VERSION COMMIT RELEASE KINDS MAINTAINER HOMEPAGE SOURCE_DATE_EPOCH
. packaging/goenv.sh

changed=$(git status --porcelain)
if [ -n "$changed" ]; then
	printf 'release: this checkout is not a commit; commit or remove what differs:\n%s\n' "$changed" >&2
	exit 1
fi
if [ "$(git rev-parse --is-shallow-repository)" = true ]; then
	echo "release: this checkout has only some of its commits, which decide versions and times: git fetch --unshallow --tags" >&2
	exit 1
fi
# nobody VALUE: whether nobody can be reached there (RFC 2606, section 2).
nobody() {
	case $1 in
	*.invalid | *.invalid[!a-zA-Z0-9.-]*) ;;
	*) false ;;
	esac
}
MAINTAINER=$(SOURCE_DATE_EPOCH=0 && . packaging/common.sh && printf %s "$MAINTAINER")
HOMEPAGE=$(SOURCE_DATE_EPOCH=0 && . packaging/common.sh && printf %s "$HOMEPAGE")
if [ "${PLACEHOLDERS-}" != yes ] && { nobody "$MAINTAINER" || nobody "$HOMEPAGE"; }; then
	echo "release: packages would name MAINTAINER '$MAINTAINER' and HOMEPAGE '$HOMEPAGE', and nobody is reached under .invalid: set MAINTAINER and HOMEPAGE in packaging/common.sh, and commit" >&2
	exit 1
fi
unset MAINTAINER HOMEPAGE
if [ -e "$DIST" ] && [ ! -e "$DIST/SHA256SUMS" ]; then
	echo "release: $DIST is there and no release: remove it, or name another with DIST" >&2
	exit 1
fi
version=$(packaging/version.sh)
git describe --tags --exact-match --match 'v[0-9]*' >/dev/null 2>&1 || echo "release: no tag v… is on this commit: $version is a snapshot" >&2

rm -rf "$DIST"
mkdir -p "$DIST"
trap 'rm -rf "$DIST"' EXIT # half a release is none
trap 'exit 129' HUP        # not every shell runs the trap above when it is stopped
trap 'exit 130' INT
trap 'exit 143' TERM

VERSION=$version packaging/build.sh "$@"
sh packaging/envoy/build.sh "$@" # its version and time are its own
date=$(TZ=UTC git log -1 --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%SZ)
for arch; do
	${GO:-go} run -tags grpcnotrace ./packaging/generate -version "$version" -date "$date" -sbom "$DIST/$arch/wingman" -to "$DIST/wingman-$version-$arch.cdx.json"
	mv "$DIST/$arch"/envoy/wingman-envoy-*.cdx.json "$DIST/"
	rm -r "${DIST:?}/$arch"
done
rm -r "$DIST/shared"
(
	cd "$DIST"
	sha256sum -- * >SHA256SUMS.new
	mv SHA256SUMS.new SHA256SUMS
	# SIGN is a command with its arguments.
	if [ -n "${SIGN-}" ]; then $SIGN SHA256SUMS; fi
)
trap - EXIT
ls -l "$DIST"
