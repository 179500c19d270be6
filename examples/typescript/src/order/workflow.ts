// An order from reservation to mail. This code runs in a sandbox and is replayed from history: it may wait for days, and it
// goes on where it was when its worker, or the server, comes back.
import { CancellationScope, defineQuery, defineSignal, isCancellation, log, proxyActivities, setHandler } from '@temporalio/workflow';
import type { OrderActivities } from './activities';
import type { Order, Outcome } from './types';

const steps = proxyActivities<OrderActivities>({
  // The longest a step may take; and so the longest that a step which was lost with its worker is waited for.
  startToCloseTimeout: '5 seconds',
  retry: { initialInterval: '500 milliseconds', backoffCoefficient: 2, maximumInterval: '1 minute', maximumAttempts: 8 },
});

export const withdraw = defineSignal<[reason: string]>('withdraw');
export const orderState = defineQuery<string>('orderState');

export async function fulfilOrder(order: Order): Promise<Outcome> {
  let state = 'checking';
  let withdrawn = undefined as string | undefined;
  setHandler(orderState, () => state);
  setHandler(withdraw, (reason) => void (withdrawn ??= reason));

  // What to undo, the latest first, if the order does not go out.
  const undo: Array<() => Promise<void>> = [];
  const undoAll = () =>
    CancellationScope.nonCancellable(async () => {
      state = 'undoing';
      for (const step of undo.reverse()) await step();
    });

  try {
    const cents = await steps.checkOrder(order);

    state = 'reserving';
    await steps.reserveStock(order);
    undo.push(() => steps.releaseStock(order));

    if (withdrawn === undefined) {
      state = 'charging';
      const charge = await steps.chargeCard(order, cents);
      undo.push(() => steps.refundCharge(order, charge));

      if (withdrawn === undefined) {
        state = 'booking';
        const parcel = await steps.bookCourier(order);
        // The courier is on the way: from here on a withdrawal comes too late.
        state = 'packing';
        await steps.tellWarehouse(order, parcel);
        state = 'mailing';
        // Date is the time of the workflow task, so it is the same in a replay.
        const promisedFor = new Date(Date.now() + 2 * 24 * 3600 * 1000).toISOString().slice(0, 10);
        await steps.mailCustomer(order, `Your order is on its way: ${promisedFor}`);
        state = 'sent';
        return { state: 'sent', charge, parcel, promisedFor };
      }
    }
    await undoAll();
    state = 'withdrawn';
    return { state: 'withdrawn', reason: withdrawn };
  } catch (error) {
    log.warn('the order failed', { order: order.id, cancelled: isCancellation(error) });
    await undoAll();
    state = isCancellation(error) ? 'cancelled' : 'failed';
    throw error;
  }
}
