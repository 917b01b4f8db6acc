package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/mock"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/mocks"
	"go.temporal.io/sdk/temporal"
	"google.golang.org/protobuf/types/known/timestamppb"

	"holdfast/keys"
	"holdfast/workspace"
)

func encrypted(t *testing.T) (converter.DataConverter, converter.FailureConverter) {
	t.Helper()
	codec, err := keys.NewCodec(keys.NewCodecKey())
	if err != nil {
		t.Fatal(err)
	}
	data := keys.DataConverter(codec)
	return data, keys.FailureConverter(data)
}

// TestPendingIsDecoded proves that the last error and the checkpoint are read through the codec.
func TestPendingIsDecoded(t *testing.T) {
	data, failures := encrypted(t)
	checkpoint := workspace.BackupCheckpoint{Files: 3, Bytes: 1024, At: testNow}
	details, err := data.ToPayloads(checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	described := &workflowservice.DescribeWorkflowExecutionResponse{PendingActivities: []*workflowpb.PendingActivityInfo{
		{ActivityType: &commonpb.ActivityType{Name: workspace.ActivityBackup}, State: enumspb.PENDING_ACTIVITY_STATE_SCHEDULED, Attempt: 4,
			ScheduledTime: timestamppb.New(testNow.Add(time.Minute)), HeartbeatDetails: details,
			LastFailure: failures.ErrorToFailure(temporal.NewApplicationError("no such host", "wrapError"))},
		{ActivityType: &commonpb.ActivityType{Name: workspace.ActivityCommit}, State: enumspb.PENDING_ACTIVITY_STATE_STARTED, Attempt: 2,
			LastStartedTime: timestamppb.New(testNow), LastFailure: failures.ErrorToFailure(temporal.NewHeartbeatTimeoutError())},
		{ActivityType: &commonpb.ActivityType{Name: workspace.ActivityVerify}, State: enumspb.PENDING_ACTIVITY_STATE_SCHEDULED, Attempt: 1,
			ScheduledTime: timestamppb.New(testNow), HeartbeatDetails: &commonpb.Payloads{Payloads: []*commonpb.Payload{{Data: []byte("of another key")}}}},
	}}
	mocked := &mocks.Client{}
	mocked.On("DescribeWorkflowExecution", mock.Anything, "workspace/web", "").Return(described, nil)
	c := &temporalControl{client: mocked, data: data, failures: failures}
	got, err := c.Pending(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	want := []workspace.PendingActivity{
		{Name: workspace.ActivityBackup, State: workspace.ActivityScheduled, Attempt: 4, NextAttempt: testNow.Add(time.Minute),
			LastFailure: "no such host", LastFailureType: "wrapError", Checkpoint: &checkpoint},
		{Name: workspace.ActivityCommit, State: workspace.ActivityStarted, Attempt: 2, Started: testNow,
			LastFailure: got[1].LastFailure, LastFailureType: workspace.TimeoutHeartbeat},
		{Name: workspace.ActivityVerify, State: workspace.ActivityScheduled, Attempt: 1},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestGivenUpIsNotPending proves that what was given up and has not ended yet is shown only while nothing else is done.
func TestGivenUpIsNotPending(t *testing.T) {
	repair := &workflowpb.PendingActivityInfo{ActivityType: &commonpb.ActivityType{Name: workspace.ActivityRepair}, State: enumspb.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED, Attempt: 9}
	place := &workflowpb.PendingActivityInfo{ActivityType: &commonpb.ActivityType{Name: workspace.ActivityPlace}, State: enumspb.PENDING_ACTIVITY_STATE_STARTED, Attempt: 1}
	for want, described := range map[string][]*workflowpb.PendingActivityInfo{
		workspace.ActivityRepair: {repair},
		workspace.ActivityPlace:  {repair, place},
	} {
		mocked := &mocks.Client{}
		mocked.On("DescribeWorkflowExecution", mock.Anything, "workspace/web", "").Return(&workflowservice.DescribeWorkflowExecutionResponse{PendingActivities: described}, nil)
		got, err := (&temporalControl{client: mocked}).Pending(t.Context(), "web")
		if err != nil || len(got) != 1 || got[0].Name != want {
			t.Errorf("pending is %+v, %v; want only %s", got, err, want)
		}
	}
}

// TestRemoteErrors proves that what Temporal answers has its exit code and its mend.
func TestRemoteErrors(t *testing.T) {
	refused := func(kind workspace.ErrorType) error {
		return temporal.NewNonRetryableApplicationError("workspace web: it is running", string(kind), nil)
	}
	cases := []struct {
		err  error
		code int
		says string
	}{
		{serviceerror.NewNotFound("workflow not found"), exitNotFound, "holdfast list"},
		{refused(workspace.ErrorRefused), exitRefused, "it is running"},
		{refused(workspace.ErrorInvalid), exitUsage, "it is running"},
		{refused(workspace.ErrorNotFound), exitNotFound, "it is running"},
		{serviceerror.NewUnavailable("connection refused"), exitFailed, "cannot be reached"},
		{context.DeadlineExceeded, exitTimedOut, "no control worker answered"},
		{serviceerror.NewDeadlineExceeded("query timed out"), exitTimedOut, "holdfast worker --control"},
		{client.NewWorkflowUpdateServiceTimeoutOrCanceledError(context.DeadlineExceeded), exitTimedOut, "no control worker answered"},
		{errors.New("odd"), exitFailed, "odd"},
	}
	for _, c := range cases {
		f := asFailure(explainRemote("web", c.err))
		if f.code != c.code {
			t.Errorf("%v: exit code %d, want %d", c.err, f.code, c.code)
		}
		wantIn(t, c.err.Error(), f.Error()+" "+f.safe+" "+f.mend, c.says)
	}
}

// TestStartIsOneRequest proves that a start makes the workspace and asks it to start in one request, with a name that
// is used again allowed, and with the update's id given so that it can be repeated.
func TestStartIsOneRequest(t *testing.T) {
	mocked := &mocks.Client{}
	handle := &mocks.WorkflowUpdateHandle{}
	handle.On("Get", mock.Anything, mock.Anything).Run(func(args mock.Arguments) {
		*args.Get(1).(*workspace.Accepted) = workspace.Accepted{OperationID: "request"}
	}).Return(nil)
	var options client.StartWorkflowOptions
	var update client.UpdateWithStartWorkflowOptions
	mocked.On("NewWithStartWorkflowOperation", mock.Anything, workspace.WorkspaceWorkflow, mock.Anything).Run(func(args mock.Arguments) {
		options = args.Get(0).(client.StartWorkflowOptions)
	}).Return(nil)
	mocked.On("UpdateWithStartWorkflow", mock.Anything, mock.Anything).Run(func(args mock.Arguments) {
		update = args.Get(1).(client.UpdateWithStartWorkflowOptions)
	}).Return(handle, nil)
	c := &temporalControl{client: mocked}
	got, err := c.Start(t.Context(), "web", "ada", "request", workspace.StartRequest{Subject: "ada"})
	if err != nil || got.OperationID != "request" {
		t.Fatalf("%+v, %v", got, err)
	}
	if options.ID != "workspace/web" || options.TaskQueue != workspace.ControlQueue ||
		options.WorkflowIDConflictPolicy != enumspb.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING ||
		options.WorkflowIDReusePolicy != enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE || options.StaticSummary == "" ||
		options.TypedSearchAttributes.Size() != 3 {
		t.Errorf("%+v", options)
	}
	if update.UpdateOptions.UpdateID != "request" || update.UpdateOptions.UpdateName != workspace.UpdateStart {
		t.Errorf("%+v", update.UpdateOptions)
	}
}

// TestListFallsBackToTheIndex proves that a workspace that does not answer is listed all the same, and marked.
func TestListFallsBackToTheIndex(t *testing.T) {
	data, failures := encrypted(t)
	attribute := func(value any) *commonpb.Payload {
		payload, err := converter.GetDefaultDataConverter().ToPayload(value)
		if err != nil {
			t.Fatal(err)
		}
		return payload
	}
	execution := func(name string) *workflowpb.WorkflowExecutionInfo {
		return &workflowpb.WorkflowExecutionInfo{Execution: &commonpb.WorkflowExecution{WorkflowId: workspace.WorkflowID(name)},
			SearchAttributes: &commonpb.SearchAttributes{IndexedFields: map[string]*commonpb.Payload{
				workspace.AttributeState: attribute("Stopped"), workspace.AttributeOwner: attribute("ada"), workspace.AttributeLastSnapshot: attribute(testNow)}}}
	}
	mocked := &mocks.Client{}
	mocked.On("ListWorkflow", mock.Anything, mock.MatchedBy(func(r *workflowservice.ListWorkflowExecutionsRequest) bool { return len(r.NextPageToken) == 0 })).
		Return(&workflowservice.ListWorkflowExecutionsResponse{Executions: []*workflowpb.WorkflowExecutionInfo{execution("web")}, NextPageToken: []byte("more")}, nil)
	mocked.On("ListWorkflow", mock.Anything, mock.Anything).
		Return(&workflowservice.ListWorkflowExecutionsResponse{Executions: []*workflowpb.WorkflowExecutionInfo{execution("api")}}, nil)
	web := workspace.State{Name: "web", Phase: workspace.Running, Owner: "ada", Instance: &workspace.Instance{Node: "n1"}}
	answer, err := data.ToPayloads(web)
	if err != nil {
		t.Fatal(err)
	}
	mocked.On("QueryWorkflow", mock.Anything, "workspace/web", "", workspace.QueryState).Return(client.NewValue(answer), nil)
	mocked.On("QueryWorkflow", mock.Anything, "workspace/api", "", workspace.QueryState).Return(nil, serviceerror.NewDeadlineExceeded("no worker"))
	mockedValue := &decodingClient{Client: mocked, data: data, answer: answer}
	c := &temporalControl{client: mockedValue, data: data, failures: failures}
	got, err := c.Workspaces(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []listedWorkspace{{Name: "api", Owner: "ada", Phase: "Stopped", LastSnapshot: testNow, Stale: true}, {Name: "web", Owner: "ada", Phase: "Running", Node: "n1", Instance: workspace.InstanceName("", 0), State: web,
		RecoveryPoint: &workspace.RecoveryPoint{AgeSeconds: -1, IntervalSeconds: 300, BoundSeconds: 300}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// decodingClient answers a query with a value of an encrypting converter, as a real client does.
type decodingClient struct {
	client.Client
	data   converter.DataConverter
	answer *commonpb.Payloads
}

func (d *decodingClient) QueryWorkflow(ctx context.Context, workflowID, runID, query string, args ...any) (converter.EncodedValue, error) {
	if _, err := d.Client.QueryWorkflow(ctx, workflowID, runID, query, args...); err != nil {
		return nil, err
	}
	return &decodedValue{data: d.data, answer: d.answer}, nil
}

type decodedValue struct {
	data   converter.DataConverter
	answer *commonpb.Payloads
}

func (d *decodedValue) HasValue() bool     { return true }
func (d *decodedValue) Get(into any) error { return d.data.FromPayloads(d.answer, into) }
