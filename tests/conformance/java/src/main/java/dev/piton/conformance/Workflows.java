package dev.piton.conformance;

import io.temporal.activity.ActivityInterface;
import io.temporal.activity.ActivityOptions;
import io.temporal.workflow.Async;
import io.temporal.workflow.Promise;
import io.temporal.workflow.QueryMethod;
import io.temporal.workflow.SignalMethod;
import io.temporal.workflow.Workflow;
import io.temporal.workflow.WorkflowInterface;
import io.temporal.workflow.WorkflowMethod;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;

/** The workflows that the scenarios run. */
final class Workflows {
  private Workflows() {}

  @ActivityInterface
  public interface Speech {
    String say(String name, int step);

    int flaky(int failures);
  }

  public static final class SpeechImpl implements Speech {
    @Override
    public String say(String name, int step) {
      return name + step;
    }

    @Override
    public int flaky(int failures) {
      int attempt = io.temporal.activity.Activity.getExecutionContext().getInfo().getAttempt();
      if (attempt <= failures) {
        throw new IllegalStateException("attempt " + attempt + " fails");
      }
      return attempt;
    }
  }

  static Speech speech() {
    return Workflow.newActivityStub(
        Speech.class,
        ActivityOptions.newBuilder()
            .setStartToCloseTimeout(Duration.ofSeconds(20))
            .setRetryOptions(
                io.temporal.common.RetryOptions.newBuilder()
                    .setInitialInterval(Duration.ofMillis(5))
                    .build())
            .build());
  }

  /** Activities with a timer between them: two of these evict each other from a cache of one. */
  @WorkflowInterface
  public interface Stepper {
    @WorkflowMethod
    String run(String name, int steps);
  }

  public static final class StepperImpl implements Stepper {
    @Override
    public String run(String name, int steps) {
      List<String> said = new ArrayList<>();
      for (int step = 0; step < steps; step++) {
        said.add(speech().say(name, step));
        Workflow.sleep(Duration.ofMillis(10));
      }
      return String.join(",", said);
    }
  }

  /** Takes signals until it has as many as it wants. */
  @WorkflowInterface
  public interface Collector {
    @WorkflowMethod
    int run(int wanted);

    @SignalMethod
    void word(String word);

    @QueryMethod
    int have();
  }

  public static final class CollectorImpl implements Collector {
    private final List<String> words = new ArrayList<>();

    @Override
    public int run(int wanted) {
      Workflow.await(() -> words.size() >= wanted);
      return words.size();
    }

    @Override
    public void word(String word) {
      words.add(word);
    }

    @Override
    public int have() {
      return words.size();
    }
  }

  /** Runs steppers as children, all at once. */
  @WorkflowInterface
  public interface Parent {
    @WorkflowMethod
    String run(int children);
  }

  public static final class ParentImpl implements Parent {
    @Override
    public String run(int children) {
      List<Promise<String>> waits = new ArrayList<>();
      for (int i = 0; i < children; i++) {
        Stepper child = Workflow.newChildWorkflowStub(Stepper.class);
        waits.add(Async.function(child::run, "c" + i, 1));
      }
      List<String> said = new ArrayList<>();
      waits.forEach(wait -> said.add(wait.get()));
      return String.join(",", said);
    }
  }

  /** An activity that fails before it succeeds. */
  @WorkflowInterface
  public interface Retrying {
    @WorkflowMethod
    int run(int failures);
  }

  public static final class RetryingImpl implements Retrying {
    @Override
    public int run(int failures) {
      return speech().flaky(failures);
    }
  }
}
