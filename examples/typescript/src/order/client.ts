// Starts one order and waits for its result: npm run order [order id]
import { Client, Connection, WorkflowExecutionAlreadyStartedError } from '@temporalio/client';
import { address, connected, taskQueue } from '../task-queue';
import { fulfilOrder, orderState } from './workflow';

async function main() {
  const connection = await connected(Connection.connect({ address }));
  const client = new Client({ connection });
  const id = process.argv[2] ?? `order-${Date.now()}`;
  const order = { id, customer: 'ada', address: '1 Rock Lane', lines: [{ sku: 'rope', quantity: 1, cents: 8900 }] };
  try {
    // The workflow id is the order's: asking twice starts it once.
    await client.workflow.start(fulfilOrder, { taskQueue, workflowId: id, args: [order] });
    console.log(`started ${id}`);
  } catch (error) {
    if (!(error instanceof WorkflowExecutionAlreadyStartedError)) throw error;
    console.log(`${id} is there already`);
  }
  const handle = client.workflow.getHandle<typeof fulfilOrder>(id);
  console.log('state:', await handle.query(orderState));
  console.log('result:', await handle.result());
  await connection.close();
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
