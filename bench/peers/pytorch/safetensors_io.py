"""A tiny safetensors reader and writer with numpy; independent of the TypeScript one."""
import json
import struct

import numpy as np

DTYPES = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "U8": np.uint8, "I32": np.int32, "I64": np.int64}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def read(path):
    """All tensors of a file: {name: array}."""
    with open(path, "rb") as file:
        raw = file.read()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, info in header.items():
        begin, end = info["data_offsets"]
        values = np.frombuffer(raw[8 + length + begin:8 + length + end], DTYPES[info["dtype"]])
        tensors[name] = values.reshape(info["shape"]).copy()
    return tensors


def write(path, tensors, dtype=None):
    """Writes {name: array}; array dtypes must be among DTYPES, or `dtype` says what all hold."""
    header, blocks, at = {}, [], 0
    for name, values in tensors.items():
        # ascontiguousarray makes scalars one-dimensional, so the shape is taken before.
        shape, values = list(np.shape(values)), np.ascontiguousarray(values)
        header[name] = {"dtype": dtype or NAMES[values.dtype], "shape": shape,
                        "data_offsets": [at, at + values.nbytes]}
        blocks.append(values.tobytes())
        at += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for block in blocks:
            file.write(block)
