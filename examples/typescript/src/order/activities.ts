// The steps of an order that touch the world. They may fail, and then they are attempted again; a step whose worker dies
// after its effect is attempted again too. So every call carries a key by which the service can recognise it.
import { ApplicationFailure } from '@temporalio/activity';
import type { Order } from './types';

/** The services an order needs. `services.ts` has stand-ins; yours would call out. */
export interface Shop {
  reserve(key: string, order: Order): Promise<boolean>;
  release(key: string, order: Order): Promise<void>;
  charge(key: string, customer: string, cents: number): Promise<{ ok: true; id: string } | { ok: false; why: string }>;
  refund(key: string, charge: string): Promise<void>;
  bookCourier(key: string, order: Order): Promise<string>;
  tellWarehouse(key: string, parcel: string): Promise<void>;
  mail(key: string, customer: string, text: string): Promise<void>;
}

/** A failure that no retry would mend. */
const final = (type: string, message: string) => ApplicationFailure.nonRetryable(message, type);

/** Activities as methods over injected services: the worker passes real ones, a test passes its own. */
export function orderActivities(shop: Shop) {
  return {
    async checkOrder(order: Order): Promise<number> {
      if (order.lines.length === 0) throw final('InvalidOrder', `order ${order.id} has no lines`);
      return order.lines.reduce((sum, line) => sum + line.quantity * line.cents, 0);
    },

    async reserveStock(order: Order): Promise<void> {
      if (!(await shop.reserve(`${order.id}/reserve`, order))) throw final('SoldOut', `order ${order.id}: sold out`);
    },

    async releaseStock(order: Order): Promise<void> {
      await shop.release(`${order.id}/release`, order);
    },

    async chargeCard(order: Order, cents: number): Promise<string> {
      const answer = await shop.charge(`${order.id}/charge`, order.customer, cents);
      if (!answer.ok) throw final('CardDeclined', answer.why);
      return answer.id;
    },

    async refundCharge(order: Order, charge: string): Promise<void> {
      await shop.refund(`${order.id}/refund`, charge);
    },

    async bookCourier(order: Order): Promise<string> {
      return await shop.bookCourier(`${order.id}/courier`, order);
    },

    async tellWarehouse(order: Order, parcel: string): Promise<void> {
      await shop.tellWarehouse(`${order.id}/warehouse`, parcel);
    },

    async mailCustomer(order: Order, text: string): Promise<void> {
      await shop.mail(`${order.id}/mail`, order.customer, text);
    },
  };
}

export type OrderActivities = ReturnType<typeof orderActivities>;
