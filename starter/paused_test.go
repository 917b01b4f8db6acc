package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/mocks"

	"holdfast/dataport"
	"holdfast/workspace"
)

// What a node has paused is told wherever a person looks, in words and in JSON.
func TestPausedIsTold(t *testing.T) {
	state := runningState()
	state.Operation, state.Left = nil, []workspace.Kept{{Node: "node-9", Token: 1, Why: "its node was lost"}}
	line := listWorkspace(state, testNow)
	node := lostNode()
	node.Info.Name = state.Instance.Node
	control := &fakeControl{
		looks: []look{{state: state}}, workspaces: []listedWorkspace{line}, nodeStates: []workspace.NodeState{node},
		beats: map[string]*workspace.LeaseBeat{
			state.Instance.Node: beatOf(12, workspace.PausedInstance{WorkspaceID: state.ID, Token: state.Instance.Token, Cause: workspace.PauseDoubt, Doubt: "no store answers"}),
			"node-9": beatOf(3, workspace.PausedInstance{WorkspaceID: state.ID, Token: 1, Cause: workspace.PauseReplaced, Replaced: state.Instance.Token},
				workspace.PausedInstance{WorkspaceID: workspace.NewID(), Token: 4, Cause: workspace.PauseReplaced, Replaced: 99}),
		},
	}
	replaced := fmt.Sprintf("it is paused there: instance %d has taken its place", state.Instance.Token)
	for _, test := range []struct {
		args []string
		says []string
	}{
		{[]string{"show", state.Name}, []string{"paused by node " + state.Instance.Node + ": whether another instance has taken its place cannot be asked: no store answers", replaced}},
		{[]string{"why", state.Name}, []string{"paused by node " + state.Instance.Node + ": whether", "cannot be asked: no store answers", "Nothing runs", "it is paused there"}},
		{[]string{"list"}, []string{state.Name + ": paused by node " + state.Instance.Node + ": whether", "cannot be asked: no store answers"}},
		{[]string{"node", "show", state.Instance.Node}, []string{"instances 12 (1 paused)", "of " + state.Name + ": whether"}},
		{[]string{"list", "-o", "json"}, []string{`"paused": "paused by node`}},
		{[]string{"node", "show", state.Instance.Node, "-o", "json"}, []string{`"instances": 12`, `"paused_count": 1`, `"name": "` + state.Name + `"`, `"doubt": "no store answers"`, `"why": "whether`, `"phase": "Lost"`}},
	} {
		r := runWith(t, control, test.args...)
		text := strings.Join(strings.Fields(r.stdout), " ")
		for _, word := range test.says {
			require.Contains(t, text, word, test.args)
		}
		require.NotContains(t, text, "instance 99", test.args)
	}
	var shown struct {
		Paused []workspace.PausedInstance
	}
	require.NoError(t, json.Unmarshal([]byte(runWith(t, control, "show", state.Name, "-o", "json").stdout), &shown))
	require.Len(t, shown.Paused, 2)

	// What no workspace names as its own is counted.
	node.Info.Name = "node-9"
	control.nodeStates = []workspace.NodeState{node}
	line.State = state
	control.workspaces = []listedWorkspace{line}
	r := runWith(t, control, "node", "show", "node-9")
	require.Zero(t, r.code, r.stderr)
	shownNode := strings.Join(strings.Fields(r.stdout), " ")
	require.Contains(t, shownNode, "instance 1 of "+state.Name+": instance ")
	require.Contains(t, shownNode, "1 more, which no workspace")

	// When there are too many for a beat to name, that is said of those that it may be.
	node.Info.Name = state.Instance.Node
	control.nodeStates = []workspace.NodeState{node}
	var many []workspace.PausedInstance
	for range 400 {
		many = append(many, workspace.PausedInstance{WorkspaceID: workspace.NewID(), Token: 1, Cause: workspace.PauseReplaced, Replaced: 2})
	}
	control.beats = map[string]*workspace.LeaseBeat{state.Instance.Node: beatOf(401, many...)}
	for _, args := range [][]string{{"show", state.Name}, {"why", state.Name}, {"list"}} {
		require.Contains(t, strings.Join(strings.Fields(runWith(t, control, args...).stdout), " "), "has paused 400 instances and cannot name", args)
	}

	control.beats = nil
	for _, args := range [][]string{{"show", state.Name}, {"why", state.Name}, {"list"}, {"node", "show", state.Instance.Node}} {
		require.NotContains(t, runWith(t, control, args...).stdout, "paused", args)
	}
}

// beatOf is what a node says of that many instances.
func beatOf(instances int, paused ...workspace.PausedInstance) *workspace.LeaseBeat {
	told := workspace.SummarizePaused(paused, instances)
	return &workspace.LeaseBeat{Epoch: 2, Instances: &instances, Pauses: &told}
}

// How much is on a node is told of one that says it.
func TestNodeLoad(t *testing.T) {
	require.Empty(t, loadOf(nil).words())
	require.Empty(t, loadOf(&workspace.LeaseBeat{}).words())
	require.Equal(t, "0", loadOf(&workspace.LeaseBeat{Instances: new(int)}).words())
	require.Equal(t, "7 (1 paused)", loadOf(beatOf(7, workspace.PausedInstance{WorkspaceID: workspace.NewID(), Token: 1})).words())
}

func TestAPausedInstanceRefusesCommands(t *testing.T) {
	err := explainDataPort(workspace.AccessInput{Name: "web", Verb: workspace.VerbExec}, dataport.ErrPaused)
	var explained *failure
	require.ErrorAs(t, err, &explained)
	require.Equal(t, exitRefused, explained.code)
	require.NotContains(t, explained.mend, "holdfast start", "a start does nothing for it")
	require.Contains(t, explained.mend, "holdfast why web")
}

func TestPauseAfter(t *testing.T) {
	for _, given := range []string{"9s", "25h", "-1m", "0"} {
		r := runWith(t, &fakeControl{}, "--store", "file:///x", "worker", "--node", "node-1", "--pause-after", given)
		require.Equal(t, exitUsage, r.code, given)
		require.Contains(t, r.stderr, "pause-after", given)
	}
	for _, given := range []string{"soon", "1s"} {
		file := filepath.Join(t.TempDir(), "holdfast.yaml")
		require.NoError(t, os.WriteFile(file, []byte("pause_after: "+given+"\n"), 0o600))
		r := runWith(t, &fakeControl{}, "--config", file, "--store", "file:///x", "worker", "--node", "node-1")
		require.Equal(t, exitUsage, r.code, given)
		require.Contains(t, r.stderr, "pause_after", given)
	}
}

// What a node says is read from its newest beat, through the codec; one without a lease says nothing.
func TestBeatIsDecoded(t *testing.T) {
	data, failures := encrypted(t)
	beat := beatOf(5, workspace.PausedInstance{WorkspaceID: workspace.NewID(), Token: 3, Cause: workspace.PauseReplaced, Replaced: 4})
	details, err := data.ToPayloads(beat)
	require.NoError(t, err)
	activity := func(name string, details *commonpb.Payloads) *workflowservice.DescribeWorkflowExecutionResponse {
		return &workflowservice.DescribeWorkflowExecutionResponse{PendingActivities: []*workflowpb.PendingActivityInfo{
			{ActivityType: &commonpb.ActivityType{Name: name}, HeartbeatDetails: details},
		}}
	}
	for _, test := range []struct {
		described *workflowservice.DescribeWorkflowExecutionResponse
		want      *workspace.LeaseBeat
	}{
		{activity(workspace.ActivityHoldLease, details), beat},
		{activity(workspace.ActivityHoldLease, nil), nil},
		{activity(workspace.ActivityAnnounceNode, details), nil},
		{activity(workspace.ActivityHoldLease, &commonpb.Payloads{Payloads: []*commonpb.Payload{{Data: []byte("of another key")}}}), nil},
	} {
		mocked := &mocks.Client{}
		mocked.On("DescribeWorkflowExecution", mock.Anything, "node/node-1", "").Return(test.described, nil)
		c := &temporalControl{client: mocked, data: data, failures: failures}
		got, err := c.Beat(t.Context(), "node-1")
		require.NoError(t, err)
		require.Equal(t, test.want, got)
	}
}
