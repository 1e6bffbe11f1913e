/**
 * open_clip_config.json of SigLIP models: a timm vision trunk by name and open_clip's text transformer by its numbers.
 * What a file leaves out is as open_clip 3.3 has it. The trunk's form of GELU is not written anywhere: timm decides it by
 * the name (read off timm 1.0.31's models/vision_transformer.py and naflexvit.py).
 */
import { z } from 'zod';
import { CheckpointError, ConfigError } from '../errors.js';
import type { TensorInfo } from '../io/safetensors.js';
import type { ModelConfig, Tower, VisionConfig } from '../model/config.js';
import { checkModelConfig, gridSide, modelConfig, VARIANTS } from '../model/config.js';
import type { Gelu } from '../ops/linear.js';
import { GEMMA_VOCAB } from '../text/vocab.js';
import { check } from './hf_config.js';
import { defaultProcessor, type Processor } from './processor_config.js';

type Size = 'base' | 'large' | 'so400m' | 'giantopt';

const SIZES: Record<Size, Tower> = {
  base: { width: 768, depth: 12, heads: 12, mlp: 3072 },
  large: { width: 1024, depth: 24, heads: 16, mlp: 4096 },
  so400m: { width: 1152, depth: 27, heads: 16, mlp: 4304 },
  giantopt: { width: 1536, depth: 40, heads: 16, mlp: 6144 },
};

/** timm's SigLIP trunks with attention pooling: patch and the sides of images that there is a name for. */
const TRUNKS: readonly { size: Size; patch: number; sides: readonly number[]; gelu: Gelu }[] = [
  { size: 'base', patch: 32, sides: [256], gelu: 'tanh' },
  { size: 'base', patch: 16, sides: [224, 256, 384, 512], gelu: 'exact' },
  { size: 'large', patch: 16, sides: [256, 384], gelu: 'exact' },
  { size: 'large', patch: 16, sides: [512], gelu: 'tanh' },
  { size: 'so400m', patch: 14, sides: [224, 378, 384], gelu: 'exact' },
  { size: 'so400m', patch: 16, sides: [256, 384, 512], gelu: 'tanh' },
  { size: 'giantopt', patch: 16, sides: [256, 384], gelu: 'tanh' },
];

/** The NaFlex ones: patches of 16 px, positions in a grid of 16 × 16. */
const NAFLEX_SIZES: readonly Size[] = ['base', 'so400m'];

/** Names of the trunks, for errors. */
const NAMES = [
  ...TRUNKS.flatMap(({ size, patch, sides }) =>
    sides.map((side) => `vit_${size}_patch${patch}_siglip_${side}`),
  ),
  ...NAFLEX_SIZES.map((size) => `naflexvit_${size}_patch16_siglip`),
];

interface Trunk {
  size: Size;
  naflex: boolean;
  gelu: Gelu;
}

/** What timm makes of a model's name, which may have a tag behind a dot; undefined unless it is one of `NAMES`. */
function trunkOf(name: string): Trunk | undefined {
  const [, naflex, size, patch, side] =
    /^(?:hf-hub:timm\/)?(?:(naflex)?vit)_([a-z0-9]+)_patch(\d+)_siglip(?:_(\d+))?(?:\..*)?$/.exec(
      name,
    ) ?? [];
  if (naflex)
    return NAFLEX_SIZES.includes(size as Size) && patch === '16' && !side
      ? { size: size as Size, naflex: true, gelu: 'tanh' }
      : undefined;
  const found = TRUNKS.find(
    (t) => t.size === size && t.patch === Number(patch) && t.sides.includes(Number(side)),
  );
  return found && { size: found.size, naflex: false, gelu: found.gelu };
}

const count = z
  .int()
  .min(1)
  .max(2 ** 31 - 1);
const no = z.union([z.literal(false), z.literal(0)], 'SigLIP has no such thing').nullish();
const side = z.union(
  [
    count,
    z
      .tuple([count, count])
      .refine(([a, b]) => a === b)
      .transform(([a]) => a),
  ],
  'must be a whole number, the same for both axes',
);
const halves = z.union(
  [z.literal(0.5), z.array(z.literal(0.5)).length(3)],
  "must be 0.5, which SigLIP's pixels from -1 to 1 need",
);

const schema = z.looseObject({
  model_cfg: z.looseObject({
    embed_dim: count,
    quick_gelu: no,
    multimodal_cfg: z.null('is of CoCa, which is no SigLIP model').optional(),
    vision_cfg: z.looseObject({
      timm_model_name: z.string('must name a vision tower of timm'),
      image_size: side.nullish().transform((v) => v ?? 224),
      timm_pool: z.literal('map', "must be map, SigLIP's attention pooling"),
      timm_proj: z.literal('none', "must be none: SigLIP's vision tower has no projection"),
    }),
    text_cfg: z.looseObject({
      hf_model_name: z.null("must be absent: SigLIP's text tower is open_clip's own").optional(),
      context_length: count.default(77),
      vocab_size: count.default(49408),
      heads: count.default(8),
      no_causal_mask: z.literal(true, "must be true: SigLIP's text tower looks both ways"),
      pool_type: z.literal('last', 'must be last, the token SigLIP pools'),
      proj_type: z.literal('linear').nullish(),
      proj_bias: z.literal(true, "must be true: SigLIP's projection has a bias"),
      act_kwargs: z
        .looseObject({ approximate: z.enum(['none', 'tanh']).default('none') })
        .nullish(),
      norm_kwargs: z.looseObject({ eps: z.number().positive().default(1e-5) }).nullish(),
      embed_cls: no,
      ls_init_value: no,
      qk_norm: no,
      scaled_cosine_attn: no,
      scale_heads: no,
      scale_attn_inner: no,
      scale_attn: no,
      scale_fc: no,
      tokenizer_mode: z.null('must be absent').optional(),
      tokenizer_kwargs: z
        .looseObject({
          clean: z.enum(['whitespace', 'lower', 'canonicalize']).default('whitespace'),
          strip_sep_token: no,
        })
        .nullish(),
    }),
  }),
  preprocess_cfg: z.looseObject({
    mean: halves,
    std: halves,
    mode: z.literal('RGB').nullish(),
    interpolation: z.enum(['bicubic', 'bilinear'], 'must be bicubic or bilinear').nullish(),
    resize_mode: z.literal(
      'squash',
      "must be squash: SigLIP's images are resized to a square without cropping or padding",
    ),
  }),
});

/** What timm's trunks and SigLIP 2 have. */
const EPS = 1e-6;
/** Deeper than any tower; bounds what damaged names make us count. */
const MOST_LAYERS = 1024;

/** A model of open_clip and how its inputs are made. */
export interface OpenClipModel {
  config: ModelConfig;
  processor: Processor;
  lowercase: 'unicode' | 'none';
}

/**
 * The model that an open_clip_config.json and the tensors' shapes describe. open_clip takes the size of a timm trunk from
 * its name; here it comes from the tensors, so that cut-down models open too, and the number of heads from the name.
 * @param json the parsed file
 * @param file its name, for errors
 * @throws CheckpointError naming the key or the tensor, when the model is not SigLIP's
 */
export function fromOpenClipConfig(
  json: unknown,
  file: string,
  tensors: ReadonlyMap<string, TensorInfo>,
): OpenClipModel {
  const {
    model_cfg: { embed_dim: embed, vision_cfg: vision, text_cfg: text },
    preprocess_cfg: pixels,
  } = check(schema, json, file);
  const name = vision.timm_model_name,
    trunk = trunkOf(name),
    at = (key: string): string => `${file}: key "model_cfg.${key}"`;
  if (!trunk)
    throw new CheckpointError(
      `${at('vision_cfg.timm_model_name')} is "${name}", but the vision towers of SigLIP in timm are ${NAMES.join(', ')}`,
    );
  const eps = text.norm_kwargs?.eps ?? 1e-5;
  if (eps !== EPS)
    throw new CheckpointError(
      `${at('text_cfg.norm_kwargs.eps')} is ${text.norm_kwargs ? eps : `missing, which means ${eps}`}, but timm's vision tower has ${EPS}, and both must be the same`,
    );
  const shape = (key: string): readonly number[] => {
    const found = tensors.get(key);
    if (!found)
      throw new CheckpointError(
        `${file}: the weights beside it hold no tensor "${key}", which ${name} needs; is it a checkpoint of another model?`,
      );
    return found.shape;
  };
  const depth = (block: string): number => {
    let n = 0;
    while (
      n <= MOST_LAYERS &&
      tensors.has(`${block}.${n}.attn.${block.startsWith('text.') ? 'out_' : ''}proj.weight`)
    )
      n++;
    if (n === 0 || n > MOST_LAYERS)
      throw new CheckpointError(
        `${file}: the weights beside it hold ${n === 0 ? 'no layers' : 'too many layers'} of ${block}`,
      );
    return n;
  };
  const patches = shape(
    trunk.naflex ? 'visual.trunk.embeds.proj.weight' : 'visual.trunk.patch_embed.proj.weight',
  );
  const grid = shape(trunk.naflex ? 'visual.trunk.embeds.pos_embed' : 'visual.trunk.pos_embed');
  const width = patches[0] ?? 0,
    patch = trunk.naflex ? Math.sqrt((patches[1] ?? 0) / 3) : (patches[2] ?? 0);
  const cells = trunk.naflex ? (grid[1] ?? 0) : Math.sqrt(grid[1] ?? 0);
  if (!Number.isInteger(patch) || patch < 1 || !Number.isInteger(cells) || cells < 1)
    throw new CheckpointError(
      `${file}: the weights beside it have patches [${patches.join(', ')}] and positions [${grid.join(', ')}], which are not those of a square image`,
    );
  const imageSize = trunk.naflex ? cells * patch : vision.image_size;
  if (Math.floor(imageSize / patch) !== cells)
    throw new CheckpointError(
      `${at('vision_cfg.image_size')} is ${imageSize}, but the weights' positions are of ${cells} × ${cells} patches of ${patch} px`,
    );
  const gelu = (form: Gelu): { gelu?: Gelu } => (form === 'exact' ? { gelu: 'exact' } : {});
  const config: ModelConfig = {
    name: variantName(width, depth('visual.trunk.blocks'), patch),
    naflex: trunk.naflex,
    embed,
    layerNormEps: eps,
    vision: {
      width,
      depth: depth('visual.trunk.blocks'),
      mlp: shape('visual.trunk.blocks.0.mlp.fc1.weight')[0] ?? 0,
      patch,
      imageSize,
      heads:
        SIZES[trunk.size].width / SIZES[trunk.size].heads === 64
          ? width / 64
          : SIZES[trunk.size].heads,
      ...gelu(trunk.gelu),
    },
    text: {
      width: shape('text.token_embedding.weight')[1] ?? 0,
      depth: depth('text.transformer.resblocks'),
      heads: text.heads,
      mlp: shape('text.transformer.resblocks.0.mlp.c_fc.weight')[0] ?? 0,
      vocab: text.vocab_size,
      length: text.context_length,
      pool: 'last',
      ...gelu(text.act_kwargs?.approximate === 'tanh' ? 'tanh' : 'exact'),
    },
    initLogitScale: Math.log(10),
    initLogitBias: -10,
  };
  try {
    checkModelConfig(config);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    throw new CheckpointError(`${file}: ${error.message}`, { cause: error });
  }
  const clean = text.tokenizer_kwargs?.clean ?? 'whitespace';
  return {
    config,
    lowercase: clean === 'whitespace' ? 'none' : 'unicode',
    processor: {
      ...defaultProcessor(config),
      resample: pixels.interpolation === 'bilinear' ? 2 : 3,
      clean,
      maxPatches: trunk.naflex ? Math.floor(vision.image_size / patch) ** 2 : 256,
    },
  };
}

function variantName(width: number, depth: number, patch: number): string {
  return (
    VARIANTS.find((v) => {
      const { vision } = modelConfig(v);
      return vision.width === width && vision.depth === depth && vision.patch === patch;
    }) ?? `custom/${patch}`
  );
}

/** The trunk of timm that has a vision tower's shape. @throws ConfigError when there is none */
function trunkFor(vision: VisionConfig, naflex: boolean): { name: string; gelu: Gelu } {
  const { width, depth, heads, mlp, patch, imageSize } = vision;
  const size = (Object.keys(SIZES) as Size[]).find((s) => {
    const t = SIZES[s];
    return t.width === width && t.depth === depth && t.heads === heads && t.mlp === mlp;
  });
  if (naflex && size && NAFLEX_SIZES.includes(size) && patch === 16 && imageSize === 256)
    return { name: `naflexvit_${size}_patch16_siglip`, gelu: 'tanh' };
  const found = naflex
    ? undefined
    : TRUNKS.find((t) => t.size === size && t.patch === patch && t.sides.includes(imageSize));
  if (found)
    return { name: `vit_${found.size}_patch${patch}_siglip_${imageSize}`, gelu: found.gelu };
  throw new ConfigError(
    `open_clip makes vision towers by the names that timm has, and there is none for ${naflex ? 'a NaFlex tower' : 'one'} of width ${width}, depth ${depth}, ` +
      `${heads} heads, MLP ${mlp}, patch ${patch} and ${imageSize} px; it has ${NAMES.join(', ')}`,
  );
}

/** Names of tokenizers on the hub, which open_clip asks for when the folder has been uploaded. A local folder's own wins. */
const HUB_TOKENIZER: Record<number, string> = {
  32000: 'timm/ViT-B-16-SigLIP',
  250000: 'timm/ViT-B-16-SigLIP-i18n-256',
};
const GEMMA_HUB_TOKENIZER = 'google/siglip2-base-patch16-naflex';

/**
 * open_clip_config.json of a model.
 * @param clean what open_clip's tokenizer does to a text before tokenizer.json sees it
 * @returns the file, and of a model whose GELU timm computes in its other form a sentence that says so
 * @throws ConfigError when open_clip has no such model
 */
export function toOpenClipConfig(
  config: ModelConfig,
  processor: Processor,
): { json: Record<string, unknown>; note: string | undefined } {
  const { vision, text } = config,
    trunk = trunkFor(vision, config.naflex),
    mine = vision.gelu ?? 'tanh';
  if (text.pool !== 'last')
    throw new ConfigError(
      'open_clip\'s text tower pools no text by attention; only models with text.pool "last" can be written for it',
    );
  if (config.layerNormEps !== EPS)
    throw new ConfigError(
      `timm's vision towers have layer_norm_eps ${EPS} but this model has ${config.layerNormEps}`,
    );
  const ratio = text.mlp / text.width;
  const json = {
    model_cfg: {
      embed_dim: config.embed,
      init_logit_bias: config.initLogitBias,
      custom_text: true,
      vision_cfg: {
        image_size: config.naflex ? gridSide(config) * vision.patch : vision.imageSize,
        timm_model_name: trunk.name,
        timm_model_pretrained: false,
        timm_pool: 'map',
        timm_proj: 'none',
      },
      text_cfg: {
        context_length: text.length,
        vocab_size: text.vocab,
        hf_tokenizer_name:
          text.vocab === GEMMA_VOCAB
            ? GEMMA_HUB_TOKENIZER
            : (HUB_TOKENIZER[text.vocab] ?? GEMMA_HUB_TOKENIZER),
        tokenizer_kwargs: {
          clean: processor.clean ?? (processor.generation === 1 ? 'canonicalize' : 'whitespace'),
        },
        width: text.width,
        heads: text.heads,
        layers: text.depth,
        // open_clip rounds width × ratio down.
        mlp_ratio:
          Math.floor(text.width * ratio) === text.mlp ? ratio : (text.mlp + 0.5) / text.width,
        no_causal_mask: true,
        proj_bias: true,
        pool_type: 'last',
        norm_kwargs: { eps: config.layerNormEps },
        ...(text.gelu === 'exact' ? {} : { act_kwargs: { approximate: 'tanh' } }),
      },
    },
    preprocess_cfg: {
      size: [vision.imageSize, vision.imageSize],
      mode: 'RGB',
      mean: [0.5, 0.5, 0.5],
      std: [0.5, 0.5, 0.5],
      interpolation: processor.resample === 2 ? 'bilinear' : 'bicubic',
      resize_mode: 'squash',
      fill_color: 0,
    },
  };
  const note =
    mine === trunk.gelu
      ? undefined
      : `timm's ${trunk.name} computes GELU in its ${trunk.gelu} form but this model in its ${mine} form, ` +
        "so open_clip's image embeddings differ in the third or fourth digit";
  return { json, note };
}
