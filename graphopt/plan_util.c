/* plan_util.c - one-line messages and numbers of the plan library. */
#include <locale.h>
#include <stdarg.h>
#include <stdlib.h>

#include "graphopt/plan_internal.h"

int plan_error(char *err, size_t err_size, int code, const char *format, ...)
{
	va_list args;

	if (err && err_size) {
		va_start(args, format);
		vsnprintf(err, err_size, format, args);
		va_end(args);
	}
	return code;
}

/* The C library hands out its built-in "C" locale here, so nothing is allocated and nothing can fail in practice. */
bool plan_number(const char *text, double *out)
{
	locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
	char *end;

	if (!c || !*text)
		return false;
	*out = strtod_l(text, &end, c);
	freelocale(c);
	return end != text && !*end;
}
