package doppel_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Every package opens with a doc.go that says what it is.
func TestEveryPackageHasItsDoc(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{if .GoFiles}}{{.Dir}} {{.Name}}{{end}}", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		dir, name := words[0], words[1]
		text, err := os.ReadFile(filepath.Join(dir, "doc.go"))
		if err != nil {
			t.Errorf("%s: %v", dir, err)
			continue
		}
		doc, _, ok := strings.Cut(string(text), "\npackage "+name)
		if !ok || !strings.HasPrefix(doc, "//") && !strings.HasPrefix(doc, "/*") {
			t.Errorf("%s/doc.go does not begin with words on package %s", dir, name)
		}
	}
}
