// Package faultfs is a disk that goes bad when it is told to: a directory,
// mounted somewhere else through FUSE, where the nth change fails. It is for
// tests, needs root, and is linked into no program.
package faultfs
