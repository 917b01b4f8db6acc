package workflows

import (
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"holdfast/workspace"
)

// Every timeout and retry policy is here, with its reason. They are read by workflow code: changing a duration is safe
// for running workflows, adding or removing an activity is not.

const (
	// nodeHeartbeat is how long a node's activity may be silent. A matching service can hand a task to a poller that is
	// no longer there, and only this rescues it, so every activity on a node's queue has it. Activities beat each 5 s.
	nodeHeartbeat = 30 * time.Second

	// nodeAnswers is how long a start waits for a node to take a task before it tries the next one. Shorter ones
	// overshoot by seconds on a machine that is short of processors.
	nodeAnswers = 30 * time.Second

	// leaseHeartbeat, leaseOffer: DESIGN section 7. The agent fences itself 3 s before the server gives up; 15 s after its last
	// beat it is lost. An agent that is there takes an offer within milliseconds, and one that announces itself and is too
	// busy to is offered it once more.
	leaseHeartbeat = 10 * time.Second
	leaseOffer     = 5 * time.Second
	// stoppedGrace is how long an agent that was stopped may stay away before its node counts as lost: an upgrade or a
	// restart of the machine is no reason to move anything.
	stoppedGrace = 2 * time.Minute
	// leaseLength renews the activity now and then, so that the workflow can continue as new.
	leaseLength = 24 * time.Hour
)

// patient retries for ever: the cause (DNS, a store, a node) comes back some day, and until then the content stays
// where it is. Permanent causes are not retried because their errors say so.
var patient = temporal.RetryPolicy{
	InitialInterval:    time.Second,
	BackoffCoefficient: 2,
	// Half a minute is what a person who sees the network come back is willing to wait.
	MaximumInterval: 30 * time.Second,
}

// recoverAgain and recoverSlowest are the shortest and the longest pause between attempts to go on after the loss of a
// node. The longest is what somebody who adds a node is willing to wait.
const (
	recoverAgain   = 15 * time.Second
	recoverSlowest = 2 * time.Minute
)

// salvageTurn is how long a workspace waits for its node to take up what an instance that was replaced had there, before it
// does something else for a while. A node salvages a few at a time; fifty that wait would each be kept from its snapshots.
// salvageAgain is the shortest pause after an attempt that a store ended.
const (
	salvageTurn  = 15 * time.Second
	salvageAgain = time.Minute
)

// slowest is the longest pause of a loop that is in the workflow and therefore costs history.
const slowest = 10 * time.Minute

func control(ctx workflow.Context, summary string) workflow.Context {
	return workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		TaskQueue: workspace.ControlQueue,
		// One look at the catalog on every provider; a provider that hangs must not take the others' answer with it.
		StartToCloseTimeout: time.Minute,
		RetryPolicy:         &patient,
		Summary:             summary,
	})
}

// announcing is for an activity that tells many workflows something. It pages and beats, so that a control worker that
// dies is noticed, and goes on where it was.
func announcing(ctx workflow.Context, summary string) workflow.Context {
	ctx = control(ctx, summary)
	ctx = workflow.WithStartToCloseTimeout(ctx, 24*time.Hour) // while a store cannot be listed, it waits for it
	return workflow.WithHeartbeatTimeout(ctx, nodeHeartbeat)
}

// controlSoon is control for somebody who waits: it gives up after a while.
func controlSoon(ctx workflow.Context, summary string) workflow.Context {
	ctx = control(ctx, summary)
	return workflow.WithScheduleToCloseTimeout(ctx, 3*time.Minute)
}

func onNode(ctx workflow.Context, node, summary string, attempt time.Duration, priority int) workflow.Context {
	return workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		TaskQueue:           workspace.NodeQueue(node),
		StartToCloseTimeout: attempt,
		HeartbeatTimeout:    nodeHeartbeat,
		RetryPolicy:         &patient,
		// What was begun on the node ends there before the next thing is begun (invariant 6).
		WaitForCancellation: true,
		Priority:            temporal.Priority{PriorityKey: priority},
		Summary:             summary,
	})
}

// onNodeReading is onNode for what only reads the content and adds to the stores, or removes from them what nothing needs.
// Giving it up is not waited for: it hears of that with its next heartbeat, seconds later, and a person who starts the
// workspace again waits for what comes next. What that is, the node itself holds back until this has ended there
// (invariant 6), and asks it to look at once.
func onNodeReading(ctx workflow.Context, node, summary string, attempt time.Duration, priority int) workflow.Context {
	ctx = onNode(ctx, node, summary, attempt, priority)
	options := workflow.GetActivityOptions(ctx)
	options.WaitForCancellation = false
	return workflow.WithActivityOptions(ctx, options)
}

// Priorities on a node's queue: a person who waits for a start comes first.
const (
	priorityStart   = 1
	priorityRecover = 2
	priorityStop    = 3
	priorityBackup  = 4
	priorityTimed   = 5
	priorityRelease = 5
)

// forStart is for the steps of a start: a node that does not take the task is given up for the next one, and a cause
// that stays is told to the person after promise.
func forStart(ctx workflow.Context, node, summary string, promise time.Duration, priority int) workflow.Context {
	ctx = onNode(ctx, node, summary, promise, priority)
	ctx = workflow.WithScheduleToStartTimeout(ctx, nodeAnswers)
	return workflow.WithScheduleToCloseTimeout(ctx, promise+promise/4)
}

// timedSnapshot is the retry policy of what a timer does and will do again: a store that is away is not waited for, and
// what is due next is not held up.
var timedSnapshot = temporal.RetryPolicy{
	InitialInterval:    time.Second,
	BackoffCoefficient: 4,
	MaximumInterval:    30 * time.Second,
	MaximumAttempts:    3,
}

// timedAnswers is how long a timed snapshot waits for a node that is busy or away. Longer than one node's workspaces take
// to pass when all of them are due at once, shorter than an interval.
const timedAnswers = 3 * time.Minute

// soon gives what was chosen for the steps of a timed snapshot less patience.
func soon(ctx workflow.Context) workflow.Context {
	return workflow.WithRetryPolicy(workflow.WithScheduleToStartTimeout(ctx, timedAnswers), timedSnapshot)
}

// asking is for the question whether an instance is used. A node that does not answer soon is one that does not know: the
// question is asked again later (useAgain), and nothing is stopped meanwhile.
func asking(ctx workflow.Context, node string) workflow.Context {
	ctx = forStart(ctx, node, "see when it was last used", findPromise, priorityTimed)
	options := workflow.GetActivityOptions(ctx)
	options.WaitForCancellation = false // it changes nothing
	options.RetryPolicy = &timedSnapshot
	return workflow.WithActivityOptions(ctx, options)
}

// useAgain is the shortest time between an answer that a workspace is used, or none, and the next question. A question with
// its timer is about a dozen events, and one that finds nothing is followed by one more, before the stop: so a workspace
// costs at most 2 questions in useAgain, 576 a day, whatever its policy, and with one of 2 h about 13 a day while it is
// used. Snapshots at their default interval cost more.
const useAgain = 5 * time.Minute

// useHolds is how long after the question its answer is gone by. The server ends a question after five quarters of
// findPromise, so only workers that are away make it older.
const useHolds = 2 * findPromise

const (
	imagePromise   = 20 * time.Minute
	contentPromise = 12 * time.Hour // hundreds of gigabytes over a slow link
	runPromise     = 4 * time.Minute
	findPromise    = time.Minute // a look at the node's disk and engine
	discardPromise = 2 * time.Minute

	haltAttempt   = 2 * time.Hour // a grace may be an hour
	backupAttempt = 24 * time.Hour
	verifyAttempt = time.Hour // one listing of a large repository
	commitAttempt = 2 * time.Minute
	removeAttempt = 6 * time.Hour // deleting millions of files
	retainAttempt = time.Hour     // at most: it ends when the next snapshot is due
)
