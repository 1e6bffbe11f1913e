// compare_conformance.mjs HOST DEVICE: are the lines of test/native/conformance.cu from a GPU those of the host runtime?
// Products may be summed in another order, so values are compared by their normalised squared error.
import { readFileSync } from 'node:fs';

const MOST = 1e-6;
const cases = (file) =>
  new Map(
    readFileSync(file, 'utf8')
      .trim()
      .split('\n')
      .map((line) => {
        const [name, , values] = line.split('\t');
        return [name, values.trim().split(' ').map(Number)];
      }),
  );
const [host, device] = process.argv.slice(2).map(cases);
let wrong = 0;
for (const [name, want] of host) {
  const got = device.get(name);
  if (!got) {
    console.log(`not run  ${name}`);
    continue;
  }
  let error = 0,
    norm = 0;
  want.forEach((w, i) => {
    error += (got[i] - w) ** 2;
    norm += w * w;
  });
  const ok = got.length === want.length && error <= MOST * norm;
  if (!ok) wrong++;
  console.log(`${ok ? 'ok      ' : 'DIFFERS '} ${name}: error ${(error / norm).toExponential(1)}`);
}
console.log(`${device.size} cases ran on the device, ${wrong} differ from the host runtime`);
process.exit(wrong || device.size === 0 ? 1 : 0);
