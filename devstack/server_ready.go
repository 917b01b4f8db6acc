package devstack

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/taskqueue/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	sdklog "go.temporal.io/sdk/log"
)

// until repeats a step until it succeeds or the context ends; then it returns why the step failed last.
func until(ctx context.Context, every time.Duration, step func(context.Context) error) error {
	for {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := step(try)
		cancel()
		if err == nil {
			return nil
		}
		var permanent *permanentError
		if errors.As(err, &permanent) {
			return permanent.err
		}
		timer := time.NewTimer(every)
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-timer.C:
		}
	}
}

// permanentError ends until at once.
type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }

// awaitUsable waits for the server that this process started.
func (t *Temporal) awaitUsable(ctx context.Context) error {
	c, err := client.NewLazyClient(client.Options{
		HostPort:  t.Address(),
		Namespace: t.options.Namespace,
		Logger:    silent{},
		Identity:  "holdfast devstack",
	})
	if err != nil {
		return fmt.Errorf("making a Temporal client: %w", err)
	}
	defer c.Close()
	if err := awaitUsable(ctx, c, t.options.Namespace, t.options.SearchAttributes, t.db.file); err != nil {
		return err
	}
	if err := until(ctx, readyPoll, t.uiAnswers); err != nil {
		return fmt.Errorf("waiting for its Web UI: %w", err)
	}
	return nil
}

// awaitUsable waits until a workflow can be started and found: all four services behind the address answer, the
// namespace is there, and so are the search attributes. where is the server's data, for messages.
func awaitUsable(ctx context.Context, c client.Client, namespace string, attributes map[string]enumspb.IndexedValueType, where string) error {
	steps := []struct {
		what string
		step func(context.Context) error
	}{
		{"its health", func(ctx context.Context) error {
			_, err := c.CheckHealth(ctx, &client.CheckHealthRequest{})
			return err
		}},
		{"its namespace", func(ctx context.Context) error {
			_, err := c.WorkflowService().DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: namespace})
			return err
		}},
		{"its search attributes", func(ctx context.Context) error {
			return ensureSearchAttributes(ctx, c, namespace, attributes, where)
		}},
		{"its visibility store", func(ctx context.Context) error {
			var conditions []string
			for name := range attributes {
				conditions = append(conditions, name+" IS NULL")
			}
			_, err := c.CountWorkflow(ctx, &workflowservice.CountWorkflowExecutionsRequest{Query: strings.Join(conditions, " AND ")})
			return err
		}},
		{"its matching service", func(ctx context.Context) error {
			_, err := c.WorkflowService().DescribeTaskQueue(ctx, &workflowservice.DescribeTaskQueueRequest{
				Namespace: namespace, TaskQueue: &taskqueue.TaskQueue{Name: "holdfast-ready"},
				TaskQueueType: enumspb.TASK_QUEUE_TYPE_WORKFLOW,
			})
			return err
		}},
		{"its history service", func(ctx context.Context) error {
			_, err := c.DescribeWorkflowExecution(ctx, "holdfast-ready", "")
			if _, missing := errors.AsType[*serviceerror.NotFound](err); missing {
				return nil
			}
			return err
		}},
	}
	for _, s := range steps {
		if err := until(ctx, readyPoll, s.step); err != nil {
			return fmt.Errorf("waiting for %s: %w", s.what, err)
		}
	}
	return nil
}

// ensureSearchAttributes adds those that are missing: the server's own flag does nothing for a namespace that is there
// already.
func ensureSearchAttributes(ctx context.Context, c client.Client, namespace string, attributes map[string]enumspb.IndexedValueType, where string) error {
	operator := c.OperatorService()
	have, err := operator.ListSearchAttributes(ctx, &operatorservice.ListSearchAttributesRequest{Namespace: namespace})
	if err != nil {
		return fmt.Errorf("listing search attributes: %w", err)
	}
	missing := map[string]enumspb.IndexedValueType{}
	for name, want := range attributes {
		got, found := have.GetCustomAttributes()[name]
		if found && got != want {
			return &permanentError{fmt.Errorf("the search attribute %s is a %s in %s, and has to be a %s: use another namespace, or an empty "+
				"database (workspaces are rebuilt from the catalog)", name, got, where, want)}
		}
		if !found {
			missing[name] = want
		}
	}
	if len(missing) == 0 {
		return nil
	}
	_, err = operator.AddSearchAttributes(ctx, &operatorservice.AddSearchAttributesRequest{
		Namespace: namespace, SearchAttributes: missing,
	})
	if err != nil {
		return fmt.Errorf("adding search attributes: %w", err)
	}
	return errors.New("they were only just added") // so that they are listed and looked at again
}

// uiAnswers asks the Web UI for its settings.
func (t *Temporal) uiAnswers(ctx context.Context) error {
	if t.options.Headless {
		return nil
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, t.UIURL()+"/api/v1/settings", nil)
	if err != nil {
		return fmt.Errorf("asking the Web UI: %w", err)
	}
	transport := &http.Transport{DisableKeepAlives: true} // and no proxy: this is loopback
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return fmt.Errorf("asking the Web UI: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("asking the Web UI: it answered %s", response.Status)
	}
	return nil
}

// silent drops what the SDK would log about a server that is not up yet.
type silent struct{}

var _ sdklog.Logger = silent{}

func (silent) Debug(string, ...any) {}
func (silent) Info(string, ...any)  {}
func (silent) Warn(string, ...any)  {}
func (silent) Error(string, ...any) {}
