// The second version asks for insurance first, behind a patch: running workflows keep the old way, new ones take the new.
import { patched, proxyActivities } from '@temporalio/workflow';
import type { Shop } from '../../src/order/activities';

const { tellWarehouse, mail, refund } = proxyActivities<Pick<Shop, 'tellWarehouse' | 'mail' | 'refund'>>({ startToCloseTimeout: '5 seconds' });

export async function parcel(id: string): Promise<string> {
  const insured = patched('insurance');
  if (insured) await refund(`${id}/insurance`, id);
  await tellWarehouse(`${id}/warehouse`, id);
  await mail(`${id}/mail`, id, 'sent');
  return insured ? 'v2' : 'v1';
}
