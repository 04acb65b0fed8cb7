/* Functions that only give something back; see releases.h. */
#include "collector/bpf/releases.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool frees(const char *name)
{
	static const char *const names[] = {"free", "_ZdlPv", "_ZdlPvm", "_ZdlPvSt11align_val_t", "_ZdlPvmSt11align_val_t"};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strcmp(name, names[i]) == 0)
			return true;
	return false;
}

static bool begins_with(const char *name, const char *prefix)
{
	return strncmp(name, prefix, strlen(prefix)) == 0;
}

/* Compilers put what they changed behind a dot: a parameter passed otherwise (.isra), or known (.constprop). */
static bool is_method(const char *rest, const char *method)
{
	size_t size = strlen(method);

	return begins_with(rest, method) && (!rest[size] || rest[size] == '.');
}

/* c10::SymInt::release_(), and c10::intrusive_ptr<...>::reset_() of what no op's result refers to, under its names. */
static bool gives_reference_back(const char *name)
{
	static const char *const pointers[] = {
		"_ZN3c1013intrusive_ptrINS_11SymNodeImplENS_6detail34intrusive_target_default_null_typeIS1_EEE",
		"_ZN3c1013intrusive_ptrINS_13GeneratorImplENS_6detail34intrusive_target_default_null_typeIS1_EEE",
	};

	if (is_method(name, "_ZN3c106SymInt8release_Ev"))
		return true;
	for (size_t i = 0; i < sizeof(pointers) / sizeof(pointers[0]); i++)
		if (begins_with(name, pointers[i]))
			return is_method(name + strlen(pointers[i]), "6reset_Ev") ||
			       is_method(name + strlen(pointers[i]), "15reset_not_null_EPS1_");
	return false;
}

static int add(struct releases_list *list, uint64_t address)
{
	if (list->n == list->capacity) {
		size_t capacity = list->capacity ? 2 * list->capacity : 16;
		uint64_t *grown = realloc(list->addresses, capacity * sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		list->addresses = grown;
		list->capacity = capacity;
	}
	list->addresses[list->n++] = address;
	return 0;
}

static int add_function(void *context, const Elf64_Sym *symbol, const char *name)
{
	return gives_reference_back(name) ? add(context, symbol->st_value) : 0;
}

static int add_slots(struct releases *releases, const Elf64_Rela *relocations, size_t n)
{
	const struct terra_elf *elf = releases->elf;
	int error = 0;

	for (size_t i = 0; i < n && !error; i++) {
		size_t symbol = ELF64_R_SYM(relocations[i].r_info);
		const char *name;

		if (!symbol || symbol >= elf->n_symbols)
			continue;
		name = terra_elf_symbol_name(elf, &elf->symbols[symbol]);
		if (name && (frees(name) || gives_reference_back(name)))
			error = add(&releases->slots, relocations[i].r_offset);
	}
	return error;
}

static int find_slots(struct releases *releases)
{
	int error = 0;

	for (size_t i = 0; i < releases->elf->n_sections && !error; i++) {
		size_t size;
		const uint8_t *data;

		if (strcmp(terra_elf_section_name(releases->elf, i), ".rela.plt") != 0)
			continue;
		data = terra_elf_section_data(releases->elf, i, &size);
		if (data && (uintptr_t)data % _Alignof(Elf64_Rela) == 0)
			error = add_slots(releases, (const Elf64_Rela *)(const void *)data, size / sizeof(Elf64_Rela));
	}
	return error;
}

static int compare(const void *one, const void *other)
{
	uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;

	return (a > b) - (a < b);
}

static void sort(struct releases_list *list)
{
	if (list->n)
		qsort(list->addresses, list->n, sizeof(*list->addresses), compare);
}

static bool has(const struct releases_list *list, uint64_t address)
{
	return list->n && bsearch(&address, list->addresses, list->n, sizeof(address), compare);
}

int releases_open(struct releases *releases, const struct terra_elf *elf)
{
	int error;

	*releases = (struct releases){.elf = elf};
	error = find_slots(releases);
	if (!error)
		error = terra_elf_functions(elf, SHT_SYMTAB, add_function, &releases->functions);
	sort(&releases->slots);
	sort(&releases->functions);
	return error;
}

void releases_close(struct releases *releases)
{
	free(releases->functions.addresses);
	free(releases->slots.addresses);
}

/* A stub of the procedure linkage table: jmp *slot(%rip), maybe behind endbr64 and with a bnd prefix. */
static bool find_slot(const struct terra_elf *elf, uint64_t address, uint64_t *slot)
{
	const uint8_t *bytes;
	uint64_t offset;
	size_t at = 0;
	int32_t by;

	if (!terra_elf_file_offset(elf, address, &offset) || elf->size - offset < 16)
		return false;
	bytes = elf->data + offset;
	if (memcmp(bytes, "\xf3\x0f\x1e\xfa", 4) == 0)
		at = 4;
	at += bytes[at] == 0xf2;
	if (bytes[at] != 0xff || bytes[at + 1] != 0x25)
		return false;
	memcpy(&by, bytes + at + 2, 4);
	*slot = address + at + 6 + (uint64_t)(int64_t)by;
	return true;
}

bool releases_is(const struct releases *releases, uint64_t address)
{
	uint64_t slot;

	return has(&releases->functions, address) ||
	       (find_slot(releases->elf, address, &slot) && has(&releases->slots, slot));
}
