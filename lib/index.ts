/** siglip2: train SigLIP 2 encoders from Node. */

export { type ConvertOptions, convertCheckpoint } from './checkpoints/convert.js';
export {
  type LoadedModel,
  loadModel,
  type ModelFilesOptions,
  saveModel,
} from './checkpoints/load.js';
export { tokenizerOf } from './checkpoints/tokenizer.js';
export { chooseRows, type FilterOptions, writeKeys, writeTars } from './curation/filter.js';
export { type MergeOptions, mergeScores } from './curation/merge.js';
export { type ScoreOptions, scoreCollection } from './curation/score.js';
export { scoreUnits } from './curation/score_units.js';
export type { Batch } from './data/batch.js';
export { buildEmojiDataset } from './data/datasets/emoji.js';
export { buildScenes } from './data/datasets/scenes.js';
// For a training loop of one's own: docs/custom-loop.md.
export { DataLoader, type LoaderState } from './data/loader.js';
export type { LoaderOptions } from './data/loader_options.js';
export { openSource } from './data/source.js';
export type { SourceSpec } from './data/spec.js';
export type { DescribeOptions, Location } from './encoder/describe.js';
export {
  type DenseFeatures,
  type EncodeOptions,
  Encoder,
  type LoadOptions,
  load,
  type ZeroShotOptions,
} from './encoder/encoder.js';
export { Embeddings, type OutputType } from './encoder/output.js';
export type { LabelScore, Similarity } from './encoder/scores.js';
export { type ErrorCode, Siglip2Error } from './errors.js';
export { decodeImage } from './image/image.js';
export type { ImageInput, RawPixels } from './image/input.js';
export {
  type NaflexBatch,
  type NaflexImage,
  naflexGrid,
  naflexImage,
  packNaflex,
} from './image/naflex.js';
export type { ProcessorName } from './image/processor.js';
export { type ViewBatch, type ViewsConfig, viewsConfig } from './image/views.js';
export { embedImages, embedNaflex, embedTexts } from './inference/embed.js';
export { boxesOfPhrases, captionImages, phrasesOfBoxes } from './inference/localize.js';
export {
  type CaptionBatch,
  type CaptionBatchOptions,
  captionBatch,
  captionLoss,
} from './losses/caption.js';
export {
  distillationLoss,
  type Target,
  TEMPERATURES,
  type Temperatures,
} from './losses/distill.js';
export { maskedLoss, maskedRows } from './losses/masked.js';
export { contrastiveLoss } from './losses/sigmoid.js';
export {
  type AdaptOptions,
  adaptModel,
  adaptTensors,
  type Filter,
  type HostTensor,
  piResize,
  resizePositions,
} from './model/adapt.js';
export { type ModelConfig, modelConfig } from './model/config.js';
export type { ParameterShape, ParamStore, Segment } from './model/params.js';
export { parameterCounts, parameterShapes } from './model/shapes.js';
export { type ModelOptions, Siglip2Model } from './model/siglip2.js';
export { SSL_HEAD, type SslHeadConfig, sslShapes } from './model/ssl_head.js';
export { Teacher, type TeacherOutput } from './model/teacher.js';
export { add, cast, scale } from './ops/elementwise.js';
export { l2Normalize } from './ops/l2_normalize.js';
export { linear } from './ops/linear.js';
export { sigmoidLoss } from './ops/sigmoid_loss.js';
export { type CrossEntropyOptions, softmaxCrossEntropy } from './ops/softmax_cross_entropy.js';
export { gradCache, type PartEncoder, type Roots } from './optim/grad_cache.js';
export { ADAMW_DEFAULTS, AdamW, type AdamWOptions } from './optim/optimizer.js';
export {
  checkSchedule,
  type Schedule,
  type ScheduleKind,
  scheduleMultiplier,
} from './optim/schedule.js';
export {
  backward,
  checkpoint,
  clearTape,
  concatRows,
  noGrad,
  type Param,
  type Root,
  requireGrad,
  reshape,
} from './tape.js';
export {
  type DeviceName,
  type DType,
  empty,
  liveCount,
  memory,
  scope,
  setMemoryLimit,
  synchronize,
  Tensor,
  type TensorData,
  tensor,
  zeros,
} from './tensor.js';
export { loadTokenizer } from './text/tokenizer.js';
export type { VocabMap } from './text/vocab.js';
export {
  checkTrainConfig,
  loadTrainConfig,
  type TrainConfig,
  type TrainConfigInput,
} from './train/config.js';
export { presets } from './train/presets.js';
export {
  SelfDistillation,
  type SelfDistillationOptions,
  type SslLosses,
} from './train/self_distillation.js';
export { type StepMetrics, Trainer, type TrainerOptions } from './train/trainer.js';
export { trimmedVocabulary, type VocabularyOptions } from './train/vocabulary.js';
