// Package testsuite holds the tests of the whole product (DESIGN 12, level 6): the built command against a whole stack
// on this machine, with real processes, real stores and a real Temporal server that are killed, cut off and damaged. What
// is looked at is what a person would see: exit codes, words, files, and the stores' own counts. It exports nothing. Tests in which nodes
// are lost or come back are in testsuite/nodes; what both stand on is testsuite/stack.
package testsuite
