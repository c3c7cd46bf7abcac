// Command doppel-lab runs doppel in virtual clusters on one machine: network
// namespaces and QEMU machines with real firmware, no hardware, nothing left
// behind.
package main
