// A small workflow in three versions, for changes of code under running workflows. This is the first.
import { proxyActivities } from '@temporalio/workflow';
import type { ParcelActivities } from '../parcel';

const { pack, post } = proxyActivities<ParcelActivities>({ startToCloseTimeout: '5 seconds' });

export async function parcel(id: string): Promise<string> {
  await pack(id);
  await post(id);
  return 'v1';
}
