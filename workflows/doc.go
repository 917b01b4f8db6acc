// Package workflows holds Holdfast's durable decisions. It does no I/O and imports nothing that does: activities are
// called by the names and message types of package workspace.
//
// A workspace is one workflow (workspace.WorkflowID) for as long as it exists: a single loop takes one command at a
// time, so that nothing in it runs twice at once. Updates only record a command and return its id; who asked follows by
// query. A node is one workflow (workspace.NodeWorkflowID) that grants the node's lease.
package workflows
