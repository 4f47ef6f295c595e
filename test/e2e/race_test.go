//go:build race

package e2e

// raced: the daemons under test are built as the tests are.
const raced = true
