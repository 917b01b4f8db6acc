package main

import (
	"encoding/json"
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
		paused: map[string][]workspace.PausedInstance{
			state.Instance.Node: {{WorkspaceID: state.ID, Name: state.Name, Token: state.Instance.Token, Why: "no store answers"}},
			"node-9":            {{WorkspaceID: state.ID, Token: 1, Replaced: state.Instance.Token, Why: "it was replaced"}, {WorkspaceID: "other", Token: 4, Why: "of another"}},
		},
	}
	for _, test := range []struct {
		args []string
		says []string
	}{
		{[]string{"show", state.Name}, []string{"paused by node " + state.Instance.Node + ": no store answers", "it is paused there: it was replaced"}},
		{[]string{"why", state.Name}, []string{"paused by node " + state.Instance.Node + ": no store answers", "Nothing runs", "it is paused there"}},
		{[]string{"list"}, []string{state.Name + ": paused by node " + state.Instance.Node + ": no store answers"}},
		{[]string{"node", "show", state.Instance.Node}, []string{"paused", "of " + state.Name + ": no store answers"}},
		{[]string{"list", "-o", "json"}, []string{`"paused": "paused by node`}},
		{[]string{"node", "show", state.Instance.Node, "-o", "json"}, []string{`"why": "no store answers"`, `"phase": "Lost"`}},
	} {
		r := runWith(t, control, test.args...)
		text := strings.Join(strings.Fields(r.stdout), " ")
		for _, word := range test.says {
			require.Contains(t, text, word, test.args)
		}
		require.NotContains(t, text, "of another", test.args)
	}
	var shown struct {
		Paused []workspace.PausedInstance
	}
	require.NoError(t, json.Unmarshal([]byte(runWith(t, control, "show", state.Name, "-o", "json").stdout), &shown))
	require.Len(t, shown.Paused, 2)

	control.paused = nil
	for _, args := range [][]string{{"show", state.Name}, {"why", state.Name}, {"list"}, {"node", "show", state.Instance.Node}} {
		require.NotContains(t, runWith(t, control, args...).stdout, "paused", args)
	}
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

// What a node has paused is read from its newest beat, through the codec; one without a lease says nothing.
func TestPausedIsDecoded(t *testing.T) {
	data, failures := encrypted(t)
	paused := []workspace.PausedInstance{{WorkspaceID: "abc", Token: 3, Replaced: 4, Why: "replaced"}}
	details, err := data.ToPayloads(workspace.LeaseBeat{Epoch: 2, Paused: paused})
	require.NoError(t, err)
	activity := func(name string, details *commonpb.Payloads) *workflowservice.DescribeWorkflowExecutionResponse {
		return &workflowservice.DescribeWorkflowExecutionResponse{PendingActivities: []*workflowpb.PendingActivityInfo{
			{ActivityType: &commonpb.ActivityType{Name: name}, HeartbeatDetails: details},
		}}
	}
	for _, test := range []struct {
		described *workflowservice.DescribeWorkflowExecutionResponse
		want      []workspace.PausedInstance
	}{
		{activity(workspace.ActivityHoldLease, details), paused},
		{activity(workspace.ActivityHoldLease, nil), nil},
		{activity(workspace.ActivityAnnounceNode, details), nil},
		{activity(workspace.ActivityHoldLease, &commonpb.Payloads{Payloads: []*commonpb.Payload{{Data: []byte("of another key")}}}), nil},
	} {
		mocked := &mocks.Client{}
		mocked.On("DescribeWorkflowExecution", mock.Anything, "node/node-1", "").Return(test.described, nil)
		c := &temporalControl{client: mocked, data: data, failures: failures}
		got, err := c.Paused(t.Context(), "node-1")
		require.NoError(t, err)
		require.Equal(t, test.want, got)
	}
}
