// What scenarios share: worker processes, workflows with names of their own, waiting, reading history.
import { ChildProcess, execFile, spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { Client, Connection, WorkflowHandle, WorkflowStartOptions } from '@temporalio/client';
import { temporal } from '@temporalio/proto';
import type { Order } from '../src/order/types';
import { Journal } from './journal';

export interface WorkerSpec {
  bundle?: 'all' | 'parcelV1' | 'parcelV2' | 'parcelWrong';
  /** False: workflows only. */
  activities?: boolean;
  namespace?: string;
  taskQueue?: string;
  activitiesMax?: number;
}

export interface Scenario {
  name: string;
  seconds: number;
  /** Not beside others. */
  alone?: boolean;
  run: (stage: Stage) => Promise<void | string>;
}

export class Failure extends Error {}

export function check(ok: unknown, what: string): asserts ok {
  if (!ok) throw new Failure(what);
}

export function same(actual: unknown, expected: unknown, what: string) {
  const [is, should] = [JSON.stringify(actual), JSON.stringify(expected)];
  if (is !== should) throw new Failure(`${what}: ${is}, expected ${should}`);
}

export const pause = (ms: number) => new Promise<void>((done) => setTimeout(done, ms));

/** Waits for a state, not for time. */
export async function until<T>(what: string, seconds: number, look: () => T | Promise<T>, every = 50): Promise<NonNullable<T>> {
  for (const end = Date.now() + seconds * 1000; ; await pause(every)) {
    const seen = await look();
    if (seen) return seen as NonNullable<T>;
    if (Date.now() > end) throw new Failure(`not within ${seconds} s: ${what}`);
  }
}

export async function refused(promise: Promise<unknown>, what: string): Promise<any> {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Failure(`${what}: was not refused`);
}

export const shell = (command: string) =>
  new Promise<void>((done, fail) => execFile('bash', ['-c', command], { timeout: 30_000 }, (error) => (error ? fail(error) : done())));

export class WorkerProcess {
  readonly exited: Promise<string>;
  alive = true;
  private output = '';

  constructor(
    readonly child: ChildProcess,
    log: string,
  ) {
    const keep = (bytes: Buffer) => {
      this.output += bytes;
      fs.appendFileSync(log, bytes);
    };
    child.stdout!.on('data', keep);
    child.stderr!.on('data', keep);
    this.exited = new Promise((done) =>
      child.on('close', (code, signal) => {
        this.alive = false;
        done(signal ?? String(code));
      }),
    );
  }

  async ready() {
    await until('worker is ready', 60, () => {
      check(this.alive, `a worker ended at its start: ${this.output.slice(-300)}`);
      return this.output.includes('READY');
    });
    return this;
  }

  async kill() {
    if (this.alive) this.child.kill('SIGKILL');
    await this.exited;
  }
}

/** One scenario's own task queue, journal, ids, workers and workflows. */
export class Stage {
  readonly journal: Journal;
  readonly taskQueue: string;
  readonly log: string;
  readonly client: Client;
  private readonly dir: string;
  private readonly workers: WorkerProcess[] = [];
  private readonly started: WorkflowHandle[] = [];

  constructor(
    readonly name: string,
    readonly run: string,
    readonly connection: Connection,
  ) {
    this.client = new Client({ connection });
    this.taskQueue = `${name}-${run}`;
    this.dir = path.join(process.cwd(), 'runs', run, name);
    this.journal = new Journal(this.dir);
    this.log = path.join(this.dir, 'log.txt');
  }

  id(what: string) {
    return `${what}-${this.name}-${this.run}`;
  }

  order(what = 'order', more: Partial<Order> = {}): Order {
    return { id: this.id(what), customer: 'ada', address: '1 Rock Lane', lines: [{ sku: 'rope', quantity: 2, cents: 4450 }], ...more };
  }

  /** A worker process that has said it is ready. */
  async worker(spec: WorkerSpec = { bundle: 'all' }, journal = this.journal): Promise<WorkerProcess> {
    return await this.spawn(spec, journal).ready();
  }

  spawn(spec: WorkerSpec, journal = this.journal): WorkerProcess {
    const child = spawn(process.execPath, [path.join(__dirname, 'worker.js')], {
      env: { ...process.env, SUITE_JOURNAL: journal.dir, SUITE_WORKER: JSON.stringify({ taskQueue: this.taskQueue, ...spec }) },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const worker = new WorkerProcess(child, this.log);
    this.workers.push(worker);
    return worker;
  }

  track<H extends WorkflowHandle>(handle: H): H {
    this.started.push(handle);
    return handle;
  }

  async start(type: string, workflowId: string, args: unknown[], more: Partial<WorkflowStartOptions> = {}, client = this.client) {
    const options = { taskQueue: this.taskQueue, workflowId, args, ...more } as WorkflowStartOptions;
    return this.track(await client.workflow.start(type, options));
  }

  startOrder(order: Order, more: Partial<WorkflowStartOptions> = {}, client = this.client) {
    return this.start('fulfilOrder', order.id, [order], more, client);
  }

  async clear() {
    await Promise.all(this.workers.map((worker) => worker.kill()));
    for (const handle of this.started) await Promise.race([handle.terminate('end of scenario').catch(() => {}), pause(2000)]);
  }
}

export type Event = temporal.api.history.v1.IHistoryEvent;

export const events = async (handle: WorkflowHandle): Promise<Event[]> => (await handle.fetchHistory()).events ?? [];

/** 'ActivityTaskScheduled'. */
export const typeOf = (event: Event) =>
  temporal.api.enums.v1.EventType[event.eventType!]!.replace(/^EVENT_TYPE_/, '')
    .toLowerCase()
    .replace(/(^|_)(\w)/g, (_, __, letter: string) => letter.toUpperCase());

export const ofType = (all: Event[], type: string) => all.filter((event) => typeOf(event) === type);

export const millisOf = (event: Event) => Number(event.eventTime!.seconds) * 1000 + event.eventTime!.nanos! / 1e6;

export async function expectStatus(handle: WorkflowHandle, status: string) {
  const description = await handle.describe();
  same(description.status.name, status, `status of ${handle.workflowId}`);
  return description;
}

/** The service calls of an order that goes through, in order, by the activity that makes each. */
export const steps: Array<[activity: string, call: string]> = [
  ['reserveStock', 'reserve'],
  ['chargeCard', 'charge'],
  ['bookCourier', 'courier'],
  ['tellWarehouse', 'warehouse'],
  ['mailCustomer', 'mail'],
];

/** Each step ran once, but those in `but`, which ran as often as it says; money moved once. */
export function expectEachOnce(journal: Journal, order: Order, but: Record<string, number> = {}) {
  for (const [activity, call] of steps) same(journal.count(call, `${order.id}/`), but[activity] ?? 1, `runs of ${activity} for ${order.id}`);
  same(journal.count('money', `${order.id}/`, 'done'), 1, `payments of ${order.id}`);
}

export function expectSent(outcome: any, order: Order) {
  const expected = ['sent', `charge:${order.id}/charge`, `parcel:${order.id}/courier`];
  same([outcome.state, outcome.charge, outcome.parcel], expected, `outcome of ${order.id}`);
}

export function expectGapless(all: Event[], what: string) {
  same(all.map((event) => Number(event.eventId)), all.map((_, index) => index + 1), `event ids of ${what}`);
}
