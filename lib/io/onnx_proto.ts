/**
 * ONNX files: a graph under construction, and its protobuf form written as a stream, so that no more than one weight is
 * in memory. Message and field numbers are those of onnx.proto (ONNX IR versions 8 and 9); only what is used is listed.
 */
import protobuf from 'protobufjs/light.js';
import { writeFileAtomic } from '../fs/files.js';

type Fields = Record<string, [type: string, id: number, repeated?: 'repeated']>;

function message(fields: Fields): protobuf.IType {
  return {
    fields: Object.fromEntries(
      Object.entries(fields).map(([name, [type, id, rule]]) => [
        name,
        { type, id, ...(rule ? { rule } : {}) },
      ]),
    ),
  };
}

const root = protobuf.Root.fromJSON({
  nested: {
    onnx: {
      nested: {
        Model: message({
          irVersion: ['int64', 1],
          producerName: ['string', 2],
          docString: ['string', 6],
          opsetImport: ['Opset', 8, 'repeated'],
          metadataProps: ['Entry', 14, 'repeated'],
        }),
        Opset: message({ domain: ['string', 1], version: ['int64', 2] }),
        Entry: message({ key: ['string', 1], value: ['string', 2] }),
        Graph: message({
          node: ['Node', 1, 'repeated'],
          name: ['string', 2],
          input: ['Value', 11, 'repeated'],
          output: ['Value', 12, 'repeated'],
        }),
        Node: message({
          input: ['string', 1, 'repeated'],
          output: ['string', 2, 'repeated'],
          name: ['string', 3],
          opType: ['string', 4],
          attribute: ['Attribute', 5, 'repeated'],
        }),
        Attribute: message({
          name: ['string', 1],
          f: ['float', 2],
          i: ['int64', 3],
          s: ['bytes', 4],
          ints: ['int64', 8, 'repeated'],
          type: ['int32', 20],
        }),
        Tensor: message({
          dims: ['int64', 1, 'repeated'],
          dataType: ['int32', 2],
          name: ['string', 8],
          externalData: ['Entry', 13, 'repeated'],
          dataLocation: ['int32', 14],
        }),
        Value: message({ name: ['string', 1], type: ['Type', 2] }),
        Type: message({ tensorType: ['TensorType', 1] }),
        TensorType: message({ elemType: ['int32', 1], shape: ['Shape', 2] }),
        Shape: message({ dim: ['Dimension', 1, 'repeated'] }),
        Dimension: message({ dimValue: ['int64', 1], dimParam: ['string', 2] }),
      },
    },
  },
});

function encode(type: string, value: object): Uint8Array {
  return root.lookupType(`onnx.${type}`).encode(value).finish();
}

/** Field numbers of what is written by hand. */
const MODEL_GRAPH = 7,
  GRAPH_INITIALIZER = 5,
  TENSOR_RAW_DATA = 9;

/** Tag and length of a length-delimited field. */
function frame(field: number, length: number): Uint8Array {
  const bytes: number[] = [];
  for (const value of [(field << 3) | 2, length]) {
    let rest = value;
    for (; rest >= 128; rest = Math.floor(rest / 128)) bytes.push((rest % 128) | 128);
    bytes.push(rest);
  }
  return Uint8Array.from(bytes);
}

const FLOAT = 1,
  INT64 = 7;
/** Element types of graph inputs and outputs. */
export type OnnxType = 'float' | 'int64';
const CODE: Record<OnnxType, number> = { float: FLOAT, int64: INT64 };

/** A weight or constant; `data` makes its values when their turn comes. */
interface Initializer {
  name: string;
  dims: readonly number[];
  dataType: number;
  bytes: number;
  data: () => Promise<ArrayBufferView> | ArrayBufferView;
}

type Attribute = number | string | readonly number[] | { float: number };

/** Where bytes of an external file start: pages, so that runtimes can map them. */
const EXTERNAL_ALIGN = 4096;
/** Smaller constants stay in the model: they are shapes, which runtimes must see to infer others. */
const EXTERNAL_LEAST = 1024;

/** How a graph is written. */
export interface WriteOptions {
  opset: number;
  /** Weights go to a second file, `<name>.data`, when there are more bytes of them. */
  externalAbove: number;
  metadata: Record<string, string>;
}

/** A graph that is built node by node; values are known by their names. */
export class OnnxGraph {
  readonly #nodes: object[] = [];
  readonly #initializers = new Map<string, Initializer>();
  readonly #inputs: object[] = [];
  readonly #outputs: object[] = [];
  #serial = 0;

  constructor(
    readonly name: string,
    readonly opset: number,
  ) {}

  /** Declares an input; a text as a dimension is its symbolic name. */
  input(name: string, type: OnnxType, dims: readonly (number | string)[]): string {
    this.#inputs.push(value(name, type, dims));
    return name;
  }

  /** Declares `from` an output under this name. */
  output(name: string, from: string, dims: readonly (number | string)[]): void {
    this.#nodes.push({ opType: 'Identity', name, input: [from], output: [name] });
    this.#outputs.push(value(name, 'float', dims));
  }

  /** Adds a node with one output and returns its name. An empty input is left out. */
  op(opType: string, input: readonly string[], attributes: Record<string, Attribute> = {}): string {
    const name = `${opType}_${this.#serial++}`;
    this.#nodes.push({
      opType,
      name,
      input,
      output: [name],
      attribute: Object.entries(attributes).map(([key, a]) => attribute(key, a)),
    });
    return name;
  }

  /** An f32 weight; `data` is called when it is written. */
  weight(name: string, dims: readonly number[], data: () => Promise<Float32Array>): string {
    const bytes = dims.reduce((a, b) => a * b, 4);
    if (!this.#initializers.has(name))
      this.#initializers.set(name, { name, dims, dataType: FLOAT, bytes, data });
    return name;
  }

  /** A constant of int64 values; no `dims` makes it a vector, `[]` a scalar. */
  ints(values: readonly number[], dims: readonly number[] = [values.length]): string {
    const name = `ints_${values.join('_')}_${dims.join('x')}`.slice(0, 64);
    this.#initializers.set(name, {
      name,
      dims,
      dataType: INT64,
      bytes: 8 * values.length,
      data: () => BigInt64Array.from(values, BigInt),
    });
    return name;
  }

  /** A vocabulary and other long lists of int64. */
  list(name: string, values: readonly number[]): string {
    this.#initializers.set(name, {
      name,
      dims: [values.length],
      dataType: INT64,
      bytes: 8 * values.length,
      data: () => BigInt64Array.from(values, BigInt),
    });
    return name;
  }

  /** An f32 constant; no `dims` makes it a scalar. */
  floats(values: readonly number[], dims: readonly number[] = []): string {
    const name = `floats_${values.join('_')}_${dims.join('x')}`.slice(0, 200);
    this.#initializers.set(name, {
      name,
      dims,
      dataType: FLOAT,
      bytes: 4 * values.length,
      data: () => Float32Array.from(values),
    });
    return name;
  }

  /** Writes `path`, and `path + '.data'` when the weights do not fit. @throws IoError, or what the weights' sources throw */
  async write(path: string, options: WriteOptions): Promise<void> {
    const all = [...this.#initializers.values()];
    const external = all.reduce((sum, { bytes }) => sum + bytes, 0) > options.externalAbove;
    const outside = new Map<Initializer, number>();
    let at = 0;
    for (const i of external ? all.filter(({ bytes }) => bytes >= EXTERNAL_LEAST) : []) {
      outside.set(i, at);
      at = Math.ceil((at + i.bytes) / EXTERNAL_ALIGN) * EXTERNAL_ALIGN;
    }
    if (external) await writeFileAtomic(`${path}.data`, externalChunks(outside));
    const location = `${path.split('/').at(-1)!}.data`;
    const heads = all.map((i) =>
      encode('Tensor', {
        name: i.name,
        dims: i.dims,
        dataType: i.dataType,
        ...(outside.has(i)
          ? {
              dataLocation: 1,
              externalData: Object.entries({
                location,
                offset: outside.get(i)!,
                length: i.bytes,
              }).map(([key, v]) => ({ key, value: String(v) })),
            }
          : {}),
      }),
    );
    await writeFileAtomic(path, this.#chunks(all, heads, outside, options));
  }

  async *#chunks(
    all: readonly Initializer[],
    heads: readonly Uint8Array[],
    outside: ReadonlyMap<Initializer, number>,
    { opset, metadata }: WriteOptions,
  ): AsyncGenerator<Uint8Array> {
    const raw = (i: Initializer): Uint8Array =>
      outside.has(i) ? new Uint8Array(0) : frame(TENSOR_RAW_DATA, i.bytes);
    const tensorBytes = (i: Initializer, k: number): number =>
      heads[k]!.length + raw(i).length + (outside.has(i) ? 0 : i.bytes);
    const graph = encode('Graph', {
      node: this.#nodes,
      name: this.name,
      input: this.#inputs,
      output: this.#outputs,
    });
    const graphBytes = all.reduce(
      (sum, i, k) => sum + frame(GRAPH_INITIALIZER, tensorBytes(i, k)).length + tensorBytes(i, k),
      graph.length,
    );
    yield encode('Model', {
      irVersion: opset >= 19 ? 9 : 8,
      producerName: 'siglip2',
      opsetImport: [{ domain: '', version: opset }],
      metadataProps: Object.entries(metadata).map(([key, v]) => ({ key, value: v })),
    });
    yield frame(MODEL_GRAPH, graphBytes);
    yield graph;
    for (const [k, i] of all.entries()) {
      yield frame(GRAPH_INITIALIZER, tensorBytes(i, k));
      yield heads[k]!;
      yield raw(i);
      if (!outside.has(i)) yield await valuesOf(i);
    }
  }
}

async function* externalChunks(
  outside: ReadonlyMap<Initializer, number>,
): AsyncGenerator<Uint8Array> {
  let at = 0;
  for (const [i, offset] of outside) {
    yield new Uint8Array(offset - at);
    yield await valuesOf(i);
    at = offset + i.bytes;
  }
}

async function valuesOf(i: Initializer): Promise<Uint8Array> {
  const view = await i.data();
  if (view.byteLength !== i.bytes)
    throw new Error(`${i.name} has ${view.byteLength} bytes where its shape needs ${i.bytes}`);
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

function value(name: string, type: OnnxType, dims: readonly (number | string)[]): object {
  const dim = dims.map((d) => (typeof d === 'number' ? { dimValue: d } : { dimParam: d }));
  return { name, type: { tensorType: { elemType: CODE[type], shape: { dim } } } };
}

function attribute(name: string, a: Attribute): object {
  if (typeof a === 'number') return { name, type: 2, i: a };
  if (typeof a === 'string') return { name, type: 3, s: Buffer.from(a) };
  if ('float' in a) return { name, type: 1, f: a.float };
  return { name, type: 7, ints: a };
}
