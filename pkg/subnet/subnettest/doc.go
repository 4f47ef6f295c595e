// Package subnettest is a lease store in memory, for tests, and one conformance
// suite that every subnet.Manager passes, this one included.
package subnettest
