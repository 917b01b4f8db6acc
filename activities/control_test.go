package activities

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"

	"holdfast/dataport"
	"holdfast/keys"
	"holdfast/snapshot"
	"holdfast/storage"
	"holdfast/workspace"
)

// fakeTemporal answers queries and the listing of nodes.
type fakeTemporal struct {
	client.Client // what a test does not expect panics

	states map[string]any // by workflow id; an error is the query's answer
	nodes  []string
	listed error
}

type value struct{ v any }

func (v value) HasValue() bool { return true }
func (v value) Get(p any) error {
	data, err := json.Marshal(v.v)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, p)
}

func (f *fakeTemporal) QueryWorkflow(_ context.Context, workflowID, _, query string, _ ...any) (converter.EncodedValue, error) {
	state, ok := f.states[workflowID]
	if !ok || query != workspace.QueryState {
		return nil, serviceerror.NewNotFound("no such workflow")
	}
	if err, failed := state.(error); failed {
		return nil, err
	}
	return value{state}, nil
}

// ListWorkflow answers in pages of two.
func (f *fakeTemporal) ListWorkflow(_ context.Context, request *workflowservice.ListWorkflowExecutionsRequest) (*workflowservice.ListWorkflowExecutionsResponse, error) {
	if f.listed != nil {
		return nil, f.listed
	}
	from := len(request.NextPageToken)
	response := &workflowservice.ListWorkflowExecutionsResponse{}
	for i := from; i < len(f.nodes) && i < from+2; i++ {
		response.Executions = append(response.Executions, &workflowpb.WorkflowExecutionInfo{
			Execution: &commonpb.WorkflowExecution{WorkflowId: workspace.NodeWorkflowID(f.nodes[i])},
		})
	}
	if from+2 < len(f.nodes) {
		response.NextPageToken = make([]byte, from+2)
	}
	return response, nil
}

// fleet gives the control side nodes in the given phases.
func (r *rig) fleet(phases map[string]workspace.NodePhase) *fakeTemporal {
	r.t.Helper()
	f := &fakeTemporal{states: map[string]any{}}
	for _, name := range []string{"node-1", "node-2", "node-3", "node-4", "node-5"} {
		phase, ok := phases[name]
		if !ok {
			continue
		}
		recipient := r.node.Identity.Recipient()
		if name != "node-1" {
			other, err := keys.LoadOrCreateNodeIdentity(filepath.Join(r.t.TempDir(), "node.key"))
			require.NoError(r.t, err)
			recipient = other.Recipient()
		}
		f.nodes = append(f.nodes, name)
		f.states[workspace.NodeWorkflowID(name)] = workspace.NodeState{Phase: phase, Reason: "a reason", Info: workspace.NodeInfo{
			Name: name, Recipient: recipient, Address: "127.0.0.1:1", Fingerprint: strings.Repeat("ab", 32),
		}}
	}
	r.control.Client = f
	return f
}

func TestPlace(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	ready := map[string]workspace.NodePhase{
		"node-1": workspace.NodeReady, "node-2": workspace.NodeReady, "node-3": workspace.NodeLost, "node-4": workspace.NodeSuspect, "node-5": workspace.NodeReady,
	}
	f := r.fleet(ready)
	place := func(input workspace.PlaceInput) (workspace.PlaceResult, error) {
		input.Name = "atlas"
		return run(r, r.control.Place, input)
	}
	result, err := place(workspace.PlaceInput{})
	require.NoError(t, err)
	require.Equal(t, "node-1", result.Node)
	require.Equal(t, r.node.Identity.Recipient(), result.Recipient)

	r.record(1, "") // node-1 holds one now
	result, err = place(workspace.PlaceInput{})
	require.NoError(t, err)
	require.Equal(t, "node-2", result.Node, "the one that holds least")
	result, err = place(workspace.PlaceInput{Exclude: []string{"node-2"}})
	require.NoError(t, err)
	require.Equal(t, "node-5", result.Node, "the listing has several pages")
	result, err = place(workspace.PlaceInput{Only: "node-1"})
	require.NoError(t, err)
	require.Equal(t, "node-1", result.Node)

	for _, node := range []string{"node-3", "node-4", "node-9"} {
		_, err = place(workspace.PlaceInput{Only: node})
		typed(t, err, workspace.ErrorNoNode)
		require.ErrorContains(t, err, node)
	}
	_, err = place(workspace.PlaceInput{Exclude: []string{"node-1", "node-2", "node-5"}})
	typed(t, err, workspace.ErrorNoNode)

	// One that cannot be asked about keeps nobody from the others; alone it is a matter of time.
	f.states[workspace.NodeWorkflowID("node-2")] = errors.New("no worker answers")
	r.control.loads.taken = time.Time{} // what is recorded counts, not what was chosen
	result, err = place(workspace.PlaceInput{})
	require.NoError(t, err)
	require.Equal(t, "node-5", result.Node)
	_, err = place(workspace.PlaceInput{Only: "node-2"})
	transient(t, err)
	f.listed = errors.New("visibility is away")
	r.control.fleet.taken = time.Time{}
	_, err = place(workspace.PlaceInput{})
	transient(t, err)
	away(r.stores[0])
	result, err = place(workspace.PlaceInput{Only: "node-1"})
	require.NoError(t, err, "how much a node holds is no reason to refuse")
	require.Equal(t, "node-1", result.Node)
}

// A6: in every phase there is a way to the newest content that exists, and it is said which it is.
func TestDownloadInEveryPhase(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	input := r.stopped(1)
	head := &workspace.Commit{WorkspaceID: id, Token: 1, Sequence: 1, Snapshot: input.Snapshot, Time: time.Unix(100, 0).UTC()}
	instance := &workspace.Instance{Token: 2, Node: "node-2"}
	kept := &workspace.Kept{Token: 1, Node: "node-2"}
	type choice struct{ node, source, snapshot string }
	atStores := []choice{{"node-1", "snapshot", input.Snapshot}, {"node-5", "snapshot", input.Snapshot}}
	for name, test := range map[string]struct {
		state   workspace.State
		lost    bool
		want    []choice
		kind    workspace.ErrorType
		notes   int
		storage bool // the stores are away
	}{
		"pending":                      {state: workspace.State{Phase: workspace.Pending}, kind: workspace.ErrorSnapshotMissing},
		"starting for the first time":  {state: workspace.State{Phase: workspace.Starting, Instance: instance}, want: []choice{{"node-2", "node", ""}}},
		"starting":                     {state: workspace.State{Phase: workspace.Starting, Instance: instance, Head: head}, want: append([]choice{{"node-2", "node", ""}}, atStores...)},
		"running":                      {state: workspace.State{Phase: workspace.Running, Instance: instance, Head: head}, want: append([]choice{{"node-2", "live", ""}}, atStores...)},
		"running on a lost node":       {state: workspace.State{Phase: workspace.Running, Instance: instance, Head: head}, lost: true, want: append([]choice{{"node-2", "live", ""}}, atStores...), notes: 1},
		"running, stores away":         {state: workspace.State{Phase: workspace.Running, Instance: instance, Head: head}, storage: true, want: []choice{{"node-2", "live", ""}}, notes: 1},
		"stopping":                     {state: workspace.State{Phase: workspace.Stopping, Instance: instance, Head: head}, want: append([]choice{{"node-2", "node", ""}}, atStores...)},
		"stopped, content still there": {state: workspace.State{Phase: workspace.Stopped, Kept: kept, Head: head}, want: append([]choice{{"node-2", "node", ""}}, atStores...)},
		"stopped":                      {state: workspace.State{Phase: workspace.Stopped, Head: head}, want: atStores},
		"stopped, stores away":         {state: workspace.State{Phase: workspace.Stopped, Head: head}, storage: true},
		"blocked":                      {state: workspace.State{Phase: workspace.Blocked, Kept: kept}, want: []choice{{"node-2", "node", ""}}},
		"deleted":                      {state: workspace.State{Phase: workspace.Deleted, Head: head}, want: atStores},
		"on a node nobody knows": {state: workspace.State{Phase: workspace.Blocked, Kept: &workspace.Kept{Token: 1, Node: "node-9"}, Head: head},
			want: atStores, notes: 1},
		"on a node nobody knows, no head": {state: workspace.State{Phase: workspace.Blocked, Kept: &workspace.Kept{Token: 1, Node: "node-9"}}},
	} {
		t.Run(name, func(t *testing.T) {
			phase := workspace.NodeOffered // not ready: it does not read from the stores for others
			if test.lost {
				phase = workspace.NodeLost
			}
			f := r.fleet(map[string]workspace.NodePhase{"node-1": workspace.NodeReady, "node-2": phase, "node-3": workspace.NodeLost, "node-5": workspace.NodeReady})
			test.state.ID, test.state.Name = id, "atlas"
			f.states[workspace.WorkflowID("atlas")] = test.state
			if test.storage {
				for _, store := range r.stores {
					away(store)
					defer store.Clear()
				}
			}
			result, err := run(r, r.control.GrantAccess, workspace.AccessInput{Name: "atlas", Verb: workspace.VerbDownload, Subject: "ada"})
			if test.want == nil {
				if test.kind == "" {
					transient(t, err)
				} else {
					typed(t, err, test.kind)
				}
				return
			}
			require.NoError(t, err)
			var got []choice
			for _, grant := range result.Grants {
				got = append(got, choice{grant.Node, grant.Source, grant.Snapshot})
				claims, err := dataport.Verify(r.control.Keys.VerifyKey(), grant.Token, time.Now())
				require.NoError(t, err)
				require.NoError(t, claims.Permits(grant.Node, dataport.VerbDownload))
				require.Equal(t, id, claims.WorkspaceID)
				require.Equal(t, "ada", claims.Subject)
				if grant.Source == "snapshot" {
					require.Equal(t, head.Time, grant.Time)
					require.NotEmpty(t, claims.Sealed)
				} else {
					require.Empty(t, claims.Sealed)
				}
				if grant.Node == "node-1" {
					password, err := r.node.Identity.Open(claims.Sealed, keys.PurposeRepositoryPassword)
					require.NoError(t, err)
					require.NotContains(t, grant.Token, string(password))
				}
			}
			require.Equal(t, test.want, got)
			if test.notes > 0 {
				require.NotEmpty(t, result.Notes)
			}
		})
	}
}

func TestAccess(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	input := r.stopped(1)
	f := r.fleet(map[string]workspace.NodePhase{"node-1": workspace.NodeReady})
	set := func(state workspace.State) {
		state.ID, state.Name = id, "atlas"
		f.states[workspace.WorkflowID("atlas")] = state
	}
	ask := func(verb workspace.Verb) (workspace.AccessResult, error) {
		return run(r, r.control.GrantAccess, workspace.AccessInput{Name: "atlas", Verb: verb, Subject: "ada"})
	}
	_, err := ask(workspace.VerbExec)
	typed(t, err, workspace.ErrorNotFound)
	set(workspace.State{Phase: workspace.Stopped})
	for _, verb := range []workspace.Verb{workspace.VerbExec, workspace.VerbShell, workspace.VerbLogs, workspace.VerbUpload} {
		_, err = ask(verb)
		typed(t, err, workspace.ErrorRefused)
	}
	running := workspace.State{Phase: workspace.Running, Instance: &workspace.Instance{Token: 3, Node: "node-1"}}
	set(running)
	for _, verb := range []workspace.Verb{workspace.VerbExec, workspace.VerbShell, workspace.VerbLogs} {
		result, err := ask(verb)
		require.NoError(t, err)
		require.Len(t, result.Grants, 1)
		claims, err := dataport.Verify(r.control.Keys.VerifyKey(), result.Grants[0].Token, time.Now())
		require.NoError(t, err)
		require.Equal(t, uint64(3), claims.Token)
		require.Empty(t, claims.Sealed)
		require.ErrorIs(t, claims.Permits("node-1", dataport.VerbDownload), dataport.ErrForbidden)
	}
	_, err = ask(workspace.VerbUpload)
	typed(t, err, workspace.ErrorRefused)
	running.Operation = &workspace.Operation{Step: workspace.StepUpload}
	set(running)
	_, err = ask(workspace.VerbUpload)
	require.NoError(t, err)

	// A named snapshot comes from the stores alone.
	result, err := run(r, r.control.GrantAccess, workspace.AccessInput{Name: "atlas", Verb: workspace.VerbDownload, Subject: "ada", Snapshot: input.Snapshot})
	require.NoError(t, err)
	require.Len(t, result.Grants, 1)
	require.Equal(t, input.Snapshot, result.Grants[0].Snapshot)

	// Nodes that cannot be asked about may be ready: that is a matter of time, and not that there are none.
	nodes := r.control.Client.(*fakeTemporal)
	for _, node := range nodes.nodes {
		nodes.states[workspace.NodeWorkflowID(node)] = errors.New("no worker answers")
	}
	_, err = run(r, r.control.GrantAccess, workspace.AccessInput{Name: "atlas", Verb: workspace.VerbDownload, Subject: "ada", Snapshot: input.Snapshot})
	require.ErrorContains(t, err, "no worker answers")
	transient(t, err)
}

// TestSnapshotsAreInOrder is that what no commit names is where its time is, and that commits are in the catalog's order whatever clocks said.
func TestSnapshotsAreInOrder(t *testing.T) {
	at := func(name string, minute int) workspace.SnapshotLine {
		return workspace.SnapshotLine{Snapshot: name, Time: time.Date(2026, 1, 25, 12, minute, 0, 0, time.UTC)}
	}
	commits := []workspace.SnapshotLine{at("first", 10), at("by a clock that is behind", 5), at("third", 30)}
	var got []string
	for _, line := range interleave(commits, []workspace.SnapshotLine{at("last", 40), at("between", 20), at("before", 1)}) {
		got = append(got, line.Snapshot)
	}
	require.Equal(t, []string{"before", "first", "by a clock that is behind", "between", "third", "last"}, got)
	require.Equal(t, commits, interleave(commits, nil))
}

func TestListSnapshots(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	f := r.fleet(nil)
	f.states[workspace.WorkflowID("atlas")] = workspace.State{ID: id, Name: "atlas"}
	list := func() workspace.SnapshotsResult {
		result, err := run(r, r.control.ListSnapshots, workspace.SnapshotsInput{Name: "atlas"})
		require.NoError(t, err)
		return result
	}
	require.Empty(t, list().Snapshots)
	input := r.stopped(1)
	f.states[workspace.WorkflowID("atlas")] = workspace.State{ID: id, Name: "atlas", Token: 1, Head: &workspace.Commit{Snapshot: input.Snapshot}}
	uncommitted, err := run(r, r.node.Backup, workspace.BackupInput{Target: input.Target, Kind: "live"})
	require.NoError(t, err)
	repository, err := r.node.repository(t.Context(), id, r.sealed.Password)
	require.NoError(t, err)
	recovered, err := repository.Backup(t.Context(), r.content(1), snapshot.BackupOptions{Kind: snapshot.Recovered})
	require.NoError(t, err)
	require.NoError(t, repository.Close())

	found := list().Snapshots
	require.Len(t, found, 3)
	kinds := map[string]string{}
	for _, line := range found {
		kinds[line.Snapshot] = line.Kind
		require.NotEmpty(t, line.Providers, "%s is on no store", line.Kind)
	}
	// invariant 3: what no commit names is never the head.
	require.Equal(t, map[string]string{input.Snapshot: "final", uncommitted.Backup.Snapshot: "uncommitted", recovered.Snapshot: "recovered"}, kinds)
	require.True(t, found[0].Head)
	require.Equal(t, []string{input.Snapshot, uncommitted.Backup.Snapshot, recovered.Snapshot}, []string{found[0].Snapshot, found[1].Snapshot, found[2].Snapshot})
	require.Len(t, found[0].Providers, 2)
	require.False(t, found[1].Head || found[2].Head)

	away(r.stores[1])
	result := list()
	require.NotEmpty(t, result.Notes)
	require.Len(t, result.Snapshots, 3)
	for _, line := range result.Snapshots {
		require.Equal(t, []string{r.stores[0].URL()}, line.Providers, line.Kind)
	}
	_, err = run(r, r.control.ListSnapshots, workspace.SnapshotsInput{Name: "nobody"})
	typed(t, err, workspace.ErrorNotFound)
}

// invariants 3 and 8; the catalog's own rules are proved with it.
func TestRecords(t *testing.T) {
	r := newRig(t, storage.PolicyAll)
	record := workspace.InstanceRecord{WorkspaceID: id, Name: "atlas", Owner: "ada", Token: 2, Node: "node-1", Time: time.Unix(1, 0).UTC()}
	for range 2 {
		require.NoError(t, recordOf(r, record))
	}
	changed := record
	changed.Base = strings.Repeat("1", 64)
	typed(t, recordOf(r, changed), workspace.ErrorConflict)
	older := record
	older.Token = 1
	typed(t, recordOf(r, older), workspace.ErrorStaleToken)
	head, err := run(r, r.control.ReadHead, workspace.ReadHeadInput{WorkspaceID: id})
	require.NoError(t, err)
	require.Equal(t, uint64(2), head.Providers[0].Token)

	for range 2 {
		require.NoError(t, runPlain(r, r.control.ReleasePlacement, workspace.ReleasePlacementInput{WorkspaceID: id, Token: 2, Node: "node-1"}))
	}
	placed, err := r.catalog.Placements(t.Context(), "node-1")
	require.NoError(t, err)
	require.Empty(t, placed)
	info, err := r.control.DescribeControl(t.Context())
	require.NoError(t, err)
	require.Equal(t, r.control.Keys.Recipient(), info.Recipient)
}

// A backup is discarded only by the workspace's name, and only of one that is recorded as deleted.
func TestRecordDeleted(t *testing.T) {
	r := newRig(t, storage.PolicyAny)
	input := r.stopped(1)
	gone := workspace.RecordDeletedInput{WorkspaceID: id, Name: "atlas", Token: 1, Subject: "ada"}
	for _, said := range []string{"", "atlas2"} {
		gone.DiscardData = said
		require.NoError(t, runPlain(r, r.control.RecordDeleted, gone))
		verified, err := run(r, r.node.Verify, workspace.VerifyInput{Target: input.Target, Snapshot: input.Snapshot})
		require.NoError(t, err)
		require.Empty(t, verified.Owed)
	}
	gone.DiscardData = "atlas"
	for range 2 {
		require.NoError(t, runPlain(r, r.control.RecordDeleted, gone))
		require.Empty(t, packsOf(r, 0))
		require.Empty(t, packsOf(r, 1))
	}
}

// recordOf records an instance, without what was chosen for it.
func recordOf(r *rig, record workspace.InstanceRecord) error {
	_, err := run(r, r.control.RecordInstance, record)
	return err
}
