// Package bench runs doppel beside its peers, round by round in one run, and says
// how they compare. On a machine that does other work at the same time only the
// ratio of two figures that were taken one after the other means anything.
//
// The rows of Image are about the image engine: a Debian head of some 60,000
// files and 2.5 GB, on a file system of its own, captured over SSH from the
// same machine, restored, and verified.
package bench
