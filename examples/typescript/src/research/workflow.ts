// A research agent: plan, read in parallel, write, and wait for a person, for days if need be, at no cost but a timer.
import { ApplicationFailure, condition, defineQuery, defineSignal, ParentClosePolicy, proxyActivities, setHandler, startChild, workflowInfo } from '@temporalio/workflow';
import type { Duration } from '@temporalio/common';
import type { ResearchActivities } from './activities';

const model = proxyActivities<ResearchActivities>({
  startToCloseTimeout: '1 minute',
  retry: { initialInterval: '1 second', backoffCoefficient: 2, maximumAttempts: 6 },
});
const web = proxyActivities<ResearchActivities>({
  startToCloseTimeout: '10 minutes',
  heartbeatTimeout: '5 seconds',
  retry: { initialInterval: '200 milliseconds', maximumAttempts: 5 },
});

export type Verdict = { approved: true } | { approved: false; remark: string };
export const review = defineSignal<[Verdict]>('review');
export const progress = defineQuery<string>('progress');

export interface Research {
  question: string;
  /** How long the reviewer may take for each draft. */
  reviewWithin?: Duration;
  draftsMax?: number;
}

export async function researchAgent({ question, reviewWithin = '2 days', draftsMax = 3 }: Research): Promise<string> {
  let at = 'planning';
  const verdicts: Verdict[] = [];
  setHandler(progress, () => at);
  setHandler(review, (verdict) => void verdicts.push(verdict));

  const queries = await model.plan(question);
  at = `reading ${queries.length} sources`;
  const notes = await Promise.all(queries.map((query) => web.read(query)));

  const remarks: string[] = [];
  for (let round = 1; round <= draftsMax; round++) {
    at = `writing draft ${round}`;
    const draft = await model.write(question, notes, remarks);
    await model.askReviewer(draft);
    at = `waiting for the review of draft ${round}`;
    // A durable wait: a signal or the timer ends it, however often workers come and go meanwhile.
    if (!(await condition(() => verdicts.length > 0, reviewWithin))) {
      throw ApplicationFailure.nonRetryable(`draft ${round} was not reviewed in time`, 'NotReviewed');
    }
    const verdict = verdicts.shift()!;
    if (verdict.approved) {
      at = 'publishing';
      return await model.publish(draft);
    }
    remarks.push(verdict.remark);
  }
  throw ApplicationFailure.nonRetryable(`${draftsMax} drafts were turned down`, 'NotApproved');
}

export const stopTeam = defineSignal('stopTeam');

/** One agent per question. What becomes of them when the team stops early is each one's close policy. */
export async function researchTeam(members: Array<Research & { whenStopped?: ParentClosePolicy }>): Promise<string[]> {
  let stopped = false;
  setHandler(stopTeam, () => void (stopped = true));
  const agents = await Promise.all(
    members.map(({ whenStopped, ...research }, index) =>
      startChild(researchAgent, {
        workflowId: `${workflowInfo().workflowId}/${index}`,
        args: [research],
        parentClosePolicy: whenStopped ?? ParentClosePolicy.TERMINATE,
      }),
    ),
  );
  const reports: string[] = [];
  let failure: unknown;
  // A child that fails is the team's failure; it is looked at below, in the workflow's own order.
  const all = Promise.all(agents.map((agent) => agent.result())).then(
    (results) => void reports.push(...results),
    (error) => void (failure = error),
  );
  await Promise.race([all, condition(() => stopped)]);
  if (failure !== undefined) throw failure;
  return reports;
}
