// Loaded before each process of the seed suite (node --require). Its workers append lines to one
// journal while others read it, and on ext4 a reader may see an append that crosses a page cut off
// at the page's end. The suite then takes half a line for a broken one, its activity fails, and the
// retry looks like a side effect done twice. Readers of the journal therefore get whole lines only.
'use strict';
const fs = require('node:fs');

const read = fs.readFileSync;

fs.readFileSync = function readWholeLines(file, ...options) {
  const content = read.call(fs, file, ...options);
  const isJournal = typeof content === 'string' && String(file).endsWith('calls.jsonl');
  return isJournal ? content.slice(0, content.lastIndexOf('\n') + 1) : content;
};
