package main

import (
	"testing"

	"doppel/imaging"
)

func TestLimits(t *testing.T) {
	for _, c := range []struct {
		rate, cpu string
		want      imaging.Limits
		good      bool
	}{
		{"", "", imaging.Limits{}, true},
		{"20M", "50%", imaging.Limits{Rate: 20_000_000, CPU: 50}, true},
		{"1.5GB/s", "200", imaging.Limits{Rate: 1_500_000_000, CPU: 200}, true},
		{"500k", "", imaging.Limits{Rate: 500_000}, true},
		{"5000", "", imaging.Limits{Rate: 5000}, true},
		{"0", "", imaging.Limits{}, false},
		{"999", "", imaging.Limits{}, false},
		{"-1M", "", imaging.Limits{}, false},
		{"20m", "", imaging.Limits{}, false},
		{"1e9", "", imaging.Limits{}, false},
		{"99999999999999999G", "", imaging.Limits{}, false},
		{"", "0%", imaging.Limits{}, false},
		{"", "half", imaging.Limits{}, false},
		{"", "-5%", imaging.Limits{}, false},
		{"", "99999999999999999999%", imaging.Limits{}, false},
	} {
		o := captureFlags{limit: c.rate, limitCPU: c.cpu}
		got, err := o.limits()
		if (err == nil) != c.good || c.good && got != c.want {
			t.Errorf("--limit %q --limit-cpu %q: %+v, %v", c.rate, c.cpu, got, err)
		}
	}
}

func FuzzLimits(f *testing.F) {
	f.Add("20M", "50%")
	f.Add("1.5GB/s", "200")
	f.Fuzz(func(t *testing.T, rate, cpu string) {
		o := captureFlags{limit: rate, limitCPU: cpu}
		if l, err := o.limits(); err == nil && (l.Rate < 0 || l.CPU < 0 || rate != "" && l.Rate < 1000 || cpu != "" && l.CPU < 1) {
			t.Errorf("%q and %q are %+v", rate, cpu, l)
		}
	})
}

// A limit that nothing could keep is refused before anything is done.
func TestLimitsThatMeanNothing(t *testing.T) {
	for _, c := range []struct {
		host string
		o    captureFlags
		good bool
	}{
		{"head", captureFlags{root: "/", limit: "1M", limitCPU: "50%"}, true},
		{"head", captureFlags{root: "/", limit: "1M", sftp: true}, true},
		{"head", captureFlags{root: "/", limitCPU: "50%", sftp: true}, false},
		{"head", captureFlags{root: "/", limit: "fast"}, false},
		{local, captureFlags{root: "/", limit: "1M", limitCPU: "50%"}, true},
	} {
		if err := c.o.check(c.host); (err == nil) != c.good {
			t.Errorf("%s, %+v: %v", c.host, c.o, err)
		}
	}
}
