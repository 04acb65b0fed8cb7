/* main.c - start of libterra_replay.so: reads the settings, waits until libtorch is there, brings up as much as it can.
 *
 * Each level works alone and falls back to the one below: no plan, a plan for something else, or a library that isn't
 * understood leave the allocator; a program without libtorch is left alone.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "replay/alloc.h"
#include "replay/arena.h"
#include "replay/guard.h"
#include "replay/hooks.h"
#include "replay/replace.h"
#include "replay/replay.h"

static struct terra_plan *plan;
static pid_t started_in;

static bool take_plan(char *problem, size_t size)
{
	const char *mismatch;

	if (terra_plan_read(replay_config.plan_path, false, &plan, problem, size) != 0)
		return false;
	mismatch = terra_plan_mismatch(plan, framework.build_id);
	if (mismatch != NULL)
		snprintf(problem, size, "%s", mismatch);
	return mismatch == NULL && terra_plan_link(plan, framework.cpu, problem, size) == 0;
}

static bool read_plan(char *why, size_t size)
{
	char problem[256] = "it can't be used";

	if (replay_config.plan_path == NULL)
		replay_config.plan_path = plan_installed_path(framework.build_id);
	if (replay_config.plan_path == NULL) {
		replay_config.mode = MODE_ALLOC;
		why[0] = '\0'; /* nothing was asked for: the allocator alone is what there is */
		return false;
	}
	if (take_plan(problem, sizeof(problem)))
		return true;
	snprintf(why, size, "%s: %s", replay_config.plan_path, problem);
	return false;
}

static bool bring_up(char *why, size_t size)
{
	const char *reason = "";
	int n;

	why[0] = '\0';
	if (framework_find(&reason) != 0 || !read_plan(why, size))
		goto no;
	if (framework_learn(&reason) != 0 || hooks_prepare(plan, why, size) != 0)
		goto no;
	replay_region_counts = calloc(plan->n_regions + 1, sizeof(*replay_region_counts));
	if (replay_region_counts == NULL || queue_init(plan) != 0)
		goto no;
	match_build(plan, hooks_op_number, NULL);
	replace_init(plan);
	if (guard_init() != 0)
		goto no;
	guard_active = true;
	reason = "this kernel can't move pages (mremap with MREMAP_DONTUNMAP, Linux 5.7)";
	if (!queue_usable())
		goto no;
	n = hooks_install();
	if (n > 0)
		return true;
	reason = "no call of the library could be redirected";
no:
	if (why[0] == '\0' && replay_config.mode != MODE_ALLOC)
		snprintf(why, size, "%s", reason);
	return false;
}

/* The first tensor memory is asked for: libtorch is mapped and relocated. */
static void on_first_tensor(void)
{
	char why[512];

	if (replay_config.mode < MODE_OBSERVE)
		return;
	if (!bring_up(why, sizeof(why)) && why[0] != '\0') {
		replay_say("running without a plan: %s", why);
		replay_config.mode = MODE_ALLOC;
	}
}

__attribute__((constructor)) static void start(void)
{
	config_read();
	started_in = getpid();
	if (replay_config.mode == MODE_OFF) {
		alloc_set_enabled(false);
		return;
	}
	guard_wanted = replay_config.mode == MODE_REPLAY;
	alloc_first_call = on_first_tensor;
	threads_init();
}

__attribute__((destructor)) static void finish(void)
{
	if (replay_config.mode == MODE_OFF || getpid() != started_in)
		return;
	queue_flush(FLUSH_EXIT);
	log_exit(plan);
}
