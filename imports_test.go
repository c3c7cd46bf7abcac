// Package doppel_test holds the rules about the repository as a whole.
package doppel_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// allowed says which packages of ours each package may import. It is the table
// of ARCHITECTURE.md.
var allowed = map[string][]string{
	"doppel/imaging/store":    {},
	"doppel/imaging":          {"doppel/imaging/store"},
	"doppel/imaging/wire":     {"doppel/imaging", "doppel/imaging/store"},
	"doppel/imaging/remote":   {"doppel/imaging", "doppel/imaging/store", "doppel/imaging/wire"},
	"doppel/imaging/snapshot": {"doppel/imaging"},
	"doppel/imaging/dpkg":     {},
	"doppel/imaging/tarball":  {"doppel/imaging", "doppel/imaging/store"},
	"doppel/imaging/faultfs":  {}, // only tests import it
	"doppel/cluster":          {},
	"doppel/dhcpd":            {},
	"doppel/tftpd":            {},
	"doppel/clone":            {"doppel/imaging", "doppel/imaging/store"},
	"doppel/pxe":              {"doppel/cluster", "doppel/clone", "doppel/imaging", "doppel/imaging/store", "doppel/dhcpd", "doppel/tftpd"},
	"doppel/sync":             {"doppel/clone", "doppel/imaging"},
	"doppel/ha":               {"doppel/cluster"},
	"doppel/web":              {"doppel/cluster", "doppel/clone", "doppel/imaging", "doppel/imaging/store"},
	"doppel/lab":              {},
	"doppel/cmd/doppel-agent": {"doppel/clone", "doppel/imaging", "doppel/imaging/snapshot", "doppel/imaging/store", "doppel/imaging/wire", "doppel/sync"},
	"doppel/lab/bench":        {"doppel/lab"},
	"doppel/cmd/doppel-lab":   {"doppel/lab", "doppel/lab/bench"},
}

func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		rule, known := allowed[words[0]]
		if !known {
			if words[0] != "doppel/cmd/doppel" && words[0] != "doppel" { // cmd/doppel wires all
				t.Errorf("package %s has no rule: add it to ARCHITECTURE.md and here", words[0])
			}
			continue
		}
		for _, imp := range words[1:] {
			if strings.HasPrefix(imp, "doppel/") && !slices.Contains(rule, imp) {
				t.Errorf("%s must not import %s", words[0], imp)
			}
		}
	}
}
