// Package netlab is several nodes on one machine, as network namespaces; tests,
// benchmarks and the demo stand on it.
//
// Everything it makes bears a prefix of the process that made it, and exactly
// that is removed at the end.
package netlab
