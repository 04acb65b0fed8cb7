#include "collector/bpf/library.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "collector/op_filter.h"

static int open_all(struct library *library, const struct terra_session_options *options, char *err, size_t err_size)
{
	struct terra_bpf_options bpf = {
		.size = sizeof(bpf),
		.levels = options->levels,
		.stack_levels = options->stacks ? 1u << terra_outer_level(options->levels) : 0,
		.ring_bytes = options->ring_bytes,
		.use_cache = options->use_cache,
	};
	int error = terra_op_table_load(library->path, options->use_cache, &library->ops_table, err, err_size);

	if (!error) {
		error = terra_collectives_load(library->ops_table, options->use_cache, &library->collectives);
		library->table = &library->collectives.table;
		if (error)
			snprintf(err, err_size, "out of memory");
	}
	if (!error)
		error = terra_offsets_load(library->path, options->use_cache, &library->offsets, err, err_size);
	if (!error && options->ops)
		error = terra_op_filter(library->table, options->ops, options->levels, &library->wanted, err, err_size);
	bpf.ops = library->wanted;
	if (!error)
		error = terra_bpf_open(library->table, &library->offsets, &bpf, &library->bpf, err, err_size);
	return error;
}

int library_open(const char *path, const struct terra_session_options *options, struct library **out, char *err,
		 size_t err_size)
{
	struct library *library = calloc(1, sizeof(*library));
	int error;

	*out = NULL;
	if (!library || strlen(path) >= sizeof(library->path)) {
		error = library ? -ENAMETOOLONG : -ENOMEM;
		snprintf(err, err_size, "%s: %s", path, strerror(-error));
		free(library);
		return error;
	}
	strcpy(library->path, path);
	error = open_all(library, options, err, err_size);
	if (error)
		library_close(library);
	else
		*out = library;
	return error;
}

void library_close(struct library *library)
{
	if (!library)
		return;
	terra_bpf_close(library->bpf);
	terra_collectives_free(&library->collectives);
	terra_op_table_free(library->ops_table);
	free(library->wanted);
	free(library);
}

bool library_is(const struct library *library, const char *path)
{
	struct stat one, other;

	return !stat(path, &one) && !stat(library->path, &other) && one.st_dev == other.st_dev &&
	       one.st_ino == other.st_ino;
}
