// Package nodes holds the tests of the whole product in which nodes are lost, cut off, frozen, drained, replaced, and come back. As
// in package testsuite, what is looked at is what a person would see. It exports nothing.
package nodes
