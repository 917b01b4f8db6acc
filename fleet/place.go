// Package fleet decides which node takes a workspace: a pure function of what is known of the nodes, so that equal knowledge
// gives equal choices. Whether there is room is the node's own to say, when it admits the workspace; one that refuses is avoided in
// the next choice.
package fleet

import (
	"cmp"
	"fmt"
	"slices"
)

// Node is what is known of a node.
type Node struct {
	Name string
	// Registered is false for one that has only a name.
	Registered bool
	// Ready is set while it holds its lease; State says in words how it is otherwise.
	Ready bool
	State string
	// Cordoned is who said that nothing new is placed on it; empty when nobody did.
	Cordoned string
	// Unfit is why it cannot take this workspace, whatever else is so; empty when nothing is known against it.
	Unfit string
	// Holds is how many instances have something on it.
	Holds int
}

// Want is what is asked for.
type Want struct {
	// Only, when set, is the one node that will do: content is there, or a person named it. A cordon does not keep it.
	Only string
	// Avoid are nodes that were tried, or that a person does not want.
	Avoid []string
	// Prefer is taken when it can be, however much it holds.
	Prefer string
}

// Choose names the node that takes the workspace: of those that can, the preferred one, else the one that holds least, and of equals the first by name.
// Without one it is empty, and passed says of each node, by name, why it was passed over.
func Choose(nodes []Node, want Want) (name string, passed []string) {
	nodes = slices.SortedFunc(slices.Values(nodes), func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	best := -1
	for i, node := range nodes {
		switch why := unfit(node, want); {
		case why != "":
			passed = append(passed, node.Name+" "+why)
		case best >= 0 && nodes[best].Name == want.Prefer:
		case best < 0 || node.Holds < nodes[best].Holds || node.Name == want.Prefer:
			best = i
		}
	}
	if best < 0 {
		return "", passed
	}
	return nodes[best].Name, passed
}

// unfit is why a node cannot take it; empty when it can.
func unfit(node Node, want Want) string {
	switch {
	case want.Only != "" && node.Name != want.Only:
		return "is not the one that was asked for"
	case slices.Contains(want.Avoid, node.Name):
		return "was tried or is to be avoided"
	case !node.Registered:
		return "has never registered"
	case !node.Ready:
		return "is " + node.State
	case node.Cordoned != "" && want.Only == "":
		return fmt.Sprintf("was cordoned by %s", node.Cordoned)
	}
	return node.Unfit
}
