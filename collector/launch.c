/* Starting the traced program and standing aside. */
#include "collector/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

/* Signals that end or tell a program something. The stopping ones keep their meaning: the terminal stops both of us. */
static const int handled_signals[] = { SIGCHLD, SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH };

static void handled_set(sigset_t *set)
{
	sigemptyset(set);
	for (size_t i = 0; i < sizeof(handled_signals) / sizeof(*handled_signals); i++)
		sigaddset(set, handled_signals[i]);
}

_Noreturn static void run_child(char *const *argv, char *const *environment, const sigset_t *mask, int go, int error_fd)
{
	char byte;
	int error;

	/* End of file instead of a byte: the tracer gave up. */
	if (read(go, &byte, 1) != 1)
		_exit(126);
	close(go);
	sigprocmask(SIG_SETMASK, mask, NULL);
	if (environment)
		execvpe(argv[0], argv, environment);
	else
		execvp(argv[0], argv);
	error = errno;
	while (write(error_fd, &error, sizeof(error)) < 0 && errno == EINTR)
		;
	_exit(error == ENOENT ? 127 : 126);
}

int terra_launch_start(char *const *argv, char *const *environment, struct terra_launch *launch)
{
	int go[2] = { -1, -1 }, failure[2] = { -1, -1 }, error;
	sigset_t set;

	memset(launch, 0, sizeof(*launch));
	launch->wake_fd = -1;
	handled_set(&set);
	sigprocmask(SIG_BLOCK, &set, &launch->mask);
	launch->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (launch->signal_fd < 0 || pipe2(go, O_CLOEXEC) || pipe2(failure, O_CLOEXEC))
		goto err_out;
	launch->pid = fork();
	if (launch->pid < 0)
		goto err_out;
	if (!launch->pid) {
		close(go[1]);
		close(failure[0]);
		run_child(argv, environment, &launch->mask, go[0], failure[1]);
	}
	close(go[0]);
	close(failure[1]);
	launch->go_fd = go[1];
	launch->error_fd = failure[0];
	return 0;
err_out:
	error = -errno;
	for (int i = 0; i < 2; i++) {
		close(go[i]);
		close(failure[i]);
	}
	close(launch->signal_fd);
	sigprocmask(SIG_SETMASK, &launch->mask, NULL);
	return error;
}

static void reap(struct terra_launch *launch, int flags)
{
	pid_t got;

	do
		got = waitpid(launch->pid, &launch->status, flags);
	while (got < 0 && errno == EINTR);
	if (got == launch->pid)
		launch->ended = true;
}

int terra_launch_release(struct terra_launch *launch)
{
	int error = 0;
	ssize_t got;

	while (write(launch->go_fd, "g", 1) < 0 && errno == EINTR)
		;
	close(launch->go_fd);
	launch->go_fd = -1;
	do
		got = read(launch->error_fd, &error, sizeof(error));
	while (got < 0 && errno == EINTR);
	close(launch->error_fd);
	launch->error_fd = -1;
	if (got != (ssize_t)sizeof(error))
		return 0;
	reap(launch, 0);
	return -error;
}

void terra_launch_cancel(struct terra_launch *launch)
{
	close(launch->go_fd);
	close(launch->error_fd);
	reap(launch, 0);
	close(launch->signal_fd);
	sigprocmask(SIG_SETMASK, &launch->mask, NULL);
}

/* The terminal sends ^C to everyone in the foreground, so that the program has had it; kill(1) had only us in mind. */
static void pass_on(struct terra_launch *launch, const struct signalfd_siginfo *info)
{
	if (launch->own_signal && info->ssi_signo == (uint32_t)launch->own_signal)
		launch->own++;
	else if (info->ssi_signo != SIGCHLD && info->ssi_code != SI_KERNEL && !launch->ended)
		kill(launch->pid, (int)info->ssi_signo);
}

void terra_launch_wait(struct terra_launch *launch, int timeout_ms)
{
	struct pollfd ready[2] = { { .fd = launch->signal_fd, .events = POLLIN },
				   { .fd = launch->wake_fd, .events = POLLIN } };
	struct signalfd_siginfo info;

	poll(ready, 2, timeout_ms);
	while (read(launch->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
		pass_on(launch, &info);
	if (!launch->ended)
		reap(launch, WNOHANG);
}

_Noreturn void terra_launch_exit(const struct terra_launch *launch)
{
	struct rlimit none = { 0, 0 };
	sigset_t set;
	int sig;

	if (!WIFSIGNALED(launch->status))
		exit(WEXITSTATUS(launch->status));
	/* The program may have left a core file; ours would replace it. */
	setrlimit(RLIMIT_CORE, &none);
	sig = WTERMSIG(launch->status);
	signal(sig, SIG_DFL);
	sigemptyset(&set);
	sigaddset(&set, sig);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	raise(sig);
	exit(128 + sig);
}
