/* How a program is started for tracing: names, environment, holding, signals, exit status. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "collector/launch.h"
#include "collector/preload_session.h"
#include "probes/op.h"
#include "collector/target.h"

static void expect_name(const char *expected, ...)
{
	char *argv[16] = { NULL }, *name;
	va_list words;

	va_start(words, expected);
	for (int i = 0; i < 15 && (argv[i] = va_arg(words, char *)); i++)
		;
	va_end(words);
	name = terra_target_name(argv);
	assert_string_equal(name, expected);
	free(name);
}

static void test_name(void **state)
{
	expect_name("train", "python", "train.py", NULL);
	expect_name("train", "/usr/bin/python3.11", "-u", "-X", "faulthandler", "-W", "ignore", "dir/train.py", "x.py",
		    NULL);
	expect_name("train", "python3", "-Xdev", "-m", "package.train", "--lr", "1", NULL);
	expect_name("python", "python3", "-c", "import torch", NULL);
	expect_name("python", "python3", NULL);
	expect_name("train", "./train.py", NULL);
	expect_name("train", "/opt/bin/torchrun", "--nproc-per-node", "2", "dir/train.py", "x.py", NULL);
	expect_name("train", "python", "-m", "torch.distributed.run", "--standalone", "train.py", NULL);
	expect_name("torchrun", "torchrun", "-m", "train", "train.pyc", ".py", NULL);
	expect_name("pythonista", "pythonista", "train", NULL);
	expect_name(".hidden", ".hidden", NULL);
	expect_name("a.b", "a.b.c", NULL);
}

static void test_hex(void **state)
{
	char out[9];

	terra_target_hex((const uint8_t[]){ 0x00, 0x1f, 0xff, 0xa5 }, 4, out);
	assert_string_equal(out, "001fffa5");
	terra_target_hex(NULL, 0, out);
	assert_string_equal(out, "");
}

static void test_threads(void **state)
{
	setenv("OMP_NUM_THREADS", "3", 1);
	assert_int_equal(terra_target_threads(getpid()), 3);
	setenv("OMP_NUM_THREADS", "4,2", 1);
	assert_int_equal(terra_target_threads(getpid()), 4);
	setenv("OMP_NUM_THREADS", "many", 1);
	assert_true(terra_target_threads(getpid()) >= 1);
	unsetenv("OMP_NUM_THREADS");
	assert_true(terra_target_threads(getpid()) >= 1);
}

static void test_library(void **state)
{
	char path[4096];

	assert_int_equal(terra_target_library(getpid(), path, sizeof(path)), -ENOENT);
	assert_int_equal(terra_target_library(0x7fffffff, path, sizeof(path)), -ENOENT);
}

static const char *find(char **environment, const char *name)
{
	const char *found = NULL;

	for (; *environment; environment++)
		if (!strncmp(*environment, name, strlen(name))) {
			assert_null(found);
			found = *environment + strlen(name);
		}
	return found;
}

static void test_environment(void **state)
{
	char *before[] = { (char *)"A=1", (char *)"LD_PRELOAD=libm.so.6 libx.so", (char *)"TERRA_RECORD_FILE=old",
			   (char *)"TERRA_RECORD_ITERATIONS=9", NULL };
	struct terra_preload_options options = { .recorder = "/lib/r.so", .output = "/t", .levels = 1, .stacks = true };
	char **after = terra_preload_environment(before, &options);

	assert_string_equal(find(after, "LD_PRELOAD="), "/lib/r.so:libm.so.6 libx.so");
	assert_string_equal(find(after, "A="), "1");
	assert_string_equal(find(after, "TERRA_RECORD_FILE="), "/t");
	assert_string_equal(find(after, "TERRA_RECORD_LEVELS="), "call");
	assert_string_equal(find(after, "TERRA_RECORD_STACKS="), "1");
	assert_null(find(after, "TERRA_RECORD_ITERATIONS="));
	terra_preload_environment_free(after);

	before[1] = NULL;
	options =
		(struct terra_preload_options){ .recorder = "/lib/r.so", .output = "/t", .levels = 3, .limits = { .iterations = 5 }, .children = true };
	after = terra_preload_environment(before, &options);
	assert_string_equal(find(after, "LD_PRELOAD="), "/lib/r.so");
	assert_string_equal(find(after, "TERRA_RECORD_LEVELS="), "call,redispatch");
	assert_string_equal(find(after, "TERRA_RECORD_STACKS="), "0");
	assert_string_equal(find(after, "TERRA_RECORD_ITERATIONS="), "5");
	terra_preload_environment_free(after);
	options.levels = TERRA_LEVELS_OPS;
	after = terra_preload_environment(before, &options);
	assert_string_equal(find(after, "TERRA_RECORD_LEVELS="), "ops");
	terra_preload_environment_free(after);
}

static void start_shell(const char *script, struct terra_launch *launch)
{
	char *argv[] = { (char *)"sh", (char *)"-c", (char *)script, NULL };

	assert_int_equal(terra_launch_start(argv, NULL, launch), 0);
}

static void wait_for_end(struct terra_launch *launch)
{
	for (int i = 0; i < 2000 && !launch->ended; i++)
		terra_launch_wait(launch, 10);
	assert_true(launch->ended);
}

/* Nothing of the program has happened before it is released. */
static void test_held(void **state)
{
	char folder[] = "/tmp/terra-test-XXXXXX", script[128], path[64];
	struct terra_launch launch;

	assert_non_null(mkdtemp(folder));
	snprintf(path, sizeof(path), "%s/file", folder);
	snprintf(script, sizeof(script), "echo >%s; exit 5", path);
	start_shell(script, &launch);
	terra_launch_wait(&launch, 50);
	assert_false(launch.ended);
	assert_int_not_equal(access(path, F_OK), 0);
	assert_int_equal(terra_launch_release(&launch), 0);
	wait_for_end(&launch);
	assert_int_equal(WEXITSTATUS(launch.status), 5);
	assert_int_equal(access(path, F_OK), 0);
	unlink(path);

	start_shell(script, &launch);
	terra_launch_cancel(&launch);
	assert_true(launch.ended);
	assert_int_not_equal(access(path, F_OK), 0);
	rmdir(folder);
}

static void test_failed_exec(void **state)
{
	char *missing[] = { (char *)"/no/such/program", NULL }, *folder[] = { (char *)"/tmp", NULL };
	struct terra_launch launch;

	assert_int_equal(terra_launch_start(missing, NULL, &launch), 0);
	assert_int_equal(terra_launch_release(&launch), -ENOENT);
	assert_true(launch.ended);
	assert_int_equal(terra_launch_start(folder, NULL, &launch), 0);
	assert_int_equal(terra_launch_release(&launch), -EACCES);
	assert_true(launch.ended);
}

/* The program has the signal mask that we had, also at a second attempt. (No shell here: some clear the mask.) */
static void test_mask(void **state)
{
	char *argv[] = { (char *)"grep", (char *)"-q", (char *)"^SigBlk:.0000000000000400$",
			 (char *)"/proc/self/status", NULL };
	struct terra_launch launch;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGSEGV);
	sigprocmask(SIG_SETMASK, &set, NULL);
	assert_int_equal(terra_launch_start(argv, NULL, &launch), 0);
	terra_launch_cancel(&launch);
	assert_int_equal(terra_launch_start(argv, NULL, &launch), 0);
	assert_int_equal(terra_launch_release(&launch), 0);
	wait_for_end(&launch);
	assert_int_equal(launch.status, 0);
}

/* The program gets what is sent to us. */
static void test_signals(void **state)
{
	struct terra_launch launch;

	start_shell("trap 'exit 9' TERM; while :; do sleep 0.01; done", &launch);
	assert_int_equal(terra_launch_release(&launch), 0);
	terra_launch_wait(&launch, 300);
	assert_false(launch.ended);
	kill(getpid(), SIGTERM);
	wait_for_end(&launch);
	assert_int_equal(WEXITSTATUS(launch.status), 9);

	start_shell("kill -KILL $$", &launch);
	assert_int_equal(terra_launch_release(&launch), 0);
	wait_for_end(&launch);
	assert_true(WIFSIGNALED(launch.status));
	assert_int_equal(WTERMSIG(launch.status), SIGKILL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_name),	    cmocka_unit_test(test_hex),		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_library),	    cmocka_unit_test(test_environment), cmocka_unit_test(test_held),
		cmocka_unit_test(test_failed_exec), cmocka_unit_test(test_signals),	cmocka_unit_test(test_mask),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
