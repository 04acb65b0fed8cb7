/* trace_check.h - what can be found wrong with the options of terra-trace before anything is started. */
#ifndef TERRA_TOOLS_TRACE_CHECK_H
#define TERRA_TOOLS_TRACE_CHECK_H

#include "tools/trace_options.h"

/* --library and --ops hold for the library that the program will use, as far as that can be told now. False, and said, where
 * they do not. */
bool trace_check_library(const struct options *options);

/* The process can be attached to. False, and all that is missing is said. */
bool trace_check_rights(const struct options *options);

#endif
