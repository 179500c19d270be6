// Runs the workflows and the activities of both examples: npm run worker. Start as many as you like, kill any.
import { NativeConnection, Worker } from '@temporalio/worker';
import { orderActivities } from './order/activities';
import { researchActivities } from './research/activities';
import { desk, shop } from './services';
import { taskQueue } from './task-queue';

async function main() {
  const connection = await NativeConnection.connect({ address: process.env.TEMPORAL_ADDRESS ?? '127.0.0.1:7233' });
  const worker = await Worker.create({
    connection,
    taskQueue,
    workflowsPath: require.resolve('./workflows'),
    activities: { ...orderActivities(shop), ...researchActivities(desk) },
  });
  await worker.run();
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
