// A worker process of the suite: the example's activities over the faked services; told everything by SUITE_WORKER.
import * as path from 'node:path';
import { DefaultLogger, NativeConnection, Runtime, Worker } from '@temporalio/worker';
import { orderActivities } from '../src/order/activities';
import { researchActivities } from '../src/research/activities';
import { Journal } from './journal';
import { parcelActivities } from './parcel';
import { services } from './services';
import type { WorkerSpec } from './harness';

async function main() {
  const spec = JSON.parse(process.env.SUITE_WORKER!) as WorkerSpec & { taskQueue: string };
  Runtime.install({ logger: new DefaultLogger('WARN') });
  const { shop, desk } = services(new Journal(process.env.SUITE_JOURNAL!));
  const worker = await Worker.create({
    connection: await NativeConnection.connect({ address: process.env.TEMPORAL_ADDRESS! }),
    namespace: spec.namespace ?? 'default',
    taskQueue: spec.taskQueue,
    activities: spec.activities === false ? undefined : { ...orderActivities(shop), ...researchActivities(desk), ...parcelActivities(shop) },
    workflowBundle: spec.bundle && { codePath: path.join(__dirname, 'bundles', `${spec.bundle}.js`) },
    maxConcurrentActivityTaskExecutions: spec.activitiesMax ?? 100,
    // How long a task waits for a dead worker's own queue.
    stickyQueueScheduleToStartTimeout: '2 seconds',
    shutdownGraceTime: 0,
  });
  const ended = worker.run();
  console.log('READY');
  await ended;
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
