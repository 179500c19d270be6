// Workflow ids and namespaces: one open run per id, and nothing crosses from one namespace to another.
import { Client, WorkflowExecutionAlreadyStartedError, WorkflowNotFoundError } from '@temporalio/client';
import * as path from 'node:path';
import { check, events, expectEachOnce, expectSent, expectStatus, refused, same, Scenario, Stage, typeOf, until } from '../harness';
import { Journal } from '../journal';

const runOf = (handle: unknown) => (handle as { firstExecutionRunId: string }).firstExecutionRunId;

async function policies(stage: Stage) {
  const order = stage.order();
  stage.journal.setRules([{ call: 'courier', gate: 'courier' }]);
  await stage.worker();
  const first = await stage.startOrder(order);
  const taken = async (more: object, what: string) => {
    const error = await refused(stage.startOrder(order, more), what);
    check(error instanceof WorkflowExecutionAlreadyStartedError, `${what}: ${error?.name} ${error?.message}`);
  };
  await taken({}, 'a second start');
  await taken({ workflowIdReusePolicy: 'ALLOW_DUPLICATE' }, 'a reuse policy while it runs');
  same(runOf(await stage.startOrder(order, { workflowIdConflictPolicy: 'USE_EXISTING' })), runOf(first), 'USE_EXISTING');
  stage.journal.open('courier');
  expectSent(await first.result(), order);
  expectEachOnce(stage.journal, order);
  await taken({ workflowIdReusePolicy: 'REJECT_DUPLICATE' }, 'REJECT_DUPLICATE after the end');
  await taken({ workflowIdReusePolicy: 'ALLOW_DUPLICATE_FAILED_ONLY' }, 'FAILED_ONLY after a success');
  const second = await stage.startOrder(order, { workflowIdReusePolicy: 'ALLOW_DUPLICATE' });
  check(runOf(second) !== runOf(first), 'ALLOW_DUPLICATE starts a run of its own');
  expectSent(await second.result(), order);
  same(stage.journal.count('money', order.id, 'done'), 1, 'payments over both runs: the key is the same');
}

async function replaced(stage: Stage) {
  const order = stage.order();
  stage.journal.setRules([{ call: 'courier', gate: 'courier' }]);
  await stage.worker();
  const first = await stage.startOrder(order);
  await until('booking', 15, () => stage.journal.count('courier'));
  const second = await stage.startOrder(order, { workflowIdConflictPolicy: 'TERMINATE_EXISTING' });
  await expectStatus(stage.client.workflow.getHandle(order.id, runOf(first)), 'TERMINATED');
  stage.journal.open('courier');
  expectSent(await second.result(), order);
  const failed = stage.order('failed', { customer: 'broke' });
  const bad = await stage.startOrder(failed);
  await refused(bad.result(), 'a declined order');
  const again = await stage.startOrder({ ...failed, customer: 'ada' }, { workflowIdReusePolicy: 'ALLOW_DUPLICATE_FAILED_ONLY' });
  expectSent(await again.result(), failed);
}

async function signalWithStart(stage: Stage) {
  const question = stage.id('question');
  const send = (approved: boolean, remark: string) =>
    stage.client.workflow.signalWithStart('researchAgent', {
      taskQueue: stage.taskQueue,
      workflowId: question,
      args: [{ question }],
      signal: 'review',
      signalArgs: [approved ? { approved } : { approved, remark }],
    });
  const first = stage.track(await send(false, 'before it began'));
  const second = await send(true, '');
  same(second.signaledRunId, first.signaledRunId, 'both signals went to one run');
  await stage.worker();
  same(await first.result(), `published: draft on ${question} from 5 notes; before it began`, 'report');
}

async function namespaces(stage: Stage) {
  const names = ['a', 'b'].map((letter) => `${letter}-${stage.id('space')}`);
  const register = (namespace: string) =>
    stage.client.workflowService.registerNamespace({ namespace, workflowExecutionRetentionPeriod: { seconds: 86400 as any } });
  for (const name of names) {
    await register(name);
    same((await refused(register(name), 'registered twice')).code, 6, 'code of a second registration');
  }
  const order = stage.order();
  const clients = names.map((namespace) => new Client({ connection: stage.connection, namespace }));
  const journals = names.map((name) => new Journal(path.join(stage.journal.dir, name)));
  // A namespace may take a moment to be seen everywhere.
  const unknown = (error: any) => (error.name === 'NamespaceNotFoundError' || error.cause?.code === 5 ? null : Promise.reject(error));
  const start = (client: Client) => until('the namespace is usable', 30, () => stage.startOrder(order, {}, client).catch(unknown), 300);
  const [first, second] = [await start(clients[0]!), await start(clients[1]!)];
  check(runOf(first) !== runOf(second), 'one id in two namespaces is two runs');
  const serve = (index: number) =>
    until('a worker of the namespace', 60, () => stage.worker({ bundle: 'all', namespace: names[index] }, journals[index]).catch(() => null), 300);
  await serve(0);
  expectSent(await first.result(), order);
  same((await events(second)).map(typeOf), ['WorkflowExecutionStarted', 'WorkflowTaskScheduled'], 'history in the other namespace');
  same(journals[1]!.lines().length, 0, 'calls in the other namespace');
  await serve(1);
  expectSent(await second.result(), order);
  journals.forEach((journal) => expectEachOnce(journal, order));
  const outside = await refused(stage.client.workflow.getHandle(order.id).describe(), 'from the default namespace');
  check(outside instanceof WorkflowNotFoundError, `from the default namespace: ${outside?.name}`);
}

export const ids: Scenario[] = [
  { name: 'id-policies', seconds: 60, run: policies },
  { name: 'id-replaced', seconds: 60, run: replaced },
  { name: 'signal-with-start', seconds: 60, run: signalWithStart },
  { name: 'namespaces', seconds: 120, run: namespaces },
];
