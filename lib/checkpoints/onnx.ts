/**
 * Both towers as ONNX graphs, from any checkpoint, without running the model: `vision.onnx` and `text.onnx`, f32, opsets
 * 17 to 20, batch and length dynamic.
 *
 * vision.onnx of a fixed-resolution model
 *   in  pixel_values (batch, 3, S, S): RGB in [-1, 1]
 *   out image_embeds (batch, E) of unit norm; pooler_output (batch, E) before normalisation;
 *       last_hidden_state (batch, N, D) tokens
 * vision.onnx of a NaFlex model: the same outputs from
 *   in  pixel_values (batch, patches, P·P·3): patches row by row, each as (y, x, channel), in [-1, 1]; zeros at the end
 *       pixel_attention_mask (batch, patches) int64: 1 for a patch, 0 for padding
 *       spatial_shapes (batch, 2) int64: rows and columns of patches
 *   The positions are resized inside the graph, so there is no cap on rows or columns.
 * text.onnx
 *   in  input_ids (batch, length) int64, padded with 0 to 64; a trimmed vocabulary is mapped inside the graph
 *   out text_embeds (batch, E) of unit norm; pooler_output (batch, E)
 *
 * The scores are exp(logit_scale) · image · text + logit_bias; both numbers are in the files' metadata. Names are those
 * of the Hugging Face layout. Sequences are kept as (batch · length, D) matrices, so every dense layer is one Gemm.
 */
import { ConfigError } from '../errors.js';
import { OnnxGraph } from '../io/onnx_proto.js';
import type { TensorReader } from '../io/safetensors.js';
import type { ModelConfig, Tower } from '../model/config.js';
import { gridSide, patchCount } from '../model/config.js';
import type { Gelu } from '../ops/linear.js';
import { GEMMA_VOCAB } from '../text/vocab.js';
import type { Checkpoint } from './checkpoint.js';

export interface OnnxOptions {
  /** 17 to 20; 20 has GELU as one node. Default 20. */
  opset?: number;
  /** Weights of a tower go to a second file when they take more bytes. Default 2 GB less the graph: protobuf's limit. */
  externalAbove?: number;
}

const PROTOBUF_LIMIT = 2 ** 31 - 2 ** 24;
const UNKNOWN_TOKEN = 3;

/**
 * Writes vision.onnx and text.onnx (and .data files of large towers) into a folder that exists.
 * @throws ConfigError for another opset; CheckpointError and IoError as the reader and the disk say
 */
export async function exportOnnx(
  folder: string,
  from: Checkpoint,
  options: OnnxOptions = {},
): Promise<void> {
  const opset = options.opset ?? 20,
    externalAbove = options.externalAbove ?? PROTOBUF_LIMIT;
  if (!Number.isInteger(opset) || opset < 17 || opset > 20)
    throw new ConfigError(`onnx: opset must be 17, 18, 19 or 20 but is ${opset}`);
  const scalar = async (name: string): Promise<string> =>
    String((await from.reader.readFloat32(name))[0]);
  const metadata = {
    logit_scale: await scalar('logit_scale'),
    logit_bias: await scalar('logit_bias'),
    patch_size: String(from.config.vision.patch),
    ...(from.config.naflex ? {} : { image_size: String(from.config.vision.imageSize) }),
    resample: String(from.resample),
  };
  const vision = new TowerGraph(new OnnxGraph('vision', opset), from.config, from.reader);
  vision.vision();
  await vision.graph.write(`${folder}/vision.onnx`, { opset, externalAbove, metadata });
  const text = new TowerGraph(new OnnxGraph('text', opset), from.config, from.reader);
  text.text(from.vocabulary);
  await text.graph.write(`${folder}/text.onnx`, { opset, externalAbove, metadata });
}

/** What attention needs to know of its tokens. */
interface Tokens {
  /** Shape (batch, length) as int64 values, first and second. */
  batch: string;
  length: string;
  /** Added to the scores (batch, 1, 1, length), or none. */
  bias: string | null;
}

class TowerGraph {
  readonly #config: ModelConfig;
  readonly #reader: TensorReader;

  constructor(
    readonly graph: OnnxGraph,
    config: ModelConfig,
    reader: TensorReader,
  ) {
    this.#config = config;
    this.#reader = reader;
  }

  vision(): void {
    const { graph: g } = this,
      config = this.#config,
      { width: D, depth, patch: P, imageSize: S } = config.vision;
    const name = 'vision_model.embeddings';
    let x: string, tokens: Tokens;
    if (config.naflex) {
      const pixels = g.input('pixel_values', 'float', ['batch', 'patches', P * P * 3]);
      const mask = g.input('pixel_attention_mask', 'int64', ['batch', 'patches']);
      const shapes = g.input('spatial_shapes', 'int64', ['batch', 2]);
      tokens = this.#tokens(pixels);
      const missing = g.op('Sub', [g.op('Cast', [mask], { to: 1 }), g.floats([1])]);
      tokens.bias = g.op('Unsqueeze', [g.op('Mul', [missing, g.floats([1e30])]), g.ints([1, 2])]);
      const flat = g.op('Reshape', [pixels, g.ints([-1, P * P * 3])]);
      x = g.op('Add', [
        this.#dense(`${name}.patch_embedding`, flat, D, P * P * 3),
        this.#positions(shapes, tokens.length),
      ]);
    } else {
      const pixels = g.input('pixel_values', 'float', ['batch', 3, S, S]);
      const N = patchCount(config);
      const conv = g.op(
        'Conv',
        [
          pixels,
          this.#weight(`${name}.patch_embedding.weight`, [D, 3, P, P]),
          this.#weight(`${name}.patch_embedding.bias`, [D]),
        ],
        { kernel_shape: [P, P], strides: [P, P] },
      );
      const rows = g.op('Transpose', [g.op('Reshape', [conv, g.ints([0, D, N])])], {
        perm: [0, 2, 1],
      });
      tokens = this.#tokens(rows);
      x = g.op('Reshape', [
        g.op('Add', [rows, this.#weight(`${name}.position_embedding.weight`, [N, D])]),
        g.ints([-1, D]),
      ]);
    }
    x = this.#encoder('vision_model.encoder.layers', x, config.vision, tokens, depth);
    x = this.#norm('vision_model.post_layernorm', x, D);
    const length = config.naflex ? 'patches' : patchCount(config);
    g.output(
      'last_hidden_state',
      g.op('Reshape', [x, g.op('Concat', [tokens.batch, tokens.length, g.ints([D])], { axis: 0 })]),
      ['batch', length, D],
    );
    this.#outputs('image_embeds', this.#mapPool('vision_model.head', x, config.vision, tokens));
  }

  text(vocabulary: readonly number[] | null): void {
    const { graph: g } = this,
      config = this.#config,
      { width: D, depth, vocab, length, pool } = config.text;
    const name = 'text_model.embeddings';
    let ids = g.input('input_ids', 'int64', ['batch', 'length']);
    const tokens = this.#tokens(ids);
    if (vocabulary) {
      const rows = new Array<number>(GEMMA_VOCAB).fill(
        Math.max(0, vocabulary.indexOf(UNKNOWN_TOKEN)),
      );
      vocabulary.forEach((id, row) => {
        rows[id] = row;
      });
      ids = g.op('Gather', [g.list('vocabulary', rows), ids]);
    }
    const rows = g.op('Gather', [this.#weight(`${name}.token_embedding.weight`, [vocab, D]), ids]);
    const places = g.op('Slice', [
      this.#weight(`${name}.position_embedding.weight`, [length, D]),
      g.ints([0]),
      tokens.length,
      g.ints([0]),
    ]);
    let x = g.op('Reshape', [g.op('Add', [rows, places]), g.ints([-1, D])]);
    x = this.#encoder(
      'text_model.encoder.layers',
      x,
      config.text,
      tokens,
      pool === 'last' ? depth - 1 : depth,
    );
    // With last-token pooling the last block computes one token; keys and values still come from all.
    if (pool === 'last')
      x = this.#block(`text_model.encoder.layers.${depth - 1}`, x, config.text, tokens, true);
    x = this.#norm('text_model.final_layer_norm', x, D);
    if (pool === 'map') x = this.#mapPool('text_model.pool', x, config.text, tokens);
    this.#outputs('text_embeds', this.#dense('text_model.head', x, config.embed, D));
  }

  #outputs(name: string, pooled: string): void {
    const { graph: g } = this,
      { embed } = this.#config;
    const norm = g.op('Sqrt', [
      g.op('ReduceSum', [g.op('Mul', [pooled, pooled]), g.ints([1])], { keepdims: 1 }),
    ]);
    g.output(name, g.op('Div', [pooled, g.op('Add', [norm, g.floats([1e-8])])]), ['batch', embed]);
    g.output('pooler_output', pooled, ['batch', embed]);
  }

  #weight(name: string, dims: readonly number[]): string {
    return this.graph.weight(name, dims, () => this.#reader.readFloat32(name));
  }

  /** Rows `from` to `to` (in units of all of them divided by `of`) of a stacked weight, or several weights as one. */
  #stacked(
    name: string,
    dims: readonly number[],
    parts: readonly string[],
    rows?: [from: number, to: number],
  ): string {
    return this.graph.weight(name, dims, async () => {
      const values = await Promise.all(parts.map((part) => this.#reader.readFloat32(part)));
      if (rows) return values[0]!.subarray(rows[0], rows[1]);
      const all = new Float32Array(dims.reduce((a, b) => a * b, 1));
      values.reduce((at, v) => (all.set(v, at), at + v.length), 0);
      return all;
    });
  }

  /** x (rows, in) · Wᵀ + b */
  #dense(name: string, x: string, out: number, inputs: number): string {
    return this.graph.op(
      'Gemm',
      [x, this.#weight(`${name}.weight`, [out, inputs]), this.#weight(`${name}.bias`, [out])],
      { transB: 1 },
    );
  }

  /** q, k, v (or some of them) of a block as one product. */
  #project(name: string, letters: string, x: string, D: number): string {
    const parts = (kind: string): string[] =>
        [...letters].map((p) => `${name}.self_attn.${p}_proj.${kind}`),
      n = letters.length * D;
    const w = this.#stacked(`${name}.self_attn.${letters}_proj.weight`, [n, D], parts('weight'));
    return this.graph.op(
      'Gemm',
      [x, w, this.#stacked(`${name}.self_attn.${letters}_proj.bias`, [n], parts('bias'))],
      { transB: 1 },
    );
  }

  #norm(name: string, x: string, D: number): string {
    return this.graph.op(
      'LayerNormalization',
      [x, this.#weight(`${name}.weight`, [D]), this.#weight(`${name}.bias`, [D])],
      { axis: -1, epsilon: { float: this.#config.layerNormEps } },
    );
  }

  #mlp(name: string, x: string, { width: D, mlp: M, gelu }: Tower): string {
    return this.#dense(
      `${name}.mlp.fc2`,
      this.#gelu(this.#dense(`${name}.mlp.fc1`, x, M, D), gelu),
      D,
      M,
    );
  }

  #gelu(x: string, form: Gelu = 'tanh'): string {
    const g = this.graph;
    if (g.opset >= 20)
      return g.op('Gelu', [x], { approximate: form === 'exact' ? 'none' : 'tanh' });
    if (form === 'exact') {
      const erf = g.op('Erf', [g.op('Mul', [x, g.floats([Math.SQRT1_2])])]);
      return g.op('Mul', [g.op('Mul', [x, g.floats([0.5])]), g.op('Add', [erf, g.floats([1])])]);
    }
    const cubic = g.op('Add', [
      g.op('Mul', [g.op('Mul', [x, x]), g.floats([0.044715])]),
      g.floats([1]),
    ]);
    const inner = g.op('Mul', [g.op('Mul', [x, cubic]), g.floats([Math.sqrt(2 / Math.PI)])]);
    return g.op('Mul', [
      g.op('Mul', [x, g.floats([0.5])]),
      g.op('Add', [g.op('Tanh', [inner]), g.floats([1])]),
    ]);
  }

  #tokens(sequence: string): Tokens {
    const g = this.graph,
      shape = g.op('Shape', [sequence]);
    return {
      batch: g.op('Gather', [shape, g.ints([0])]),
      length: g.op('Gather', [shape, g.ints([1])]),
      bias: null,
    };
  }

  #encoder(layers: string, x: string, tower: Tower, tokens: Tokens, depth: number): string {
    for (let i = 0; i < depth; i++) x = this.#block(`${layers}.${i}`, x, tower, tokens, false);
    return x;
  }

  #block(name: string, x: string, tower: Tower, tokens: Tokens, last: boolean): string {
    const g = this.graph,
      { width: D, heads: H } = tower,
      y = this.#norm(`${name}.layer_norm1`, x, D);
    let mixed: string;
    if (last) {
      const kv = this.#heads(this.#project(name, 'kv', y, D), 2, D, H, tokens);
      const q = g.op('Reshape', [
        this.#project(name, 'q', this.#last(y, D, tokens), D),
        g.ints([-1, H, 1, D / H]),
      ]);
      mixed = this.#attend(q, kv[0]!, kv[1]!, D, H, tokens);
      x = this.#last(x, D, tokens);
    } else {
      const [q, k, v] = this.#heads(this.#project(name, 'qkv', y, D), 3, D, H, tokens) as [
        string,
        string,
        string,
      ];
      mixed = this.#attend(q, k, v, D, H, tokens);
    }
    x = g.op('Add', [x, this.#dense(`${name}.self_attn.out_proj`, mixed, D, D)]);
    return g.op('Add', [x, this.#mlp(name, this.#norm(`${name}.layer_norm2`, x, D), tower)]);
  }

  /** Row -1 of every sequence: (batch · length, D) → (batch, D). */
  #last(x: string, D: number, { batch, length }: Tokens): string {
    const g = this.graph;
    return g.op(
      'Gather',
      [
        g.op('Reshape', [x, g.op('Concat', [batch, length, g.ints([D])], { axis: 0 })]),
        g.ints([-1], []),
      ],
      { axis: 1 },
    );
  }

  /** (batch · length, n · D) → n tensors (batch, H, length, D / H). */
  #heads(x: string, n: number, D: number, H: number, { batch, length }: Tokens): string[] {
    const g = this.graph,
      shape = g.op('Concat', [batch, length, g.ints([n, H, D / H])], { axis: 0 });
    const all = g.op('Transpose', [g.op('Reshape', [x, shape])], { perm: [2, 0, 3, 1, 4] });
    return Array.from({ length: n }, (_, i) => g.op('Gather', [all, g.ints([i], [])], { axis: 0 }));
  }

  /** softmax(q kᵀ / √(D / H)) v of (batch, H, ·, D / H), as (batch · queries, D). */
  #attend(q: string, k: string, v: string, D: number, H: number, { bias }: Tokens): string {
    const g = this.graph,
      scaled = g.op('Mul', [q, g.floats([1 / Math.sqrt(D / H)])]);
    let scores = g.op('MatMul', [scaled, g.op('Transpose', [k], { perm: [0, 1, 3, 2] })]);
    if (bias) scores = g.op('Add', [scores, bias]);
    const mixed = g.op('MatMul', [g.op('Softmax', [scores], { axis: -1 }), v]);
    return g.op('Reshape', [g.op('Transpose', [mixed], { perm: [0, 2, 1, 3] }), g.ints([-1, D])]);
  }

  /** Attention pooling: (batch · length, D) → (batch, D). */
  #mapPool(name: string, x: string, tower: Tower, tokens: Tokens): string {
    const g = this.graph,
      { width: D, heads: H } = tower,
      proj = `${name}.attention`;
    const part = (kind: 'q' | 'kv', rows: [number, number]): [string, string] => [
      this.#stacked(
        `${proj}.${kind}_proj_weight`,
        [(rows[1] - rows[0]) * D, D],
        [`${proj}.in_proj_weight`],
        [rows[0] * D * D, rows[1] * D * D],
      ),
      this.#stacked(
        `${proj}.${kind}_proj_bias`,
        [(rows[1] - rows[0]) * D],
        [`${proj}.in_proj_bias`],
        [rows[0] * D, rows[1] * D],
      ),
    ];
    const probe = g.op('Reshape', [this.#weight(`${name}.probe`, [1, 1, D]), g.ints([1, D])]);
    const q = g.op('Reshape', [
      g.op('Gemm', [probe, ...part('q', [0, 1])], { transB: 1 }),
      g.ints([1, H, 1, D / H]),
    ]);
    const [k, v] = this.#heads(
      g.op('Gemm', [x, ...part('kv', [1, 3])], { transB: 1 }),
      2,
      D,
      H,
      tokens,
    ) as [string, string];
    const a = this.#dense(`${proj}.out_proj`, this.#attend(q, k, v, D, H, tokens), D, D);
    return g.op('Add', [a, this.#mlp(name, this.#norm(`${name}.layernorm`, a, D), tower)]);
  }

  /**
   * Positions of NaFlex patches, (batch · patches, D): the square grid resized to each image's rows and columns by
   * antialiased bilinear interpolation with half-pixel centres, written as a product of row weights, column weights and
   * the grid. Padding gets the position of the last row, which is masked everywhere.
   */
  #positions(shapes: string, length: string): string {
    const { graph: g } = this,
      config = this.#config,
      side = gridSide(config),
      D = config.vision.width;
    const extent = (axis: number): string =>
      g.op('Cast', [g.op('Gather', [shapes, g.ints([axis])], { axis: 1 })], { to: 1 }); // (batch, 1)
    const rows = extent(0),
      columns = extent(1);
    const count = g.op('Squeeze', [length, g.ints([0])]);
    const index = g.op('Cast', [g.op('Range', [g.ints([0], []), count, g.ints([1], [])])], {
      to: 1,
    }); // (patches)
    const row = g.op('Floor', [g.op('Div', [index, columns])]); // (batch, patches)
    const column = g.op('Sub', [index, g.op('Mul', [row, columns])]);
    const weights = (position: string, n: string): string => {
      const scale = g.op('Div', [g.floats([side]), n]),
        support = g.op('Max', [scale, g.floats([1])]);
      const inside = g.op('Min', [position, g.op('Sub', [n, g.floats([1])])]);
      const centre = g.op('Mul', [g.op('Add', [inside, g.floats([0.5])]), scale]);
      const cells = g.floats(
        Array.from({ length: side }, (_, i) => i + 0.5),
        [side],
      );
      const distance = g.op('Abs', [
        g.op('Sub', [cells, g.op('Unsqueeze', [centre, g.ints([2])])]),
      ]);
      const triangle = g.op('Max', [
        g.op('Sub', [
          g.floats([1]),
          g.op('Div', [distance, g.op('Unsqueeze', [support, g.ints([2])])]),
        ]),
        g.floats([0]),
      ]);
      return g.op('Div', [triangle, g.op('ReduceSum', [triangle, g.ints([2])], { keepdims: 1 })]); // (batch, patches, side)
    };
    const both = g.op('Mul', [
      g.op('Unsqueeze', [weights(row, rows), g.ints([3])]),
      g.op('Unsqueeze', [weights(column, columns), g.ints([2])]),
    ]);
    const name = 'vision_model.embeddings.position_embedding.weight';
    return g.op('MatMul', [
      g.op('Reshape', [both, g.ints([-1, side * side])]),
      this.#weight(name, [side * side, D]),
    ]);
  }
}
