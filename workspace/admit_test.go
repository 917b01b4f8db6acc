package workspace

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAdmit(t *testing.T) {
	loss, later := &NodeLoss{Epoch: 3}, time.Date(2026, 1, 25, 12, 0, 0, 0, time.UTC)
	holder := NodeInfo{Name: "node-1", Incarnation: "one", Recipient: "age1a", Lock: "lock-a", Address: "10.0.0.1:1"}
	again := NodeInfo{Name: "node-1", Incarnation: "two", Recipient: "age1a", Lock: "lock-a"}
	rebooted := NodeInfo{Name: "node-1", Incarnation: "two", Recipient: "age1a", Lock: "lock-b"}
	stranger := NodeInfo{Name: "node-1", Incarnation: "two", Recipient: "age1b", Lock: "lock-b"}
	before := NodeInfo{Name: "node-1", Incarnation: "two", Recipient: "age1a"}
	for name, test := range map[string]struct {
		state   NodeState
		info    NodeInfo
		refused string
	}{
		"the first ever":                          {NodeState{Phase: NodeLost}, stranger, ""},
		"the holder, once more":                   {NodeState{Info: holder, Phase: NodeReady}, holder, ""},
		"another start on the same directory":     {NodeState{Info: holder, Phase: NodeReady}, again, ""},
		"that does not tell its lock":             {NodeState{Info: holder, Phase: NodeReady}, before, ""},
		"after one that did not":                  {NodeState{Info: before, Phase: NodeReady}, rebooted, ""},
		"a machine that was switched off and on":  {NodeState{Info: holder, Phase: NodeReady}, rebooted, "10.0.0.1:1 has this node"},
		"when the one before has missed its beat": {NodeState{Info: holder, Phase: NodeSuspect}, rebooted, ""},
		"when the one before was stopped":         {NodeState{Info: holder, Phase: NodeLost, LossDue: later}, rebooted, ""},
		"a stranger":                              {NodeState{Info: holder, Phase: NodeReady}, stranger, "two agents cannot have one name"},
		"while it is offered":                     {NodeState{Info: holder, Phase: NodeOffered}, stranger, "two agents cannot have one name"},
		"while the other may come back":           {NodeState{Info: holder, Phase: NodeSuspect}, stranger, "waits until the node is lost"},
		"while the other is started again":        {NodeState{Info: holder, Phase: NodeLost, LossDue: later}, stranger, "until 2026-01-25T12:00:00Z"},
		"once the other is lost":                  {NodeState{Info: holder, Phase: NodeLost, Loss: loss}, stranger, ""},
		"once its time is over":                   {NodeState{Info: holder, Phase: NodeLost}, stranger, ""},
		"an old one without a lock, as a stranger": {NodeState{Info: before, Phase: NodeReady},
			NodeInfo{Name: "node-1", Incarnation: "three", Recipient: "age1b"}, "two agents cannot have one name"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Admit(test.state, test.info)
			if test.refused == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, test.refused)
		})
	}
}
