// Stand-ins for a shop's and a research desk's services. Each takes a second, so that there is time to kill the worker, and
// says what it does.
import type { Desk } from './research/activities';
import type { Shop } from './order/activities';

async function slowly<T>(what: string, answer: T): Promise<T> {
  await new Promise((done) => setTimeout(done, 1000));
  console.log(what);
  return answer;
}

export const shop: Shop = {
  reserve: (key) => slowly(`reserved (${key})`, true),
  release: (key) => slowly(`released (${key})`, undefined),
  charge: (key, customer, cents) => slowly(`charged ${customer} ${cents} cents (${key})`, { ok: true as const, id: `charge-of-${key}` }),
  refund: (key, charge) => slowly(`refunded ${charge} (${key})`, undefined),
  bookCourier: (key) => slowly(`booked a courier (${key})`, `parcel-of-${key}`),
  tellWarehouse: (key, parcel) => slowly(`told the warehouse of ${parcel} (${key})`, undefined),
  mail: (key, customer, text) => slowly(`mailed ${customer}: ${text} (${key})`, undefined),
};

export const desk: Desk = {
  plan: (question) => slowly(`planned: ${question}`, [1, 2, 3].map((n) => `${question}, source ${n}`)),
  read: async (query, onPage) => {
    for (let page = 1; page <= 3; page++) {
      await slowly(`read page ${page} of: ${query}`, undefined);
      onPage(page);
    }
    return `notes on ${query}`;
  },
  write: (question, notes, remarks) =>
    slowly(`wrote on: ${question}`, `On "${question}", from ${notes.length} notes and ${remarks.length} remarks.`),
  askReviewer: (workflowId) => slowly(`asked the reviewer of ${workflowId}`, undefined),
  publish: (key, draft) => slowly(`published ${key}`, draft),
};
