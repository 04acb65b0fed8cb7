/* config.c - settings from the environment, read once before anything else. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

#include "replay/replay.h"

struct replay_config replay_config;

void replay_say(const char *format, ...)
{
	char line[1024];
	int n = snprintf(line, sizeof(line), "terra: ");
	va_list ap;

	va_start(ap, format);
	n += vsnprintf(line + n, sizeof(line) - (size_t)n - 1, format, ap);
	va_end(ap);
	if (n > (int)sizeof(line) - 2)
		n = (int)sizeof(line) - 2;
	line[n] = '\n';
	if (write(STDERR_FILENO, line, (size_t)n + 1) < 0)
		return; /* nobody to tell */
}

static void read_mode(void)
{
	static const char *const names[] = {"off", "alloc", "observe", "replay"};
	const char *text = getenv("TERRA_MODE");

	replay_config.mode = MODE_REPLAY;
	if (text == NULL || *text == '\0')
		return;
	for (int i = 0; i < 4; i++)
		if (strcmp(text, names[i]) == 0) {
			replay_config.mode = (enum replay_mode)i;
			return;
		}
	replay_say("TERRA_MODE=%s is not off, alloc, observe or replay: running with alloc", text);
	replay_config.mode = MODE_ALLOC;
}

static void read_log(void)
{
	char *text = getenv("TERRA_LOG");
	char *copy = text ? strdup(text) : NULL;
	char *next = NULL;

	for (char *part = copy ? strtok_r(copy, ",", &next) : NULL; part != NULL; part = strtok_r(NULL, ",", &next)) {
		if (strcmp(part, "summary") == 0)
			replay_config.log_summary = true;
		else if (strncmp(part, "json:", 5) == 0)
			replay_config.log_json = part + 5;
		else
			replay_say("TERRA_LOG=%s is not summary or json:FILE: ignored", part);
	}
}

static void read_trials(void)
{
	const char *text = getenv("TERRA_TRIALS");

	replay_config.trials = text == NULL || *text == '\0' || strcmp(text, "on") == 0;
	if (!replay_config.trials && strcmp(text, "off") != 0) {
		replay_say("TERRA_TRIALS=%s is not on or off: on", text);
		replay_config.trials = true;
	}
}

static size_t read_size(const char *name, size_t fallback)
{
	const char *text = getenv(name);
	char *end;
	unsigned long long value;

	if (text == NULL)
		return fallback;
	value = strtoull(text, &end, 10);
	return *text != '\0' && *end == '\0' ? (size_t)value << 20 : fallback;
}

void config_read(void)
{
	if (getauxval(AT_SECURE)) {
		replay_config.mode = MODE_OFF;
		return;
	}
	read_mode();
	read_log();
	read_trials();
	replay_config.plan_path = getenv("TERRA_PLAN");
	replay_config.plan_named = replay_config.plan_path != NULL;
	replay_config.held_cap = read_size("TERRA_HELD_CAP_MB", (size_t)64 << 20);
	replay_config.work_cap = read_size("TERRA_WORK_CAP_MB", (size_t)32 << 20);
}
