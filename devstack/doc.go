// Package devstack runs everything that Holdfast needs on one machine: it finds or builds the official Temporal dev
// server, and runs it, the object stores, the control worker and the nodes' agents as child processes, so that killing
// one is a real death (DESIGN section 2).
//
// `holdfast dev`, `holdfast demo` and the tests use it. Nothing here is for production, where each role is a process of
// its own under the machine's init system and Temporal is a real cluster.
package devstack
