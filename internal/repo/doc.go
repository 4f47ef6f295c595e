// Package repo has no code. Its tests hold the repository to what it promises
// as a whole: how large the programs are, what they link, and that the commands
// that the documents name exist.
package repo
