# `make help` lists the targets. Needed: Go, gcc (for -race), git, iproute2.
# Everything is built here, from the versions in go.mod, test/go.mod,
# deploy/build/go.mod and tools/go.mod.

BIN      ?= bin
FUZZTIME ?= 10s
SOAK     ?= 20
IMAGE    ?= localhost/vxlan-cni:dev
ARCHES   ?= amd64 arm64

# Static, without the builder's paths and without symbols. -buildvcs=auto puts
# the git revision in wherever there is a git checkout, whatever GOFLAGS says.
GOBUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=auto -ldflags '-s -w'

# Plugins of containernetworking/plugins that go into the image.
PLUGINS := main/loopback meta/bandwidth meta/portmap

LINTER := .cache/golangci-lint
LINT   := $(CURDIR)/$(LINTER)

.DEFAULT_GOAL := help
.PHONY: help build image manifests test kube-apiserver demo lab-down bench soak fuzz lint lint-selftest fmt clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/vxlan-cni, bin/overlayd and bin/overlayctl
	$(GOBUILD) -o $(BIN)/ ./cmd/...

# bin/image/vxlan-cni.tar, an OCI archive of one image for each of ARCHES, and
# its software bills. PUSH=1 sends it to the registry of IMAGE too.
image: ## build the container image bin/image/vxlan-cni.tar, without Docker; IMAGE= names it, PUSH=1 pushes it
	rm -rf $(BIN)/image
	@set -e; for arch in $(ARCHES); do to=$(abspath $(BIN))/image/linux-$$arch; \
	  echo "linux/$$arch: building"; mkdir -p $$to; export GOOS=linux GOARCH=$$arch; \
	  $(GOBUILD) -o $$to/ ./cmd/...; \
	  (cd test && $(GOBUILD) -o $$to/ $(PLUGINS:%=github.com/containernetworking/plugins/plugins/%)); \
	done
	cd deploy/build && go run ./image -from $(abspath $(BIN))/image -o $(abspath $(BIN))/image/vxlan-cni.tar -name $(IMAGE) $(if $(PUSH),-push)

manifests: ## render bin/manifests/*.yaml, to install IMAGE on a cluster and to take it off again
	cd deploy/build && go run ./manifests -o $(abspath $(BIN))/manifests -image $(IMAGE)

test: need-root need-ip need-gcc need-nft need-iptables kube-apiserver ## run all tests under the race detector, as root
	CGO_ENABLED=1 go test -race ./...
	cd test && CGO_ENABLED=1 go test -race ./...
	cd deploy/build && CGO_ENABLED=1 go test -race -count=1 ./... # what make reads is unknown to the cache

# 7 to 9 minutes on two cores the first time on a machine; then Go's build cache
# has it. The tests do the same if it is not there, and only seem to hang.
KEPT := CGO_ENABLED=0 go run -exec true -buildvcs=false -ldflags="$$(cat ldflags)"

kube-apiserver: ## build what the tests of the Kubernetes store run on
	@echo 'building Kubernetes, unless it is there: minutes the first time'
	cd test/k8s && $(KEPT) .

# Kubernetes, containerd, CoreDNS and the conformance tests take 13 minutes on two cores the
# first time on a machine. KEEP=1 leaves the cluster up; make e2e-down removes it.
.PHONY: e2e e2e-down e2e-cluster e2e-kind
E2E := go test -count=1 -p 1 -parallel 8 -v -timeout 45m

e2e: need-root need-ip need-kube kube-apiserver ## run the tests of a whole cluster on a Kubernetes in namespaces of this machine; KEEP=1 leaves it up
	@echo 'building containerd, CoreDNS and the conformance tests, unless they are there'
	$(MAKE) -j2 e2e-ctrd e2e-dns e2e-conformance
	$(MAKE) image ARCHES=$$(go env GOARCH)
	cd test && E2E=lab $(E2E) ./kubelab ./kubee2e

# Two at once, for a linker has work for one core only.
.PHONY: e2e-ctrd e2e-dns e2e-conformance
e2e-ctrd:
	cd test/ctrd && for p in containerd containerd-shim-runc-v2 ctr; do $(KEPT) github.com/containerd/containerd/v2/cmd/$$p || exit 1; done

e2e-dns:
	cd test/dns && $(KEPT) .

e2e-conformance:
	cd test/conformance && for p in . github.com/onsi/ginkgo/v2/ginkgo k8s.io/kubernetes/test/images/agnhost; do $(KEPT) $$p || exit 1; done

e2e-down: need-root ## remove the cluster that `make e2e KEEP=1` left up
	cd test && E2E=down $(E2E) ./kubee2e

e2e-cluster: ## run them on the cluster of KUBECONFIG, with images IMAGE and E2E_IMAGE from a registry
	cd test && E2E=cluster $(E2E) ./kubee2e

e2e-kind: ## run them on a cluster that kind makes, in Docker
	$(MAKE) image ARCHES=$$(go env GOARCH)
	test/kubee2e/kind.sh

demo: build need-root need-ip ## three nodes with two pods each, all pairs reached; KEEP=1 leaves them up
	cd test && $(GOBUILD) -o ../bin/demo ./demo
	bin/demo

lab-down: need-root ## remove what `make demo KEEP=1` left up
	cd test && $(GOBUILD) -o ../bin/demo ./demo
	bin/demo -down

bench: build need-root need-ip ## measure, beside the reference plugins
	cd test && $(GOBUILD) -o ../bin/bench ./bench && $(GOBUILD) -o ../bin/plugins/ tool
	bin/bench

# About two minutes a round on two cores.
soak: need-root need-ip need-gcc kube-apiserver ## run the tests of lease races, theft, expiry, compaction, wipes and partitions SOAK (20) times
	CGO_ENABLED=1 go test -race -count $(SOAK) -run '^TestStoreConforms$$/(defect|heirs|outage|restart)' ./pkg/subnet/subnettest
	CGO_ENABLED=1 go test -race -count $(SOAK) -run 'Emptied|ForeignRenewal|Release' ./internal/node
	cd test && CGO_ENABLED=1 go test -race -count $(SOAK) -timeout 60m -run '^TestConformance/(defect|heirs|outage|restart)' ./etcd
	cd test && CGO_ENABLED=1 go test -race -count $(SOAK) -timeout 60m -run 'Defect|Emptied|Wiped|Partition|Member|Login' ./etcd
	cd test && CGO_ENABLED=1 go test -race -count $(SOAK) -timeout 90m \
	  -run '^(TestConformance|TestOutages|TestManager)$$/(defect|outage|restart|lost|come_back|again|release|withdraw)' ./kube

fuzz: ## run each fuzz test for FUZZTIME (10s)
	@set -e; grep -rl --include='*_test.go' '^func Fuzz' cmd pkg internal | while read -r file; do \
	  sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' "$$file" | while read -r name; do \
	    echo "$$name in $$file"; \
	    go test -run '^$$' -fuzz "^$$name$$" -fuzztime $(FUZZTIME) "./$$(dirname "$$file")"; \
	  done; \
	done

lint: lint-selftest ## vet, style and the import rules (.golangci.yml), in all modules
	$(LINT) run --allow-serial-runners ./...
	cd test && $(LINT) run --allow-serial-runners ./...
	cd test/k8s && $(LINT) run --allow-serial-runners ./...
	cd test/dns && $(LINT) run --allow-serial-runners ./...
	cd test/conformance && $(LINT) run --allow-serial-runners ./...
	cd deploy/build && $(LINT) run --allow-serial-runners ./...

lint-selftest: $(LINTER) ## show that each import rule bites
	cd tools && GOLANGCI_LINT=$(LINT) go test -count=1 .

fmt: $(LINTER) ## gofmt and goimports
	$(LINT) fmt ./...
	cd test && $(LINT) fmt ./...
	cd deploy/build && $(LINT) fmt ./...

clean: ## remove what was built
	rm -rf bin .cache

# Two minutes on two cores the first time on a machine; then Go's build cache
# has it and a fresh checkout takes seconds.
$(LINTER): tools/go.mod tools/go.sum
	cd tools && $(GOBUILD) -o ../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@touch $@

.PHONY: need-root need-ip need-gcc
need-root:
	@[ "$$(id -u)" = 0 ] || { echo "make $(MAKECMDGOALS): needs root, for network namespaces: use sudo" >&2; exit 1; }

need-ip:
	@for p in ip bridge nsenter; do command -v $$p >/dev/null || \
	  { echo "$$p is missing: install iproute2 and util-linux" >&2; exit 1; }; done

need-gcc:
	@command -v gcc >/dev/null || { echo "gcc is missing: go test -race needs it" >&2; exit 1; }

# What the conformance cases call in pods.
CASES := busybox:busybox-static curl:curl dig:bind9-dnsutils nc.openbsd:netcat-openbsd

.PHONY: need-kube
need-kube: need-nft need-iptables
	@for p in runc:runc conntrack:conntrack mount:mount $(CASES); do command -v $${p%%:*} >/dev/null || { echo "installing $${p#*:}, which make e2e needs"; \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $${p#*:}; } || exit 1; done

# The plugin portmap, which one test chains after ours, runs nft.
.PHONY: need-nft
need-nft:
	@command -v nft >/dev/null || { echo "installing nftables, which a test of the plugin portmap needs"; \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends nftables; }

# The tests of pkg/firewall run both flavours of iptables, and nft to look.
.PHONY: need-iptables
need-iptables:
	@{ command -v iptables-nft && command -v iptables-legacy; } >/dev/null || { echo "installing iptables, which tests of pkg/firewall need"; \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends iptables; }
