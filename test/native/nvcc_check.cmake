# cmake -P nvcc_check.cmake: compiles every cuda/*.cu, and the kernels of these tests, with nvcc for
# sm_80 and sm_90a under the gates of the real build (warnings, register spills, wgmma serialised).
# Skipped when nvcc is not there.
get_filename_component(cuda_dir "${CMAKE_CURRENT_LIST_DIR}/../../cuda" ABSOLUTE)
include("${cuda_dir}/nvcc_flags.cmake")
find_program(NVCC nvcc HINTS /usr/local/cuda/bin)
if(NOT NVCC)
  message("nvcc-check: skipped, nvcc was not found")
  return()
endif()
file(GLOB sources "${cuda_dir}/*.cu" "${CMAKE_CURRENT_LIST_DIR}/kernels/*.cu")
set(failed "")
foreach(source ${sources})
  get_filename_component(name "${source}" NAME)
  execute_process(
    COMMAND sh "${cuda_dir}/nvcc_gate.sh" "${NVCC}" -std=c++20 ${SIGLIP2_NVCC_FLAGS}
      -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a --threads 2
      -c "${source}" -o /dev/null
    RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(status EQUAL 0)
    message("nvcc-check: ${name}: ok")
  else()
    message("nvcc-check: ${name}: FAILED\n${output}")
    list(APPEND failed "${name}")
  endif()
endforeach()
if(failed)
  message(FATAL_ERROR "nvcc-check: ${failed} did not pass")
endif()
