// The research agent: fan-out, a durable wait for a person, children and what becomes of them.
import { ApplicationFailure, WorkflowFailedError, WorkflowHandle } from '@temporalio/client';
import { check, events, expectStatus, millisOf, ofType, refused, same, Scenario, Stage, typeOf, until } from '../harness';

const asked = (stage: Stage, workflowId: string, drafts = 1) =>
  until(`draft ${drafts} of ${workflowId} is with the reviewer`, 40, () => stage.journal.count('review', workflowId, 'done') >= drafts);

async function approved(stage: Stage) {
  const question = stage.id('question');
  stage.journal.setRules([
    { call: 'read', takes: 1000 },
    { call: 'write', failFirst: 2 },
  ]);
  await stage.worker();
  const handle = await stage.start('researchAgent', question, [{ question }]);
  await asked(stage, question);
  const timer = await until('the timer', 10, async () => ofType(await events(handle), 'TimerStarted')[0], 100);
  same(Number(timer.timerStartedEventAttributes!.startToFireTimeout!.seconds), 2 * 24 * 3600, 'time for the review');
  same(await handle.query('progress'), 'waiting for the review of draft 1', 'progress');
  await handle.signal('review', { approved: true });
  same(await handle.result(), `published: draft on ${question} from 5 notes; `, 'report');
  const calls = ['plan', 'read', 'write', 'review', 'publish'].map((call) => stage.journal.count(call));
  same(calls, [1, 5, 3, 1, 1], 'calls');
  const all = await events(handle);
  const reads = ofType(all, 'ActivityTaskScheduled')
    .map((event) => event.activityTaskScheduledEventAttributes!)
    .filter((attributes) => attributes.activityType!.name === 'read');
  same(new Set(reads.map((attributes) => String(attributes.workflowTaskCompletedEventId))).size, 1, 'workflow tasks that scheduled the reads');
  let now = 0;
  let most = 0;
  for (const line of stage.journal.lines('read')) most = Math.max(most, (now += line.phase === 'begin' ? 1 : -1));
  same(most, 5, 'reads at the same time');
  same(ofType(all, 'TimerCanceled').length, 1, 'cancelled timers');
}

async function revised(stage: Stage) {
  const question = stage.id('question');
  const first = await stage.worker();
  const handle = await stage.start('researchAgent', question, [{ question }]);
  await asked(stage, question);
  // Nobody works on it when the verdict comes; the next worker finds it.
  await first.kill();
  await handle.signal('review', { approved: false, remark: 'cite' });
  await stage.worker();
  await asked(stage, question, 2);
  await handle.signal('review', { approved: false, remark: 'shorter' });
  await asked(stage, question, 3);
  await handle.signal('review', { approved: true });
  same(await handle.result(), `published: draft on ${question} from 5 notes; cite, shorter`, 'report');
}

async function notReviewed(stage: Stage) {
  const question = stage.id('question');
  await stage.worker();
  const handle = await stage.start('researchAgent', question, [{ question, reviewWithin: '3 seconds' }]);
  const error = await refused(handle.result(), 'no review');
  check(error instanceof WorkflowFailedError && error.cause instanceof ApplicationFailure, `${error?.name} <- ${error?.cause?.name}`);
  same(error.cause.type, 'NotReviewed', 'failure');
  const all = await events(handle);
  const waited = millisOf(ofType(all, 'TimerFired')[0]!) - millisOf(ofType(all, 'TimerStarted')[0]!);
  check(waited >= 3000 && waited < 5000, `the timer took ${waited} ms`);
  same(stage.journal.count('publish'), 0, 'publications');
}

/** A reader stops beating: its attempt is given up after the heartbeat timeout, long before the ten minutes it may take. */
async function heartbeatLost(stage: Stage) {
  const question = stage.id('question');
  stage.journal.setRules([{ call: 'read', key: `${question}#2`, kill: 'before' }]);
  const first = await stage.worker();
  const handle = await stage.start('researchAgent', question, [{ question }]);
  await first.exited;
  await stage.worker();
  await asked(stage, question);
  same(stage.journal.count('read', `${question}#2`), 2, 'attempts of the lost read');
  await handle.signal('review', { approved: true });
  await handle.result();
}

async function team(stage: Stage) {
  await stage.worker();
  const gather = async (name: string, policies: string[]) => {
    const id = stage.id(name);
    const members = policies.map((whenStopped, index) => ({ question: stage.id(`${name}${index}`), whenStopped }));
    const parent = await stage.start('researchTeam', id, [members]);
    const children = members.map((_, index) => stage.track(stage.client.workflow.getHandle(`${id}/${index}`)));
    await Promise.all(children.map((child) => asked(stage, child.workflowId)));
    return { parent, children };
  };
  const reaches = (child: WorkflowHandle, status: string) =>
    until(`${child.workflowId} is ${status}`, 15, async () => (await child.describe()).status.name === status, 100);

  const works = async () => {
    const { parent, children } = await gather('works', ['TERMINATE', 'TERMINATE', 'TERMINATE']);
    await Promise.all(children.map((child) => child.signal('review', { approved: true })));
    same(((await parent.result()) as string[]).length, 3, 'reports');
    const all = await events(parent);
    const counts = ['StartChildWorkflowExecutionInitiated', 'ChildWorkflowExecutionStarted', 'ChildWorkflowExecutionCompleted'].map((type) => ofType(all, type).length);
    same(counts, [3, 3, 3], 'children in the history');
    same((await children[0]!.describe()).parentExecution?.workflowId, parent.workflowId, 'the parent in describe');
  };
  const stops = async () => {
    const { parent, children } = await gather('stops', ['ABANDON', 'REQUEST_CANCEL', 'TERMINATE']);
    await parent.signal('stopTeam');
    same(await parent.result(), [], 'reports of a stopped team');
    await reaches(children[1]!, 'CANCELLED');
    await reaches(children[2]!, 'TERMINATED');
    same(typeOf((await events(children[2]!)).at(-1)!), 'WorkflowExecutionTerminated', 'last event of the terminated child');
    await expectStatus(children[0]!, 'RUNNING');
    await children[0]!.signal('review', { approved: true });
    await children[0]!.result();
  };
  const fails = async () => {
    const { parent, children } = await gather('fails', ['TERMINATE', 'TERMINATE']);
    await children[0]!.terminate('by hand');
    const error = await refused(parent.result(), 'a team that lost a member');
    same(error.cause?.name, 'ChildWorkflowFailure', 'the team fails with its member');
    await reaches(children[1]!, 'TERMINATED');
  };
  await Promise.all([works(), stops(), fails()]);
}

export const agents: Scenario[] = [
  { name: 'agent-approved', seconds: 60, run: approved },
  { name: 'agent-revised', seconds: 60, run: revised },
  { name: 'agent-not-reviewed', seconds: 40, run: notReviewed },
  { name: 'agent-heartbeat-lost', seconds: 60, run: heartbeatLost },
  { name: 'agent-team', seconds: 90, run: team },
];
