# LOLRT_SHARED_HEADERS: a hash of the headers by which liblolrt and liblolrt_cuda know each other's structs. Each library carries it, and
# two that were built from different ones are not used together (csrc/core/cuda.cpp). A changed header makes CMake run again.
set(texts "")
foreach(header core/cuda.h core/ops.h core/page_layout.h core/tensor.h include/lolrt/lolrt.h)
  set(path ${CMAKE_CURRENT_LIST_DIR}/../csrc/${header})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${path})
  file(SHA256 ${path} digest)
  string(APPEND texts ${digest})
endforeach()
string(SHA256 LOLRT_SHARED_HEADERS "${texts}")
string(SUBSTRING ${LOLRT_SHARED_HEADERS} 0 16 LOLRT_SHARED_HEADERS)
