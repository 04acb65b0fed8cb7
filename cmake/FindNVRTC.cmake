# NVRTC of a CUDA toolkit: sets NVRTC_FOUND, and defines the target NVRTC::NVRTC. A toolkit elsewhere: CUDA_HOME or CMAKE_PREFIX_PATH.
find_path(NVRTC_INCLUDE_DIR nvrtc.h HINTS $ENV{CUDA_HOME} /usr/local/cuda PATH_SUFFIXES include extras/CUPTI/include)
find_library(NVRTC_LIBRARY nvrtc HINTS $ENV{CUDA_HOME} /usr/local/cuda PATH_SUFFIXES lib64 lib extras/CUPTI/lib64)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(NVRTC REQUIRED_VARS NVRTC_LIBRARY NVRTC_INCLUDE_DIR)
if(NVRTC_FOUND AND NOT TARGET NVRTC::NVRTC)
	add_library(NVRTC::NVRTC UNKNOWN IMPORTED)
	set_target_properties(NVRTC::NVRTC PROPERTIES IMPORTED_LOCATION ${NVRTC_LIBRARY}
		INTERFACE_INCLUDE_DIRECTORIES ${NVRTC_INCLUDE_DIR})
endif()
mark_as_advanced(NVRTC_INCLUDE_DIR NVRTC_LIBRARY)
