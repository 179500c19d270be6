// The example's services, faked over the journal. Money moves once per key, as a real processor would have it.
import type { Shop } from '../src/order/activities';
import type { Desk } from '../src/research/activities';
import { Journal } from './journal';

const pause = (ms: number) => new Promise((done) => setTimeout(done, ms));

async function die(): Promise<never> {
  process.kill(process.pid, 'SIGKILL');
  return await new Promise<never>(() => {});
}

export function services(journal: Journal): { shop: Shop; desk: Desk } {
  async function call<T>(name: string, key: string, effect: () => T, beat?: () => void): Promise<T> {
    journal.write(name, key, 'begin');
    const rules = journal.rules(name, key);
    const attempt = rules.length > 0 ? journal.lines(name, '', 'begin').filter((line) => line.key === key).length : 1;
    for (const rule of rules) {
      if (rule.takes) await pause(rule.takes);
      while (rule.gate && !journal.isOpen(rule.gate)) {
        await pause(25);
        beat?.();
      }
      if (rule.failFirst && attempt <= rule.failFirst) {
        journal.write(name, key, 'failed');
        throw new Error(`${name} is down`);
      }
    }
    const kill = attempt === 1 ? rules.find((rule) => rule.kill)?.kill : undefined;
    if (kill === 'before') await die();
    const result = effect();
    journal.write(name, key, 'done');
    if (kill === 'after') await die();
    return result;
  }

  const shop: Shop = {
    reserve: (key, order) => call('reserve', key, () => !order.lines.some((line) => line.sku === 'sold-out')),
    release: (key) => call('release', key, () => undefined),
    charge: (key, customer, cents) =>
      call('charge', key, () => {
        if (customer === 'broke') return { ok: false as const, why: 'no cover' };
        if (journal.first(key)) journal.write('money', key, 'done', { cents });
        return { ok: true as const, id: `charge:${key}` };
      }),
    refund: (key) => call('refund', key, () => undefined),
    bookCourier: (key) => call('courier', key, () => `parcel:${key}`),
    tellWarehouse: (key) => call('warehouse', key, () => undefined),
    mail: (key) => call('mail', key, () => undefined),
  };

  const desk: Desk = {
    plan: (question) => call('plan', question, () => Array.from({ length: 5 }, (_, i) => `${question}#${i}`)),
    read: (query, onPage) =>
      call('read', query, () => `notes on ${query}`, () => onPage(1)),
    write: (question, notes, remarks) =>
      call('write', question, () => `draft on ${question} from ${notes.length} notes; ${remarks.join(', ')}`),
    askReviewer: (workflowId) => call('review', workflowId, () => undefined),
    publish: (key, draft) => call('publish', key, () => `published: ${draft}`),
  };
  return { shop, desk };
}
