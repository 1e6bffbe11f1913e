// A library without a single symbol of cuBLASLt.
extern "C" int nothing_of_cublaslt() { return 0; }
