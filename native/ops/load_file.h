// Values of an open file straight into a tensor: y[i] = convert(file[offset + i]). Reading happens in stream order and
// in parallel, without a copy on the host, so loading a checkpoint needs no memory beyond the parameters themselves.
// CPU only; other devices are loaded through host memory (lib/model/params.ts).
#pragma once
#include "../kernel.h"

KERNEL(
    load_file,
    Tensor y,        // (N) f32 or bf16
    int64_t file,    // descriptor open for reading; it must stay open until the stream has got here
    int64_t offset,  // of the first value, in bytes
    int64_t source,  // type in the file, little-endian: 0 f32, 1 f16, 2 bf16
    int64_t N)
