"""What the field's own code makes of checkpoints: one verb a call, JSON out. Run by main.ts, under either transformers.

  peers.py hf FOLDER OUT IMAGES... : ids, embeddings, logits, and the zero-shot pipeline's scores of a folder
  peers.py save FOLDER OUT DTYPE SHARD_SIZE : the folder as transformers saves it, its tokenizer after a padded call
  peers.py save_open_clip FOLDER OUT
  peers.py open_clip FOLDER OUT IMAGES... | peers.py onnx FOLDER OUT IMAGES...
  peers.py benchmark FOLDER OUT : clip_benchmark's zero-shot top-1 of set.npz
"""
import json
import sys

import numpy as np
from PIL import Image

verb, folder, out, *rest = sys.argv[1:]
request = json.load(sys.stdin)
texts, labels = request.get("texts", []), request.get("labels", [])


def ids_of(tokenizer):
    return tokenizer(texts, padding="max_length", max_length=request["length"], truncation=True)["input_ids"]


def pixels(paths):
    """Images that have the model's size already, so no library's resize is asked."""
    return [Image.open(p) for p in paths]


def hf():
    import torch
    import transformers
    from transformers import AutoModel, AutoProcessor, AutoTokenizer, pipeline
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)
    processor, images = AutoProcessor.from_pretrained(folder), pixels(rest)
    ids = ids_of(tokenizer)
    # Siglip2Processor of version 4 asks for patches of 16 px whatever the folder says; its parts do not.
    inputs = {**processor.image_processor(images=images, return_tensors="pt"), "input_ids": torch.tensor(ids)}
    with torch.no_grad():
        o = model(**inputs)
        told = pipeline("zero-shot-image-classification", model=folder, dtype=torch.float32)
        scores = [told(image, candidate_labels=labels, hypothesis_template="{}") for image in images]
    order = [[next(s["score"] for s in row if s["label"] == label) for label in labels] for row in scores]
    return {"version": transformers.__version__, "classes": [type(model).__name__, type(tokenizer).__name__], "ids": ids,
            "names": list(tokenizer("a").keys()), "text": o.text_embeds.tolist(), "image": o.image_embeds.tolist(),
            "logits": o.logits_per_image.tolist(), "scores": order}


def save():
    import torch
    from transformers import AutoModel, AutoProcessor
    dtype, size = rest
    model, processor = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)), AutoProcessor.from_pretrained(folder)
    processor.tokenizer(texts, padding="max_length", max_length=request["length"], truncation=True)
    model.save_pretrained(out, max_shard_size=size)
    processor.save_pretrained(out)
    return {}


def open_clip():
    import open_clip
    import torch
    model, preprocess = open_clip.create_model_from_pretrained("local-dir:" + folder)
    tokenizer = open_clip.get_tokenizer("local-dir:" + folder)
    model.eval()
    with torch.no_grad():
        ids = tokenizer(texts)
        text = model.encode_text(ids, normalize=True)
        image = model.encode_image(torch.stack([preprocess(i) for i in pixels(rest)]), normalize=True)
        logits = model.logit_scale.exp() * image @ text.T + model.logit_bias
    return {"version": open_clip.__version__, "ids": ids.tolist(), "text": text.tolist(), "image": image.tolist(), "logits": logits.tolist()}


def save_open_clip():
    import open_clip
    from open_clip.push_to_hf_hub import save_for_hf
    model, _ = open_clip.create_model_from_pretrained("local-dir:" + folder)
    config = json.load(open(folder + "/open_clip_config.json"))
    save_for_hf(model, open_clip.get_tokenizer("local-dir:" + folder), config["model_cfg"], out, safe_serialization=True, skip_weights=False)
    return {}


def onnx():
    import onnxruntime
    vision, text = (onnxruntime.InferenceSession(f"{folder}/{n}.onnx") for n in ("vision", "text"))
    meta = vision.get_modelmeta().custom_metadata_map
    images = [np.asarray(i, np.float32) / 127.5 - 1 for i in pixels(rest)]
    if any(i.name == "spatial_shapes" for i in vision.get_inputs()):
        P = int(meta["patch_size"])
        rows = [i.reshape(i.shape[0] // P, P, i.shape[1] // P, P, 3).transpose(0, 2, 1, 3, 4).reshape(-1, P * P * 3) for i in images]
        most = max(map(len, rows))
        feed = {"pixel_values": np.stack([np.pad(r, ((0, most - len(r)), (0, 0))) for r in rows]),
                "pixel_attention_mask": np.array([[1] * len(r) + [0] * (most - len(r)) for r in rows], np.int64),
                "spatial_shapes": np.array([[i.shape[0] // P, i.shape[1] // P] for i in images], np.int64)}
    else:
        feed = {"pixel_values": np.stack(images).transpose(0, 3, 1, 2)}
    x = vision.run(["image_embeds"], feed)[0]
    y = text.run(["text_embeds"], {"input_ids": np.array(request["ids"], np.int64)})[0]
    return {"version": onnxruntime.__version__, "text": y.tolist(), "image": x.tolist(),
            "logits": (np.exp(float(meta["logit_scale"])) * x @ y.T + float(meta["logit_bias"])).tolist()}


def benchmark():
    import clip_benchmark
    import torch
    from clip_benchmark.metrics.zeroshot_classification import evaluate
    from transformers import AutoModel, AutoTokenizer
    model, tokenizer = AutoModel.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)
    size, names = request["size"], request["names"]

    class Clip(torch.nn.Module):
        def encode_image(self, x):
            v = model.vision_model(pixel_values=x)
            return v.pooler_output

        def encode_text(self, x):
            return model.text_model(input_ids=x).pooler_output

    raw = np.fromfile(request["images"], np.uint8).reshape(-1, size, size, 3)
    x = torch.from_numpy(raw).permute(0, 3, 1, 2).float() / 127.5 - 1
    pairs = torch.utils.data.TensorDataset(x, torch.tensor(request["targets"]))
    pairs.classes = names
    loader = torch.utils.data.DataLoader(pairs, batch_size=64)
    tokenize = lambda t: tokenizer(t, padding="max_length", max_length=request["length"], truncation=True, return_tensors="pt")["input_ids"]
    found = evaluate(Clip(), loader, tokenize, names, ["{c}"], "cpu", amp=False)
    return {"top1": found["acc1"]}


result = {"hf": hf, "save": save, "open_clip": open_clip, "save_open_clip": save_open_clip, "onnx": onnx, "benchmark": benchmark}[verb]()
json.dump(result, open(out if not verb.startswith("save") else out + "/peers.json", "w"))
