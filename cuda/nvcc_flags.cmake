# Flags of every nvcc compilation. A register spill or a warning fails the build; so do the notes
# that cuda/nvcc_gate.sh looks for, which ptxas prints as information only.
set(SIGLIP2_NVCC_FLAGS
  --Werror=all-warnings
  -Xptxas=--warn-on-spills,--warning-as-error
  -Xcompiler=-Wall,-Wextra)
