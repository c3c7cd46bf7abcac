package main

import (
	"math"
	"regexp"
	"strconv"

	"doppel/imaging"
)

var (
	ratePattern  = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?)([kKMG]?)B?(?:/s)?$`)
	sharePattern = regexp.MustCompile(`^([0-9]+)%?$`)
)

// limits are those that the flags give to a capture.
func (o *captureFlags) limits() (imaging.Limits, error) {
	var l imaging.Limits
	if o.limit != "" {
		m := ratePattern.FindStringSubmatch(o.limit)
		if m == nil {
			return l, usagef("give bytes a second, such as 500k, 20M or 1.5G (1000 each)", "--limit: %q is no rate", o.limit)
		}
		v, err := strconv.ParseFloat(m[1], 64)
		v *= map[string]float64{"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}[m[2]]
		if err != nil || v < 1000 || v > math.MaxInt64/2 {
			return l, usagef("give 1k or more a second; leave it out for no limit", "--limit: %q is out of range", o.limit)
		}
		l.Rate = int64(v)
	}
	if o.limitCPU != "" {
		m := sharePattern.FindStringSubmatch(o.limitCPU)
		if m == nil {
			return l, usagef("give percent of one core, such as 50%", "--limit-cpu: %q is no share", o.limitCPU)
		}
		n, err := strconv.Atoi(m[1])
		if err != nil || n < 1 || n > 100_000 {
			return l, usagef("give 1% or more; leave it out for no limit", "--limit-cpu: %q is out of range", o.limitCPU)
		}
		l.CPU = n
	}
	return l, nil
}
