// Runs the scenarios, prints one line for each, then the sum.
import * as fs from 'node:fs';
import { Connection } from '@temporalio/client';
import { Failure, pause, Scenario, Stage } from './harness';
import { agents } from './scenarios/agents';
import { ids } from './scenarios/ids';
import { load } from './scenarios/load';
import { orders } from './scenarios/orders';
import { versions } from './scenarios/versions';

const run = `${Date.now().toString(36)}${process.pid}`;
let passed = 0;
let failed = 0;

async function play(scenario: Scenario, connection: Connection) {
  const stage = new Stage(scenario.name, run, connection);
  const began = Date.now();
  let line: string;
  try {
    const running = scenario.run(stage);
    running.catch(() => {});
    const late = pause(scenario.seconds * 1000).then(() => Promise.reject(new Failure(`not done within ${scenario.seconds} s`)));
    late.catch(() => {});
    const note = await Promise.race([running, late]);
    passed++;
    line = `ok ${scenario.name} (${((Date.now() - began) / 1000).toFixed(1)})${note ? ` ${note}` : ''}`;
  } catch (error) {
    failed++;
    const { name, message, stack, cause } = error as Error;
    const why = error instanceof Failure ? message : `${name}: ${message}${cause instanceof Error ? ` <- ${cause.message}` : ''}`;
    line = `FAIL ${scenario.name} (${((Date.now() - began) / 1000).toFixed(1)}) ${why.replace(/\s+/g, ' ').slice(0, 500)}`;
    fs.appendFileSync(stage.log, `\n${line}\n${stack}\n`);
  }
  console.log(line);
  await Promise.race([stage.clear(), pause(30_000)]);
}

async function main() {
  const prefixes = process.argv.slice(2);
  const all = [...orders, ...agents, ...ids, ...versions, ...load];
  const chosen = all.filter(({ name }) => prefixes.length === 0 || prefixes.some((prefix) => name.startsWith(prefix)));
  const connection = await Connection.connect({ address: process.env.TEMPORAL_ADDRESS, connectTimeout: 20_000 });
  const beside = chosen.filter((scenario) => !scenario.alone);
  const lane = async () => {
    for (let next = beside.shift(); next; next = beside.shift()) await play(next, connection);
  };
  await Promise.all(Array.from({ length: Number(process.env.SUITE_JOBS ?? 4) }, lane));
  for (const scenario of chosen.filter((scenario) => scenario.alone)) await play(scenario, connection);
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed === 0 && passed > 0 ? 0 : 1);
}

// A result that a scenario no longer waits for may still fail, as its server was killed.
process.on('unhandledRejection', (error) => console.error(error));
main().catch((error) => {
  console.error(error);
  console.log(`${passed} passed, ${failed + 1} failed`);
  process.exit(1);
});
