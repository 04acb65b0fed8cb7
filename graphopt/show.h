/* show.h - plans and dropped regions for people and as JSON; what terra-opt prints. */
#ifndef TERRA_GRAPHOPT_SHOW_H
#define TERRA_GRAPHOPT_SHOW_H

#include <stdio.h>

#include "graphopt/graph.h"
#include "graphopt/plan.h"

/* `graph` may be NULL (a plan read from a file): then instances and dropped regions are not known. */
void show_plan(const struct terra_plan *plan, const struct graph *graph, FILE *out);
void show_plan_json(const struct terra_plan *plan, const struct graph *graph, FILE *out);

/* The script of a command line, as replay finds it in its own: the first word behind the interpreter that is no option;
 * false after -c and -m. */
bool command_script(const char *command, char *out, size_t size);

#endif
