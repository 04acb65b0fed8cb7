/* launch.h - runs the program that is to be traced: started but held before exec, and then left to itself.
 *
 * The program keeps its terminal, files, signals and exit status. Nothing is traced with ptrace, and when the tracer
 * dies the program goes on.
 */
#ifndef TERRA_COLLECTOR_LAUNCH_H
#define TERRA_COLLECTOR_LAUNCH_H

#include <signal.h>
#include <stdbool.h>
#include <sys/types.h>

struct terra_launch {
	pid_t pid;
	int go_fd;     /* one byte lets the program begin */
	int error_fd;  /* carries the errno of a failed exec */
	int signal_fd; /* signals for us, and the program's end */
	int wake_fd;   /* the caller's: ends a wait when it becomes readable; -1: none */
	int own_signal; /* the caller's: is not passed on, but counted in `own`; 0: none */
	int own;
	sigset_t mask; /* signals that were blocked before, and are for the program */
	bool ended;
	int status; /* as waitpid(2) gives it, once ended */
};

/* Forks a child that will run `argv` (found through PATH). `environment` NULL: ours. The caller's thread must be the
 * only one; signals are blocked in the caller from here on and come through signal_fd. 0 or -errno. */
int terra_launch_start(char *const *argv, char *const *environment, struct terra_launch *launch);

/* Lets it run. 0, or -errno with which exec failed (and then the child has ended). */
int terra_launch_release(struct terra_launch *launch);

/* Waits up to timeout_ms (-1: for ever) for a signal, the program's end, or wake_fd. Signals sent to us alone are passed on;
 * those of the terminal have reached the program already. */
void terra_launch_wait(struct terra_launch *launch, int timeout_ms);

/* Ends this process as the program ended: same exit code, or same signal. */
_Noreturn void terra_launch_exit(const struct terra_launch *launch);

/* Ends a child that was not released; signals are as before terra_launch_start. */
void terra_launch_cancel(struct terra_launch *launch);

#endif
