// Command doppel makes doubles of a running Linux head: it captures, serves
// and installs images. It is the only place where the packages are wired
// together; each command has a file of its own.
package main
