# make demo    the main job, on real firmware: clone a running head onto a blank machine
# make test    every test, the end-to-end ones in QEMU included
# make build   bin/doppel, bin/doppel-agent, bin/doppel-lab, static
# make bench   doppel beside its peers, on a head of 60,000 files: most of an hour
# make check   gofmt, vet, staticcheck, and the tests with the race detector
#
# demo, test and bench need root (or sudo): they make network namespaces and mounts.

FIRMWARE ?= bios
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
SUDO     := $(shell test "$$(id -u)" = 0 || echo "sudo -E env PATH=$$PATH")
GOFLAGS  := -trimpath
LDFLAGS  := -s -w -X main.version=$(VERSION)
GO       := $(shell sh ./testdata/find-go.sh)
ifeq ($(GO),)
$(error there is no Go that can build this, and none could be installed: see above)
endif

# The end-to-end tests take longest: they begin first.
TESTS := ./lab ./...

# What the demo needs: a Debian tree, machines, their firmware, and iPXE.
DEMO_PACKAGES := mmdebstrap qemu-system-x86 ovmf ipxe ipxe-qemu iproute2 util-linux mount fdisk git openssh-client acl libcap2-bin attr
# What the tests need besides: peers to talk to, and tools that judge.
TEST_PACKAGES := $(DEMO_PACKAGES) busybox tcsh fish gcc libc6-dev openssh-server sudo rsync udhcpc isc-dhcp-client isc-dhcp-relay dnsmasq-base \
	atftp tftp-hpa curl nftables e2fsprogs xfsprogs btrfs-progs dosfstools mtools gdisk fdisk zstd cpio xz-utils bzip2 libarchive-tools tar python3 procps restic borgbackup casync

# What the benchmarks need: a Debian head, and the peers.
BENCH_PACKAGES := mmdebstrap openssh-server openssh-client rsync zstd tar acl attr e2fsprogs mount restic borgbackup casync

.PHONY: build demo test check bench demo-packages test-packages bench-packages clean

build:
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build $(GOFLAGS) -ldflags '$(LDFLAGS)' -o bin/ ./cmd/doppel ./cmd/doppel-agent ./cmd/doppel-lab

demo: demo-packages build
	$(SUDO) bin/doppel-lab demo --firmware $(FIRMWARE)

bench: bench-packages build
	$(SUDO) bin/doppel-lab bench image

test: test-packages build
	$(SUDO) $(GO) vet ./...
	$(SUDO) env DOPPEL_BIN=$(CURDIR)/bin $(GO) test -race -count=1 -timeout 70m $(TESTS)

check: test-packages build
	@out=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$out" || { echo "gofmt would change:"; echo "$$out"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(SUDO) env DOPPEL_BIN=$(CURDIR)/bin $(GO) test -race -count=1 -timeout 70m $(TESTS)

demo-packages:
	@sh ./testdata/packages.sh $(DEMO_PACKAGES)

test-packages:
	@sh ./testdata/packages.sh $(TEST_PACKAGES)

bench-packages:
	@sh ./testdata/packages.sh $(BENCH_PACKAGES)

clean:
	rm -rf bin out
