// The second version insures the parcel first, behind a patch: running workflows keep the old way, new ones take the new.
import { patched, proxyActivities } from '@temporalio/workflow';
import type { ParcelActivities } from '../parcel';

const { pack, post, insure } = proxyActivities<ParcelActivities>({ startToCloseTimeout: '5 seconds' });

export async function parcel(id: string): Promise<string> {
  const insured = patched('insurance');
  if (insured) await insure(id);
  await pack(id);
  await post(id);
  return insured ? 'v2' : 'v1';
}
