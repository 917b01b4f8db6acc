package fleet

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func ready(name string, holds int) Node {
	return Node{Name: name, Registered: true, Ready: true, Holds: holds}
}

func TestChoose(t *testing.T) {
	cordoned, suspect := ready("c", 0), Node{Name: "s", Registered: true, State: "Suspect (the lease timed out)"}
	cordoned.Cordoned = "ada"
	for name, test := range map[string]struct {
		nodes  []Node
		want   Want
		chosen string
		passed []string
	}{
		"none":                  {nil, Want{}, "", nil},
		"the emptiest":          {[]Node{ready("a", 2), ready("b", 1), ready("d", 3)}, Want{}, "b", nil},
		"of equals the first":   {[]Node{ready("b", 1), ready("a", 1)}, Want{}, "a", nil},
		"preferred":             {[]Node{ready("a", 0), ready("b", 9), ready("c", 0)}, Want{Prefer: "b"}, "b", nil},
		"preferred, and tried":  {[]Node{ready("a", 0), ready("b", 9)}, Want{Prefer: "b", Avoid: []string{"b"}}, "a", []string{"b was tried or is to be avoided"}},
		"unfit":                 {[]Node{{Name: "a", Registered: true, Ready: true, Unfit: "has no shared volume"}}, Want{Prefer: "a"}, "", []string{"a has no shared volume"}},
		"tried":                 {[]Node{ready("a", 0), ready("b", 9)}, Want{Avoid: []string{"a"}}, "b", []string{"a was tried or is to be avoided"}},
		"none that can":         {[]Node{suspect, cordoned, {Name: "n"}}, Want{}, "", []string{"c was cordoned by ada", "n has never registered", "s is Suspect (the lease timed out)"}},
		"one by name":           {[]Node{ready("a", 0), ready("b", 9)}, Want{Only: "b"}, "b", []string{"a is not the one that was asked for"}},
		"cordoned, and asked":   {[]Node{cordoned, ready("a", 0)}, Want{Only: "c"}, "c", []string{"a is not the one that was asked for"}},
		"suspect, though asked": {[]Node{suspect}, Want{Only: "s"}, "", []string{"s is Suspect (the lease timed out)"}},
		"tried, though asked":   {[]Node{ready("a", 0)}, Want{Only: "a", Avoid: []string{"a"}}, "", []string{"a was tried or is to be avoided"}},
	} {
		chosen, passed := Choose(test.nodes, test.want)
		require.Equal(t, test.chosen, chosen, name)
		require.Equal(t, test.passed, passed, name)
	}
}

// What holds of every choice, whatever is known.
func TestChooseProperties(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	none, some := 0, 0
	for range 20_000 {
		var nodes []Node
		for i := range random.IntN(8) {
			node := ready(fmt.Sprintf("node-%d", i), random.IntN(4))
			switch random.IntN(6) {
			case 0:
				node.Ready, node.State = false, "Suspect"
			case 1:
				node.Cordoned = "ada"
			case 2:
				node = Node{Name: node.Name}
			}
			nodes = append(nodes, node)
		}
		var want Want
		for i := range 8 {
			if random.IntN(5) == 0 {
				want.Avoid = append(want.Avoid, fmt.Sprintf("node-%d", i))
			}
		}
		if random.IntN(4) == 0 {
			want.Only = fmt.Sprintf("node-%d", random.IntN(8))
		}
		given := slices.Clone(nodes)
		name, passed := Choose(nodes, want)
		require.Equal(t, given, nodes, "what was given is left as it was")

		fits := func(node Node) bool {
			return node.Registered && node.Ready && !slices.Contains(want.Avoid, node.Name) && (want.Only == node.Name || want.Only == "" && node.Cordoned == "")
		}
		chosen := slices.IndexFunc(nodes, func(node Node) bool { return node.Name == name })
		unfit := 0
		for _, node := range nodes {
			told := slices.ContainsFunc(passed, func(why string) bool { return strings.HasPrefix(why, node.Name+" ") })
			require.Equal(t, !fits(node), told, "%+v: %v", node, passed)
			if !fits(node) {
				unfit++
				continue
			}
			require.GreaterOrEqual(t, chosen, 0, "%s could take it", node.Name)
			require.LessOrEqual(t, nodes[chosen].Holds, node.Holds, "the emptiest")
		}
		require.Len(t, passed, unfit)
		if name == "" {
			none++
		} else {
			some++
			require.True(t, fits(nodes[chosen]), "%+v was chosen", nodes[chosen])
		}

		// The order in which nodes are known does not matter, and neither does one more that cannot take it.
		shuffled := append(slices.Clone(nodes), Node{Name: "node-x", Registered: true, State: "Lost"})
		random.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		again, _ := Choose(shuffled, want)
		require.Equal(t, name, again)
	}
	require.Greater(t, none, 1_000)
	require.Greater(t, some, 1_000)
}

// Workspaces that are placed one after the other are spread: no node holds two more than another.
func TestChooseSpreads(t *testing.T) {
	nodes := []Node{ready("a", 0), ready("b", 0), ready("c", 0)}
	for range 100 {
		name, _ := Choose(nodes, Want{})
		i := slices.IndexFunc(nodes, func(node Node) bool { return node.Name == name })
		nodes[i].Holds++
		holds := []int{nodes[0].Holds, nodes[1].Holds, nodes[2].Holds}
		require.LessOrEqual(t, slices.Max(holds)-slices.Min(holds), 1)
	}
}
