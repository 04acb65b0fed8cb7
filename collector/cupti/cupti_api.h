/* cupti_api.h - the functions of the CUPTI that is found in the program, opened at run time: which one that is only shows there. */
#ifndef TERRA_COLLECTOR_CUPTI_API_H
#define TERRA_COLLECTOR_CUPTI_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cupti.h>

struct cupti_api {
	void *library;
	char path[512];   /* of the library, as the loader has it */
	uint32_t version; /* CUPTI_API_VERSION of that library */
	CUptiResult (*get_version)(uint32_t *version);
	CUptiResult (*get_timestamp)(uint64_t *timestamp);
	CUptiResult (*register_callbacks)(CUpti_BuffersCallbackRequestFunc requested, CUpti_BuffersCallbackCompleteFunc completed);
	CUptiResult (*enable)(CUpti_ActivityKind kind);
	CUptiResult (*flush_all)(uint32_t flag);
	CUptiResult (*next_record)(uint8_t *buffer, size_t size, CUpti_Activity **record);
	/* NULL where it has none */
	CUptiResult (*dropped)(CUcontext context, uint32_t stream, size_t *dropped);
	CUptiResult (*flush_period)(uint32_t ms);
	CUptiResult (*register_timestamp)(uint64_t (*clock)(void));
	CUptiResult (*set_thread_id_type)(int type); /* 1: as gettid(2) */
	CUptiResult (*callback_name)(CUpti_CallbackDomain domain, uint32_t id, const char **name);
	CUptiResult (*result_string)(CUptiResult result, const char **text);
	CUptiResult (*push_external)(CUpti_ExternalCorrelationKind kind, uint64_t id);
	CUptiResult (*pop_external)(CUpti_ExternalCorrelationKind kind, uint64_t *last);
};

/* The CUPTI at `path`; NULL: the one that the program has loaded, else the one that the loader finds. It stays loaded. 0, or
 * -errno with a message in err. */
int cupti_api_open(struct cupti_api *api, const char *path, char *err, size_t err_size);

/* CUPTI's words for a result. */
const char *cupti_api_text(const struct cupti_api *api, CUptiResult result);

#endif
