"""The scenarios. Each gets a task queue and ids of its own."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import workflows
from harness import Failure, Scenario, Stage, check, events, expect_gapless, kind, of_kind, same, until
from proxy import Proxy
from temporalio.api.enums.v1 import WorkflowTaskFailedCause
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowQueryFailedError,
)
from temporalio.exceptions import CancelledError, TimeoutError

TASK = ["WORKFLOW_TASK_SCHEDULED", "WORKFLOW_TASK_STARTED", "WORKFLOW_TASK_COMPLETED"]
ACTIVITY = ["ACTIVITY_TASK_SCHEDULED", "ACTIVITY_TASK_STARTED", "ACTIVITY_TASK_COMPLETED"]


async def hello(stage: Stage) -> None:
    async with stage.worker():
        handle = await stage.start(workflows.Hello.run, "hello", ["Ada"])
        same(await handle.result(), "Hello, Ada!", "result")
        history = await events(handle)
        expected = ["WORKFLOW_EXECUTION_STARTED", *TASK, *ACTIVITY, *TASK, "WORKFLOW_EXECUTION_COMPLETED"]
        same([kind(event) for event in history], expected, "history")
        expect_gapless(history, "hello")
        local = await stage.start(workflows.HelloLocally.run, "local", ["Ada"])
        same(await local.result(), "Hello, Ada!", "result of a local activity")
        same(len(of_kind(await events(local), "MARKER_RECORDED")), 1, "markers of a local activity")


async def activity_retries(stage: Stage) -> None:
    async with stage.worker():
        handle = await stage.start(workflows.Retries.run, "retries")
        expected = [
            4,
            [
                ["NON_RETRYABLE_FAILURE", "Fatal"],
                ["MAXIMUM_ATTEMPTS_REACHED", "Fatal"],
                ["TIMEOUT", "ApplicationError"],
            ],
        ]
        result = await handle.result()
        # How a deadline that leaves no room for another attempt is told apart differs by server version.
        check(result[1][2][0] in ("TIMEOUT", "NON_RETRYABLE_FAILURE"), f"no room to retry: {result[1][2]}")
        same([result[0], result[1][:2]], [expected[0], expected[1][:2]], "attempts and retry states")
        attempts = [
            event.activity_task_started_event_attributes.attempt
            for event in of_kind(await events(handle), "ACTIVITY_TASK_STARTED")
        ]
        same(attempts, [4, 1, 3, 1], "attempts in history")


async def heartbeat_and_cancel(stage: Stage) -> None:
    async with stage.worker():
        handle = await stage.start(workflows.Heartbeats.run, "beats")
        same(await handle.result(), [5, "last words", "noticed"], "details, silence, cancellation")
        obeys = await stage.start(workflows.CancelMe.run, "obeys", [True])
        refuses = await stage.start(workflows.CancelMe.run, "refuses", [False])
        for waiting in (obeys, refuses):
            await until("it waits", 15, lambda: _completed_tasks(waiting))
            await waiting.cancel()
        same(await refuses.result(), "Hello, cleaner!", "a workflow that refuses")
        try:
            await obeys.result()
            raise Failure("a cancelled workflow had a result")
        except WorkflowFailureError as error:
            check(isinstance(error.cause, CancelledError), f"cause {error.cause!r}")
        same((await obeys.describe()).status, WorkflowExecutionStatus.CANCELED, "status")


async def _completed_tasks(handle) -> int:
    return len(of_kind(await events(handle), "WORKFLOW_TASK_COMPLETED"))


async def signals_and_queries(stage: Stage) -> None:
    handle = await stage.start(workflows.Counter.run, "counter")
    # Before any worker is there, and more than fit into one task.
    for number in range(100):
        await handle.signal(workflows.Counter.add, number)
    async with stage.worker():
        same(await handle.query(workflows.Counter.sum), 4950, "sum of what was sent before")
        await asyncio.gather(*(handle.signal(workflows.Counter.add, 1) for _ in range(50)))
        same(await handle.query(workflows.Counter.sum), 5000, "sum after a burst: no signal is late")
        try:
            await handle.query(workflows.Counter.fails)
            raise Failure("a failing query had an answer")
        except WorkflowQueryFailedError as error:
            check("as asked" in str(error), str(error))
        await handle.signal(workflows.Counter.end)
        same(await handle.result(), [*range(100), *([1] * 50)], "signals in order")
    async with stage.worker():
        same(await handle.query(workflows.Counter.sum), 5000, "a closed workflow, in another worker")


async def children(stage: Stage) -> None:
    async with stage.worker():
        prefix = stage.id("parent")
        handle = await stage.start(workflows.Parent.run, "parent", [prefix])
        outcomes = ["Hello, child!", "ApplicationError", "CancelledError", [1, 2, 3]]
        same(await handle.result(), outcomes, "what the children came to")
        history = await events(handle)
        same(len(of_kind(history, "CHILD_WORKFLOW_EXECUTION_STARTED")), 4, "children in history")
        same(len(of_kind(history, "EXTERNAL_WORKFLOW_EXECUTION_SIGNALED")), 4, "signals in history")


async def continue_as_new(stage: Stage) -> None:
    async with stage.worker():
        handle = await stage.start(workflows.Chain.run, "chain", [5, []])
        runs = await handle.result()
        same([len(runs), len(set(runs))], [6, 6], "runs and different runs")
        same(runs[0], handle.result_run_id, "the first run")
        first = stage.client.get_workflow_handle(handle.id, run_id=runs[0])
        same((await first.describe()).status, WorkflowExecutionStatus.CONTINUED_AS_NEW, "its status")
        last = (await events(first))[-1]
        following = last.workflow_execution_continued_as_new_event_attributes.new_execution_run_id
        same(following, runs[1], "the run it names as the next")
        started = (await events(stage.client.get_workflow_handle(handle.id)))[0]
        attributes = started.workflow_execution_started_event_attributes
        same(attributes.first_execution_run_id, runs[0], "the first run, as the last one knows it")


async def fan_out(stage: Stage) -> None:
    count = 1000
    async with stage.worker():
        # A thousand coroutines take the SDK seconds on a busy machine; a task that times out over
        # and over would say nothing of the server.
        handle = await stage.start(
            workflows.FanOut.run, "fan", [count], task_timeout=timedelta(seconds=60)
        )
        same(await handle.result(), sum(number * number for number in range(count)), "sum of squares")
        history = await events(handle)
        same(len(of_kind(history, "ACTIVITY_TASK_COMPLETED")), count, "completed activities")
        expect_gapless(history, "the fan")


async def completed_elsewhere(stage: Stage) -> None:
    async with stage.worker():
        handle = await stage.start(workflows.Elsewhere.run, "elsewhere")

        async def started() -> bool:
            pending = (await handle.describe()).raw_description.pending_activities
            return bool(pending) and pending[0].attempt == 1 and pending[0].HasField("last_started_time")

        await until("the activity has started", 15, started)
        by_id = stage.client.get_async_activity_handle(
            workflow_id=handle.id, run_id=None, activity_id="elsewhere"
        )
        await by_id.heartbeat("from outside")
        await by_id.complete("done outside")
        same(await handle.result(), "done outside", "result")


async def timeouts_and_termination(stage: Stage) -> None:
    # No worker: the server alone ends these.
    timed = await stage.start(
        workflows.Counter.run, "timed", execution_timeout=timedelta(seconds=1)
    )
    ended = await stage.start(workflows.Counter.run, "ended")
    await ended.terminate("by hand")
    same((await ended.describe()).status, WorkflowExecutionStatus.TERMINATED, "status of the terminated")
    try:
        await timed.result()
        raise Failure("a workflow had a result after its timeout")
    except WorkflowFailureError as error:
        check(isinstance(error.cause, TimeoutError), f"cause {error.cause!r}")
    same((await timed.describe()).status, WorkflowExecutionStatus.TIMED_OUT, "status of the timed out")


async def list_and_count(stage: Stage) -> None:
    """What was acknowledged before a list was asked for is in it, at once."""
    handles = [await stage.start(workflows.Counter.run, f"listed{number}") for number in range(5)]
    await handles[0].terminate("by hand")
    here = f"TaskQueue = '{stage.task_queue}'"

    async def found(query: str) -> set[str]:
        return {run.id async for run in stage.client.list_workflows(query)}

    wanted = {handle.id for handle in handles}
    same(await found(here), wanted, "all")
    same(await found(f"{here} AND ExecutionStatus = 'Running'"), wanted - {handles[0].id}, "running")
    same(await found(f"{here} AND WorkflowId = '{handles[2].id}'"), {handles[2].id}, "one by id")
    same(await found(f"{here} AND WorkflowType IN ('Counter', 'Other')"), wanted, "by type")
    same(await found(f"{here} AND WorkflowType != 'Counter'"), set(), "by another type")
    same((await stage.client.count_workflows(here)).count, 5, "count")
    grouped = await stage.client.count_workflows(f"{here} GROUP BY ExecutionStatus")
    counts = {group.group_values[0]: group.count for group in grouped.groups}
    same(counts, {"Running": 4, "Terminated": 1}, "count by status")


async def worker_killed_at_each_event(stage: Stage) -> str:
    """One run for each length of the history: the worker dies as soon as it is reached."""
    whole = len(await _killed_at(stage, 10_000))
    lengths = list(range(2, whole))
    lanes = asyncio.Semaphore(3)

    async def one(length: int) -> None:
        async with lanes:
            await _killed_at(stage, length)

    await asyncio.gather(*(one(length) for length in lengths))
    return f"{len(lengths)} kills"


async def _killed_at(stage: Stage, length: int):
    queue = stage.id(f"killed{length}")
    handle = await stage.start(
        workflows.Steps.run,
        f"steps{length}",
        task_queue=queue,
        task_timeout=timedelta(seconds=2),
    )
    await handle.signal(workflows.Steps.proceed)
    async with stage.worker_process(queue) as first:

        async def reached() -> bool:
            history = await events(handle)
            return len(history) >= length or kind(history[-1]) == "WORKFLOW_EXECUTION_COMPLETED"

        await until(f"{length} events", 30, reached, every=0.01)
        first.kill()
        await first.wait()
    async with stage.worker_process(queue):
        same(await handle.result(), "first second", f"result, killed at {length}")
    history = await events(handle)
    expect_gapless(history, f"killed at {length}")
    same(len(of_kind(history, "ACTIVITY_TASK_COMPLETED")), 2, f"completed activities, killed at {length}")
    lines = stage.effects.read_text(encoding="utf-8").splitlines()
    mine = [line.split()[1:] for line in lines if line.startswith(f"{handle.id} ")]
    same(len(mine), len({tuple(line) for line in mine}), f"an attempt ran at most once, killed at {length}")
    check({"first", "second"} == {step for step, _ in mine}, f"steps, killed at {length}: {mine}")
    return history


async def wrong_code_then_right(stage: Stage) -> None:
    async with stage.worker():
        handle = await stage.start(
            workflows.ChangingRight.run, "changing", task_timeout=timedelta(seconds=2)
        )
        await until("the activity is done", 15, lambda: _at_least(handle, "ACTIVITY_TASK_COMPLETED", 1))
        await until("it waits", 15, lambda: _at_least(handle, "WORKFLOW_TASK_COMPLETED", 2))
    async with stage.worker(workflows=[workflows.ChangingWrong]):
        await handle.signal("proceed")
        await until("a failed task", 30, lambda: _at_least(handle, "WORKFLOW_TASK_FAILED", 1))
        failed = of_kind(await events(handle), "WORKFLOW_TASK_FAILED")[0]
        cause = failed.workflow_task_failed_event_attributes.cause
        wanted = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR
        same(cause, wanted, "cause")
        same((await handle.describe()).status, WorkflowExecutionStatus.RUNNING, "status")
    async with stage.worker():
        same(await handle.result(), "Hello, you!", "with the right code again")


async def _at_least(handle, wanted: str, count: int) -> bool:
    return len(of_kind(await events(handle), wanted)) >= count


async def parked_poll_is_cut(stage: Stage) -> str:
    """A task that comes due around the moment when its poll's connection goes away is not lost.

    Where the cut comes first, the task must reach the next poll by itself: the workflow task may take
    half a minute, so one that went to a dead connection would not be back in time. Where the cut comes
    second, the answer may be lost on the wire, which nobody can know; then its timeout brings it back.
    """
    rounds = 10
    async with Proxy(stage.address) as proxy:
        through = await Client.connect(proxy.address)
        async with stage.worker(through):
            warm = await stage.start(workflows.Hello.run, "warm", ["Ada"])
            await warm.result()
            for number in range(rounds):
                await until("the worker is connected", 20, lambda: proxy.connections > 0)
                cut_first = number % 2 == 0
                if cut_first:
                    await proxy.cut()
                task_timeout = timedelta(seconds=30 if cut_first else 3)
                handle = await stage.start(
                    workflows.Hello.run, f"cut{number}", ["Ada"], task_timeout=task_timeout
                )
                if not cut_first:
                    await proxy.cut()
                try:
                    result = await asyncio.wait_for(handle.result(), 20)
                except asyncio.TimeoutError:
                    seen = [kind(event) for event in await events(handle)]
                    raise Failure(f"round {number}: a task was lost; history {seen}") from None
                same(result, "Hello, Ada!", f"round {number}")
    return f"{rounds} cuts"


SCENARIOS: list[tuple[Scenario, float]] = [
    (worker_killed_at_each_event, 240),
    (hello, 40),
    (activity_retries, 60),
    (heartbeat_and_cancel, 60),
    (signals_and_queries, 60),
    (children, 60),
    (continue_as_new, 40),
    (fan_out, 180),
    (completed_elsewhere, 40),
    (timeouts_and_termination, 40),
    (list_and_count, 40),
    (wrong_code_then_right, 90),
    (parked_poll_is_cut, 180),
]
