# The commands a newcomer needs: `make demo` shows the daemon's main job, `make test` proves it. Both set up what they need.

GO       ?= go
# grpcnotrace keeps text/template out of the binary: a quarter of its size and 4 MB of resident memory.
TAGS     := grpcnotrace
RELEASE  := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
FUZZTIME ?= 60s
# Packages of test/mesh at a time; each has a control plane of its own.
MESH_P   ?= 5
SOURCES  := $(shell find . -name '*.go' -not -path './test/*' -not -path './tmpdeps/*') go.mod go.sum

.PHONY: all build demo test test-spire lint fuzz bench bench-dns bench-xds test-netns test-dns test-envoy test-mesh test-vm test-automation packages envoy-package lint-packages test-packages release vulncheck setup clean

all: build

build: bin/wingman

# As it is shipped: packaging/compile.sh is the only place that knows the flags, and refuses more than 18 MB.
bin/wingman: $(SOURCES) packaging/compile.sh
	@mkdir -p bin
	GO='$(GO)' packaging/compile.sh $$($(GO) env GOARCH) '$(RELEASE)' $@

# What tests and demo need beside Go: iptables, nft and ip. Installs them where it may, else says how.
setup:
	@sh test/setup/setup.sh

demo: setup build
	$(GO) run -tags $(TAGS) ./test/demo -wingman bin/wingman

test: setup
	$(GO) test -race -tags $(TAGS) -timeout 8m ./...

# Only the tests that need a kernel; skipping is a failure.
test-netns: setup
	REQUIRE_NETNS=1 $(GO) test -race -tags $(TAGS) -timeout 8m ./iptables/... ./test/netns/...

# The DNS proxy with real clients and resolvers, and half a minute of load while the table changes; skipping is a failure.
test-dns: setup
	@sh test/setup/setup.sh dns
	REQUIRE_NETNS=1 DNS_LOAD_SECONDS=30 $(GO) test -count=1 -tags $(TAGS) -timeout 8m ./dnsproxy

# The suites below run programs that Go's test cache knows nothing of: -count=1.

# Only the packages with tests of the real Envoy, which is downloaded once; skipping is a failure. Names another one: ENVOY=/usr/bin/envoy.
test-envoy: setup
	@sh test/setup/setup.sh envoy
	@set -e; envoy='$(ENVOY)'; [ -n "$$envoy" ] || envoy=$$(cd test/mesh && $(GO) run ./cmd/fetch -only envoy); \
	  packages=$$(grep -rl --include='*_test.go' 'envoytest\.Program(' agent | xargs -n1 dirname | sort -u | sed 's|^|./|'); \
	  echo "the real Envoy: $$envoy"; \
	  WINGMAN_ENVOY=$$envoy REQUIRE_ENVOY=1 REQUIRE_NETNS=1 $(GO) test -count=1 -tags $(TAGS) -timeout 10m $$packages

# The real istiod and kube-apiserver, built from Go modules into a cache (the first time takes a while). Most tests wait more than they work; the one
# that takes longest begins first.
test-mesh: build
	@sh test/setup/setup.sh mesh
	cd test/mesh && WINGMAN_MESH=1 WINGMAN_BIN=$(CURDIR)/bin/wingman $(GO) test -count=1 -p $(MESH_P) -parallel 16 -timeout 40m ./lives ./...

# A real SPIRE as the source of certificates. The first time it is built, ten minutes of both cores.
test-spire: setup
	WINGMAN_SPIRE=1 $(GO) test -count=1 -tags $(TAGS) -timeout 30m ./test/spire/...

# Real systemd machines, with the real Envoy on some and the real istiod for two. What each event in their life cost stands at the end.
test-vm: build
	@sh test/setup/setup.sh vm
	@table=$$(mktemp) && trap 'rm -f "$$table"' EXIT && status=0; \
	  WINGMAN_VM=1 WINGMAN_BIN=$(CURDIR)/bin/wingman WINGMAN_VM_TABLE=$$table $(GO) test -count=1 -tags $(TAGS) -timeout 30m ./test/vm/... || status=$$?; \
	  cat "$$table"; exit $$status

# cloud-init, Terraform, Ansible, Packer and package repositories, each by its own tool, against real systemd machines. The first time OpenTofu is built,
# some minutes of both cores.
test-automation:
	@sh test/setup/setup.sh automation
	WINGMAN_VM=1 $(GO) test -count=1 -tags $(TAGS) -timeout 15m ./test/automation/...
	cd test/automation/hcl && $(GO) test -count=1 -timeout 30m ./...

lint:
	@files=$$(git ls-files '*.go' | xargs gofmt -l); if [ -n "$$files" ]; then echo "gofmt would change:"; echo "$$files"; exit 1; fi
	$(GO) vet -tags $(TAGS) ./...
	cd test/mesh && $(GO) vet ./...
	cd test/automation/hcl && $(GO) vet ./...
	$(GO) tool staticcheck -tags $(TAGS) ./...
	@for f in $$(git ls-files '*.sh' .ci/run); do sh -n $$f || bash -n $$f || exit 1; done

# Every fuzz function for FUZZTIME, one after the other. Where coverage depends on chance (hash seeds), minimising an input without a limit takes all of that.
fuzz:
	@set -e; for dir in $$(git grep -l '^func Fuzz' -- '*_test.go' ':!test/mesh' | xargs -n1 dirname | sort -u); do \
	  for f in $$(cat $$dir/*_test.go | sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p'); do \
	    echo "== $$dir $$f"; $(GO) test -tags $(TAGS) -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x ./$$dir; \
	  done; done

bench: setup build
	$(GO) run -tags $(TAGS) ./test/bench -wingman bin/wingman
	$(GO) test -count=1 -tags $(TAGS) -run Fleet -v ./bootstrap/identity -args -fleet 2000

# What DNS costs next to other servers, as root: those of knot, unbound and dnsmasq that are installed, CoreDNS and pilot-agent, which are built once
# (that takes a while), and dnsperf.
bench-dns: build
	@sh test/setup/setup.sh mesh
	$(GO) run -tags $(TAGS) ./test/bench/dns -wingman bin/wingman

# What a push of the real istiod costs next to Istio's own agent, in 10,000 services; as root, ROUNDS times each.
ROUNDS ?= 5
bench-xds: build
	@sh test/setup/setup.sh mesh
	cd test/mesh && WINGMAN_MESH=1 WINGMAN_BIN=$(CURDIR)/bin/wingman $(GO) test -run '^$$' -bench Push -benchtime $(ROUNDS)x -timeout 30m ./push

# .deb and .rpm of both architectures in dist/; and what Debian's and rpm's own checkers say of them.
packages:
	@sh packaging/build.sh
# wingman-envoy: the same of the unmodified Envoy, which is fetched once.
envoy-package:
	@sh test/setup/setup.sh envoy
	@sh packaging/envoy/build.sh
lint-packages: packages envoy-package
	@sh test/setup/setup.sh packages
	shellcheck -s sh -S warning -e SC1007 $$(git ls-files '*.sh') systemd/units/crash-guard # SC1007: a= b= makes both empty
	shellcheck packaging/scripts/*.sh systemd/units/crash-guard # these run as root on machines of others: hints count too
	lintian --fail-on error,warning dist/*.deb
	PATH=$(CURDIR)/packaging/lint:$$PATH rpmlint --strict -c packaging/files/rpmlint.toml dist/*.rpm

# A release, what refuses to become one, and that another checkout of the commit makes packages with the bytes of those in dist/.
test-packages: packages envoy-package
	WINGMAN_PACKAGES=$(CURDIR)/dist $(GO) test -count=1 -tags $(TAGS) -timeout 10m -v ./test/packages

# All of a release in dist/release, from a tag: docs/releases.md.
release:
	@sh test/setup/setup.sh envoy
	@GO='$(GO)' packaging/release.sh

# Known vulnerabilities in what is linked in, of those that are called. Needs vuln.go.dev.
vulncheck: build
	$(GO) run golang.org/x/vuln/cmd/govulncheck@v1.9.0 -tags $(TAGS) ./cmd/wingman

clean:
	rm -rf bin dist
