#!/bin/sh
# find-go.sh prints a go command that is new enough for go.mod (Go 1.21 and
# later fetch the version they need by themselves). Where there is none, it
# installs Debian's, and where that is too old, has it fetch the toolchain as
# the module golang.org/toolchain.
set -eu
want=$(awk '$1 == "go" {print $2}' go.mod)
new_enough() { "$1" version 2>/dev/null | awk '{sub("go", "", $3); split($3, v, "."); exit !(v[1] > 1 || v[2] >= 21)}'; }
for go in go /usr/local/go/bin/go /usr/lib/go/bin/go; do
	if command -v "$go" >/dev/null && new_enough "$go"; then
		echo "$go"
		exit 0
	fi
done
sh ./testdata/packages.sh golang-go ca-certificates >&2
if new_enough go; then
	echo go
	exit 0
fi
module=golang.org/toolchain@v0.0.1-go$want.linux-$(go env GOARCH)
(cd / && go mod download "$module" >&2)
dir=$(go env GOMODCACHE)/$module
chmod -R u+x "$dir/bin" "$dir/pkg/tool" 2>/dev/null || true
echo "$dir/bin/go"
