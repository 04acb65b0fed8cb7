/* main.c - start of libterra_replay.so: reads the settings, waits until libtorch is there, brings up as much as it can.
 *
 * Each level works alone and falls back to the one below: no plan, a plan for something else, or a library that isn't
 * understood leave the allocator; a program without libtorch is left alone.
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
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
		snprintf(why, size, "none is installed for this program; terra-opt --install makes one, TERRA_PLAN names another");
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
	if (why[0] == '\0')
		snprintf(why, size, "%s", reason);
	return false;
}

/* Whether a PyTorch program started this one: then whoever reads its output did not ask for us. */
static bool started_by_torch(void)
{
	char path[32], line[PATH_MAX + 128];
	bool torch = false;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", getppid());
	maps = fopen(path, "re");
	while (maps != NULL && !torch && fgets(line, sizeof(line), maps) != NULL)
		torch = strstr(line, "/libtorch_cpu.so") != NULL;
	if (maps != NULL)
		fclose(maps);
	return torch;
}

/* A shell, or `timeout`: it was told of the plan for the sake of what it starts. */
static bool has_started_others(void)
{
	struct rusage children;

	return getrusage(RUSAGE_CHILDREN, &children) == 0 && children.ru_maxrss > 0;
}

/* A plan that somebody asked for, and nothing to use it for. */
static void tell_of_no_torch(void)
{
	const char *reason;

	if (replay_config.mode >= MODE_OBSERVE && replay_config.plan_named && framework_find(&reason) != 0 &&
	    !started_by_torch() && !has_started_others())
		replay_say("this program used no PyTorch, and no plan: %s", replay_config.plan_path);
}

/* The first tensor memory is asked for: libtorch is mapped and relocated. */
static void on_first_tensor(void)
{
	char why[512];

	if (replay_config.mode < MODE_OBSERVE)
		return;
	if (bring_up(why, sizeof(why)))
		return;
	replay_config.mode = MODE_ALLOC;
	if (replay_config.plan_named || !started_by_torch())
		replay_say("running without a plan: %s", why);
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
	tell_of_no_torch();
	queue_flush(FLUSH_EXIT);
	log_exit(plan);
}
