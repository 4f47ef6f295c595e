// Package tools pins the programs that work on this repository, as the tool
// directives of its go.mod, and tests the lint rules. It is a module of its own
// so that their dependencies are nobody else's.
package tools
