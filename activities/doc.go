// Package activities holds Holdfast's effects: what touches engines, disks, stores and keys. Each activity can be run
// twice, or run and its result lost, and recognises what is done already (invariant 8). Errors go through classify, so
// that what cannot be mended by waiting has a type from the closed list of package workspace.
package activities
