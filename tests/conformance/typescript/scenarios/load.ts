// Many orders at once, and the server killed under them.
import { WorkflowExecutionAlreadyStartedError } from '@temporalio/client';
import { check, events, expectEachOnce, expectGapless, expectSent, ofType, pause, same, Scenario, shell, Stage, steps, until } from '../harness';
import type { Order } from '../../src/order/types';

async function manyOrders(stage: Stage) {
  const count = Number(process.env.SUITE_ORDERS ?? 200);
  const activitiesMax = 20;
  stage.journal.setRules([{ call: 'warehouse', takes: 30 }]);
  const workers = await Promise.all([1, 2].map(() => stage.worker({ bundle: 'all', activitiesMax })));
  const orders = Array.from({ length: count }, (_, index) => stage.order(`order${index}`));
  const began = Date.now();
  const outcomes = await Promise.all(orders.map(async (order) => (await stage.startOrder(order)).result()));
  const seconds = (Date.now() - began) / 1000;
  outcomes.forEach((outcome, index) => expectSent(outcome, orders[index]!));
  const times = new Map<string, number>();
  const running = new Map<number, number>();
  let most = 0;
  for (const line of stage.journal.lines()) {
    const what = `${line.call} ${line.key}`;
    if (line.phase === 'begin' || line.call === 'money') times.set(what, (times.get(what) ?? 0) + 1);
    if (line.call === 'money') continue;
    const now = (running.get(line.pid) ?? 0) + (line.phase === 'begin' ? 1 : -1);
    running.set(line.pid, now);
    most = Math.max(most, now);
  }
  same(times.size, count * (steps.length + 1), 'different effects');
  same([...times].filter(([, n]) => n !== 1), [], 'effects that did not happen once');
  same(running.size, workers.length, 'workers that took part');
  check(most <= activitiesMax, `${most} activities at once in one worker`);
  return `${count} orders in ${seconds.toFixed(1)} s`;
}

const SERVER_KILLS = 4;
const ORDERS_UNDER_KILLS = 16;
/** Unavailable, and what a connection that breaks in the middle of a call may look like. */
const MAY_BE_TRIED_AGAIN = [1, 4, 8, 13, 14];

async function persist<T>(what: string, call: () => Promise<T>): Promise<T> {
  const again = (error: any) => (MAY_BE_TRIED_AGAIN.includes(error.code ?? error.cause?.code) ? null : Promise.reject(error));
  return (await until(what, 100, () => call().then((value) => [value] as const, again), 100))[0];
}

async function serverKilled(stage: Stage) {
  stage.journal.setRules(steps.map(([, call]) => ({ call, takes: 700 })));
  let over = false;
  // A worker that gives up is started again, as its supervisor would.
  const supervise = async () => {
    while (!over) {
      await stage.spawn({ bundle: 'all' }).exited;
      await pause(200);
    }
  };
  void supervise();
  const acknowledged = new Map<string, string>();
  const one = async (order: Order, index: number) => {
    // A start every so often, for as long as the kills go on.
    await pause(index * 800);
    const handle = await persist(`start of ${order.id}`, async () => {
      try {
        const started = await stage.startOrder(order);
        acknowledged.set(order.id, started.firstExecutionRunId);
        return started;
      } catch (error) {
        // An earlier try was taken, and its answer lost.
        if (error instanceof WorkflowExecutionAlreadyStartedError) return stage.track(stage.client.workflow.getHandle(order.id));
        throw error;
      }
    });
    return await persist(`outcome of ${order.id}`, () => handle.result());
  };
  const orders = Array.from({ length: ORDERS_UNDER_KILLS }, (_, index) => stage.order(`order${index}`));
  const running = Promise.all(orders.map(one));
  running.catch(() => {});
  for (let kill = 0; kill < SERVER_KILLS; kill++) {
    // In turn: right after an acknowledged start, and right after a payment that the server has not heard of.
    const moment = () => (kill % 2 === 0 ? acknowledged.size : stage.journal.count('money', '', 'done'));
    const seen = moment();
    await until('a moment to kill', 3, () => moment() > seen, 3).catch(() => {});
    check(stage.journal.count('mail', '', 'done') < orders.length, `orders are in progress at kill ${kill + 1}`);
    await shell(process.env.SERVER_KILL!);
    await shell(process.env.SERVER_START!);
    const answers = () => stage.client.workflowService.getSystemInfo({}).then(() => true, () => false);
    await until('the server answers', 30, answers, 50);
    await pause(1000);
  }
  const outcomes = await running;
  over = true;
  outcomes.forEach((outcome, index) => expectSent(outcome, orders[index]!));
  for (const [id, run] of acknowledged) {
    const { runId, status } = await stage.client.workflow.getHandle(id, run).describe();
    same([runId, status.name], [run, 'COMPLETED'], `the acknowledged start of ${id}`);
  }
  let again = 0;
  for (const order of orders) {
    same(stage.journal.count('money', `${order.id}/`, 'done'), 1, `payments of ${order.id}`);
    const all = await events(stage.client.workflow.getHandle(order.id));
    expectGapless(all, order.id);
    same(ofType(all, 'ActivityTaskCompleted').length, steps.length + 1, `completed steps of ${order.id}`);
    for (const [, call] of steps) again += stage.journal.count(call, `${order.id}/`) - 1;
  }
  return `${SERVER_KILLS} kills, ${acknowledged.size} of ${orders.length} starts acknowledged at once, ${again} steps run again`;
}

/** The same orders, waiting, over a restart without load: signals, timers and queries go on. */
async function restarted(stage: Stage) {
  const question = stage.id('question');
  await stage.worker();
  const handle = await stage.start('researchAgent', question, [{ question, reviewWithin: '1 hour' }]);
  const timed = await stage.start('researchAgent', stage.id('timed'), [{ question: stage.id('timed'), reviewWithin: '4 seconds' }]);
  await until('both wait', 40, () => stage.journal.count('review', '', 'done') === 2);
  await shell(process.env.SERVER_KILL!);
  await shell(process.env.SERVER_START!);
  await persist('signal', () => handle.signal('review', { approved: true }));
  same(await persist('report', () => handle.result()), `published: draft on ${question} from 5 notes; `, 'report');
  const late = await persist('the deadline', () => timed.result().then(() => 'reviewed', (error) => error.cause?.type ?? Promise.reject(error)));
  same(late, 'NotReviewed', 'a timer set before the kill fires after it');
  await expectEnded(stage, question);
}

async function expectEnded(stage: Stage, workflowId: string) {
  const all = await events(stage.client.workflow.getHandle(workflowId));
  expectGapless(all, workflowId);
  same(stage.journal.count('publish', workflowId), 1, 'publications');
}

const killable = Boolean(process.env.SERVER_KILL && process.env.SERVER_START);

export const load: Scenario[] = [
  { name: 'many-orders', seconds: 180, alone: true, run: manyOrders },
  ...(killable
    ? [
        { name: 'server-killed-under-load', seconds: 180, alone: true, run: serverKilled },
        { name: 'server-killed-while-waiting', seconds: 90, alone: true, run: restarted },
      ]
    : []),
];
