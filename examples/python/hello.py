"""The smallest program: a workflow, an activity, a worker and a client in one file.

    pip install -r requirements.txt
    python hello.py Ada
"""

import asyncio
import os
import sys
import uuid
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker


@activity.defn
async def greet(name: str) -> str:
    """Touches the world, so it may fail; then it is attempted again."""
    return f"Hello, {name}!"


@workflow.defn
class Greeting:
    """Decides what happens next; it is replayed from history, so it touches nothing."""

    @workflow.run
    async def run(self, name: str) -> str:
        await workflow.sleep(1)  # a durable timer: it fires even if this program is gone meanwhile
        return await workflow.execute_activity(greet, name, start_to_close_timeout=timedelta(seconds=10))


async def main(name: str) -> None:
    client = await Client.connect(os.environ.get("TEMPORAL_ADDRESS", "127.0.0.1:7233"))
    async with Worker(client, task_queue="hello", workflows=[Greeting], activities=[greet]):
        workflow_id = f"greeting-{uuid.uuid4()}"
        print(await client.execute_workflow(Greeting.run, name, id=workflow_id, task_queue="hello"))


if __name__ == "__main__":
    asyncio.run(main(*(sys.argv[1:] or ["world"])))
    # The SDK's threads may still be at work when the interpreter takes itself apart, and then abort it
    # (temporalio 1.35.0, in a third of runs, whatever the server). Nothing is left to do: end at once.
    sys.stdout.flush()
    os._exit(0)
