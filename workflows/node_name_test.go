package workflows_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"holdfast/workspace"
)

// stranger is another agent of the same name, with a key and a directory of its own.
func stranger(incarnation string) workspace.RegisterRequest {
	request := registration(incarnation)
	request.Info.Recipient, request.Info.Lock = "age1stranger", "another lock"
	return request
}

func requireTaken(t *testing.T, err error) {
	t.Helper()
	refused, ok := errors.AsType[*temporal.ApplicationError](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, string(workspace.ErrorNameTaken), refused.Type())
}

// invariant 6: a node's name is one agent's. Another one of that name, whenever and however often it asks, takes nothing from
// the one that has it: no lease, no news to workspaces.
func TestNodeNameIsOneAgents(t *testing.T) {
	a := newAgents(t)
	a.register(time.Second, registration("one"))
	var refused []*error
	for i := range 20 {
		refused = append(refused, a.register(time.Minute+time.Duration(3*i)*time.Second, stranger("two")))
	}
	later := a.look(time.Hour)
	a.run(2 * time.Hour)
	for _, err := range refused {
		requireTaken(t, *err)
	}
	is(t, later, workspace.NodeReady, 1, "")
	require.Equal(t, "one", later.Info.Incarnation)
	require.Len(t, a.offers, 1)
	require.Len(t, a.news, 1)
}

// Another machine may have the name once the loss of the first is decided, and then the first takes nothing from it.
func TestNodeNameOfALostNode(t *testing.T) {
	a := newAgents(t, beatsLost(time.Minute), notTaken())
	a.register(time.Second, registration("one"))
	early := a.register(time.Minute+2*time.Second, stranger("two")) // it is Suspect
	a.register(time.Minute+10*time.Second, stranger("two"))
	ready := a.look(time.Minute + 12*time.Second)
	late := a.register(2*time.Minute, registration("one"))
	still := a.look(time.Hour)
	a.run(2 * time.Hour)
	requireTaken(t, *early)
	is(t, ready, workspace.NodeReady, 3, "")
	require.Equal(t, "two", ready.Info.Incarnation)
	requireTaken(t, *late)
	is(t, still, workspace.NodeReady, 3, "")
	require.Equal(t, "two", still.Info.Incarnation)
}

// An agent that was stopped may be started again: another one has to wait for as long, or for a person's word.
func TestNodeNameOfAStoppedAgent(t *testing.T) {
	a := newAgents(t, released(time.Minute))
	a.register(time.Second, registration("one"))
	early := a.register(2*time.Minute, stranger("two"))
	a.register(4*time.Minute, stranger("two"))
	ready := a.look(5 * time.Minute)
	a.run(time.Hour)
	requireTaken(t, *early)
	is(t, ready, workspace.NodeReady, 2, "")
	require.Equal(t, "two", ready.Info.Incarnation)
}

// A machine that was switched off and on has the node's key and another lock: it is in as soon as the lease of before has ended.
func TestNodeNameOfARestartedMachine(t *testing.T) {
	again := registration("two")
	again.Info.Lock = "of another boot"
	a := newAgents(t, beatsLost(time.Minute), ending{after: forever, silent: true})
	a.register(time.Second, registration("one"))
	early := a.register(time.Minute-time.Second, again)
	admitted := a.register(time.Minute+2*time.Second, again)
	ready := a.look(time.Minute + 3*time.Second)
	a.run(time.Hour)
	requireTaken(t, *early)
	require.NoError(t, *admitted)
	is(t, ready, workspace.NodeReady, 3, "")
	require.Equal(t, "two", ready.Info.Incarnation)
	require.Nil(t, ready.Loss)
}
