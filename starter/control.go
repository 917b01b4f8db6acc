package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	failurepb "go.temporal.io/api/failure/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"golang.org/x/sync/errgroup"

	"holdfast/workspace"
)

// control is what the commands need of Temporal. Every method honours its context and answers with errors of
// explainRemote.
type control interface {
	// Start makes the workspace when it is not there and asks it to start, in one request.
	Start(ctx context.Context, name, owner, requestID string, request workspace.StartRequest) (workspace.Accepted, error)
	// Update asks an existing workspace for something. The same requestID asks for the same thing again.
	Update(ctx context.Context, name, update, requestID string, request any) (workspace.Accepted, error)
	State(ctx context.Context, name string) (workspace.State, error)
	Pending(ctx context.Context, name string) ([]workspace.PendingActivity, error)
	Workspaces(ctx context.Context) ([]listedWorkspace, error)
	Nodes(ctx context.Context) ([]listedNode, error)
	Node(ctx context.Context, name string) (workspace.NodeState, error)
	// Beat is what a node's agent last said with its lease; nil for a node without one.
	Beat(ctx context.Context, node string) (*workspace.LeaseBeat, error)
	// OrderNode says something of a node.
	OrderNode(ctx context.Context, name, requestID string, order workspace.NodeOrder) (workspace.NodeState, error)
	Access(ctx context.Context, input workspace.AccessInput) (workspace.AccessResult, error)
	Snapshots(ctx context.Context, input workspace.SnapshotsInput) (workspace.SnapshotsResult, error)
	Close()
}

// listedWorkspace is one line of `holdfast list`.
type listedWorkspace struct {
	Name         string    `json:"name"`
	Owner        string    `json:"owner,omitempty"`
	Phase        string    `json:"phase"`
	Since        time.Time `json:"since,omitzero"`
	Node         string    `json:"node,omitempty"`
	LastSnapshot time.Time `json:"last_snapshot,omitzero"` // when the newest committed content was read
	Reason       string    `json:"reason,omitempty"`
	// RecoveryPoint is what a lost node would cost; nil when nothing runs.
	RecoveryPoint *workspace.RecoveryPoint `json:"recovery_point,omitempty"`
	// StopAhead is when it is stopped by itself; nil when nothing stops it.
	StopAhead *workspace.StopAhead `json:"stop_ahead,omitempty"`
	// Loss says what is done about the loss of its node, or what that cost.
	Loss string `json:"loss,omitempty"`
	// Paused says that its node has paused it, and why.
	Paused string `json:"paused,omitempty"`
	// Stale is set when the workspace itself could not be asked: the line is from Temporal's index, which lags.
	Stale bool `json:"stale,omitempty"`

	Instance string `json:"-"` // workspace.InstanceName of what runs
	// State is what the workspace itself said; not set when it is Stale.
	State workspace.State `json:"-"`
}

// listedNode is one line of `holdfast node list`.
type listedNode struct {
	Name    string    `json:"name"`
	Phase   string    `json:"phase"`
	Since   time.Time `json:"since,omitzero"`
	Epoch   uint64    `json:"epoch,omitempty"`
	Engine  string    `json:"engine,omitempty"`
	Address string    `json:"address,omitempty"`
	Version string    `json:"version,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	Stale   bool      `json:"stale,omitempty"`
	nodeLoad
}

const (
	// answerWithin bounds one request that a control worker has to answer.
	answerWithin = 20 * time.Second
	// accessWithin bounds a short workflow: finding the ways to content may ask several stores that do not answer.
	accessWithin = 2 * time.Minute
	// listParallel is how many workspaces are asked at once for a list.
	listParallel = 8
)

// temporalControl is control over a Temporal client.
type temporalControl struct {
	client   client.Client
	data     converter.DataConverter
	failures converter.FailureConverter
	names    io.Closer // what resolved Temporal's name; nil when somebody else dialled
}

func (t *temporalControl) Close() {
	t.client.Close()
	if t.names != nil {
		_ = t.names.Close() // nothing is asked any more
	}
}

func (t *temporalControl) Start(ctx context.Context, name, owner, requestID string, request workspace.StartRequest) (workspace.Accepted, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	operation := t.client.NewWithStartWorkflowOperation(client.StartWorkflowOptions{
		ID:                       workspace.WorkflowID(name),
		TaskQueue:                workspace.ControlQueue,
		WorkflowIDConflictPolicy: enumspb.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
		// A deleted workspace's name may be used again; its repository has another id (invariant 6).
		WorkflowIDReusePolicy: enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
		TypedSearchAttributes: temporal.NewSearchAttributes(
			temporal.NewSearchAttributeKeyKeyword(workspace.AttributeKind).ValueSet("workspace"),
			temporal.NewSearchAttributeKeyKeyword(workspace.AttributeState).ValueSet(string(workspace.Pending)),
			temporal.NewSearchAttributeKeyKeyword(workspace.AttributeOwner).ValueSet(owner),
		),
		StaticSummary: fmt.Sprintf("workspace %s of %s", name, owner),
	}, workspace.WorkspaceWorkflow, workspace.Input{Name: name, Owner: owner})
	handle, err := t.client.UpdateWithStartWorkflow(ctx, client.UpdateWithStartWorkflowOptions{
		StartWorkflowOperation: operation,
		UpdateOptions: client.UpdateWorkflowOptions{
			UpdateID:     requestID,
			UpdateName:   workspace.UpdateStart,
			Args:         []any{request},
			WaitForStage: client.WorkflowUpdateStageCompleted, // handlers record and return at once
		},
	})
	return accepted(ctx, name, handle, err)
}

func (t *temporalControl) Update(ctx context.Context, name, update, requestID string, request any) (workspace.Accepted, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	handle, err := t.client.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
		UpdateID:     requestID,
		WorkflowID:   workspace.WorkflowID(name),
		UpdateName:   update,
		Args:         []any{request},
		WaitForStage: client.WorkflowUpdateStageCompleted,
	})
	return accepted(ctx, name, handle, err)
}

func accepted(ctx context.Context, name string, handle client.WorkflowUpdateHandle, err error) (workspace.Accepted, error) {
	var answer workspace.Accepted
	if err == nil {
		err = handle.Get(ctx, &answer)
	}
	if err != nil {
		return workspace.Accepted{}, explainRemote(name, err)
	}
	return answer, nil
}

func (t *temporalControl) State(ctx context.Context, name string) (workspace.State, error) {
	var state workspace.State
	err := t.query(ctx, workspace.WorkflowID(name), &state)
	return state, explainRemote(name, err)
}

func (t *temporalControl) query(ctx context.Context, workflowID string, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	value, err := t.client.QueryWorkflow(ctx, workflowID, "", workspace.QueryState)
	if err != nil {
		return err
	}
	return value.Get(answer)
}

func (t *temporalControl) Pending(ctx context.Context, name string) ([]workspace.PendingActivity, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	description, err := t.client.DescribeWorkflowExecution(ctx, workspace.WorkflowID(name), "")
	if err != nil {
		return nil, explainRemote(name, err)
	}
	var pending, givenUp []workspace.PendingActivity
	for _, activity := range description.GetPendingActivities() {
		if activity.GetState() == enumspb.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED {
			givenUp = append(givenUp, t.pendingActivity(activity))
			continue
		}
		pending = append(pending, t.pendingActivity(activity))
	}
	if len(pending) == 0 {
		return givenUp, nil
	}
	return pending, nil // what was given up and has not heard of it yet is not what is being done
}

// pendingActivity decodes what the server says of an activity. What cannot be decoded is left out: it is for display.
func (t *temporalControl) pendingActivity(info *workflowpb.PendingActivityInfo) workspace.PendingActivity {
	activity := workspace.PendingActivity{
		Name:    info.GetActivityType().GetName(),
		State:   workspace.ActivityScheduled,
		Attempt: info.GetAttempt(),
	}
	if info.GetState() == enumspb.PENDING_ACTIVITY_STATE_STARTED {
		activity.State = workspace.ActivityStarted
	}
	if started := info.GetLastStartedTime(); started != nil {
		activity.Started = started.AsTime()
	}
	// A scheduled later attempt is backing off until the time it is scheduled for.
	if next := info.GetNextAttemptScheduleTime(); next != nil {
		activity.NextAttempt = next.AsTime()
	} else if info.GetState() == enumspb.PENDING_ACTIVITY_STATE_SCHEDULED && info.GetAttempt() > 1 && info.GetScheduledTime() != nil {
		activity.NextAttempt = info.GetScheduledTime().AsTime()
	}
	if failure := info.GetLastFailure(); failure != nil {
		activity.LastFailureType, activity.LastFailure = t.failure(failure)
	}
	if details := info.GetHeartbeatDetails(); len(details.GetPayloads()) > 0 {
		var checkpoint workspace.BackupCheckpoint
		if err := t.data.FromPayloads(details, &checkpoint); err == nil && checkpoint != (workspace.BackupCheckpoint{}) {
			activity.Checkpoint = &checkpoint
		}
	}
	return activity
}

// failure is the type and message of an attempt's failure, decoded.
func (t *temporalControl) failure(encoded *failurepb.Failure) (kind, message string) {
	err := t.failures.FailureToError(encoded)
	var application *temporal.ApplicationError
	var timeout *temporal.TimeoutError
	switch {
	case errors.As(err, &application):
		return application.Type(), application.Message()
	case errors.As(err, &timeout):
		switch timeout.TimeoutType() {
		case enumspb.TIMEOUT_TYPE_HEARTBEAT:
			kind = workspace.TimeoutHeartbeat
		case enumspb.TIMEOUT_TYPE_START_TO_CLOSE:
			kind = workspace.TimeoutStartToClose
		case enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START:
			kind = workspace.TimeoutScheduleToStart
		case enumspb.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE, enumspb.TIMEOUT_TYPE_UNSPECIFIED:
			kind = workspace.TimeoutScheduleToClose
		}
		return kind, timeout.Error()
	default:
		return "", err.Error()
	}
}

// each calls visit for every open workflow of one kind that Temporal's index has.
func (t *temporalControl) each(ctx context.Context, kind string, visit func(*workflowpb.WorkflowExecutionInfo)) error {
	var page []byte
	for {
		asked, cancel := context.WithTimeout(ctx, answerWithin)
		answer, err := t.client.ListWorkflow(asked, &workflowservice.ListWorkflowExecutionsRequest{
			PageSize:      500,
			NextPageToken: page,
			Query:         fmt.Sprintf("%s = '%s' AND ExecutionStatus = 'Running'", workspace.AttributeKind, kind),
		})
		cancel()
		if err != nil {
			if isUnreachable(err) || errors.Is(err, context.DeadlineExceeded) {
				return unreachable(err)
			}
			return fail(exitFailed, "listing %ss: %w", kind, err).
				withMend("`holdfast doctor` checks that the search attributes are there")
		}
		for _, execution := range answer.GetExecutions() {
			visit(execution)
		}
		if page = answer.GetNextPageToken(); len(page) == 0 {
			return nil
		}
	}
}

func (t *temporalControl) Workspaces(ctx context.Context) ([]listedWorkspace, error) {
	var lines []listedWorkspace
	err := t.each(ctx, "workspace", func(execution *workflowpb.WorkflowExecutionInfo) {
		line := listedWorkspace{
			Name:  strings.TrimPrefix(execution.GetExecution().GetWorkflowId(), workspace.WorkflowID("")),
			Phase: t.attribute(execution, workspace.AttributeState),
			Owner: t.attribute(execution, workspace.AttributeOwner),
		}
		if at, err := time.Parse(time.RFC3339Nano, t.attribute(execution, workspace.AttributeLastSnapshot)); err == nil {
			line.LastSnapshot = at
		}
		lines = append(lines, line)
	})
	if err != nil {
		return nil, err
	}
	// The index lags and knows little: ask each workspace itself.
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(listParallel)
	for i := range lines {
		group.Go(func() error {
			var state workspace.State
			if err := t.query(groupCtx, workspace.WorkflowID(lines[i].Name), &state); err != nil {
				lines[i].Stale = true
				return ctx.Err()
			}
			lines[i] = listWorkspace(state, time.Now())
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	slices.SortFunc(lines, func(a, b listedWorkspace) int { return strings.Compare(a.Name, b.Name) })
	return lines, nil
}

// listWorkspace is a workspace's own state as one line.
func listWorkspace(state workspace.State, now time.Time) listedWorkspace {
	line := listedWorkspace{
		Name: state.Name, Owner: state.Owner, Phase: string(state.Phase), Since: state.Since, Reason: state.Reason,
		RecoveryPoint: workspace.RecoveryPointOf(state, now), StopAhead: workspace.StopAheadOf(state, now),
		State: state,
	}
	switch {
	case state.Instance != nil:
		line.Node, line.Instance = state.Instance.Node, workspace.InstanceName(state.ID, state.Instance.Token)
	case state.Kept != nil:
		line.Node = state.Kept.Node
	}
	if state.Head != nil {
		line.LastSnapshot = state.Head.Time
	}
	switch {
	case state.Loss != nil && state.Phase == workspace.Recovering:
		line.Loss = state.Reason
	case state.Loss != nil:
		line.Loss = state.Loss.What()
	case state.Looked() != nil && state.Phase == workspace.Recovering:
		line.Loss = state.Reason
	case state.Looked() != nil:
		line.Loss = "the agent of node " + state.Look.Node + " was started again; whether it still runs is being looked at"
	case state.Recovery != nil:
		line.Loss = state.Recovery.Words()
	}
	return line
}

func (t *temporalControl) Nodes(ctx context.Context) ([]listedNode, error) {
	var lines []listedNode
	err := t.each(ctx, "node", func(execution *workflowpb.WorkflowExecutionInfo) {
		lines = append(lines, listedNode{
			Name:  strings.TrimPrefix(execution.GetExecution().GetWorkflowId(), workspace.NodeWorkflowID("")),
			Phase: t.attribute(execution, workspace.AttributeState),
		})
	})
	if err != nil {
		return nil, err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(listParallel)
	for i := range lines {
		group.Go(func() error {
			var state workspace.NodeState
			if err := t.query(groupCtx, workspace.NodeWorkflowID(lines[i].Name), &state); err != nil {
				lines[i].Stale = true
				return ctx.Err()
			}
			lines[i] = listedNode{Name: lines[i].Name, Phase: string(state.Phase), Since: state.Since, Epoch: state.Epoch,
				Engine: state.Info.Engine, Address: state.Info.Address, Version: state.Info.Version, Reason: nodeReason(state, time.Now())}
			if state.Phase == workspace.NodeReady {
				// For display only: what cannot be had is left out.
				if beat, err := t.Beat(groupCtx, lines[i].Name); err == nil {
					lines[i].nodeLoad = loadOf(beat)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	slices.SortFunc(lines, func(a, b listedNode) int { return strings.Compare(a.Name, b.Name) })
	return lines, nil
}

// nodeReason is why a node is what it is, that it was cordoned, and how far its drain is.
func nodeReason(state workspace.NodeState, now time.Time) string {
	var reasons []string
	if state.Reason != "" {
		reasons = append(reasons, state.Reason)
	}
	if state.Cordoned != "" {
		reasons = append(reasons, "cordoned by "+state.Cordoned)
	}
	if state.Drain.Active() {
		reasons = append(reasons, state.Drain.Words(now))
	}
	return strings.Join(reasons, "; ")
}

func (t *temporalControl) Node(ctx context.Context, name string) (workspace.NodeState, error) {
	var state workspace.NodeState
	err := t.query(ctx, workspace.NodeWorkflowID(name), &state)
	return state, explainNode(name, err)
}

func (t *temporalControl) OrderNode(ctx context.Context, name, requestID string, order workspace.NodeOrder) (workspace.NodeState, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	var state workspace.NodeState
	handle, err := t.client.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
		UpdateID:     requestID,
		WorkflowID:   workspace.NodeWorkflowID(name),
		UpdateName:   workspace.UpdateOrder,
		Args:         []any{order},
		WaitForStage: client.WorkflowUpdateStageCompleted,
	})
	if err == nil {
		err = handle.Get(ctx, &state)
	}
	return state, explainNode(name, err)
}

// explainNode is explainRemote for what was asked about a node.
func explainNode(name string, err error) error {
	var notFound *serviceerror.NotFound
	if errors.As(err, &notFound) {
		return fail(exitNotFound, "there is no node %q", name).
			withMend("`holdfast node list` shows the nodes there are; `holdfast worker --node %s` on a machine makes it one", name)
	}
	if f := (*failure)(nil); errors.As(explainRemote(name, err), &f) && f.code == exitRefused {
		return f.withMend("`holdfast node show %s` says what it is", name)
	}
	return explainRemote(name, err)
}

// attribute reads one search attribute; they are never encrypted.
func (t *temporalControl) attribute(execution *workflowpb.WorkflowExecutionInfo, name string) string {
	payload, ok := execution.GetSearchAttributes().GetIndexedFields()[name]
	if !ok {
		return ""
	}
	var value string
	if err := converter.GetDefaultDataConverter().FromPayload(payload, &value); err != nil {
		return ""
	}
	return value
}

func (t *temporalControl) Access(ctx context.Context, input workspace.AccessInput) (workspace.AccessResult, error) {
	var result workspace.AccessResult
	err := t.execute(ctx, "access", input.Name, fmt.Sprintf("%s of workspace %s by %s", input.Verb, input.Name, input.Subject),
		workspace.AccessWorkflow, input, &result)
	return result, err
}

func (t *temporalControl) Snapshots(ctx context.Context, input workspace.SnapshotsInput) (workspace.SnapshotsResult, error) {
	var result workspace.SnapshotsResult
	err := t.execute(ctx, "snapshots", input.Name, "snapshots of workspace "+input.Name, workspace.SnapshotsWorkflow, input, &result)
	return result, err
}

// execute runs one of the short workflows that answer a question.
func (t *temporalControl) execute(ctx context.Context, kind, name, summary, workflowType string, input, result any) error {
	waiting, cancel := context.WithTimeout(ctx, accessWithin)
	defer cancel()
	run, err := t.client.ExecuteWorkflow(waiting, client.StartWorkflowOptions{
		ID:                       kind + "/" + name + "/" + newRequestID(),
		TaskQueue:                workspace.ControlQueue,
		WorkflowExecutionTimeout: accessWithin,
		StaticSummary:            summary,
	}, workflowType, input)
	if err == nil {
		err = run.Get(waiting, result)
	}
	if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return explainRemote(name, err)
	}
	var notFound *serviceerror.NotFound
	if errors.As(err, &notFound) {
		return fail(exitFailed, "%s: %w", summary, err) // the question's own workflow is gone, not the workspace
	}
	return explainRemote(name, err)
}
