package devstack

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/taskqueue/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"

	"holdfast/keys"
	"holdfast/workspace"
)

// openKeys makes the keys on the first start.
func (s *Stack) openKeys(context.Context) error {
	dir := filepath.Join(s.options.DataDir, "keys")
	path := filepath.Join(dir, "master.key")
	created, err := keys.CreateLocalKey(path)
	if err != nil {
		return err
	}
	if s.file.MasterKey, err = keys.LocalKeyURL(path); err != nil {
		return err
	}
	if created {
		s.say(EventNote, "keys", fmt.Sprintf("A new master key was made: %s. Copy it to another place now: without it no backup can ever be read again.", path))
	}
	s.file.CodecKey = filepath.Join(dir, "codec.key")
	if _, err := keys.LoadOrCreateCodecKey(s.file.CodecKey); err != nil {
		return fmt.Errorf("opening the payload codec's key: %w", err)
	}
	return nil
}

func (s *Stack) payloadCodec() (converter.PayloadCodec, error) {
	key, err := keys.LoadCodecKey(s.file.CodecKey)
	if err != nil {
		return nil, fmt.Errorf("opening the payload codec's key: %w", err)
	}
	codec, err := keys.NewCodec(key)
	if err != nil {
		return nil, fmt.Errorf("making the payload codec: %w", err)
	}
	return codec, nil
}

// startTemporal finds and starts the server, or looks at the one that was given, and serves the codec endpoint.
func (s *Stack) startTemporal(ctx context.Context) error {
	codec, err := s.payloadCodec()
	if err != nil {
		return err
	}
	// The codec endpoint's port has to be known before the server starts, and the server's before the endpoint answers.
	listener, err := s.listenWebUI()
	if err != nil {
		return err
	}
	s.file.CodecEndpoint = "http://" + listener.Addr().String() + keys.CodecPath
	s.file.CodecToken = keys.NewCodecToken()
	if s.options.External != nil {
		s.target = *s.options.External
	} else {
		err = s.startOwnTemporal(ctx)
	}
	if err == nil {
		err = s.serveWebUI(listener, codec)
	}
	if err != nil {
		return errors.Join(err, listener.Close())
	}

	if s.target.Namespace == "" {
		s.target.Namespace = client.DefaultNamespace
	}
	s.file.TemporalAddress, s.file.Namespace = s.target.HostPort, s.target.Namespace
	s.target.DataConverter = keys.DataConverter(codec)
	s.target.FailureConverter = keys.FailureConverter(s.target.DataConverter)
	if s.target.Logger == nil {
		s.target.Logger = silent{}
	}
	if s.client, err = client.NewLazyClient(s.target); err != nil {
		return fmt.Errorf("making a Temporal client: %w", err)
	}
	if s.options.External == nil {
		return nil
	}
	s.say(EventStarting, "temporal", "")
	usable, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := awaitUsable(usable, s.client, s.target.Namespace, SearchAttributes(), s.target.HostPort); err != nil {
		return fmt.Errorf("using the Temporal server at %s: %w", s.target.HostPort, err)
	}
	s.say(EventReady, "temporal", "")
	return nil
}

func (s *Stack) startOwnTemporal(ctx context.Context) error {
	s.say(EventStarting, "temporal", "")
	options := s.options.Temporal
	if options.Port != 0 { // said before minutes are spent on finding a server for it
		if err := checkPort("the Temporal server", "127.0.0.1", options.Port); err != nil {
			return err
		}
	}
	note := func(line string) { s.say(EventNote, "temporal", line) }
	if options.Binary == "" {
		path, err := FindTemporal(ctx, FindOptions{Progress: note})
		if err != nil {
			return err
		}
		options.Binary = path
	}
	_, log, err := s.openLog("temporal")
	if err != nil {
		return err
	}
	// A path without a host: it is right under whatever name and port the Web UI was opened with.
	options.Dir, options.CodecEndpoint, options.UIPort = filepath.Join(s.options.DataDir, "temporal"), keys.CodecPath, 0
	options.Log, options.Progress = log, note
	options.started = func(t *Temporal, run *childRun) { s.watching.Go(func() { s.watchTemporal(t, run) }) }
	if s.temporal, err = StartTemporal(ctx, options); err != nil {
		return err
	}
	s.target = client.Options{HostPort: s.temporal.Address(), Namespace: s.temporal.Namespace()}
	s.say(EventReady, "temporal", "")
	return nil
}

// watchTemporal starts the server again when it died by itself: on the same file and ports, so that everybody goes on.
func (s *Stack) watchTemporal(t *Temporal, run *childRun) {
	<-run.done
	if s.unlessStopping() != nil || t.child.wasOrdered(run) {
		return
	}
	s.tell(Event{Kind: EventDied, Component: "temporal", Err: run.err})
	s.again(func(ctx context.Context) (bool, error) {
		t.turn.Lock()
		defer t.turn.Unlock()
		if t.child.Running() {
			return true, nil // somebody was faster
		}
		err := t.start(ctx)
		if err == nil {
			s.say(EventReady, "temporal", "")
		}
		return err == nil, err
	}, "temporal")
}

// controlPolls says that the control worker that is about to be started polls its queue.
func (s *Stack) controlPolls(context.Context) (func(context.Context) error, error) {
	before := time.Now()
	return func(ctx context.Context) error {
		queue, err := s.client.WorkflowService().DescribeTaskQueue(ctx, &workflowservice.DescribeTaskQueueRequest{
			Namespace: s.target.Namespace, TaskQueue: &taskqueue.TaskQueue{Name: workspace.ControlQueue},
			TaskQueueType: enumspb.TASK_QUEUE_TYPE_WORKFLOW,
		})
		if err != nil {
			return fmt.Errorf("asking who polls the control queue: %w", err)
		}
		for _, poller := range queue.GetPollers() {
			// Those of workers that have died are listed for minutes. Another machine's clock cannot be compared with ours.
			if s.options.External != nil || poller.GetLastAccessTime().AsTime().After(before) {
				return nil
			}
		}
		return errors.New("it does not poll the control queue yet")
	}, nil
}

// nodeHoldsLease says that the agent that is about to be started, and none before it, holds the node's lease.
func (s *Stack) nodeHoldsLease(ctx context.Context, node string) (func(context.Context) error, error) {
	ask := func(ctx context.Context) (state workspace.NodeState, err error) {
		value, err := s.client.QueryWorkflow(ctx, workspace.NodeWorkflowID(node), "", workspace.QueryState)
		if _, missing := errors.AsType[*serviceerror.NotFound](err); missing {
			return workspace.NodeState{}, nil
		}
		if err == nil {
			err = value.Get(&state)
		}
		if err != nil {
			err = fmt.Errorf("asking for the state of node %s: %w", node, err)
		}
		return state, err
	}
	var before workspace.NodeState
	err := until(ctx, readyPoll, func(ctx context.Context) (err error) {
		before, err = ask(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		state, err := ask(ctx)
		switch {
		case err != nil:
			return err
		case state.Info.Incarnation == "" || state.Info.Incarnation == before.Info.Incarnation:
			return errors.New("it has not announced itself yet")
		case state.Phase != workspace.NodeReady:
			return fmt.Errorf("it does not hold its lease yet (%s)", state.Phase)
		}
		return nil
	}, nil
}
