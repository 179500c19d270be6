// Bundles the workflows once, so that worker processes start fast.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { bundleWorkflowCode } from '@temporalio/worker';

const names = ['all', 'parcelV1', 'parcelV2', 'parcelWrong'];
const silent = { trace() {}, debug() {}, info() {}, log() {}, warn: console.warn, error: console.error };

async function main() {
  const out = path.join(__dirname, 'bundles');
  fs.mkdirSync(out, { recursive: true });
  for (const name of names) {
    const { code } = await bundleWorkflowCode({ workflowsPath: path.join(__dirname, 'workflows', `${name}.js`), logger: silent });
    fs.writeFileSync(path.join(out, `${name}.js`), code);
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
