// An order: each step once, workers lost at each of them, withdrawal, refusals, retries.
import { ActivityFailure, ApplicationFailure, CancelledFailure, WorkflowFailedError } from '@temporalio/client';
import { temporal } from '@temporalio/proto';
import { check, events, expectEachOnce, expectGapless, expectSent, expectStatus, ofType, refused, same, Scenario, Stage, steps, typeOf, until } from '../harness';

const task = ['WorkflowTaskScheduled', 'WorkflowTaskStarted', 'WorkflowTaskCompleted'];
const activity = ['ActivityTaskScheduled', 'ActivityTaskStarted', 'ActivityTaskCompleted'];

async function runs(stage: Stage) {
  await stage.worker();
  const order = stage.order();
  const handle = await stage.startOrder(order);
  expectSent(await handle.result(), order);
  expectEachOnce(stage.journal, order);
  const all = await events(handle);
  const expected = ['WorkflowExecutionStarted', ...task, ...Array(steps.length + 1).fill([...activity, ...task]).flat(), 'WorkflowExecutionCompleted'];
  same(all.map(typeOf), expected, 'history');
  expectGapless(all, order.id);
  same(await handle.query('orderState'), 'sent', 'state after the end');
}

/** The worker dies right after the effect of `call`, before it could report it. */
async function killedAfter(stage: Stage, lost: string, call: string) {
  const order = stage.order();
  stage.journal.setRules([{ call, key: order.id, kill: 'after' }]);
  const first = await stage.worker();
  const handle = await stage.startOrder(order);
  same(await first.exited, 'SIGKILL', 'end of the first worker');
  same(stage.journal.count(call, order.id, 'done'), 1, `effects of ${lost} so far`);
  const second = await stage.worker();
  expectSent(await handle.result(), order);
  // The lost step alone ran again, with the same key.
  expectEachOnce(stage.journal, order, { [lost]: 2 });
  same(new Set(stage.journal.lines(call).map((line) => line.key)).size, 1, `keys of ${lost}`);
  check(stage.journal.lines().some((line) => line.pid === second.child.pid), 'the second worker did the rest');
  const all = await events(handle);
  for (const event of ofType(all, 'ActivityTaskStarted')) {
    const { scheduledEventId, attempt, lastFailure } = event.activityTaskStartedEventAttributes!;
    const name = all[Number(scheduledEventId) - 1]!.activityTaskScheduledEventAttributes!.activityType!.name;
    same(attempt, name === lost ? 2 : 1, `attempts of ${name} in history`);
    if (name !== lost) continue;
    same(lastFailure?.timeoutFailureInfo?.timeoutType, temporal.api.enums.v1.TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE, 'why it was repeated');
  }
}

async function workflowWorkerLost(stage: Stage) {
  const order = stage.order();
  stage.journal.setRules([{ call: 'charge', gate: 'charge' }]);
  await stage.worker({});
  const lost = await stage.worker({ bundle: 'all', activities: false });
  const handle = await stage.startOrder(order);
  await until('charging', 15, () => stage.journal.count('charge'));
  await lost.kill();
  stage.journal.open('charge');
  await until('charge recorded', 15, async () => ofType(await events(handle), 'ActivityTaskCompleted').length === 3, 200);
  await stage.worker({ bundle: 'all', activities: false });
  expectSent(await handle.result(), order);
  expectEachOnce(stage.journal, order);
}

async function queries(stage: Stage) {
  const order = stage.order();
  stage.journal.setRules([{ call: 'courier', gate: 'courier' }]);
  const first = await stage.worker();
  const handle = await stage.startOrder(order);
  await until('booking', 15, () => stage.journal.count('courier'));
  same(await handle.query('orderState'), 'booking', 'while running');
  await first.kill();
  const second = await stage.worker();
  same(await handle.query('orderState'), 'booking', 'by a replay in another worker');
  stage.journal.open('courier');
  expectSent(await handle.result(), order);
  await second.kill();
  await stage.worker();
  same(await handle.query('orderState'), 'sent', 'after the end, in a third worker');
  same((await refused(handle.query('nothing'), 'an unknown query')).name, 'QueryNotRegisteredError', 'an unknown query');
}

async function withdrawals(stage: Stage) {
  await stage.worker();
  const gates: Array<[call: string, released: number, refunded: number]> = [['reserve', 1, 0], ['charge', 1, 1]];
  stage.journal.setRules([...gates.map(([call]) => ({ call, key: stage.id(call), gate: call })), { call: 'warehouse', key: stage.id('late'), gate: 'late' }]);
  const early = gates.map(async ([call, released, refunded]) => {
    const order = stage.order(call);
    const handle = await stage.startOrder(order);
    await until(`${call} began`, 15, () => stage.journal.count(call, order.id));
    await handle.signal('withdraw', 'changed my mind');
    stage.journal.open(call);
    same(await handle.result(), { state: 'withdrawn', reason: 'changed my mind' }, `withdrawn at ${call}`);
    same([stage.journal.count('release', order.id), stage.journal.count('refund', order.id)], [released, refunded], `undone at ${call}`);
    same(stage.journal.count('courier', order.id), 0, `couriers at ${call}`);
  });
  const late = async () => {
    const order = stage.order('late');
    const handle = await stage.startOrder(order);
    await until('packing', 15, () => stage.journal.count('warehouse', order.id));
    await handle.signal('withdraw', 'too late');
    stage.journal.open('late');
    expectSent(await handle.result(), order);
    same(stage.journal.count('refund', order.id), 0, 'refunds after a late withdrawal');
  };
  await Promise.all([...early, late()]);
}

async function cancelled(stage: Stage) {
  const order = stage.order();
  stage.journal.setRules([{ call: 'courier', gate: 'courier' }]);
  await stage.worker();
  const handle = await stage.startOrder(order);
  await until('booking', 15, () => stage.journal.count('courier'));
  await handle.cancel();
  await until('the request is recorded', 15, async () => ofType(await events(handle), 'WorkflowExecutionCancelRequested')[0], 100);
  stage.journal.open('courier');
  const error = await refused(handle.result(), 'a cancelled order');
  check(error instanceof WorkflowFailedError && error.cause instanceof CancelledFailure, `${error?.name} <- ${error?.cause?.name}`);
  await expectStatus(handle, 'CANCELLED');
  same([stage.journal.count('release'), stage.journal.count('refund')], [1, 1], 'releases and refunds');
  same(typeOf((await events(handle)).at(-1)!), 'WorkflowExecutionCanceled', 'last event');
}

async function declined(stage: Stage) {
  await stage.worker();
  const fails = async (what: string, more: object, activityType: string, type: string) => {
    const order = stage.order(what, more);
    const handle = await stage.startOrder(order);
    const error = await refused(handle.result(), what);
    check(error instanceof WorkflowFailedError && error.cause instanceof ActivityFailure, `${what}: ${error?.name} <- ${error?.cause?.name}`);
    same([error.cause.activityType, error.cause.retryState], [activityType, 'NON_RETRYABLE_FAILURE'], what);
    const root = error.cause.cause;
    check(root instanceof ApplicationFailure, `${what}: ${root?.name}`);
    same([root.type, root.nonRetryable], [type, true], `${what}: root cause`);
    await expectStatus(handle, 'FAILED');
    return order;
  };
  const [empty, soldOut, broke] = await Promise.all([
    fails('empty', { lines: [] }, 'checkOrder', 'InvalidOrder'),
    fails('sold-out', { lines: [{ sku: 'sold-out', quantity: 1, cents: 1 }] }, 'reserveStock', 'SoldOut'),
    fails('broke', { customer: 'broke' }, 'chargeCard', 'CardDeclined'),
  ]);
  same(stage.journal.count('reserve', empty.id), 0, 'reservations of an empty order');
  same([stage.journal.count('reserve', soldOut.id), stage.journal.count('charge', soldOut.id)], [1, 0], 'sold out: calls');
  same([stage.journal.count('charge', broke.id), stage.journal.count('release', broke.id)], [1, 1], 'broke: calls');
}

async function flaky(stage: Stage) {
  const order = stage.order();
  stage.journal.setRules([{ call: 'warehouse', failFirst: 3 }]);
  await stage.worker();
  const handle = await stage.startOrder(order);
  let ended = false;
  const result = handle.result().finally(() => (ended = true));
  const seen = new Set<number>();
  await until('the order ends', 30, async () => {
    for (const pending of (await handle.describe()).raw.pendingActivities ?? []) {
      if (pending.activityType?.name !== 'tellWarehouse') continue;
      seen.add(pending.attempt!);
      if (pending.attempt! > 1) same(pending.lastFailure?.message, 'warehouse is down', 'last failure in describe');
    }
    return ended;
  });
  expectSent(await result, order);
  expectEachOnce(stage.journal, order, { tellWarehouse: 4 });
  check([2, 3, 4].every((attempt) => seen.has(attempt)), `describe showed attempts ${[...seen]}`);
  const times = stage.journal.lines('warehouse', '', 'begin').map((line) => line.t);
  [500, 1000, 2000].forEach((wait, index) => {
    const gap = times[index + 1]! - times[index]!;
    check(gap > wait - 50 && gap < wait + 1500, `retry ${index + 1} after ${gap} ms, expected about ${wait}`);
  });
  const all = await events(handle);
  same(ofType(all, 'ActivityTaskFailed').length, 0, 'failures in history: a retry leaves none');
  same(ofType(all, 'ActivityTaskStarted').map((event) => event.activityTaskStartedEventAttributes!.attempt), [1, 1, 1, 1, 4, 1], 'attempts in history');
}

export const orders: Scenario[] = [
  { name: 'order-runs', seconds: 60, run: runs },
  ...steps.map(([lost, call]) => ({ name: `killed-after-${call}`, seconds: 60, run: (stage: Stage) => killedAfter(stage, lost, call) })),
  { name: 'workflow-worker-lost', seconds: 60, run: workflowWorkerLost },
  { name: 'order-queries', seconds: 60, run: queries },
  { name: 'order-withdrawn', seconds: 60, run: withdrawals },
  { name: 'order-cancelled', seconds: 60, run: cancelled },
  { name: 'order-declined', seconds: 60, run: declined },
  { name: 'order-flaky-warehouse', seconds: 60, run: flaky },
];
