// Package ha is the place of the pair of heads: leadership, virtual addresses,
// fencing, service monitors and their recovery. This version of doppel runs one
// daemon and has no second head to hand over to, so the package holds nothing
// yet; what it will rest on is there, in cluster: every change of state is one
// typed entry through one commit function, which a second head can follow.
package ha
