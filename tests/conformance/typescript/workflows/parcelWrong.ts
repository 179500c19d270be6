// The same change without a patch: it breaks every workflow that is in progress.
import { proxyActivities } from '@temporalio/workflow';
import type { Shop } from '../../src/order/activities';

const { tellWarehouse, mail, refund } = proxyActivities<Pick<Shop, 'tellWarehouse' | 'mail' | 'refund'>>({ startToCloseTimeout: '5 seconds' });

export async function parcel(id: string): Promise<string> {
  await refund(`${id}/insurance`, id);
  await tellWarehouse(`${id}/warehouse`, id);
  await mail(`${id}/mail`, id, 'sent');
  return 'wrong';
}
