package dev.piton.conformance;

import io.temporal.api.common.v1.WorkflowExecution;
import io.temporal.api.enums.v1.EventType;
import io.temporal.api.history.v1.HistoryEvent;
import io.temporal.client.WorkflowClient;
import io.temporal.client.WorkflowOptions;
import io.temporal.client.WorkflowStub;
import io.temporal.serviceclient.WorkflowServiceStubs;
import io.temporal.serviceclient.WorkflowServiceStubsOptions;
import io.temporal.worker.Worker;
import io.temporal.worker.WorkerFactory;
import io.temporal.worker.WorkerFactoryOptions;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;

/**
 * Conformance of a server to what the official Java SDK relies on. Prints a line for each scenario
 * and {@code N passed, M failed} at the end. The server is at TEMPORAL_ADDRESS; arguments are
 * prefixes of the names of scenarios to run.
 */
public final class Main {
  private interface Scenario {
    void run(Session session) throws Exception;
  }

  /** A client and a worker of its own queue, whose cache holds one workflow. */
  private static final class Session implements AutoCloseable {
    final WorkflowServiceStubs service;
    final WorkflowClient client;
    final WorkerFactory factory;
    final String queue;

    Session(String name) {
      String given = System.getenv("TEMPORAL_ADDRESS");
      String address = given == null || given.isEmpty() ? "127.0.0.1:7233" : given;
      service =
          WorkflowServiceStubs.newServiceStubs(
              WorkflowServiceStubsOptions.newBuilder().setTarget(address).build());
      client = WorkflowClient.newInstance(service);
      factory =
          WorkerFactory.newInstance(
              client, WorkerFactoryOptions.newBuilder().setWorkflowCacheSize(1).build());
      queue = "java-" + name + "-" + System.nanoTime();
      Worker worker = factory.newWorker(queue);
      worker.registerWorkflowImplementationTypes(
          Workflows.StepperImpl.class,
          Workflows.CollectorImpl.class,
          Workflows.ParentImpl.class,
          Workflows.RetryingImpl.class);
      worker.registerActivitiesImplementations(new Workflows.SpeechImpl());
      factory.start();
    }

    <T> T stub(Class<T> workflow, String id) {
      WorkflowOptions options =
          WorkflowOptions.newBuilder().setTaskQueue(queue).setWorkflowId(queue + "-" + id).build();
      return client.newWorkflowStub(workflow, options);
    }

    /** Fails if a workflow task of the run failed or timed out. */
    void noFailedTask(WorkflowExecution execution) {
      for (HistoryEvent event :
          client.fetchHistory(execution.getWorkflowId(), execution.getRunId()).getEvents()) {
        if (event.getEventType() == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED) {
          throw new AssertionError(
              "event "
                  + event.getEventId()
                  + ": "
                  + event.getWorkflowTaskFailedEventAttributes().getFailure().getMessage());
        }
        if (event.getEventType() == EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT) {
          throw new AssertionError("event " + event.getEventId() + ": a workflow task timed out");
        }
      }
    }

    void stop() {
      factory.shutdown();
      factory.awaitTermination(15, TimeUnit.SECONDS);
    }

    @Override
    public void close() {
      stop();
      service.shutdownNow();
    }
  }

  private static final Map<String, Scenario> SCENARIOS = new LinkedHashMap<>();

  static {
    SCENARIOS.put("cache-of-one", Main::cacheOfOne);
    SCENARIOS.put("cache-of-one-query", Main::cacheOfOneQuery);
    SCENARIOS.put("children", Main::children);
    SCENARIOS.put("retries", Main::retries);
    SCENARIOS.put("worker-stops", Main::workerStops);
  }

  public static void main(String[] arguments) {
    int passed = 0;
    int failed = 0;
    for (Map.Entry<String, Scenario> scenario : SCENARIOS.entrySet()) {
      String name = scenario.getKey();
      if (!isWanted(name, arguments)) {
        continue;
      }
      Instant began = Instant.now();
      try (Session session = new Session(name)) {
        scenario.getValue().run(session);
        passed++;
        System.out.printf("ok   %s (%d ms)%n", name, since(began).toMillis());
      } catch (Exception | AssertionError e) {
        failed++;
        System.out.printf("FAIL %s: %s%n", name, e);
      }
    }
    System.out.printf("%d passed, %d failed%n", passed, failed);
    System.exit(failed > 0 ? 1 : 0);
  }

  private static boolean isWanted(String name, String[] prefixes) {
    for (String prefix : prefixes) {
      if (name.startsWith(prefix)) {
        return true;
      }
    }
    return prefixes.length == 0;
  }

  private static Duration since(Instant began) {
    return Duration.between(began, Instant.now());
  }

  private static void check(Object wanted, Object found) {
    if (!wanted.equals(found)) {
      throw new AssertionError("wanted " + wanted + ", found " + found);
    }
  }

  private static void cacheOfOne(Session session) throws Exception {
    List<WorkflowStub> runs = new ArrayList<>();
    for (String name : List.of("a", "b")) {
      Workflows.Stepper stepper = session.stub(Workflows.Stepper.class, name);
      WorkflowClient.start(stepper::run, name, 6);
      runs.add(WorkflowStub.fromTyped(stepper));
    }
    for (int i = 0; i < runs.size(); i++) {
      String name = List.of("a", "b").get(i);
      String said = runs.get(i).getResult(60, TimeUnit.SECONDS, String.class);
      check(name + "0," + name + "1," + name + "2," + name + "3," + name + "4," + name + "5", said);
      session.noFailedTask(runs.get(i).getExecution());
    }
  }

  private static void cacheOfOneQuery(Session session) throws Exception {
    List<Workflows.Collector> collectors = new ArrayList<>();
    for (String id : List.of("a", "b")) {
      Workflows.Collector collector = session.stub(Workflows.Collector.class, id);
      WorkflowClient.start(collector::run, 5);
      collectors.add(collector);
    }
    for (int sent = 1; sent <= 5; sent++) {
      for (Workflows.Collector collector : collectors) {
        collector.word("w");
        check(sent, collector.have());
      }
    }
    for (Workflows.Collector collector : collectors) {
      WorkflowStub run = WorkflowStub.fromTyped(collector);
      check(5, run.getResult(60, TimeUnit.SECONDS, Integer.class));
      session.noFailedTask(run.getExecution());
    }
  }

  private static void children(Session session) throws Exception {
    Workflows.Parent parent = session.stub(Workflows.Parent.class, "parent");
    WorkflowClient.start(parent::run, 4);
    WorkflowStub run = WorkflowStub.fromTyped(parent);
    check("c00,c10,c20,c30", run.getResult(60, TimeUnit.SECONDS, String.class));
    session.noFailedTask(run.getExecution());
  }

  private static void retries(Session session) {
    check(4, session.stub(Workflows.Retrying.class, "a").run(3));
  }

  /** A worker that stops while nothing runs takes no longer than its polls take to be answered. */
  private static void workerStops(Session session) {
    check("x0", session.stub(Workflows.Stepper.class, "a").run("x", 1));
    Instant began = Instant.now();
    session.stop();
    if (!session.factory.isTerminated() || since(began).toSeconds() > 12) {
      throw new AssertionError("it took " + since(began));
    }
  }
}
