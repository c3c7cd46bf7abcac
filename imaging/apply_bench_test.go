package imaging

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// benchTree is 2,000 small files and a large one, as file systems have them.
func benchTree() *tree {
	x := newTree()
	for i := range 20 {
		x.dir(fmt.Sprintf("d%02d", i))
		for j := range 100 {
			x.file(fmt.Sprintf("d%02d/f%02d", i, j), strings.Repeat(fmt.Sprintf("%04d %04d ", i, j), 1+j*30))
		}
	}
	var large strings.Builder
	for i := range 4 << 20 {
		fmt.Fprintf(&large, "%07d\n", i)
	}
	x.file("large", large.String())
	return x
}

func BenchmarkApply(b *testing.B) {
	x, dir := benchTree(), b.TempDir()
	var bytes int64
	for i := 0; b.Loop(); i++ {
		bytes = x.apply(b, filepath.Join(dir, fmt.Sprint(i)), ApplyOptions{}).BytesWritten
	}
	b.SetBytes(bytes)
	b.ReportMetric(float64(len(x.list))*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

func BenchmarkApplyUnchanged(b *testing.B) {
	x, dir := benchTree(), b.TempDir()
	x.apply(b, dir, ApplyOptions{})
	for b.Loop() {
		x.apply(b, dir, ApplyOptions{Delete: true})
	}
	b.ReportMetric(float64(len(x.list))*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

func BenchmarkCompareTree(b *testing.B) {
	x, dir := benchTree(), b.TempDir()
	b.SetBytes(x.apply(b, dir, ApplyOptions{}).BytesWritten)
	for b.Loop() {
		x.equal(b, dir)
	}
}
