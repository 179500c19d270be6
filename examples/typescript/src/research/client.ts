// Starts an agent, approves its first draft as its reviewer would, and prints the report: npm run research [question]
import { Client, Connection } from '@temporalio/client';
import { address, connected, taskQueue } from '../task-queue';
import { progress, researchAgent, review } from './workflow';

const pause = (ms: number) => new Promise((done) => setTimeout(done, ms));

async function main() {
  const connection = await connected(Connection.connect({ address }));
  const client = new Client({ connection });
  const question = process.argv[2] ?? 'how do climbers fall safely';
  const handle = await client.workflow.start(researchAgent, {
    taskQueue,
    workflowId: `research-${Date.now()}`,
    args: [{ question }],
  });
  for (let at = ''; !at.startsWith('waiting for the review'); await pause(500)) {
    const now = await handle.query(progress);
    if (now !== at) console.log((at = now));
  }
  // A real reviewer would send this tomorrow, from a web page.
  await handle.signal(review, { approved: true });
  console.log(await handle.result());
  await connection.close();
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
