/* What can be found wrong before anything is started; see trace_check.h. */
#include "tools/trace_check.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "collector/bpf/backend.h"
#include "collector/op_filter.h"
#include "collector/target.h"
#include "probes/collectives.h"
#include "probes/find.h"
#include "probes/op.h"

/* The one that was named, that a process has mapped, or that its program will look for. */
static bool guess_library(const struct options *options, char *path, size_t size)
{
	char program[4096];

	if (options->library || !options->pid)
		return terra_find_named(options->library, options->pid ? "" : options->argv[0], path, size);
	if (!terra_target_library(options->pid, path, size))
		return true;
	terra_target_program(options->pid, program, sizeof(program));
	return terra_find_named(NULL, program, path, size);
}

/* The preload backend sees no collectives. */
static int check_ops(const struct options *options, const struct terra_op_table *table, char *err, size_t err_size)
{
	struct terra_collectives collectives = { .table = *table };
	uint8_t *mask = NULL;
	int error = 0;

	if (options->backend != BACKEND_PRELOAD)
		error = terra_collectives_load(table, true, &collectives);
	if (!error)
		error = terra_op_filter(&collectives.table, options->ops, options->levels, &mask, err, err_size);
	else
		snprintf(err, err_size, "out of memory");
	free(mask);
	if (options->backend != BACKEND_PRELOAD)
		terra_collectives_free(&collectives);
	return error;
}

bool trace_check_library(const struct options *options)
{
	char path[4096], err[1024];
	struct terra_op_table *table = NULL;
	int error;

	if ((!options->library && !options->ops) || !guess_library(options, path, sizeof(path)))
		return true;
	error = terra_op_table_load(path, true, &table, err, sizeof(err));
	if (error && !options->library) /* what was only guessed proves nothing */
		return true;
	if (!error && options->ops)
		error = check_ops(options, table, err, sizeof(err));
	if (error)
		say("%s", err);
	terra_op_table_free(table);
	return !error;
}

bool trace_check_rights(const struct options *options)
{
	char process[1024], bpf[1024];
	int unseen = terra_target_check(options->pid, process, sizeof(process));
	int unloaded = terra_bpf_supported(bpf, sizeof(bpf));

	if (unseen)
		say("%s", process);
	if (unloaded && (!unseen || unseen == -EACCES || unseen == -EPERM)) /* else no right would help */
		say("the bpf backend cannot be used: %s", bpf);
	return !unseen && !unloaded;
}
