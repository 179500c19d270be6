// A small workflow in three versions, for changes of code under running workflows. This is the first.
import { proxyActivities } from '@temporalio/workflow';
import type { Shop } from '../../src/order/activities';

const { tellWarehouse, mail } = proxyActivities<Pick<Shop, 'tellWarehouse' | 'mail'>>({ startToCloseTimeout: '5 seconds' });

export async function parcel(id: string): Promise<string> {
  await tellWarehouse(`${id}/warehouse`, id);
  await mail(`${id}/mail`, id, 'sent');
  return 'v1';
}
