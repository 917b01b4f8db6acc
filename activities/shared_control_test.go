package activities

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/dataport"
	"holdfast/storage"
	"holdfast/workspace"
)

const aVolume, anotherVolume = "abcdefghijklmnopqrstuvwxyz", "zzzzzzzzzzzzzzzzzzzzzzzzzz"

// sharing changes what nodes say of themselves.
func (f *fakeTemporal) sharing(change map[string]func(*workspace.NodeInfo)) {
	for name, do := range change {
		state := f.states[workspace.NodeWorkflowID(name)].(workspace.NodeState)
		state.Info.Guarded, state.Info.Volume = true, &workspace.NodeVolume{ID: aVolume}
		do(&state.Info)
		f.states[workspace.NodeWorkflowID(name)] = state
	}
}

// A5: what is on a shared volume goes only to a node that reaches that volume and has a guard process.
func TestPlaceOnASharedVolume(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	f := r.fleet(map[string]workspace.NodePhase{
		"node-1": workspace.NodeReady, "node-2": workspace.NodeReady, "node-3": workspace.NodeReady, "node-4": workspace.NodeReady, "node-5": workspace.NodeReady,
	})
	f.sharing(map[string]func(*workspace.NodeInfo){
		"node-1": func(info *workspace.NodeInfo) { info.Volume = nil },
		"node-2": func(info *workspace.NodeInfo) {
			info.Volume = &workspace.NodeVolume{Problem: "nothing is mounted there"}
		},
		"node-3": func(info *workspace.NodeInfo) { info.Guarded = false },
		"node-4": func(info *workspace.NodeInfo) {},
		"node-5": func(info *workspace.NodeInfo) { info.Volume.ID = anotherVolume },
	})
	place := func(input workspace.PlaceInput) (workspace.PlaceResult, error) {
		input.Name, input.Shared = "atlas", true
		return run(r, r.control.Place, input)
	}
	for volume, node := range map[string]string{aVolume: "node-4", anotherVolume: "node-5", "": "node-4"} {
		result, err := place(workspace.PlaceInput{Volume: volume})
		require.NoError(t, err)
		require.Equal(t, node, result.Node)
		if volume != "" {
			require.Equal(t, volume, result.Volume)
		}
	}
	result, err := place(workspace.PlaceInput{Prefer: "node-5"})
	require.NoError(t, err)
	require.Equal(t, "node-5", result.Node)
	_, err = place(workspace.PlaceInput{Volume: aVolume, Exclude: []string{"node-4"}})
	typed(t, err, workspace.ErrorNoNode)
	for _, why := range []string{"node-1 has no shared volume", "node-2 cannot use its shared volume: nothing is mounted there", "node-3 has no guard process", "node-5 has shared volume " + anotherVolume} {
		require.ErrorContains(t, err, why)
	}
	_, err = place(workspace.PlaceInput{Volume: aVolume, Only: "node-3"})
	typed(t, err, workspace.ErrorNoNode)
	plain, err := run(r, r.control.Place, workspace.PlaceInput{Name: "atlas"})
	require.NoError(t, err)
	require.Equal(t, workspace.PlaceResult{Node: "node-1", Recipient: r.node.Identity.Recipient()}, plain)
}

// A6: while the node that has it is lost, what is on a shared volume is fetched through another that reaches it.
func TestDownloadFromASharedVolume(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	f := r.fleet(map[string]workspace.NodePhase{"node-1": workspace.NodeReady, "node-2": workspace.NodeLost, "node-3": workspace.NodeReady})
	f.sharing(map[string]func(*workspace.NodeInfo){"node-2": func(*workspace.NodeInfo) {}, "node-3": func(*workspace.NodeInfo) {}})
	for name, state := range map[string]workspace.State{
		"recovering": {Phase: workspace.Recovering, Instance: &workspace.Instance{Token: 2, Node: "node-2", Volume: aVolume}},
		"stopping":   {Phase: workspace.Stopping, Kept: &workspace.Kept{Token: 2, Node: "node-2", Volume: aVolume}},
	} {
		state.ID, state.Name = id, "atlas"
		f.states[workspace.WorkflowID("atlas")] = state
		result, err := run(r, r.control.GrantAccess, workspace.AccessInput{Name: "atlas", Verb: workspace.VerbDownload, Subject: "ada"})
		require.NoError(t, err, name)
		require.Len(t, result.Grants, 2, name)
		for i, node := range []string{"node-2", "node-3"} {
			claims, err := dataport.Verify(r.control.Keys.VerifyKey(), result.Grants[i].Token, time.Now())
			require.NoError(t, err)
			require.NoError(t, claims.Permits(node, dataport.VerbDownload))
			require.Equal(t, aVolume, claims.Volume)
			require.EqualValues(t, 2, claims.Token)
		}
	}
}
