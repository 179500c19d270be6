"""What scenarios share: workers, names of their own, waiting for a state."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import time
import uuid
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, AsyncIterator, Awaitable, Callable, Sequence

import activities
import workflows
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Worker

HERE = Path(__file__).parent


class Failure(Exception):
    """A claim that does not hold."""


def check(holds: object, what: str) -> None:
    if not holds:
        raise Failure(what)


def same(actual: object, expected: object, what: str) -> None:
    if actual != expected:
        raise Failure(f"{what}: {actual!r}, expected {expected!r}")


async def until(what: str, seconds: float, look: Callable[[], Any], every: float = 0.05) -> Any:
    """Waits for a state; `look` may be a coroutine function."""
    end = time.monotonic() + seconds
    while True:
        seen = look()
        if inspect.isawaitable(seen):
            seen = await seen
        if seen:
            return seen
        if time.monotonic() > end:
            raise Failure(f"not within {seconds} s: {what}")
        await asyncio.sleep(every)


def worker(client: Client, task_queue: str, **options: Any) -> Worker:
    settings: dict[str, Any] = {
        "workflows": workflows.ALL,
        "activities": activities.ALL,
        # How long a task waits for a dead worker's own queue.
        "sticky_queue_schedule_to_start_timeout": timedelta(seconds=1),
        "max_heartbeat_throttle_interval": timedelta(milliseconds=200),
        "default_heartbeat_throttle_interval": timedelta(milliseconds=200),
    }
    return Worker(client, task_queue=task_queue, **(settings | options))


class Stage:
    """One scenario's own task queue and ids."""

    def __init__(self, name: str, address: str, client: Client) -> None:
        self.name, self.address, self.client = name, address, client
        self._run = uuid.uuid4().hex[:8]
        self.task_queue = self.id("queue")
        self._started: list[WorkflowHandle] = []
        work = Path(os.environ.get("SUITE_WORK", ".")) / "runs" / f"{name}-{self._run}"
        work.mkdir(parents=True, exist_ok=True)
        self.effects, self.log = work / "effects.txt", work / "workers.log"

    def id(self, what: str) -> str:
        return f"{what}-{self.name}-{self._run}"

    def worker(self, client: Client | None = None, **options: Any) -> Worker:
        return worker(client or self.client, self.task_queue, **options)

    async def start(self, run: Any, what: str, args: Sequence[Any] = (), **options: Any) -> WorkflowHandle:
        settings = {"id": self.id(what), "task_queue": self.task_queue} | options
        handle = await self.client.start_workflow(run, args=args, **settings)
        self._started.append(handle)
        return handle

    @asynccontextmanager
    async def worker_process(self, task_queue: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """A worker process that is ready; killed at the end if a test has not done so."""
        with open(self.log, "a", encoding="utf-8") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-B", HERE / "worker.py", self.address, task_queue,
                stdout=asyncio.subprocess.PIPE, stderr=log,
                env=os.environ | {"SUITE_EFFECTS": str(self.effects)},
            )
        try:
            assert process.stdout is not None
            line = await asyncio.wait_for(process.stdout.readline(), 60)
            check(line == b"READY\n", f"a worker ended at its start, see {self.log}")
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def clear(self) -> None:
        for handle in self._started:
            try:
                await asyncio.wait_for(handle.terminate("end of scenario"), 2)
            except Exception:  # closed already, or the scenario failed because of the server
                pass


async def events(handle: WorkflowHandle) -> list[HistoryEvent]:
    return list((await handle.fetch_history()).events)


def kind(event: HistoryEvent) -> str:
    """`ACTIVITY_TASK_SCHEDULED`."""
    return EventType.Name(event.event_type).removeprefix("EVENT_TYPE_")


def of_kind(history: list[HistoryEvent], wanted: str) -> list[HistoryEvent]:
    return [event for event in history if kind(event) == wanted]


def expect_gapless(history: list[HistoryEvent], what: str) -> None:
    same([event.event_id for event in history], list(range(1, len(history) + 1)), f"event ids of {what}")


Scenario = Callable[[Stage], Awaitable[str | None]]
