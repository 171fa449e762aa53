#!/bin/sh
# Compiles the program as it is shipped: `make build` (what the suites with real machines and the real control plane run) and packaging/build.sh both
# come here, so that what is tested is what is packed. Static, stripped, without paths of the machine that built it: the same bytes on every machine.
#
#   packaging/compile.sh ARCH VERSION FILE
#
# COMMIT overrides what git says.
#
# A program larger than 18 MB is refused, and taken away again.
set -eu
cd "$(dirname "$0")/.."
arch=$1 version=$2 file=$3
most=18000000
. packaging/goenv.sh

# Where a function call more costs nothing that anybody could measure, none is inlined: 1.2 MB of the program are copies of small functions in code
# that runs once, once an hour, or to write a page. What answers a DNS query, reads a push, or moves the bytes of either stays as it was.
cold='
	wingman/...
	archive/... encoding/asn1 encoding/csv encoding/json go/... mime/... net/http net/textproto net/url os os/... regexp/... text/...
	crypto/tls crypto/x509 math/big
	github.com/cncf/... github.com/coreos/... github.com/envoyproxy/... github.com/fsnotify/... github.com/go-jose/... github.com/godbus/... github.com/golang/...
	github.com/google/nftables/... github.com/mdlayher/... github.com/spf13/... github.com/spiffe/... github.com/vishvananda/...
	github.com/prometheus/common/... github.com/prometheus/procfs/... github.com/prometheus/client_golang/prometheus/promhttp
	go.yaml.in/... google.golang.org/genproto/... google.golang.org/grpc/...
	google.golang.org/protobuf/encoding/protojson google.golang.org/protobuf/encoding/prototext google.golang.org/protobuf/internal/filedesc
	google.golang.org/protobuf/reflect/... google.golang.org/protobuf/types/...
'
# Out of the patterns above.
hot='
	wingman/dnsproxy/... wingman/agent/xds/... wingman/agent/envoy/stock
	google.golang.org/grpc/internal/transport/... google.golang.org/grpc/mem
'
# The commit is said here: the toolchain notes it only of some checkouts, and its note would differ between them.
commit=${COMMIT-}
if [ -z "$commit" ] && commit=$(git rev-parse HEAD 2>/dev/null) && [ -n "$(git status --porcelain --untracked-files=no)" ]; then
	commit=$commit-dirty
fi

set --
for pattern in $cold; do set -- "$@" "-gcflags=$pattern=-l"; done
for pattern in $hot; do set -- "$@" "-gcflags=$pattern="; done

CGO_ENABLED=0 GOOS=linux GOARCH=$arch ${GO:-go} build -trimpath -buildvcs=false -tags grpcnotrace "$@" -ldflags "-s -w -buildid= -X main.release=$version -X main.commit=$commit" -o "$file" ./cmd/wingman

size=$(wc -c <"$file")
if [ "$size" -gt "$most" ]; then
	rm -f "$file"
	echo "compile: the program for $arch has $size bytes, at most $most are allowed: what was linked in that is not needed? (docs/packaging.md, Size)" >&2
	exit 1
fi
