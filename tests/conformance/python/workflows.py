"""Workflows of the suite."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError

with workflow.unsafe.imports_passed_through():
    import activities

QUICK = timedelta(seconds=5)


@workflow.defn
class Hello:
    @workflow.run
    async def run(self, name: str) -> str:
        return await workflow.execute_activity(activities.greet, name, start_to_close_timeout=QUICK)


@workflow.defn
class HelloLocally:
    @workflow.run
    async def run(self, name: str) -> str:
        return await workflow.execute_local_activity(activities.greet, name, start_to_close_timeout=QUICK)


@workflow.defn
class Retries:
    @workflow.run
    async def run(self) -> list:
        fast = dict(initial_interval=timedelta(milliseconds=100), backoff_coefficient=2.0)
        succeeded = await workflow.execute_activity(
            activities.fail_until, 4, start_to_close_timeout=QUICK, retry_policy=RetryPolicy(**fast)
        )
        states = []
        for policy in (
            RetryPolicy(**fast, non_retryable_error_types=["Fatal"]),
            RetryPolicy(**fast, maximum_attempts=3),
        ):
            try:
                await workflow.execute_activity(
                    activities.fail_as, "Fatal", start_to_close_timeout=QUICK, retry_policy=policy
                )
            except ActivityError as error:
                assert isinstance(error.cause, ApplicationError)
                states.append([error.retry_state.name, error.cause.type])
        try:
            await workflow.execute_activity(
                activities.fail_as,
                "Slow",
                schedule_to_close_timeout=timedelta(seconds=1),
                retry_policy=RetryPolicy(initial_interval=timedelta(seconds=10)),
            )
        except ActivityError as error:
            states.append([error.retry_state.name, type(error.cause).__name__])
        return [succeeded, states]


@workflow.defn
class Heartbeats:
    """Details survive an attempt; silence is noticed; a cancellation reaches the activity."""

    @workflow.run
    async def run(self) -> list:
        fast = RetryPolicy(initial_interval=timedelta(milliseconds=100))
        resumed = await workflow.execute_activity(
            activities.count_to, 10, start_to_close_timeout=QUICK, heartbeat_timeout=QUICK, retry_policy=fast
        )
        silent = await workflow.execute_activity(
            activities.beat_once_then_hang,
            start_to_close_timeout=timedelta(minutes=1),
            heartbeat_timeout=timedelta(seconds=1),
            retry_policy=fast,
        )
        beating = workflow.start_activity(
            activities.beat_until_cancelled,
            start_to_close_timeout=timedelta(minutes=1),
            heartbeat_timeout=timedelta(seconds=2),
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )
        await workflow.sleep(0.5)
        beating.cancel()
        return [resumed, silent, await beating]


@workflow.defn
class CancelMe:
    """Waits for ever; on cancellation cleans up, and then says whether it obeys."""

    @workflow.run
    async def run(self, obey: bool) -> str:
        try:
            await workflow.wait_condition(lambda: False)
        except asyncio.CancelledError:
            cleaned = await asyncio.shield(
                workflow.execute_activity(activities.greet, "cleaner", start_to_close_timeout=QUICK)
            )
            if obey:
                raise
            return cleaned
        return "never"


@workflow.defn
class Counter:
    """Sums signals, answers queries, ends when told."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.ended = False

    @workflow.run
    async def run(self) -> list[int]:
        await workflow.wait_condition(lambda: self.ended)
        return self.seen

    @workflow.signal
    def add(self, number: int) -> None:
        self.seen.append(number)

    @workflow.signal
    def end(self) -> None:
        self.ended = True

    @workflow.query
    def sum(self) -> int:
        return sum(self.seen)

    @workflow.query
    def fails(self) -> int:
        raise ApplicationError("as asked")


@workflow.defn
class Parent:
    @workflow.run
    async def run(self, prefix: str) -> list:
        hello = await workflow.execute_child_workflow(Hello.run, "child", id=f"{prefix}/hello")
        outcomes = [hello]
        failing = await workflow.start_child_workflow(Failing.run, id=f"{prefix}/failing")
        try:
            await failing
        except Exception as error:  # ChildWorkflowError, whose cause is what the child raised
            outcomes.append(type(error.__cause__).__name__)
        waiting = await workflow.start_child_workflow(CancelMe.run, True, id=f"{prefix}/waiting")
        waiting.cancel()
        try:
            await waiting
        except Exception as error:
            outcomes.append(type(error.__cause__).__name__)
        counter = await workflow.start_child_workflow(Counter.run, id=f"{prefix}/counter")
        for number in (1, 2, 3):
            await counter.signal(Counter.add, number)
        external = workflow.get_external_workflow_handle(f"{prefix}/counter")
        await external.signal("end")
        outcomes.append(await counter)
        return outcomes


@workflow.defn
class Failing:
    @workflow.run
    async def run(self) -> None:
        raise ApplicationError("as asked", type="Child")


@workflow.defn
class Chain:
    """Continues as new until nothing is left."""

    @workflow.run
    async def run(self, left: int, runs: list[str]) -> list[str]:
        runs.append(workflow.info().run_id)
        if left == 0:
            return runs
        await workflow.sleep(0.01)
        workflow.continue_as_new(args=[left - 1, runs])


@workflow.defn
class FanOut:
    @workflow.run
    async def run(self, count: int) -> int:
        squares = await asyncio.gather(
            *(
                workflow.execute_activity(
                    activities.square, number, start_to_close_timeout=timedelta(minutes=2)
                )
                for number in range(count)
            )
        )
        return sum(squares)


@workflow.defn
class Elsewhere:
    @workflow.run
    async def run(self) -> str:
        return await workflow.execute_activity(
            activities.complete_elsewhere,
            activity_id="elsewhere",
            start_to_close_timeout=timedelta(minutes=1),
        )


@workflow.defn
class Steps:
    """An activity, a timer, a signal, another activity: each kind of wait once."""

    def __init__(self) -> None:
        self.go = False

    @workflow.run
    async def run(self) -> str:
        retry = RetryPolicy(initial_interval=timedelta(milliseconds=100))
        short = timedelta(seconds=2)
        first = await workflow.execute_activity(
            activities.effect, "first", start_to_close_timeout=short, retry_policy=retry
        )
        await workflow.sleep(0.2)
        await workflow.wait_condition(lambda: self.go)
        second = await workflow.execute_activity(
            activities.effect, "second", start_to_close_timeout=short, retry_policy=retry
        )
        return f"{first} {second}"

    @workflow.signal
    def proceed(self) -> None:
        self.go = True


@workflow.defn(name="Changing")
class ChangingRight:
    def __init__(self) -> None:
        self.go = False

    @workflow.run
    async def run(self) -> str:
        greeting = await workflow.execute_activity(activities.greet, "you", start_to_close_timeout=QUICK)
        await workflow.wait_condition(lambda: self.go)
        return greeting

    @workflow.signal
    def proceed(self) -> None:
        self.go = True


@workflow.defn(name="Changing")
class ChangingWrong:
    """The same name, but it waits before it does anything: no replay of the other's history."""

    def __init__(self) -> None:
        self.go = False

    @workflow.run
    async def run(self) -> str:
        await workflow.sleep(3600)
        return "wrong"

    @workflow.signal
    def proceed(self) -> None:
        self.go = True


ALL = [
    Hello,
    HelloLocally,
    Retries,
    Heartbeats,
    CancelMe,
    Counter,
    Parent,
    Failing,
    Chain,
    FanOut,
    Elsewhere,
    Steps,
    ChangingRight,
]
