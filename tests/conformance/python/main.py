"""Runs the scenarios, prints one line for each, then the sum: main.py [name prefix ...]."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import traceback
from typing import NoReturn

from harness import Failure, Scenario, Stage
from scenarios import SCENARIOS
from temporalio.client import Client

JOBS = 3


async def play(name: str, seconds: float, run: Scenario, address: str, client: Client) -> bool:
    stage = Stage(name, address, client)
    began = time.monotonic()
    task = asyncio.ensure_future(run(stage))
    # Not `wait_for`: a worker that cannot stop must not hold up the deadline.
    done, _ = await asyncio.wait({task}, timeout=seconds)
    if not done:
        line, ok = f"not done within {seconds} s", False
        task.cancel()
    elif (error := task.exception()) is not None:
        why = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
        if error.__cause__ is not None:
            why += f" <- {error.__cause__}"
        line, ok = " ".join(why.split())[:500], False
        traceback.print_exception(error)
    else:
        line, ok = task.result() or "", True
    took = time.monotonic() - began
    print(f"{'ok' if ok else 'FAIL'} {name} ({took:.1f}) {line}".rstrip(), flush=True)
    await stage.clear()
    return ok


async def main() -> NoReturn:
    prefixes = sys.argv[1:]
    chosen = [
        (run.__name__.replace("_", "-"), seconds, run)
        for run, seconds in SCENARIOS
        if not prefixes or run.__name__.replace("_", "-").startswith(tuple(prefixes))
    ]
    address = os.environ["TEMPORAL_ADDRESS"]
    client = await Client.connect(address)
    lanes = asyncio.Semaphore(JOBS)

    async def lane(name: str, seconds: float, run: Scenario) -> bool:
        async with lanes:
            return await play(name, seconds, run, address, client)

    results = await asyncio.gather(*(lane(*scenario) for scenario in chosen))
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed", flush=True)
    # At once: what a failed scenario left running would hold up an orderly end.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if results and all(results) else 1)


asyncio.run(main())
