/* cupti_api.c - finds CUPTI and its functions. */
#include "collector/cupti/cupti_api.h"

#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <stdio.h>
#include <string.h>

static int is_cupti(struct dl_phdr_info *info, size_t size, void *path)
{
	const char *slash = strrchr(info->dlpi_name, '/');

	if (!slash || strncmp(slash, "/libcupti.so", 12) != 0 || strlen(info->dlpi_name) >= 512)
		return 0;
	strcpy(path, info->dlpi_name);
	return 1;
}

/* Two of them in one process are not foreseen: the program's own profiler may have one. */
static void *find_library(const char *path)
{
	static const char *const names[] = { "libcupti.so.13", "libcupti.so.12", "libcupti.so" };
	char loaded[512];
	void *library;

	if (path && path[0])
		return dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (dl_iterate_phdr(is_cupti, loaded))
		return dlopen(loaded, RTLD_NOW | RTLD_LOCAL);
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
		if (library)
			return library;
	}
	return NULL;
}

static void find_path(struct cupti_api *api)
{
	struct link_map *map;

	if (dlinfo(api->library, RTLD_DI_LINKMAP, &map) == 0 && map->l_name)
		snprintf(api->path, sizeof(api->path), "%s", map->l_name);
}

/* Stores the address of a function without a cast between object and function pointers. */
static bool find(void *library, const char *name, void *slot)
{
	void *address = dlsym(library, name);

	memcpy(slot, &address, sizeof(address));
	return address != NULL;
}

static bool find_functions(struct cupti_api *api)
{
	void *l = api->library;

	find(l, "cuptiActivityGetNumDroppedRecords", &api->dropped);
	find(l, "cuptiActivityFlushPeriod", &api->flush_period);
	find(l, "cuptiActivityRegisterTimestampCallback", &api->register_timestamp);
	find(l, "cuptiSetThreadIdType", &api->set_thread_id_type);
	find(l, "cuptiGetCallbackName", &api->callback_name);
	find(l, "cuptiGetResultString", &api->result_string);
	if (!find(l, "cuptiActivityPushExternalCorrelationId", &api->push_external) ||
	    !find(l, "cuptiActivityPopExternalCorrelationId", &api->pop_external))
		api->push_external = NULL;
	return find(l, "cuptiGetVersion", &api->get_version) && find(l, "cuptiGetTimestamp", &api->get_timestamp) &&
	       find(l, "cuptiActivityRegisterCallbacks", &api->register_callbacks) &&
	       find(l, "cuptiActivityEnable", &api->enable) && find(l, "cuptiActivityFlushAll", &api->flush_all) &&
	       find(l, "cuptiActivityGetNextRecord", &api->next_record);
}

int cupti_api_open(struct cupti_api *api, const char *path, char *err, size_t err_size)
{
	const char *why;

	memset(api, 0, sizeof(*api));
	api->library = find_library(path);
	if (!api->library) {
		why = dlerror();
		snprintf(err, err_size, "CUPTI cannot be opened: %s", why ? why : "not found");
		return -ENOENT;
	}
	find_path(api);
	if (find_functions(api) && api->get_version(&api->version) == CUPTI_SUCCESS)
		return 0;
	snprintf(err, err_size, "%s lacks functions that are needed", api->path);
	return -ENOSYS;
}

const char *cupti_api_text(const struct cupti_api *api, CUptiResult result)
{
	const char *text = NULL;

	if (api->result_string && api->result_string(result, &text) == CUPTI_SUCCESS && text)
		return text;
	return "unknown result";
}
