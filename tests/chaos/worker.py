"""A worker of the official Python SDK for the chaos run: orders with activities that fail at times,
a timer, a child and signals, under the SDK's own retries, deadlock detector and cache.

usage: worker.py HOST:PORT QUEUE
"""

import asyncio
import random
import sys
from collections.abc import Sequence
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import RawValue, RetryPolicy
from temporalio.worker import Worker

ATTEMPT = timedelta(seconds=3)
RETRIES = RetryPolicy(initial_interval=timedelta(milliseconds=100), maximum_interval=timedelta(seconds=1))


@activity.defn
async def step(number: int) -> int:
    if random.random() < 0.1:
        raise RuntimeError("as drawn")
    return number


@workflow.defn(name="sdk-child")
class Child:
    @workflow.run
    async def run(self) -> int:
        return await workflow.execute_activity(
            step, 7, start_to_close_timeout=ATTEMPT, retry_policy=RETRIES
        )


@workflow.defn(name="sdk-order")
class Order:
    def __init__(self) -> None:
        self.signals: list[str] = []

    @workflow.run
    async def run(self) -> str:
        steps = [
            workflow.execute_activity(
                step, number, start_to_close_timeout=ATTEMPT, retry_policy=RETRIES
            )
            for number in range(3)
        ]
        child = workflow.execute_child_workflow(
            Child.run, id=f"{workflow.info().workflow_id}/{workflow.info().run_id}"
        )
        done = await asyncio.gather(asyncio.sleep(1), child, *steps)
        # What activities answered comes back as it was given.
        assert list(done[1:]) == [7, 0, 1, 2], done
        await workflow.wait_condition(lambda: len(self.signals) >= 2)
        return "done"

    @workflow.signal(dynamic=True)
    async def on_signal(self, name: str, _args: Sequence[RawValue]) -> None:
        self.signals.append(name)


async def main() -> None:
    address, queue = sys.argv[1:]
    while True:
        try:
            client = await Client.connect(address)
            break
        except Exception as error:  # The node may be away.
            print(f"connect to {address}: {error}", file=sys.stderr)
            await asyncio.sleep(0.5)
    worker = Worker(
        client,
        task_queue=queue,
        workflows=[Order, Child],
        activities=[step],
        max_cached_workflows=50,
    )
    await worker.run()


if __name__ == "__main__":
    asyncio.run(main())
