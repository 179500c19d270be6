"""Activities of the suite. Effects go to a file, so that they outlive a killed worker."""

from __future__ import annotations

import asyncio
import os

from temporalio import activity
from temporalio.exceptions import ApplicationError


@activity.defn
async def greet(name: str) -> str:
    return f"Hello, {name}!"


@activity.defn
async def fail_until(attempt: int) -> int:
    """Fails until the given attempt."""
    now = activity.info().attempt
    if now < attempt:
        raise ApplicationError(f"attempt {now} is too early", type="TooEarly")
    return now


@activity.defn
async def fail_as(kind: str) -> None:
    raise ApplicationError("as asked", type=kind)


@activity.defn
async def count_to(goal: int) -> int:
    """Counts in heartbeats; its first attempt fails halfway, and the second goes on from there."""
    details = activity.info().heartbeat_details
    begin = details[0] if details else 0
    for number in range(begin + 1, goal + 1):
        activity.heartbeat(number)
        if activity.info().attempt == 1 and number == goal // 2:
            raise ApplicationError("halfway")
    return begin


@activity.defn
async def beat_until_cancelled() -> str:
    try:
        while True:
            activity.heartbeat("alive")
            await asyncio.sleep(0.1)
    except asyncio.CancelledError:
        return "noticed"


@activity.defn
async def beat_once_then_hang() -> str:
    """The first attempt goes silent; the next one answers what it saw of it."""
    if activity.info().attempt > 1:
        return str(activity.info().heartbeat_details[0])
    activity.heartbeat("last words")
    await asyncio.sleep(60)
    return "woke up"


@activity.defn
async def complete_elsewhere() -> str:
    activity.raise_complete_async()


@activity.defn
async def square(number: int) -> int:
    return number * number


@activity.defn
async def effect(step: str) -> str:
    """Leaves one line; atomic, as it is one small write to a file opened for appending."""
    info = activity.info()
    with open(os.environ["SUITE_EFFECTS"], "a", encoding="utf-8") as file:
        file.write(f"{info.workflow_id} {step} {info.attempt}\n")
    return step


ALL = [
    greet,
    fail_until,
    fail_as,
    count_to,
    beat_until_cancelled,
    beat_once_then_hang,
    complete_elsewhere,
    square,
    effect,
]
