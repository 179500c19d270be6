// What the faked services did, in a file that outlives a killed process, and rules by which a test makes a call fail, wait,
// or kill its own worker.
import * as fs from 'node:fs';
import * as path from 'node:path';

export interface Line {
  t: number;
  pid: number;
  call: string;
  key: string;
  phase: 'begin' | 'done' | 'failed';
  detail?: unknown;
}

export interface Rule {
  call: string;
  /** Only calls whose key starts with this; all when left out. */
  key?: string;
  /** The first attempts fail with an error. */
  failFirst?: number;
  /** Each attempt takes so many milliseconds. */
  takes?: number;
  /** Each attempt waits until the test opens this gate. */
  gate?: string;
  /** The first attempt ends its own process, before or after its effect. */
  kill?: 'before' | 'after';
}

export class Journal {
  constructor(readonly dir: string) {
    fs.mkdirSync(path.join(dir, 'gates'), { recursive: true });
    fs.mkdirSync(path.join(dir, 'once'), { recursive: true });
  }

  /** One write to a file opened for appending: whole, even when the process dies right after. */
  write(call: string, key: string, phase: Line['phase'], detail?: unknown) {
    const line: Line = { t: Date.now(), pid: process.pid, call, key, phase, detail };
    fs.appendFileSync(path.join(this.dir, 'calls.jsonl'), `${JSON.stringify(line)}\n`);
  }

  lines(call?: string, keyPrefix = '', phase?: Line['phase']): Line[] {
    const file = path.join(this.dir, 'calls.jsonl');
    if (!fs.existsSync(file)) return [];
    const all = fs.readFileSync(file, 'utf8').split('\n').filter(Boolean).map((text) => JSON.parse(text) as Line);
    return all.filter((line) => (!call || line.call === call) && line.key.startsWith(keyPrefix) && (!phase || line.phase === phase));
  }

  count(call: string, keyPrefix = '', phase: Line['phase'] = 'begin'): number {
    return this.lines(call, keyPrefix, phase).length;
  }

  setRules(rules: Rule[]) {
    const file = path.join(this.dir, 'rules.json');
    fs.writeFileSync(`${file}.new`, JSON.stringify(rules));
    fs.renameSync(`${file}.new`, file);
  }

  rules(call: string, key: string): Rule[] {
    const file = path.join(this.dir, 'rules.json');
    if (!fs.existsSync(file)) return [];
    const rules = JSON.parse(fs.readFileSync(file, 'utf8')) as Rule[];
    return rules.filter((rule) => rule.call === call && key.startsWith(rule.key ?? ''));
  }

  open(gate: string) {
    fs.writeFileSync(path.join(this.dir, 'gates', gate), '');
  }

  isOpen(gate: string): boolean {
    return fs.existsSync(path.join(this.dir, 'gates', gate));
  }

  /** True for the first caller with this key, over all processes. */
  first(key: string): boolean {
    try {
      fs.writeFileSync(path.join(this.dir, 'once', encodeURIComponent(key)), '', { flag: 'wx' });
      return true;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
      throw error;
    }
  }
}
