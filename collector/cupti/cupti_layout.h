/* cupti_layout.h - how the CUPTI found lays out its records.
 *
 * A record's struct gets longer with CUPTI's versions. The headers that this was built with describe the newest one of their
 * time and older ones; which of them the library in the program makes is found out by asking it: its own
 * cuptiActivityGetNextRecord steps over a record that we made, by the size that the library gives it. A size that none of the
 * known structs has is a layout that is not known, and then nothing of such a record is read.
 */
#ifndef TERRA_COLLECTOR_CUPTI_LAYOUT_H
#define TERRA_COLLECTOR_CUPTI_LAYOUT_H

#include "collector/cupti/cupti_api.h"
#include "record_versions.h"

#define CUPTI_KINDS 128

struct cupti_layouts {
	uint16_t size[CUPTI_KINDS]; /* of the library's record; 0: it does not make such */
	bool known[CUPTI_KINDS];    /* it may be read as the newest struct's first bytes */
};

void cupti_layouts_measure(const struct cupti_api *api, struct cupti_layouts *layouts);

/* Whether a record of `size` bytes of a kind has a layout that the headers describe. */
bool cupti_layout_is_known(CUpti_ActivityKind kind, size_t size);

#endif
