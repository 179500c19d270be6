// New code under running workflows: with a patch both ways go on; without one the task fails, and the workflow waits.
import { temporal } from '@temporalio/proto';
import { events, expectStatus, ofType, same, Scenario, Stage, until } from '../harness';

async function patched(stage: Stage) {
  const [old, fresh] = [stage.id('old'), stage.id('fresh')];
  stage.journal.setRules([
    { call: 'warehouse', key: old, gate: 'old' },
    { call: 'warehouse', key: fresh, gate: 'fresh' },
  ]);
  const v1 = await stage.worker({ bundle: 'parcelV1' });
  const before = await stage.start('parcel', old, [old]);
  await until('the old run is at the warehouse', 15, () => stage.journal.count('warehouse', old));
  await v1.kill();
  const v2 = await stage.worker({ bundle: 'parcelV2' });
  const after = await stage.start('parcel', fresh, [fresh]);
  await until('the new run is at the warehouse', 15, () => stage.journal.count('warehouse', fresh));
  stage.journal.open('old');
  same(await before.result(), 'v1', 'the old run keeps its way');
  same(ofType(await events(before), 'MarkerRecorded').length, 0, 'markers of the old run');
  // The new run keeps its own over a replay.
  await v2.kill();
  await stage.worker({ bundle: 'parcelV2' });
  stage.journal.open('fresh');
  same(await after.result(), 'v2', 'the new run');
  same(ofType(await events(after), 'MarkerRecorded').length, 1, 'markers of the new run');
  same([stage.journal.count('refund', old), stage.journal.count('refund', fresh)], [0, 1], 'insurances');
}

async function wrongThenRight(stage: Stage) {
  const id = stage.id('parcel');
  stage.journal.setRules([{ call: 'warehouse', gate: 'warehouse' }]);
  const v1 = await stage.worker({ bundle: 'parcelV1' });
  const handle = await stage.start('parcel', id, [id]);
  await until('at the warehouse', 15, () => stage.journal.count('warehouse'));
  await v1.kill();
  stage.journal.open('warehouse');
  const wrong = await stage.worker({ bundle: 'parcelWrong' });
  const failed = await until('a failed workflow task', 30, async () => ofType(await events(handle), 'WorkflowTaskFailed')[0], 200);
  const { WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR } = temporal.api.enums.v1.WorkflowTaskFailedCause;
  same(failed.workflowTaskFailedEventAttributes!.cause, WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR, 'cause');
  await expectStatus(handle, 'RUNNING');
  same(stage.journal.count('refund'), 0, 'effects of the wrong code');
  await wrong.kill();
  await stage.worker({ bundle: 'parcelV1' });
  same(await handle.result(), 'v1', 'with the right code again');
  same(stage.journal.count('mail'), 1, 'mails');
}

export const versions: Scenario[] = [
  { name: 'patched', seconds: 60, run: patched },
  { name: 'wrong-code-then-right', seconds: 90, run: wrongThenRight },
];
