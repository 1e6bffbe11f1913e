# include() this at the top level, then call siglip2_add_cuda(<target>): it adds the kernels.
#   SIGLIP2_CUDA = AUTO  nvcc's build when nvcc is found, else none.cc, which says there is no CUDA
#                = ON    nvcc's build, or an error
#                = OFF   none.cc
#                = HOST  the kernels run on the CPU (cuda/host/); needs no nvcc and no CUDA header
# Defines SIGLIP2_WITH_CUDA on the target when it has kernels, and SIGLIP2_CUDA_HOST on the kernels'
# own files in the HOST build.
set(SIGLIP2_CUDA "AUTO" CACHE STRING "CUDA kernels: AUTO, ON, OFF or HOST")
set_property(CACHE SIGLIP2_CUDA PROPERTY STRINGS AUTO ON OFF HOST)
# PTX of compute_80 for newer GPUs: what is not Hopper's own (90a) uses nothing that came after Ampere.
set(SIGLIP2_CUDA_ARCHS "80;90a-real" CACHE STRING "CUDA architectures")
set(SIGLIP2_CUDA_DIR "${CMAKE_CURRENT_LIST_DIR}")
include("${SIGLIP2_CUDA_DIR}/nvcc_flags.cmake")

if(NOT SIGLIP2_CUDA MATCHES "^(AUTO|ON|OFF|HOST)$")
  message(FATAL_ERROR "SIGLIP2_CUDA must be AUTO, ON, OFF or HOST but is ${SIGLIP2_CUDA}")
endif()

# nvcc takes its libraries from lib64 beside bin, or from targets/ as conda has them; pip's wheels have them in lib. The
# environment is for CMake's checks, SIGLIP2_CUDA_LIB for the link of the addon.
function(siglip2_use_nvcc nvcc)
  set(ENV{CUDACXX} "${nvcc}")
  file(REAL_PATH "${nvcc}" real)
  get_filename_component(bin "${real}" DIRECTORY)
  file(REAL_PATH "${bin}/.." root)
  set(found "")
  foreach(lib lib64 "targets/${CMAKE_SYSTEM_PROCESSOR}-linux/lib" targets/sbsa-linux/lib lib)
    if(NOT found AND EXISTS "${root}/${lib}/libcudart_static.a")
      set(found "${root}/${lib}")
      string(REGEX REPLACE ":$" "" path "${found}:$ENV{LIBRARY_PATH}")
      set(ENV{LIBRARY_PATH} "${path}")
    endif()
  endforeach()
  set(SIGLIP2_CUDA_LIB "${found}" CACHE INTERNAL "Where libcudart_static.a is")
endfunction()

set(SIGLIP2_CUDA_KIND NONE)
set(SIGLIP2_CUDA_REASON "nvcc was not found when it was built")
if(SIGLIP2_CUDA STREQUAL "OFF")
  set(SIGLIP2_CUDA_REASON "it was built with SIGLIP2_CUDA=OFF")
elseif(SIGLIP2_CUDA STREQUAL "HOST")
  set(SIGLIP2_CUDA_KIND HOST)
else()
  include(CheckLanguage)
  # Before check_language, which would choose its own.
  set(CMAKE_CUDA_ARCHITECTURES "${SIGLIP2_CUDA_ARCHS}")
  execute_process(COMMAND sh "${SIGLIP2_CUDA_DIR}/find_nvcc.sh" OUTPUT_VARIABLE nvcc OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(nvcc)
    siglip2_use_nvcc("${nvcc}")
    set(SIGLIP2_CUDA_REASON "${nvcc} could not build a program; CMakeFiles/CheckCUDA/CMakeFiles/CMakeError.log in the build folder says why")
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    set(SIGLIP2_CUDA_KIND NVCC)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake before 3.26 does not know nvcc's C++20
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    endif()
  elseif(SIGLIP2_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SIGLIP2_CUDA is ON but ${SIGLIP2_CUDA_REASON}; `npm run setup -- --cuda` brings an nvcc")
  endif()
endif()
message(STATUS "siglip2: CUDA kernels: ${SIGLIP2_CUDA_KIND}")

function(siglip2_add_cuda target)
  if(SIGLIP2_CUDA_KIND STREQUAL "NONE")
    target_sources(${target} PRIVATE "${SIGLIP2_CUDA_DIR}/none.cc")
    set_property(SOURCE "${SIGLIP2_CUDA_DIR}/none.cc" APPEND PROPERTY
      COMPILE_DEFINITIONS "SIGLIP2_NO_CUDA_REASON=\"${SIGLIP2_CUDA_REASON}\"")
    return()
  endif()
  file(GLOB kernels CONFIGURE_DEPENDS "${SIGLIP2_CUDA_DIR}/*.cu" "${SIGLIP2_CUDA_DIR}/*/*.cu")
  target_sources(${target} PRIVATE ${kernels})
  target_compile_definitions(${target} PRIVATE SIGLIP2_WITH_CUDA)
  if(SIGLIP2_CUDA_KIND STREQUAL "HOST")
    file(GLOB runtime CONFIGURE_DEPENDS "${SIGLIP2_CUDA_DIR}/host/*.cpp")
    target_sources(${target} PRIVATE ${runtime})
    set_source_files_properties(${kernels} PROPERTIES
      LANGUAGE CXX
      COMPILE_OPTIONS "-x;c++;-fno-strict-aliasing;-Wno-unknown-pragmas;-Wno-psabi"
      COMPILE_DEFINITIONS SIGLIP2_CUDA_HOST)
    return()
  endif()
  find_package(Threads REQUIRED)
  target_link_libraries(${target} PRIVATE Threads::Threads)
  if(SIGLIP2_CUDA_LIB)
    target_link_directories(${target} PRIVATE "${SIGLIP2_CUDA_LIB}")
  endif()
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${SIGLIP2_NVCC_FLAGS}>")
  set_target_properties(${target} PROPERTIES
    CUDA_STANDARD 20
    CUDA_STANDARD_REQUIRED ON
    CUDA_RUNTIME_LIBRARY Static
    CUDA_VISIBILITY_PRESET hidden
    CUDA_ARCHITECTURES "${SIGLIP2_CUDA_ARCHS}"
    CUDA_COMPILER_LAUNCHER "sh;${SIGLIP2_CUDA_DIR}/nvcc_gate.sh")
endfunction()
