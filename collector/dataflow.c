/* dataflow.c - the last writer of each storage. */
#include "collector/dataflow.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "collector/trace_format.h"
#include "collector/trace_intern.h"

/* Memory as a tensor describes it. */
struct place {
	uint64_t address; /* of the StorageImpl; where that could not be read, its memory's; 0: neither is known */
	uint64_t data;
	uint64_t bytes;
};

struct terra_dataflow_ref {
	uint64_t impl;
	struct place place;
	uint32_t argument; /* number of the argument that holds it */
};

/* What is at an address. An entry of an earlier epoch says nothing any more. */
struct storage {
	uint64_t id;
	struct place place;
	uint64_t producer;
	uint64_t born; /* time on our clock, which counts calls */
	uint64_t epoch;
};

struct tensor {
	uint64_t id;
	uint64_t storage_id;
	uint64_t born;
	uint64_t epoch;
};

struct terra_dataflow {
	struct trace_intern storages, tensors; /* by address */
	struct trace_buffer storage_data, tensor_data;
	uint64_t n_storages, n_tensors;
	uint64_t clock;
	uint64_t epoch;
};

struct terra_dataflow *terra_dataflow_new(void)
{
	struct terra_dataflow *flow = calloc(1, sizeof(*flow));

	if (flow)
		flow->epoch = 1;
	return flow;
}

void terra_dataflow_free(struct terra_dataflow *flow)
{
	if (!flow)
		return;
	trace_intern_free(&flow->storages);
	trace_intern_free(&flow->tensors);
	free(flow->storage_data.data);
	free(flow->tensor_data.data);
	free(flow);
}

void terra_dataflow_forget(struct terra_dataflow *flow)
{
	flow->epoch++;
}

/* Entries of the two tables. */

static void *entry_of(struct trace_intern *intern, struct trace_buffer *data, size_t each, uint64_t address)
{
	struct trace_intern_entry *entry = trace_intern_get(intern, &address, sizeof(address));
	size_t index;

	if (!entry)
		return NULL;
	index = (size_t)(entry - intern->entries);
	if (data->size == index * each) {
		if (!trace_buffer_reserve(data, each))
			return NULL;
		memset(data->data + data->size, 0, each);
		data->size += each;
	}
	return data->data + index * each;
}

static struct place place_of(const struct terra_tensor *t)
{
	return (struct place){
	    .address = t->storage ? t->storage : t->storage_data, .data = t->storage_data, .bytes = t->storage_bytes};
}

static struct storage *storage_at(struct terra_dataflow *flow, const struct place *place)
{
	return entry_of(&flow->storages, &flow->storage_data, sizeof(struct storage), place->address);
}

static struct tensor *tensor_at(struct terra_dataflow *flow, const struct terra_tensor *t)
{
	return entry_of(&flow->tensors, &flow->tensor_data, sizeof(struct tensor), t->impl);
}

static bool same_storage(const struct terra_dataflow *flow, const struct storage *s, const struct place *place)
{
	return s->epoch == flow->epoch && s->place.data == place->data && s->place.bytes == place->bytes;
}

static void begin_storage(struct terra_dataflow *flow, struct storage *s, const struct place *place, uint64_t producer)
{
	*s = (struct storage){
	    .id = ++flow->n_storages, .place = *place, .producer = producer, .born = flow->clock, .epoch = flow->epoch};
}

static void begin_tensor(struct terra_dataflow *flow, struct tensor *entry, uint64_t storage_id)
{
	*entry = (struct tensor){
	    .id = ++flow->n_tensors, .storage_id = storage_id, .born = flow->clock, .epoch = flow->epoch};
}

int terra_dataflow_look(struct terra_dataflow *flow, const struct terra_tensor *tensor, struct terra_dataflow_ids *ids)
{
	const struct place place = place_of(tensor);
	struct tensor *entry = tensor_at(flow, tensor);
	struct storage *s;
	uint64_t storage_id = 0;

	*ids = (struct terra_dataflow_ids){.producer = TERRA_DATAFLOW_NONE};
	if (!entry)
		return -ENOMEM;
	if (place.address) {
		s = storage_at(flow, &place);
		if (!s)
			return -ENOMEM;
		if (!same_storage(flow, s, &place))
			begin_storage(flow, s, &place, TERRA_DATAFLOW_NONE);
		storage_id = s->id;
		ids->producer = s->producer;
	}
	if (entry->epoch != flow->epoch || entry->storage_id != storage_id)
		begin_tensor(flow, entry, storage_id);
	ids->tensor = entry->id;
	ids->storage = storage_id;
	return 0;
}

/* Calls. */

const struct terra_tensor *terra_value_tensors(const struct terra_value *value, uint32_t *n)
{
	enum trace_form form = trace_form_of(value->kind);

	*n = 0;
	if (!value->present)
		return NULL;
	if (form == TRACE_FORM_TENSOR) {
		*n = 1;
		return value->u.tensor;
	}
	if (form != TRACE_FORM_TENSORS)
		return NULL;
	*n = value->recorded;
	return value->u.tensors;
}

static bool is_cut(const struct terra_value *value)
{
	return value->present && value->recorded < value->count && trace_form_of(value->kind) == TRACE_FORM_TENSORS;
}

static uint32_t count_tensors(const struct terra_event *event)
{
	uint32_t all = 0, n;

	for (uint32_t i = 0; i < event->n_values; i++) {
		terra_value_tensors(&event->values[i], &n);
		all += n;
	}
	return all;
}

int terra_dataflow_enter(struct terra_dataflow *flow, const struct terra_event *event, struct terra_dataflow_call *call)
{
	uint32_t n = count_tensors(event);

	*call = (struct terra_dataflow_call){.begin = ++flow->clock};
	if (n == 0)
		return 0;
	call->refs = malloc(n * sizeof(*call->refs));
	if (!call->refs)
		return -ENOMEM;
	for (uint32_t i = 0; i < event->n_values; i++) {
		const struct terra_tensor *tensors = terra_value_tensors(&event->values[i], &n);

		call->cut |= is_cut(&event->values[i]);
		for (uint32_t k = 0; k < n; k++)
			if (tensors[k].defined)
				call->refs[call->n_refs++] = (struct terra_dataflow_ref){
				    .impl = tensors[k].impl, .place = place_of(&tensors[k]), .argument = i};
	}
	return 0;
}

static void end_call(struct terra_dataflow_call *call)
{
	free(call->refs);
	*call = (struct terra_dataflow_call){0};
}

void terra_dataflow_drop(struct terra_dataflow *flow, struct terra_dataflow_call *call)
{
	terra_dataflow_forget(flow);
	if (call)
		end_call(call);
}

/* What is written. */

static const char *base_name(const char *op)
{
	const char *colons = strstr(op, "::");

	return colons ? colons + 2 : op;
}

/* mul_, but not __lshift__; __iand__, __ilshift__ */
static bool is_in_place(const char *op)
{
	const char *name = base_name(op);
	size_t length = strlen(name);

	if (length < 2 || name[length - 1] != '_')
		return false;
	return name[length - 2] != '_' || strncmp(name, "__i", 3) == 0;
}

/* Whether the results are the call's last arguments, in order. */
static bool is_out_variant(const struct terra_dataflow_call *call, const struct terra_event *event)
{
	uint32_t n = count_tensors(event), results, at;

	if (n == 0 || n > call->n_refs)
		return false;
	at = call->n_refs - n;
	if (call->refs[at].argument == 0)
		return false;
	for (uint32_t i = 0; i < event->n_values; i++) {
		const struct terra_tensor *tensors = terra_value_tensors(&event->values[i], &results);

		for (uint32_t k = 0; k < results; k++, at++)
			if (!tensors[k].defined || tensors[k].impl != call->refs[at].impl)
				return false;
	}
	return true;
}

/* Addresses of a call's arguments, in order, so that long lists are no slower to look up. */
struct addresses {
	uint64_t *impls;
	uint64_t *places;
	uint32_t n;
};

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static bool addresses_of(const struct terra_dataflow_call *call, struct addresses *out)
{
	*out = (struct addresses){.n = call->n_refs};
	if (out->n == 0)
		return true;
	out->impls = malloc(2 * out->n * sizeof(*out->impls));
	if (!out->impls)
		return false;
	out->places = out->impls + out->n;
	for (uint32_t i = 0; i < out->n; i++) {
		out->impls[i] = call->refs[i].impl;
		out->places[i] = call->refs[i].place.address;
	}
	qsort(out->impls, out->n, sizeof(*out->impls), compare_u64);
	qsort(out->places, out->n, sizeof(*out->places), compare_u64);
	return true;
}

static bool is_among(const uint64_t *sorted, uint32_t n, uint64_t v)
{
	return n && bsearch(&v, sorted, n, sizeof(v), compare_u64);
}

static int write_place(struct terra_dataflow *flow, const struct place *place, uint64_t writer)
{
	struct storage *s = place->address ? storage_at(flow, place) : NULL;

	if (!s)
		return place->address ? -ENOMEM : 0;
	if (same_storage(flow, s, place))
		s->producer = writer;
	else
		begin_storage(flow, s, place, writer);
	return 0;
}

/* Of an op in place that returns nothing, or was left by an exception and may have written some. */
static int write_arguments(struct terra_dataflow *flow, const struct terra_dataflow_call *call, const char *op,
			   uint64_t writer)
{
	bool all = strncmp(base_name(op), "_fused_", 7) == 0;
	int err = 0;

	for (uint32_t i = 0; i < call->n_refs && !err; i++)
		if (all || call->refs[i].argument == 0)
			err = write_place(flow, &call->refs[i].place, writer);
	return err;
}

/* A result whose storage no argument has. One that an op inside made is that value still. */
static int take_new(struct terra_dataflow *flow, const struct terra_dataflow_call *call, const struct place *place,
		    uint64_t writer)
{
	struct storage *s = storage_at(flow, place);

	if (!s)
		return -ENOMEM;
	if (same_storage(flow, s, place) && s->born >= call->begin)
		s->producer = writer;
	else
		begin_storage(flow, s, place, writer);
	return 0;
}

static int take_result(struct terra_dataflow *flow, const struct terra_dataflow_call *call,
		       const struct addresses *known, const struct terra_tensor *t, bool writes, uint64_t writer)
{
	const struct place place = place_of(t);
	bool same_impl = is_among(known->impls, known->n, t->impl);
	struct terra_dataflow_ids ids;
	struct tensor *entry = tensor_at(flow, t);
	int err = 0;

	if (!entry)
		return -ENOMEM;
	if (place.address && !is_among(known->places, known->n, place.address))
		err = take_new(flow, call, &place, writer);
	else if (writes && same_impl)
		err = write_place(flow, &place, writer);
	if (err)
		return err;
	if (!same_impl && entry->born < call->begin)
		entry->epoch = 0; /* a new TensorImpl, even where another one was before */
	return terra_dataflow_look(flow, t, &ids);
}

static int take_results(struct terra_dataflow *flow, const struct terra_dataflow_call *call,
			const struct terra_event *event, bool writes, uint64_t writer)
{
	struct addresses known;
	uint32_t n;
	int err = 0;

	if (!addresses_of(call, &known))
		return -ENOMEM;
	for (uint32_t i = 0; i < event->n_values; i++) {
		const struct terra_tensor *tensors = terra_value_tensors(&event->values[i], &n);

		for (uint32_t k = 0; k < n && !err; k++)
			if (tensors[k].defined)
				err = take_result(flow, call, &known, &tensors[k], writes, writer);
	}
	free(known.impls);
	return err;
}

static bool any_cut(const struct terra_event *event)
{
	for (uint32_t i = 0; i < event->n_values; i++)
		if (is_cut(&event->values[i]))
			return true;
	return false;
}

int terra_dataflow_exit(struct terra_dataflow *flow, struct terra_dataflow_call *call, const struct terra_event *event,
			uint64_t writer)
{
	bool in_place = is_in_place(event->op);
	int err;

	if (call->cut || any_cut(event))
		terra_dataflow_forget(flow); /* what it read or wrote is not all in the trace */
	if (in_place && count_tensors(event) == 0)
		err = write_arguments(flow, call, event->op, writer);
	else
		err = take_results(flow, call, event, in_place || is_out_variant(call, event), writer);
	end_call(call);
	return err;
}
