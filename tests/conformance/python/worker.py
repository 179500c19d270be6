"""A worker process of its own, for scenarios that kill it: worker.py ADDRESS TASK_QUEUE."""

import asyncio
import sys

import harness
from temporalio.client import Client


async def main() -> None:
    address, task_queue = sys.argv[1:]
    client = await Client.connect(address)
    async with harness.worker(client, task_queue):
        print("READY", flush=True)
        await asyncio.Event().wait()


asyncio.run(main())
