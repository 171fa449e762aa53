#!/bin/sh
# Prints the version of a checkout as packages compare them: v1.2.3 is 1.2.3, v1.2.3-rc.1 comes before it (~), five commits after it come after it (+);
# without a tag there is only the commit's time.
set -eu
if described=$(git describe --tags --match 'v[0-9]*' 2>/dev/null); then
	printf '%s\n' "${described#v}" | sed -E 's/-([0-9]+)-(g[0-9a-f]+)$/+\1.\2/; s/-/~/'
else
	TZ=UTC git log -1 --format=0.0.0~%cd.g%h --abbrev=12 --date=format-local:%Y%m%d%H%M%S
fi
