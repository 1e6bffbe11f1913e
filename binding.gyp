# The way for people without CMake: `npx node-gyp rebuild` builds the CPU device alone, for AVX2 (the compiler's own
# vectors elsewhere). CMakeLists.txt is the whole build.
{
  'targets': [{
    'target_name': 'siglip2',
    'sources': ["<!@(ls native/*.cc native/cpu/*.cc native/ops/*.cc)", 'cuda/none.cc'],
    'include_dirs': ["<!(node -p \"require('node-addon-api').include_dir\")"],
    'defines': [
      'NAPI_VERSION=9', 'NAPI_CPP_EXCEPTIONS', 'ISA=avx2', 'SIGLIP2_REGISTERS_OPS',
      'SIGLIP2_NO_CUDA_REASON="it was built by node-gyp, without CUDA"',
    ],
    'cflags_cc!': ['-fno-exceptions', '-fno-rtti', '-std=gnu++17', '-std=gnu++20'],
    'cflags_cc': [
      '-std=c++20', '-O3', '-fexceptions', '-fopenmp', '-fvisibility=hidden', '-fno-math-errno', '-fno-trapping-math',
      '-ffp-contract=fast', '-Wno-unknown-pragmas',
    ],
    'libraries': ['-ldnnl', '-fopenmp', '-ldl'],
    'ldflags': ['-Wl,-z,nodelete'],  # threads of the OpenMP team may outlive the last Worker that loaded the addon
    'conditions': [['target_arch=="x64"', {'cflags_cc': ['-mavx2', '-mfma', '-mf16c', '-mbmi2']}]],
  }],
}
