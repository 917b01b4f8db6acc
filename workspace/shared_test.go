package workspace

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestFenceAndRecoveryOfASharedVolume(t *testing.T) {
	now := time.Unix(10000, 0)
	lost := func(guard NodeGuard, change ...func(*NodeLoss)) LookAtNodeResult {
		loss := &NodeLoss{At: now.Add(-time.Minute)}
		for _, do := range change {
			do(loss)
		}
		return LookAtNodeResult{Known: true, Node: NodeState{Phase: NodeLost, Loss: loss, Guard: guard}}
	}
	dead := func(loss *NodeLoss) { loss.Dead = "ada" }
	guarded := func(ago time.Duration) NodeGuard {
		return NodeGuard{Guarded: true, PauseAfter: 2 * time.Minute, Beaten: now.Add(-ago)}
	}
	past := 2*time.Minute + FenceMargin
	held := func(look LookAtNodeResult) LookAtNodeResult {
		look.Brake = Brake{Held: true, Why: "3 of 4 nodes were lost"}
		return look
	}
	another := func(look LookAtNodeResult) LookAtNodeResult {
		look.Node.Info.Recipient = "another key"
		return look
	}
	for name, test := range map[string]struct {
		look    LookAtNodeResult
		fenced  bool
		answers bool
		action  RecoveryAction
		says    string
	}{
		"it is there":                   {LookAtNodeResult{Known: true, Node: NodeState{Phase: NodeReady}}, false, true, RecoveryStay, "returned"},
		"another machine is there":      {another(LookAtNodeResult{Known: true, Node: NodeState{Phase: NodeReady}}), false, false, RecoveryWait, "another one"},
		"another machine is lost":       {another(lost(guarded(time.Hour))), false, false, RecoveryWait, "another one"},
		"another machine is dead":       {another(lost(guarded(time.Second), dead)), true, false, RecoveryMove, "ada said"},
		"nobody knows it":               {LookAtNodeResult{}, false, false, RecoveryWait, "asked whether"},
		"its agent was stopped":         {LookAtNodeResult{Known: true, Node: NodeState{Phase: NodeLost, Guard: guarded(time.Hour)}}, false, false, RecoveryWait, "asked whether"},
		"suspect":                       {LookAtNodeResult{Known: true, Node: NodeState{Phase: NodeSuspect, Guard: guarded(time.Hour)}}, false, false, RecoveryWait, "asked whether"},
		"guarded, not yet":              {lost(guarded(past - time.Second)), false, false, RecoveryWait, "has surely paused"},
		"guarded, and paused":           {lost(guarded(past)), true, false, RecoveryMove, "has paused"},
		"guarded, and paused, held":     {held(lost(guarded(past))), true, false, RecoveryWait, "3 of 4"},
		"no guard, however long ago":    {lost(NodeGuard{Beaten: now.Add(-1000 * time.Hour)}), false, false, RecoveryWait, "`holdfast node dead node-1`"},
		"no guard, dead":                {lost(NodeGuard{}, dead), true, false, RecoveryMove, "ada said"},
		"guarded, dead, not yet":        {lost(guarded(time.Second), dead), true, false, RecoveryMove, "ada said"},
		"dead, held":                    {held(lost(NodeGuard{}, dead)), true, false, RecoveryMove, "ada said"},
		"a guard that says no duration": {lost(NodeGuard{Guarded: true, Beaten: now.Add(-time.Hour)}), false, false, RecoveryWait, "no guard process"},
	} {
		fence := FenceOf(test.look, "node-1", "key", now)
		require.Equal(t, test.fenced, fence.Fenced, name)
		require.Equal(t, test.answers, fence.Answers, name)
		require.NotEmpty(t, fence.Why, name)
		if !fence.Fenced {
			require.True(t, fence.Until.After(now), name)
		}
		state := State{Phase: Running, Instance: &Instance{Token: 1, Node: "node-1", Volume: "a", Key: "key"}, Loss: &Loss{Node: "node-1", At: now}}
		decision := DecideRecovery(state, test.look, now)
		require.Equal(t, test.action, decision.Action, name)
		require.Contains(t, decision.Why, test.says, name)

		// It was never backed up, and that makes no difference. On the node's own disk the same look says something else.
		state.Instance.Volume = ""
		if test.action == RecoveryMove {
			require.NotEqual(t, RecoveryMove, DecideRecovery(state, test.look, now).Action, name)
		}
		// Once another was recorded, a node that is there does not keep it: what it runs is stopped first (quieten).
		state = State{Phase: Recovering, Kept: &Kept{Token: 1, Node: "node-1", Volume: "a"}, Loss: &Loss{Node: "node-1", Replaced: true}}
		want := RecoveryMove
		if test.look.Brake.Held && test.says == "3 of 4" {
			want = RecoveryWait
		}
		require.Equal(t, want, DecideRecovery(state, test.look, now).Action, name)
	}
}

func TestNodeHasVolume(t *testing.T) {
	for name, test := range map[string]struct {
		volume *NodeVolume
		id     string
		has    bool
	}{
		"none":          {nil, "", false},
		"not mounted":   {&NodeVolume{Problem: "nothing is there"}, "", false},
		"any":           {&NodeVolume{ID: "a"}, "", true},
		"the same":      {&NodeVolume{ID: "a"}, "a", true},
		"another":       {&NodeVolume{ID: "a"}, "b", false},
		"not mounted b": {&NodeVolume{}, "b", false},
	} {
		require.Equal(t, test.has, NodeInfo{Volume: test.volume}.HasVolume(test.id), name)
	}
}

func TestRecoveryPointOfASharedVolume(t *testing.T) {
	now := time.Unix(10000, 0)
	state := State{Phase: Running, Instance: &Instance{Token: 1, Node: "node-1", Volume: "a", Began: now.Add(-time.Minute)}}
	require.Contains(t, RecoveryPointOf(state, now).Bound(), "a lost node costs nothing, the loss of its shared volume at most 5m of work")
	state.Instance.Volume = ""
	require.Contains(t, RecoveryPointOf(state, now).Bound(), "a lost node costs at most 5m")
}

func TestWhatIsSaidOfASharedVolume(t *testing.T) {
	now := time.Unix(10000, 0)
	state := State{
		Name: "web", Phase: Recovering, Instance: &Instance{Token: 1, Node: "node-1", Volume: "a"},
		Loss: &Loss{Node: "node-1", At: now.Add(-time.Minute), Waiting: "nobody knows"},
		Left: []Kept{{Node: "node-2", Token: 7, Handed: true, Replaced: true, Why: "node node-1 went on with its files"}},
	}
	told := Explain(state, nil, now)
	text := ""
	for _, line := range told.Safe {
		text += line + "\n"
	}
	require.Contains(t, text, "the files are not: they are on a shared volume")
	require.NotContains(t, text, "would lose")
	require.Contains(t, text, "Node node-2 had instance 7 of it")
	require.Equal(t, "holdfast node dead node-1", told.Can[0].Command)
	state.Phase, state.Instance, state.Loss = Stopped, nil, nil
	state.Kept = &Kept{Node: "node-1", Token: 1, Volume: "a", Why: "it is not backed up"}
	require.Contains(t, Explain(state, nil, now).Safe[0], "kept on shared volume a (instance 1, last on node node-1)")
	recovery := Recovery{From: "node-1", To: "node-2", Volume: "a"}
	require.Equal(t, "node node-1 was lost; it runs on node node-2, with the files as they were on shared volume a: nothing was lost", recovery.Words())
}
