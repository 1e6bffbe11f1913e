/** What is said of long work: on narrow terminals percent and time to go are there; without a terminal few lines. */
import { expect, test } from '@jest/globals';
import { counted, Progress } from '../../lib/cli/progress.js';

function stream(columns?: number): { out: string[]; stream: NodeJS.WriteStream } {
  const out: string[] = [];
  return {
    out,
    stream: {
      isTTY: columns !== undefined,
      columns,
      write: (text: string) => out.push(text),
    } as never,
  };
}
const facts = {
  step: 1200,
  loss: 3.1417,
  sigmoid: 1.23,
  aref: 4.56,
  gcap: 7.89,
  caption: 10.11,
  lr: 0.001,
  scale: 10.2,
  bias: -10.1,
  'images/s': 1234,
  'data wait %': 3,
  'peak MiB': 12345,
};

test.each([40, 80, 120])('a terminal of %i columns shows percent and time to go', (columns) => {
  const { out, stream: terminal } = stream(columns),
    progress = new Progress('train', terminal, 0);
  progress.update(1200, 3000, facts);
  progress.end();
  const line = out[0]!.replace('\r\x1b[2K', '');
  expect(line).toMatch(/^train 40\.0 %, \d+:\d\d to go · step 1200/);
  expect(line.length).toBeLessThan(columns);
  expect(out.at(-1)).toBe('\n');
});

test('updates come at most once a second, the last one always', () => {
  const { out, stream: file } = stream(),
    progress = new Progress('index', file);
  for (let i = 1; i <= 76; i++) progress.update(i, 76, () => ({ skipped: i }));
  expect(out.map((line) => (JSON.parse(line) as { done: number; skipped: number }).done)).toEqual([
    1, 76,
  ]);
  expect(JSON.parse(out[1]!)).toMatchObject({ task: 'index', total: 76, skipped: 76, eta: 0 });
});

test('one is one', () =>
  expect([counted(1, 'table'), counted(2, 'table'), counted(0, 'row')]).toEqual([
    '1 table',
    '2 tables',
    '0 rows',
  ]));
