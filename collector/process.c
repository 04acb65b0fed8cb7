/* What a trace says of its process. */
#include "collector/process.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NOTE_FORMAT                                                                                                    \
	"process {\"pid\": %d, \"parent\": %d, \"rank\": %" PRId64 ", \"local_rank\": %" PRId64                         \
	", \"world_size\": %" PRId64 "}"
#define SCAN_FORMAT                                                                                                    \
	"process {\"pid\": %d, \"parent\": %d, \"rank\": %" SCNd64 ", \"local_rank\": %" SCNd64                         \
	", \"world_size\": %" SCNd64 "}"

static int64_t number(const char *text)
{
	char *end;
	long long n;

	if (!text || *text < '0' || *text > '9')
		return -1;
	n = strtoll(text, &end, 10);
	return *end ? -1 : n;
}

static pid_t parent_of(pid_t pid)
{
	char path[64], line[512], *end;
	pid_t parent = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	file = fopen(path, "re");
	if (!file)
		return 0;
	/* The name before may hold blanks and brackets. */
	if (fgets(line, sizeof(line), file) && (end = strrchr(line, ')')) && sscanf(end + 1, " %*c %d", &parent) != 1)
		parent = 0;
	fclose(file);
	return parent;
}

static void take_variable(const char *variable, struct terra_process *out)
{
	if (!strncmp(variable, "RANK=", 5))
		out->rank = number(variable + 5);
	else if (!strncmp(variable, "LOCAL_RANK=", 11))
		out->local_rank = number(variable + 11);
	else if (!strncmp(variable, "WORLD_SIZE=", 11))
		out->world_size = number(variable + 11);
}

static void read_environment(pid_t pid, struct terra_process *out)
{
	char path[64], *variable = NULL;
	size_t size = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/environ", pid);
	file = fopen(path, "re");
	if (!file)
		return;
	while (getdelim(&variable, &size, 0, file) > 0)
		take_variable(variable, out);
	free(variable);
	fclose(file);
}

void terra_process_describe(pid_t pid, struct terra_process *out)
{
	*out = (struct terra_process){ .pid = pid ? pid : getpid(), .rank = -1, .local_rank = -1, .world_size = -1 };
	if (pid) {
		out->parent = parent_of(pid);
		read_environment(pid, out);
		return;
	}
	out->parent = getppid();
	out->rank = number(getenv("RANK"));
	out->local_rank = number(getenv("LOCAL_RANK"));
	out->world_size = number(getenv("WORLD_SIZE"));
}

void terra_process_note(const struct terra_process *process, char text[TERRA_PROCESS_NOTE])
{
	snprintf(text, TERRA_PROCESS_NOTE, NOTE_FORMAT, process->pid, process->parent, process->rank,
		 process->local_rank, process->world_size);
}

bool terra_process_parse(const char *note, struct terra_process *out)
{
	return sscanf(note, SCAN_FORMAT, &out->pid, &out->parent, &out->rank, &out->local_rank, &out->world_size) == 5;
}
