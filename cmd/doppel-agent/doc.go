// Command doppel-agent is doppel's far end: it captures the head it was
// brought to (capture), installs a machine that booted from the network
// (install, which is also what it does as /init), and reports an installed
// node up (node).
package main
