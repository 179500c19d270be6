// The activities of the parcel workflows, which come in several versions.
import type { Shop } from '../src/order/activities';

export const parcelActivities = (shop: Shop) => ({
  pack: (id: string) => shop.tellWarehouse(`${id}/warehouse`, id),
  post: (id: string) => shop.mail(`${id}/mail`, id, 'sent'),
  insure: (id: string) => shop.refund(`${id}/insurance`, id),
});

export type ParcelActivities = ReturnType<typeof parcelActivities>;
