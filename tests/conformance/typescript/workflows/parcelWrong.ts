// The same change without a patch: it breaks every workflow that is in progress.
import { proxyActivities } from '@temporalio/workflow';
import type { ParcelActivities } from '../parcel';

const { pack, post, insure } = proxyActivities<ParcelActivities>({ startToCloseTimeout: '5 seconds' });

export async function parcel(id: string): Promise<string> {
  await insure(id);
  await pack(id);
  await post(id);
  return 'wrong';
}
