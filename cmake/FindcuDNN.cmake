# cuDNN of a CUDA toolkit: sets cuDNN_FOUND, and defines the target cuDNN::cuDNN. A toolkit elsewhere: CUDA_HOME or CMAKE_PREFIX_PATH.
find_path(cuDNN_INCLUDE_DIR cudnn.h HINTS $ENV{CUDA_HOME} /usr/local/cuda PATH_SUFFIXES include extras/CUPTI/include)
find_library(cuDNN_LIBRARY cudnn HINTS $ENV{CUDA_HOME} /usr/local/cuda PATH_SUFFIXES lib64 lib extras/CUPTI/lib64)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(cuDNN REQUIRED_VARS cuDNN_LIBRARY cuDNN_INCLUDE_DIR)
if(cuDNN_FOUND AND NOT TARGET cuDNN::cuDNN)
	add_library(cuDNN::cuDNN UNKNOWN IMPORTED)
	set_target_properties(cuDNN::cuDNN PROPERTIES IMPORTED_LOCATION ${cuDNN_LIBRARY}
		INTERFACE_INCLUDE_DIRECTORIES ${cuDNN_INCLUDE_DIR})
endif()
mark_as_advanced(cuDNN_INCLUDE_DIR cuDNN_LIBRARY)
