/**
 * Answers of other people's code (PyTorch, NumPy, SciPy, Pillow), recorded in test/goldens/oracle, so that the tests that
 * compare with them need no Python. After a change of a question:
 *
 *   npm run goldens -- PYTHON [tests]
 *
 * asks again; PYTHON is one that has what the tests import. Names are the keys: a question that is changed and not asked
 * again fails by its numbers.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { gunzipSync, gzipSync } from 'node:zlib';
import { peerEnvironment } from '../bench/peers/pytorch/peer.js';
import { packageRoot } from '../lib/native.js';

/** What Python is asked. */
export interface Question {
  /** Arguments of the interpreter. */
  args: readonly string[];
  input?: string;
  /** Files that it writes, by path; they are recorded with what it prints. */
  writes?: readonly string[];
}

const python = process.env['SIGLIP2_RECORD'];

/**
 * What Python prints, and the files it writes; as recorded.
 * @param name of the record, unique
 */
export function answer(name: string, { args, input = '', writes = [] }: Question): string {
  const record = join(packageRoot(), 'test', 'goldens', 'oracle', `${name}.gz`);
  if (python !== undefined) {
    const printed = execFileSync(python, args, {
      input,
      encoding: 'utf8',
      env: peerEnvironment(),
      maxBuffer: 2 ** 28,
    });
    const files = writes.map((path) => readFileSync(path)),
      head = { printed, sizes: files.map(({ length }) => length) };
    mkdirSync(dirname(record), { recursive: true });
    writeFileSync(
      record,
      gzipSync(Buffer.concat([Buffer.from(`${JSON.stringify(head)}\n`), ...files]), { level: 9 }),
    );
  }
  if (!existsSync(record))
    throw new Error(`no answer is recorded as ${record}; ask for it: npm run goldens -- PYTHON`);
  const bytes = gunzipSync(readFileSync(record)),
    end = bytes.indexOf('\n');
  const { printed, sizes } = JSON.parse(bytes.toString('utf8', 0, end)) as {
    printed: string;
    sizes: number[];
  };
  let at = end + 1;
  sizes.forEach((size, i) => {
    mkdirSync(dirname(writes[i]!), { recursive: true });
    writeFileSync(writes[i]!, bytes.subarray(at, (at += size)));
  });
  return printed;
}
