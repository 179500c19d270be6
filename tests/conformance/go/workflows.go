package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"
)

// Stepper runs a few activities with a timer between them. Two of them that share a worker whose cache
// holds one workflow evict each other at each step.
func Stepper(ctx workflow.Context, name string, steps int) (string, error) {
	said := []string{}
	if err := workflow.SetQueryHandler(ctx, "said", func() (string, error) {
		return strings.Join(said, ","), nil
	}); err != nil {
		return "", err
	}
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: 20 * time.Second})
	for step := 0; step < steps; step++ {
		var word string
		if err := workflow.ExecuteActivity(ctx, Say, name, step).Get(ctx, &word); err != nil {
			return "", err
		}
		said = append(said, word)
		if err := workflow.Sleep(ctx, 10*time.Millisecond); err != nil {
			return "", err
		}
	}
	return strings.Join(said, ","), nil
}

// Say is the activity of all workflows here.
func Say(_ context.Context, name string, step int) (string, error) {
	return fmt.Sprintf("%s%d", name, step), nil
}

// Collector takes signals until it has as many as it wants, continuing as new after each batch.
func Collector(ctx workflow.Context, wanted int, batch int, have []string) ([]string, error) {
	signals := workflow.GetSignalChannel(ctx, "word")
	if err := workflow.SetQueryHandler(ctx, "have", func() (int, error) { return len(have), nil }); err != nil {
		return nil, err
	}
	for taken := 0; len(have) < wanted; taken++ {
		if taken == batch && len(have) < wanted {
			for {
				var word string
				if !signals.ReceiveAsync(&word) {
					break
				}
				have = append(have, word)
			}
			return nil, workflow.NewContinueAsNewError(ctx, Collector, wanted, batch, have)
		}
		var word string
		signals.Receive(ctx, &word)
		have = append(have, word)
	}
	return have, nil
}

// Parent runs one child of each fate: one that ends well, one that fails, one that is cancelled.
func Parent(ctx workflow.Context) (string, error) {
	ctx = workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{WaitForCancellation: true})
	well := workflow.ExecuteChildWorkflow(ctx, Child, "well")
	fails := workflow.ExecuteChildWorkflow(ctx, Child, "fails")
	cancellable, cancel := workflow.WithCancel(ctx)
	waits := workflow.ExecuteChildWorkflow(cancellable, Child, "waits")
	if err := waits.GetChildWorkflowExecution().Get(ctx, nil); err != nil {
		return "", err
	}
	cancel()
	var text string
	if err := well.Get(ctx, &text); err != nil {
		return "", err
	}
	var failed *temporal.ApplicationError
	if err := fails.Get(ctx, nil); err == nil || !asError(err, &failed) || failed.Type() != "Planned" {
		return "", fmt.Errorf("the failing child ended with %v", err)
	}
	if err := waits.Get(ctx, nil); !temporal.IsCanceledError(err) {
		return "", fmt.Errorf("the waiting child ended with %v", err)
	}
	return text, nil
}

// Child ends as its fate says.
func Child(ctx workflow.Context, fate string) (string, error) {
	switch fate {
	case "fails":
		return "", temporal.NewNonRetryableApplicationError("as planned", "Planned", nil)
	case "waits":
		return "", workflow.Sleep(ctx, time.Hour)
	}
	return fate, nil
}

// Long makes a history of several pages.
func Long(ctx workflow.Context, timers int) (int, error) {
	fired := 0
	if err := workflow.SetQueryHandler(ctx, "fired", func() (int, error) { return fired, nil }); err != nil {
		return 0, err
	}
	for left := timers; left > 0; {
		// Fewer than a server may buffer while a task is out.
		together := min(left, 80)
		waits := make([]workflow.Future, together)
		for i := range waits {
			waits[i] = workflow.NewTimer(ctx, time.Millisecond)
		}
		for _, wait := range waits {
			if err := wait.Get(ctx, nil); err != nil {
				return 0, err
			}
			fired++
		}
		left -= together
	}
	workflow.GetSignalChannel(ctx, "end").Receive(ctx, nil)
	return fired, nil
}

// Flaky fails as often as it is told, then says which attempt it is.
func Flaky(ctx context.Context, failures int) (int, error) {
	attempt := attemptOf(ctx)
	if attempt <= failures {
		return 0, fmt.Errorf("attempt %d fails", attempt)
	}
	return attempt, nil
}

// Retrying runs Flaky.
func Retrying(ctx workflow.Context, failures int) (int, error) {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		StartToCloseTimeout: 20 * time.Second,
		RetryPolicy:         &temporal.RetryPolicy{InitialInterval: 5 * time.Millisecond},
	})
	var attempts int
	err := workflow.ExecuteActivity(ctx, Flaky, failures).Get(ctx, &attempts)
	return attempts, err
}
