/** Hub ids: the cache is used without network; a download comes from a local server that speaks the hub's protocol. */

import { createHash } from 'node:crypto';
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { openCheckpoint } from '../../lib/checkpoints/checkpoint.js';
import { hubFolder, isHubId } from '../../lib/checkpoints/hub.js';
import { modelFiles } from '../../lib/checkpoints/load.js';
import { IoError } from '../../lib/errors.js';
import { modelConfig } from '../../lib/model/config.js';
import { Siglip2Model } from '../../lib/model/siglip2.js';
import { liveCount } from '../../lib/tensor.js';

const folder = mkdtempSync(join(tmpdir(), 'siglip2-hub-')),
  remote = join(folder, 'remote'),
  cache = join(folder, 'cache');
const COMMIT = '0123456789abcdef0123456789abcdef01234567';
const asked: string[] = [];
let server: Server,
  endpoint: string,
  requests = 0;

beforeAll(async () => {
  process.env['HF_HUB_CACHE'] = cache;
  const model = new Siglip2Model(modelConfig('test'), {});
  model.initialize(1);
  await modelFiles(remote, model, { vocab: null, tokenizer: null, lowercase: 'ascii', ema: null });
  model.dispose();
  rmSync(join(remote, 'tokenizer.json'));
  for (const other of ['pytorch_model.bin', 'model.onnx', 'flax_model.msgpack', 'README.md'])
    writeFileSync(join(remote, other), 'large');
  const hash = (bytes: Buffer): string => createHash('sha1').update(bytes).digest('hex');
  server = createServer((request, response) => {
    requests++;
    const path = new URL(request.url!, 'http://localhost').pathname;
    asked.push(path);
    const json = (value: unknown): void => {
      response.setHeader('content-type', 'application/json');
      response.end(JSON.stringify(value));
    };
    if (path.startsWith('/api/models/who/what/revision/') || path === '/api/models/who/what') {
      return json({
        _id: '1',
        id: 'who/what',
        sha: COMMIT,
        private: false,
        downloads: 0,
        gated: false,
        likes: 0,
        lastModified: new Date(0).toISOString(),
      });
    }
    if (path.startsWith('/api/models/who/what/tree/')) {
      return json(
        readdirSync(remote).map((file) => ({
          type: 'file',
          path: file,
          size: statSync(join(remote, file)).size,
          oid: hash(readFileSync(join(remote, file))),
        })),
      );
    }
    if (path.startsWith('/api/models/who/what/paths-info/')) {
      let body = '';
      request.on('data', (part: Buffer) => {
        body += part.toString();
      });
      request.on('end', () => {
        const asked = (JSON.parse(body) as { paths: string[] }).paths;
        json(
          asked.map((file) => ({
            type: 'file',
            path: file,
            size: statSync(join(remote, file)).size,
            oid: hash(readFileSync(join(remote, file))),
            lastCommit: { id: COMMIT, title: '', date: new Date(0).toISOString() },
          })),
        );
      });
      return;
    }
    const file = /^\/who\/what\/(?:resolve|raw)\/[^/]+\/([\w.]+)$/.exec(path)?.[1];
    if (file === undefined) {
      response.statusCode = 404;
      return response.end();
    }
    const bytes = readFileSync(join(remote, file)),
      [, from, to] = /bytes=(\d+)-(\d*)/.exec(request.headers.range ?? '') ?? [];
    const begin = Number(from ?? 0),
      end = to ? Math.min(Number(to) + 1, bytes.length) : bytes.length;
    response.setHeader('etag', `"${hash(bytes)}"`);
    response.setHeader('x-repo-commit', COMMIT);
    response.setHeader('accept-ranges', 'bytes');
    if (from !== undefined) {
      response.statusCode = 206;
      response.setHeader('content-range', `bytes ${begin}-${end - 1}/${bytes.length}`);
    }
    response.setHeader('content-length', end - begin);
    return response.end(request.method === 'HEAD' ? undefined : bytes.subarray(begin, end));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterAll(() => {
  server.closeAllConnections();
  server.close();
  rmSync(folder, { recursive: true, force: true });
  expect(liveCount()).toBe(0);
});

test('what is an id', () => {
  for (const id of ['google/siglip2-base-patch16-256', 'a/b@main', 'a/b@refs/pr/1'])
    expect(isHubId(id)).toBe(true);
  for (const id of ['a', '/a/b', './a/b', '../b', 'a/b/c', 'a/..', 'a b/c'])
    expect(isHubId(id)).toBe(false);
});

test('a snapshot in the cache needs no network', async () => {
  const base = join(cache, 'models--some--model');
  mkdirSync(join(base, 'refs'), { recursive: true });
  writeFileSync(join(base, 'refs', 'main'), COMMIT);
  const snapshot = join(base, 'snapshots', COMMIT);
  mkdirSync(snapshot, { recursive: true });
  writeFileSync(join(snapshot, 'config.json'), readFileSync(join(remote, 'config.json')));
  process.env['HF_HUB_OFFLINE'] = '1';
  try {
    await expect(hubFolder('some/model')).rejects.toThrow(/HF_HUB_OFFLINE/); // the weights are missing
    for (const file of ['model.safetensors', 'siglip2.json'])
      writeFileSync(join(snapshot, file), readFileSync(join(remote, file)));
    expect(await hubFolder('some/model')).toBe(snapshot);
    expect(await hubFolder(`some/model@${COMMIT}`)).toBe(snapshot);
    const { config, reader } = await openCheckpoint('some/model');
    await reader.close();
    expect(config).toEqual(modelConfig('test'));
    await expect(openCheckpoint('no/such-model')).rejects.toThrow(/HF_HUB_OFFLINE/);
  } finally {
    delete process.env['HF_HUB_OFFLINE'];
  }
});

test('a model of another kind is refused by its config, before its weights are fetched', async () => {
  const config = join(remote, 'config.json'),
    ours = readFileSync(config);
  writeFileSync(config, JSON.stringify({ model_type: 'bert', hidden_size: 768 }));
  asked.length = 0;
  try {
    await expect(hubFolder('who/what', { endpoint })).rejects.toThrow(
      /who\/what: config.json: key "model_type" is "bert"/,
    );
    expect(asked.filter((path) => path.includes('safetensors'))).toEqual([]);
  } finally {
    writeFileSync(config, ours);
    rmSync(join(cache, 'models--who--what'), { recursive: true }); // another config of the same commit
  }
});

test('a download fills the cache, once', async () => {
  const path = await hubFolder('who/what', { endpoint });
  expect(path.startsWith(cache)).toBe(true);
  expect(
    readFileSync(join(path, 'model.safetensors')).equals(
      readFileSync(join(remote, 'model.safetensors')),
    ),
  ).toBe(true);
  expect(readdirSync(path).sort()).toEqual([
    'config.json',
    'model.safetensors',
    'preprocessor_config.json',
    'siglip2.json',
    'tokenizer_config.json',
  ]);
  const before = requests;
  expect(await hubFolder('who/what', { endpoint })).toBe(path);
  expect(requests).toBe(before);
  await expect(hubFolder('who/nobody', { endpoint })).rejects.toThrow(IoError);
});
