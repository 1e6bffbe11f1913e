/** siglip2: train SigLIP 2 encoders from Node. */
export { Siglip2Error, type ErrorCode } from './errors.js';
export { modelConfig, parameterCounts, parameterShapes, type ModelConfig } from './model/config.js';
export { Siglip2Model, type ModelOptions } from './model/siglip2.js';
export { loadModel, type LoadedModel } from './model/files.js';
export { adaptModel, adaptTensors } from './model/adapt.js';
export { naflexGrid, naflexImage, packNaflex, type NaflexBatch, type NaflexImage } from './data/naflex.js';
export { decodeImage } from './data/image.js';
export { checkTrainConfig, loadTrainConfig, type TrainConfig, type TrainConfigInput } from './train/config.js';
export { Trainer, type StepMetrics } from './train/trainer.js';
export { presets } from './train/presets.js';
export { openSource, type SourceSpec } from './data/source.js';
export { buildEmojiDataset } from './data/datasets/emoji.js';
export { loadTokenizer } from './data/tokenizer.js';
export { embedImages, embedNaflex, embedTexts } from './eval/embed.js';
export { tokenizerOf } from './eval/zero_shot.js';
export { liveCount, memory, scope, setMemoryLimit, tensor, Tensor } from './tensor.js';
export { backward, noGrad } from './tape.js';
export { sigmoidLoss } from './ops/sigmoid_loss.js';
