// Runs the workflows and the activities of both examples: npm run worker. Start as many as you like, kill any.
import { NativeConnection, Worker } from '@temporalio/worker';
import { orderActivities } from './order/activities';
import { researchActivities } from './research/activities';
import { desk, shop } from './services';
import { address, connected, taskQueue } from './task-queue';

async function main() {
  const connection = await connected(NativeConnection.connect({ address }));
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
