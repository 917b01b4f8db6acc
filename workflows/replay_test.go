package workflows_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/temporalproto"
	sdklog "go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"
	"google.golang.org/protobuf/proto"

	"holdfast/workflows"
	"holdfast/workspace"
)

// Golden histories: what workflows of older versions have done must be done again by this one, or every workspace that
// lives through an upgrade stops being decided upon.
//
// To record: go test ./workflows -run TestRecord -record
//
// That writes testdata/histories/v0 anew, so it is for a first version, or for a scenario that is new. A version that
// changed its commands behind workflow.GetVersion records into a directory of its own (-record-version v1) and keeps
// the older ones, which must go on replaying for as long as a workflow of that age may live. testdata/histories/bad
// holds what must not replay: it shows that the replay looks.

const histories = "testdata/histories"

func replayer(t *testing.T) worker.WorkflowReplayer {
	t.Helper()
	r := worker.NewWorkflowReplayer()
	workflows.Register(r)
	return r
}

// quiet keeps the replay of what must fail from looking like a failure, and what goes well from being written out.
var quiet = sdklog.NewStructuredLogger(discard())

func TestReplay(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(histories, "v*", "*.json"))
	require.NoError(t, err)
	names := map[string]bool{}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		names[name] = true
		t.Run(filepath.Base(filepath.Dir(file))+"/"+name, func(t *testing.T) {
			require.NoError(t, replayer(t).ReplayWorkflowHistoryFromJSONFile(quiet, file))
			info, err := os.Stat(file)
			require.NoError(t, err)
			require.Less(t, info.Size(), int64(200<<10))
		})
	}
	for _, scenario := range scenarios {
		require.True(t, names[scenario.name], "no history of %s: record it", scenario.name)
	}
}

// A7: what a timed snapshot adds to a history is small: with the default interval, a server's limit of 51,200 events and
// its suggestion to continue as new at 4,096 are days away, and a look that finds nothing costs a third of that.
func TestTimedSnapshotsAreSmallInHistories(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(histories, "v0", "timed_snapshots.json"))
	require.NoError(t, err)
	history := &historypb.History{}
	require.NoError(t, temporalproto.CustomJSONUnmarshalOptions{}.Unmarshal(content, history))
	var timed []int // events of each timed snapshot, its timer included
	var bytes []int // of those events
	var made [][]string
	for _, event := range history.Events {
		if event.GetTimerStartedEventAttributes() != nil {
			timed, bytes, made = append(timed, 0), append(bytes, 0), append(made, nil)
		}
		if len(timed) == 0 {
			continue
		}
		timed[len(timed)-1]++
		bytes[len(bytes)-1] += proto.Size(event)
		if scheduled := event.GetActivityTaskScheduledEventAttributes(); scheduled != nil {
			made[len(made)-1] = append(made[len(made)-1], scheduled.ActivityType.Name)
		}
	}
	var whole, looks int
	for i, activities := range made {
		switch len(activities) {
		case 3: // backed up, verified, committed
			whole++
			require.LessOrEqual(t, timed[i], 27)
			require.Less(t, bytes[i], 8<<10)
		case 1:
			looks++
			require.LessOrEqual(t, timed[i], 13)
			require.Less(t, bytes[i], 3<<10)
		}
	}
	require.GreaterOrEqual(t, whole, 2, "%v", made)
	require.GreaterOrEqual(t, looks, 2, "%v", made)
	t.Logf("events %v, bytes %v", timed, bytes)
}

// What a person asks for is done first, also when the workflow hears of it together with the answer after which it would
// have stopped. That it does so again is TestReplay's; here it is that the history shows this.
func TestCommandThatComesWithTheAnswerIsDoneFirst(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(histories, "v0", idleStopLate+".json"))
	require.NoError(t, err)
	history := &historypb.History{}
	require.NoError(t, temporalproto.CustomJSONUnmarshalOptions{}.Unmarshal(content, history))
	questions, tasks := 0, 0
	for _, event := range history.Events {
		scheduled := event.GetActivityTaskScheduledEventAttributes()
		switch {
		case scheduled != nil && scheduled.ActivityType.Name == workspace.ActivityLookAtUse:
			questions++
		case questions == 2 && event.GetWorkflowTaskCompletedEventAttributes() != nil:
			tasks++
		case questions == 2 && event.GetWorkflowExecutionUpdateAcceptedEventAttributes() != nil:
			require.Equal(t, 1, tasks, "it came in another task")
		case questions == 2 && scheduled != nil:
			require.Equal(t, workspace.ActivityBackup, scheduled.ActivityType.Name)
			return
		}
	}
	require.Fail(t, "nothing was done")
}

// A replay that accepts anything would prove nothing.
func TestBadHistoriesDoNotReplay(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(histories, "bad", "*.json"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(files), len(spoilers))
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			err := replayer(t).ReplayWorkflowHistoryFromJSONFile(quiet, file)
			require.ErrorContains(t, err, "TMPRL1100") // nondeterminism, not a file that cannot be read
		})
	}
}

// What is recorded names no machine: the files are public.
func TestHistoriesNameNoMachine(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(histories, "*", "*.json"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, word := range []string{"/home/", "/root/", "/tmp/", "goroutine ", ".go:"} {
			require.NotContains(t, string(content), word, file)
		}
		require.Contains(t, string(content), recorder, file)
	}
}

// A worker of an older version takes note of a start with hours and decides without them. What it has decided is decided again.
func TestHoursThatAnOlderWorkerDidNotKnow(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(histories, "v0", "idle_stop.json"))
	require.NoError(t, err)
	history := &historypb.History{}
	require.NoError(t, temporalproto.CustomJSONUnmarshalOptions{}.Unmarshal(content, history))
	given := 0
	for _, event := range history.Events {
		request := event.GetWorkflowExecutionUpdateAcceptedEventAttributes().GetAcceptedRequest().GetInput()
		if request.GetName() != workspace.UpdateStart {
			continue
		}
		var start workspace.StartRequest
		payload := request.GetArgs().GetPayloads()[0]
		require.NoError(t, json.Unmarshal(payload.Data, &start))
		if start.Spec == nil {
			continue
		}
		start.Spec.Stop.Hours = "Mon 08:00-20:00 UTC"
		payload.Data, err = json.Marshal(start)
		require.NoError(t, err)
		given++
	}
	require.Positive(t, given)
	require.NoError(t, replayer(t).ReplayWorkflowHistory(quiet, history))
}
