// Package e2e holds the tests of the whole: real binaries, a real etcd, pods on
// several nodes. Nothing is faked; what is asserted is what a user would see.
package e2e
