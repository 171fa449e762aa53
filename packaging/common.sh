# What the scripts here that make packages have in common; they read it from the repository's root, with VERSION and
# SOURCE_DATE_EPOCH set: nfpm and gzip go by the latter.
umask 022
export TZ=UTC SOURCE_DATE_EPOCH
go=${GO:-go}
. packaging/goenv.sh
# Later ones need modules that the public proxy does not give to everybody.
nfpm=github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2
date=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
MAINTAINER=${MAINTAINER:-Wingman maintainers <maintainers@wingman.invalid>}
HOMEPAGE=${HOMEPAGE:-https://wingman.invalid}
DIST=${DIST:-dist}

# compress FILE …: gzip without name and time.
compress() { gzip -9 -n -f "$@"; }

# package DESCRIPTION: the packages of $ARCH that an nfpm description on standard input is of. nfpm itself expands ${…} only in some places.
# One of more than $most bytes, where that is set, is refused, and taken away again.
package() {
	sed "s|\${ARCH}|$ARCH|g; s|\${DIST}|$DIST|g; s|\${VERSION}|$VERSION|g; s|\${RELEASE}|${RELEASE:-1}|g; s|\${MAINTAINER}|$MAINTAINER|g; s|\${HOMEPAGE}|$HOMEPAGE|g; s|\${DATE}|$date|g" >"$DIST/$ARCH/$1"
	for kind in ${KINDS:-deb rpm}; do
		made=$($go run "$nfpm" package --config "$DIST/$ARCH/$1" --packager "$kind" --target "$DIST/")
		made=${made##*created package: }
		echo "$made"
		size=$(wc -c <"$made")
		if [ "$size" -gt "${most:-$size}" ]; then
			rm -f "$made"
			echo "$made had $size bytes, at most $most are allowed (docs/packaging.md, Size)" >&2
			exit 1
		fi
	done
}
