/* From the types that the kernel publishes of itself (BTF). */
#include "collector/bpf/task.h"

#include <bpf/btf.h>
#include <errno.h>
#include <string.h>

/* The member `name` of structure `type`, its own type and its place in bits. */
static int find_member(const struct btf *btf, const struct btf_type *type, const char *name, uint32_t *member_type,
		       uint32_t *bits)
{
	for (uint16_t i = 0; i < btf_vlen(type); i++) {
		const struct btf_member *member = &btf_members(type)[i];
		const char *found = btf__name_by_offset(btf, member->name_off);

		if (!found || strcmp(found, name))
			continue;
		*member_type = member->type;
		*bits += btf_member_bit_offset(type, i);
		return 0;
	}
	return -ENOENT;
}

int task_fsbase_offset(uint32_t *offset)
{
	struct btf *btf = btf__load_vmlinux_btf();
	uint32_t bits = 0, type = 0;
	int id, error;

	if (!btf)
		return -errno;
	id = btf__find_by_name_kind(btf, "task_struct", BTF_KIND_STRUCT);
	error = id < 0 ? id : find_member(btf, btf__type_by_id(btf, (uint32_t)id), "thread", &type, &bits);
	if (!error)
		error = btf_is_struct(btf__type_by_id(btf, type)) ? 0 : -ENOENT;
	if (!error)
		error = find_member(btf, btf__type_by_id(btf, type), "fsbase", &type, &bits);
	btf__free(btf);
	*offset = bits / 8;
	return error;
}
