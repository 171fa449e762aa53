#!/bin/sh
# After the files are in place: deb "configure [OLD]" and every "abort-…", rpm at the end of the transaction. Has a running Envoy of this
# package, and no other, replaced when it is another file than the one that lies there now; so it may run again at any time.
set -e

# Without a running supervisor there is nobody to tell; one that waits for an Envoy finds it by itself.
[ -S /run/wingman-proxy/control.sock ] && command -v wingman >/dev/null || exit 0

# A new Envoy that is refused leaves the package configured: the one that runs goes on, and a package manager that stops here helps nobody.
wingman envoy replace --running /usr/libexec/wingman-envoy/envoy ||
	echo "wingman-envoy: the Envoy from before goes on; once that is mended: wingman envoy replace" >&2
