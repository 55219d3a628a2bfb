# Finds the CUDA toolkit, decides what to compile for, and enables the language. Sets HYPERSIMPLEX_CUDA_VERSION (empty
# without CUDA), HYPERSIMPLEX_CUDA_ARCHITECTURES and HYPERSIMPLEX_CUDA_SOURCES.
include(CheckLanguage)

set(HYPERSIMPLEX_CUDA_VERSION "")
set(HYPERSIMPLEX_CUDA_ARCHITECTURES "")
set(minimum_cuda 11.8)  # the first to know sm_89, sm_90 and cudaLaunchKernelEx

# Ends the search: an error if CUDA was asked for, a line of output and a CPU build if not.
macro(hypersimplex_no_cuda reason remedy)
  if(HYPERSIMPLEX_CUDA STREQUAL "ON")
    message(FATAL_ERROR "HYPERSIMPLEX_CUDA=ON, but ${reason}. Either ${remedy}, or build for the CPU alone "
                        "with HYPERSIMPLEX_CUDA=OFF.")
  endif()
  message(STATUS "Building for the CPU alone: ${reason}. For CUDA: ${remedy}.")
  return()
endmacro()

if(NOT HYPERSIMPLEX_CUDA MATCHES "^(ON|OFF|AUTO)$")
  message(FATAL_ERROR "HYPERSIMPLEX_CUDA must be ON, OFF or AUTO, got '${HYPERSIMPLEX_CUDA}'.")
endif()
if(HYPERSIMPLEX_CUDA STREQUAL "OFF")
  message(STATUS "Building for the CPU alone: HYPERSIMPLEX_CUDA=OFF.")
  return()
endif()

if(NOT CMAKE_CUDA_COMPILER)
  unset(CMAKE_CUDA_COMPILER CACHE)  # what an earlier search did not find may be there now
  if(NOT DEFINED ENV{CUDACXX})
    find_program(HYPERSIMPLEX_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin
                 NO_CMAKE_SYSTEM_PATH NO_CACHE)
    if(NOT HYPERSIMPLEX_NVCC)
      hypersimplex_no_cuda("no nvcc was found on PATH, in CUDA_HOME or in CUDA_PATH"
                           "install the CUDA toolkit and put nvcc on PATH or set CUDA_HOME to its folder")
    endif()
    set(ENV{CUDACXX} "${HYPERSIMPLEX_NVCC}")
  endif()
  check_language(CUDA)  # in a project of its own, where a broken toolkit is no error
  if(NOT CMAKE_CUDA_COMPILER)
    hypersimplex_no_cuda("$ENV{CUDACXX} cannot compile and link a trivial program with this host compiler"
                         "repair the CUDA toolkit or set CUDAHOSTCXX to a host compiler that it supports")
  endif()
endif()

# The architectures that were asked for; else the GPU's own; else what is in use, and PTX for what comes later, also
# where the toolkit does not know the GPU. Without a GPU "native" holds a message instead of numbers.
if(DEFINED CMAKE_CUDA_ARCHITECTURES OR DEFINED ENV{CUDAARCHS})
  enable_language(CUDA)
else()
  set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90)
  enable_language(CUDA)
  string(REPLACE "-real" "" unknown "${CMAKE_CUDA_ARCHITECTURES_NATIVE}")
  string(REPLACE "-real" "" known "${CMAKE_CUDA_ARCHITECTURES_ALL}")
  if("100" IN_LIST known AND "120" IN_LIST known)
    list(APPEND CMAKE_CUDA_ARCHITECTURES 100-real 120)
  endif()
  list(REMOVE_ITEM unknown ${known})
  if(CMAKE_CUDA_ARCHITECTURES_NATIVE AND NOT unknown)
    set(CMAKE_CUDA_ARCHITECTURES ${CMAKE_CUDA_ARCHITECTURES_NATIVE})
  endif()
endif()
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS ${minimum_cuda})
  hypersimplex_no_cuda("${CMAKE_CUDA_COMPILER} is of CUDA ${CMAKE_CUDA_COMPILER_VERSION}, older than ${minimum_cuda}"
                       "install CUDA ${minimum_cuda} or newer")
endif()
string(REGEX MATCH "^[0-9]+\\.[0-9]+" HYPERSIMPLEX_CUDA_VERSION "${CMAKE_CUDA_COMPILER_VERSION}")
list(JOIN CMAKE_CUDA_ARCHITECTURES "," HYPERSIMPLEX_CUDA_ARCHITECTURES)
message(STATUS "Building for CUDA ${HYPERSIMPLEX_CUDA_VERSION}, architectures ${HYPERSIMPLEX_CUDA_ARCHITECTURES}.")

set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)

file(GLOB HYPERSIMPLEX_CUDA_SOURCES CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/cuda/*.cu")
