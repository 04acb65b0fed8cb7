/* iterations_stream.c - from the events of a trace to the sequence of op identities, and back to seqs. */
#include "collector/iterations.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static uint64_t mix(uint64_t hash, uint64_t v)
{
	hash = (hash ^ v) * 0x100000001b3u;
	return hash ^ hash >> 29;
}

static uint64_t mix_string(uint64_t hash, const char *s)
{
	for (; s && *s; s++)
		hash = mix(hash, (uint8_t)*s);
	return mix(hash, 0x100);
}

static uint64_t mix_tensor(uint64_t hash, const struct terra_tensor *t)
{
	int dims = t->ndim < TERRA_MAX_DIM ? t->ndim : TERRA_MAX_DIM;

	if (!t->defined)
		return mix(hash, 0x101);
	hash = mix(mix(hash, t->ndim), (uint8_t)t->dtype);
	for (int i = 0; i < dims; i++)
		hash = mix(hash, (uint64_t)t->size[i]);
	return hash;
}

/* Numbers are left out: a learning rate or a step count changes, and is still the same op. */
static uint64_t mix_value(uint64_t hash, const struct terra_value *value)
{
	hash = mix(mix(hash, value->kind), value->present);
	if (!value->present)
		return hash;
	switch (value->kind) {
	case TERRA_KIND_TENSOR:
	case TERRA_KIND_OPT_TENSOR:
		return mix_tensor(hash, value->u.tensor);
	case TERRA_KIND_TENSOR_LIST:
	case TERRA_KIND_ITENSOR_LIST:
	case TERRA_KIND_OPT_TENSOR_LIST:
		hash = mix(hash, value->count);
		for (uint32_t i = 0; i < value->recorded; i++)
			hash = mix_tensor(hash, &value->u.tensors[i]);
		return hash;
	default:
		return hash;
	}
}

uint64_t terra_op_identity(const struct terra_event *event, bool shapes)
{
	uint64_t hash = mix_string(mix_string(0xcbf29ce484222325u, event->op), event->overload);

	hash = mix(hash, event->level);
	for (uint32_t i = 0; shapes && i < event->n_values; i++)
		hash = mix_value(hash, &event->values[i]);
	return hash;
}

struct stream_op {
	uint64_t exact;  /* identity with shapes */
	uint64_t coarse; /* without */
	uint64_t seq;
	uint32_t thread;
	bool outermost;  /* no op encloses it */
};

struct terra_op_stream {
	struct stream_op *ops;
	size_t n, capacity;
	uint64_t end_seq; /* of all events, not only the enters */
};

struct terra_op_stream *terra_op_stream_new(void)
{
	return calloc(1, sizeof(struct terra_op_stream));
}

void terra_op_stream_free(struct terra_op_stream *stream)
{
	if (!stream)
		return;
	free(stream->ops);
	free(stream);
}

int terra_op_stream_add(struct terra_op_stream *stream, const struct terra_event *event)
{
	stream->end_seq = event->seq + 1;
	if (event->type != TERRA_EVENT_OP_ENTER)
		return 0;
	if (stream->n == stream->capacity) {
		size_t capacity = stream->capacity ? stream->capacity * 2 : 4096;
		struct stream_op *ops = realloc(stream->ops, capacity * sizeof(*ops));

		if (!ops)
			return -ENOMEM;
		stream->ops = ops;
		stream->capacity = capacity;
	}
	stream->ops[stream->n++] = (struct stream_op){
		.exact = terra_op_identity(event, true),
		.coarse = terra_op_identity(event, false),
		.seq = event->seq,
		.thread = event->thread,
		.outermost = event->parent_seq == UINT64_MAX,
	};
	return 0;
}

static size_t ops_of(const struct terra_op_stream *stream, uint32_t thread)
{
	size_t n = 0;

	for (size_t i = 0; i < stream->n; i++)
		n += stream->ops[i].thread == thread;
	return n;
}

/* The majority candidate (Boyer and Moore) is the busiest thread wherever one does most of the work. */
static uint32_t busiest_thread(const struct terra_op_stream *stream)
{
	uint32_t thread = 0;
	size_t lead = 0;

	for (size_t i = 0; i < stream->n; i++) {
		if (lead == 0)
			thread = stream->ops[i].thread;
		lead += stream->ops[i].thread == thread ? 1 : (size_t)-1;
	}
	return thread;
}

/* With a device, backward runs on a thread of its own and may issue more ops; the program's loop is still here. */
static uint32_t main_thread(const struct terra_op_stream *stream, uint32_t pid)
{
	return ops_of(stream, pid) * 8 >= stream->n ? pid : busiest_thread(stream);
}

struct selection {
	size_t n;
	uint64_t *ids;
	size_t *index; /* in stream->ops */
	size_t *outer; /* position of the op that encloses this one and that none encloses */
};

static int select_thread(const struct terra_op_stream *stream, uint32_t thread, struct selection *s)
{
	size_t n = ops_of(stream, thread);

	s->n = 0;
	s->ids = malloc((n + 1) * sizeof(*s->ids));
	s->index = malloc((n + 1) * sizeof(*s->index));
	s->outer = malloc((n + 1) * sizeof(*s->outer));
	if (!s->ids || !s->index || !s->outer)
		return -ENOMEM;
	for (size_t i = 0; i < stream->n; i++) {
		if (stream->ops[i].thread != thread)
			continue;
		s->index[s->n] = i;
		s->outer[s->n] = s->n == 0 || stream->ops[i].outermost ? s->n : s->outer[s->n - 1];
		s->n++;
	}
	return 0;
}

static int find_with(const struct terra_op_stream *stream, struct selection *s, bool shapes,
		     struct terra_iterations *out)
{
	int err;

	for (size_t i = 0; i < s->n; i++)
		s->ids[i] = shapes ? stream->ops[s->index[i]].exact : stream->ops[s->index[i]].coarse;
	err = terra_iterations_find(s->ids, s->n, out);
	out->shapes = shapes;
	return err;
}

/* Back to the op that encloses the one found: an iteration does not begin inside an op. */
static uint64_t seq_at(const struct terra_op_stream *stream, const struct selection *s, uint64_t position)
{
	return position < s->n ? stream->ops[s->index[s->outer[position]]].seq : stream->end_seq;
}

/* Exact identities describe iterations better; but they must cover the stream: with shapes that change from batch to
 * batch only a few iterations would be alike by chance. */
static bool covers(const struct terra_iterations *found, size_t n)
{
	uint64_t ops = 0;

	for (uint32_t i = 0; i < found->n; i++)
		ops += found->items[i].end - found->items[i].begin;
	return ops * 2 >= n;
}

static int find_best(const struct terra_op_stream *stream, struct selection *s, struct terra_iterations *out)
{
	struct terra_iterations coarse;
	int err = find_with(stream, s, true, out);

	if (err == -ENOMEM || (!err && covers(out, s->n)))
		return err;
	if (find_with(stream, s, false, &coarse) != 0)
		return err;
	if (err || (covers(&coarse, s->n) && coarse.n > 2 * out->n)) {
		terra_iterations_free(out);
		*out = coarse;
		return 0;
	}
	terra_iterations_free(&coarse);
	return err;
}

int terra_op_stream_iterations(const struct terra_op_stream *stream, uint32_t pid, struct terra_iterations *out)
{
	uint32_t thread = main_thread(stream, pid);
	struct selection s = {0};
	int err = select_thread(stream, thread, &s);

	memset(out, 0, sizeof(*out));
	if (!err)
		err = find_best(stream, &s, out);
	for (uint32_t i = 0; !err && i < out->n; i++) {
		out->items[i].begin = seq_at(stream, &s, out->items[i].begin);
		out->items[i].end = seq_at(stream, &s, out->items[i].end);
	}
	out->thread = thread;
	free(s.ids);
	free(s.index);
	free(s.outer);
	return err;
}
