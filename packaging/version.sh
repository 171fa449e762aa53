#!/bin/sh
# Prints the version of a checkout as packages compare them: v1.2.3 is 1.2.3, v1.2.3-rc.1 comes before it (~), five commits after it come after it (+);
# without a tag there is only the commit's time. Of several tags on one commit the highest counts, annotated or not.
set -eu
commit=$(git rev-parse HEAD | cut -c 1-12) # --short and --abbrev take more where a repository has much
if near=$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null); then
	tag=$(git -c versionsort.suffix=- tag --list 'v[0-9]*' --points-at "refs/tags/$near^{commit}" --sort=-version:refname | head -n 1)
	# What an rpm's version may hold beside what is put in below.
	if ! printf '%s\n' "$tag" | grep -Eqx 'v[0-9]+(\.[0-9]+)*(-[0-9A-Za-z.]+)?'; then
		echo "version: tag $tag is none that packages can have; expected v1.2.3 or v1.2.3-rc.1" >&2
		exit 1
	fi
	version=$(printf '%s\n' "${tag#v}" | tr - '~')
	after=$(git rev-list --count "refs/tags/$tag..HEAD")
	[ "$after" = 0 ] || version=$version+$after.g$commit
	echo "$version"
else
	echo "0.0.0~$(TZ=UTC git log -1 --format=%cd --date=format-local:%Y%m%d%H%M%S).g$commit"
fi
