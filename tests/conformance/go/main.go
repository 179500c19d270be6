// Conformance of a server to what the official Go SDK relies on. Prints a line for each scenario and
// `N passed, M failed` at the end.
//
// The server is at TEMPORAL_ADDRESS; arguments are prefixes of the names of scenarios to run.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
)

type quiet struct{}

func (quiet) Debug(string, ...interface{}) {}
func (quiet) Info(string, ...interface{})  {}
func (quiet) Warn(string, ...interface{})  {}
func (quiet) Error(string, ...interface{}) {}

type scenario struct {
	name string
	run  func(context.Context, client.Client) error
}

var scenarios = []scenario{
	{"cache-of-one", cacheOfOne},
	{"cache-of-one-query", cacheOfOneQuery},
	{"long-history", longHistory},
	{"signals-continue-as-new", signalsContinueAsNew},
	{"children", children},
	{"retries", retries},
	{"worker-stops-at-once", workerStopsAtOnce},
}

func main() {
	// Only a limit of the process; set before the first worker.
	worker.SetStickyWorkflowCacheSize(1)
	passed, failed := 0, 0
	for _, s := range scenarios {
		if !wanted(s.name) {
			continue
		}
		began := time.Now()
		if err := inTime(s); err != nil {
			failed++
			fmt.Printf("FAIL %s: %v\n", s.name, err)
		} else {
			passed++
			fmt.Printf("ok   %s (%.1f s)\n", s.name, time.Since(began).Seconds())
		}
	}
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	if failed > 0 {
		os.Exit(1)
	}
}

func wanted(name string) bool {
	for _, prefix := range os.Args[1:] {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return len(os.Args) == 1
}

func inTime(s scenario) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	address := os.Getenv("TEMPORAL_ADDRESS")
	if address == "" {
		address = "127.0.0.1:7233"
	}
	c, err := client.DialContext(ctx, client.Options{HostPort: address, Logger: quiet{}})
	if err != nil {
		return fmt.Errorf("is a server running at %s? %w", address, err)
	}
	defer c.Close()
	return s.run(ctx, c)
}

// A worker of its own queue, which is named after the scenario and the moment.
func work(c client.Client, name string) (string, worker.Worker, error) {
	queue := fmt.Sprintf("go-%s-%d", name, time.Now().UnixNano())
	w := worker.New(c, queue, worker.Options{})
	for _, f := range []interface{}{Stepper, Collector, Parent, Child, Long, Retrying} {
		w.RegisterWorkflow(f)
	}
	w.RegisterActivity(Say)
	w.RegisterActivity(Flaky)
	return queue, w, w.Start()
}

func start(ctx context.Context, c client.Client, queue, id string, f interface{}, args ...interface{}) (client.WorkflowRun, error) {
	options := client.StartWorkflowOptions{ID: queue + "-" + id, TaskQueue: queue}
	return c.ExecuteWorkflow(ctx, options, f, args...)
}

func cacheOfOne(ctx context.Context, c client.Client) error {
	queue, w, err := work(c, "cache")
	if err != nil {
		return err
	}
	defer w.Stop()
	const steps = 8
	runs := []client.WorkflowRun{}
	for _, name := range []string{"a", "b"} {
		run, err := start(ctx, c, queue, name, Stepper, name, steps)
		if err != nil {
			return err
		}
		runs = append(runs, run)
	}
	for i, name := range []string{"a", "b"} {
		var said string
		if err := runs[i].Get(ctx, &said); err != nil {
			return err
		}
		words := []string{}
		for step := 0; step < steps; step++ {
			words = append(words, fmt.Sprintf("%s%d", name, step))
		}
		if said != strings.Join(words, ",") {
			return fmt.Errorf("%s said %s", name, said)
		}
		if err := noFailedTask(ctx, c, runs[i]); err != nil {
			return err
		}
	}
	return nil
}

func cacheOfOneQuery(ctx context.Context, c client.Client) error {
	queue, w, err := work(c, "query")
	if err != nil {
		return err
	}
	defer w.Stop()
	runs := []client.WorkflowRun{}
	for _, id := range []string{"a", "b"} {
		run, err := start(ctx, c, queue, id, Collector, 6, 100, []string{})
		if err != nil {
			return err
		}
		runs = append(runs, run)
	}
	// Each query and each signal finds the other workflow in the worker's cache.
	for sent := 1; sent <= 6; sent++ {
		for _, run := range runs {
			if err := c.SignalWorkflow(ctx, run.GetID(), run.GetRunID(), "word", "w"); err != nil {
				return err
			}
			answer, err := c.QueryWorkflow(ctx, run.GetID(), run.GetRunID(), "have")
			if err != nil {
				return fmt.Errorf("query after signal %d: %w", sent, err)
			}
			var have int
			if err := answer.Get(&have); err != nil {
				return err
			}
			if have != sent {
				return fmt.Errorf("a query after %d signals saw %d", sent, have)
			}
		}
	}
	for _, run := range runs {
		if err := run.Get(ctx, nil); err != nil {
			return err
		}
		if err := noFailedTask(ctx, c, run); err != nil {
			return err
		}
	}
	return nil
}

func longHistory(ctx context.Context, c client.Client) error {
	queue, w, err := work(c, "long")
	if err != nil {
		return err
	}
	defer w.Stop()
	const timers = 1500
	runs := []client.WorkflowRun{}
	for _, id := range []string{"a", "b"} {
		run, err := start(ctx, c, queue, id, Long, timers)
		if err != nil {
			return err
		}
		runs = append(runs, run)
	}
	for _, run := range runs {
		if err := c.SignalWorkflow(ctx, run.GetID(), run.GetRunID(), "end", nil); err != nil {
			return err
		}
	}
	for _, run := range runs {
		var fired int
		if err := run.Get(ctx, &fired); err != nil {
			return err
		}
		if fired != timers {
			return fmt.Errorf("%d of %d timers fired", fired, timers)
		}
		if err := noFailedTask(ctx, c, run); err != nil {
			return err
		}
		answer, err := c.QueryWorkflow(ctx, run.GetID(), run.GetRunID(), "fired")
		if err != nil {
			return fmt.Errorf("query of the closed run: %w", err)
		}
		if err := answer.Get(&fired); err != nil || fired != timers {
			return fmt.Errorf("a query of the closed run saw %d, %v", fired, err)
		}
	}
	return nil
}

func signalsContinueAsNew(ctx context.Context, c client.Client) error {
	queue, w, err := work(c, "signals")
	if err != nil {
		return err
	}
	defer w.Stop()
	const wanted = 40
	run, err := start(ctx, c, queue, "a", Collector, wanted, 7, []string{})
	if err != nil {
		return err
	}
	for sent := 0; sent < wanted; sent++ {
		if err := c.SignalWorkflow(ctx, run.GetID(), "", "word", fmt.Sprint(sent)); err != nil {
			return err
		}
	}
	var have []string
	if err := run.Get(ctx, &have); err != nil {
		return err
	}
	for sent := 0; sent < wanted; sent++ {
		if have[sent] != fmt.Sprint(sent) {
			return fmt.Errorf("signals came as %v", have)
		}
	}
	return nil
}

func children(ctx context.Context, c client.Client) error {
	queue, w, err := work(c, "children")
	if err != nil {
		return err
	}
	defer w.Stop()
	run, err := start(ctx, c, queue, "parent", Parent)
	if err != nil {
		return err
	}
	var text string
	if err := run.Get(ctx, &text); err != nil {
		return err
	}
	if text != "well" {
		return fmt.Errorf("the child said %q", text)
	}
	return noFailedTask(ctx, c, run)
}

func retries(ctx context.Context, c client.Client) error {
	queue, w, err := work(c, "retries")
	if err != nil {
		return err
	}
	defer w.Stop()
	run, err := start(ctx, c, queue, "a", Retrying, 3)
	if err != nil {
		return err
	}
	var attempts int
	if err := run.Get(ctx, &attempts); err != nil {
		return err
	}
	if attempts != 4 {
		return fmt.Errorf("it took %d attempts", attempts)
	}
	return nil
}

// A worker that stops while nothing runs takes no longer than its polls take to be answered.
func workerStopsAtOnce(ctx context.Context, c client.Client) error {
	queue, w, err := work(c, "stops")
	if err != nil {
		return err
	}
	run, err := start(ctx, c, queue, "a", Child, "well")
	if err != nil {
		return err
	}
	if err := run.Get(ctx, nil); err != nil {
		return err
	}
	began := time.Now()
	w.Stop()
	if took := time.Since(began); took > 10*time.Second {
		return fmt.Errorf("it took %v", took)
	}
	return nil
}

// Fails if a workflow task of the run failed or timed out.
func noFailedTask(ctx context.Context, c client.Client, run client.WorkflowRun) error {
	events := c.GetWorkflowHistory(ctx, run.GetID(), run.GetRunID(), false, enums.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for events.HasNext() {
		event, err := events.Next()
		if err != nil {
			return err
		}
		switch event.GetEventType() {
		case enums.EVENT_TYPE_WORKFLOW_TASK_FAILED:
			failed := event.GetWorkflowTaskFailedEventAttributes()
			return fmt.Errorf("event %d: %v %v", event.GetEventId(), failed.GetCause(), failed.GetFailure())
		case enums.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT:
			return fmt.Errorf("event %d: a workflow task timed out", event.GetEventId())
		}
	}
	return nil
}

func asError[T error](err error, target *T) bool { return errors.As(err, target) }

func attemptOf(ctx context.Context) int { return int(activity.GetInfo(ctx).Attempt) }
