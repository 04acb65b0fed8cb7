/* kinds.c - the table of parameter types; see kinds.h.
 *
 * ABI classes follow from the types' definitions: an object with a non-trivial copy or destructor (SymInt, Generator,
 * Storage and optionals of them) travels as a pointer; anything larger than 16 bytes (an optional of a two-word type)
 * is copied onto the stack; std::optional puts its payload first and the engaged flag behind it. Only types spelled
 * std::optional are taken: PyTorch before 2.2 had a c10::optional with layouts of its own, which stays opaque.
 */
#include "probes/kinds.h"

#include <string.h>

struct known_type {
	const char *text;
	uint8_t kind;
	uint8_t abi;
	uint8_t words;
	uint8_t by_ref;
	uint8_t is_mutable;
};

#define BY_REF(text, kind) {text, TERRA_KIND_##kind, TERRA_ABI_INTEGER, 1, 1, 0}
#define MUTABLE(text, kind) {text, TERRA_KIND_##kind, TERRA_ABI_INTEGER, 1, 1, 1}
#define ONE(text, kind) {text, TERRA_KIND_##kind, TERRA_ABI_INTEGER, 1, 0, 0}
#define TWO(text, kind) {text, TERRA_KIND_##kind, TERRA_ABI_INTEGER_INTEGER, 2, 0, 0}
#define ON_STACK(text, kind) {text, TERRA_KIND_##kind, TERRA_ABI_MEMORY, 3, 0, 0}

#define STRING_VIEW "std::basic_string_view<char, std::char_traits<char> >"

static const struct known_type known_types[] = {
	BY_REF("at::Tensor const&", TENSOR),
	MUTABLE("at::Tensor&", TENSOR),
	BY_REF("std::optional<at::Tensor> const&", OPT_TENSOR),
	TWO("c10::ArrayRef<at::Tensor>", TENSOR_LIST),
	BY_REF("c10::IListRef<at::Tensor> const&", ITENSOR_LIST),
	BY_REF("c10::List<std::optional<at::Tensor> > const&", OPT_TENSOR_LIST),
	BY_REF("c10::Scalar const&", SCALAR),
	BY_REF("std::optional<c10::Scalar> const&", OPT_SCALAR),
	TWO("c10::ArrayRef<c10::Scalar>", SCALAR_LIST),
	ONE("long", INT),
	TWO("std::optional<long>", OPT_INT),
	TWO("c10::ArrayRef<long>", INT_LIST),
	ON_STACK("c10::OptionalArrayRef<long>", OPT_INT_LIST),
	BY_REF("c10::SymInt", SYMINT),
	BY_REF("std::optional<c10::SymInt>", OPT_SYMINT),
	TWO("c10::ArrayRef<c10::SymInt>", SYMINT_LIST),
	ON_STACK("c10::OptionalArrayRef<c10::SymInt>", OPT_SYMINT_LIST),
	{"double", TERRA_KIND_DOUBLE, TERRA_ABI_SSE, 1, 0, 0},
	{"std::optional<double>", TERRA_KIND_OPT_DOUBLE, TERRA_ABI_SSE_INTEGER, 2, 0, 0},
	TWO("c10::ArrayRef<double>", DOUBLE_LIST),
	ON_STACK("std::optional<c10::ArrayRef<double> >", OPT_DOUBLE_LIST),
	ONE("bool", BOOL),
	ONE("std::optional<bool>", OPT_BOOL),
	TWO(STRING_VIEW, STRING),
	ON_STACK("std::optional<" STRING_VIEW " >", OPT_STRING),
	ONE("c10::ScalarType", DTYPE),
	ONE("std::optional<c10::ScalarType>", OPT_DTYPE),
	ONE("c10::Layout", LAYOUT),
	ONE("std::optional<c10::Layout>", OPT_LAYOUT),
	ONE("c10::Device", DEVICE),
	ONE("std::optional<c10::Device>", OPT_DEVICE),
	ONE("c10::MemoryFormat", MEMORY_FORMAT),
	ONE("std::optional<c10::MemoryFormat>", OPT_MEMORY_FORMAT),
	BY_REF("std::optional<at::Generator>", GENERATOR),
	BY_REF("c10::Storage", STORAGE),
	ONE("c10::DispatchKeySet", KEYSET),
	/* Known to travel so, of no use to a graph. */
	ONE("signed char", OPAQUE), /* c10::DeviceIndex */
	ONE("at::Dimname", OPAQUE), /* {uint8_t type; uint32_t symbol} */
	TWO("c10::ArrayRef<at::Dimname>", OPAQUE),
	ON_STACK("std::optional<c10::ArrayRef<at::Dimname> >", OPAQUE),
	TWO("c10::Stream", OPAQUE), /* {Device device; int64_t id} */
	TWO("c10::basic_string_view<char>", OPAQUE), /* before 2.7: {pointer, length}, the other order */
	ON_STACK("std::optional<c10::basic_string_view<char> >", OPAQUE),
};

static bool spelled(const char *text, size_t size, const char *name)
{
	return strlen(name) == size && memcmp(text, name, size) == 0;
}

/* "std::array<bool, Nul>": N bytes in one or two registers. */
static bool classify_bool_array(const char *text, size_t size, struct terra_parameter *out)
{
	static const char head[] = "std::array<bool, ";
	size_t count = 0;

	if (size < sizeof(head) || memcmp(text, head, sizeof(head) - 1) != 0)
		return false;
	for (text += sizeof(head) - 1; *text >= '0' && *text <= '9' && count <= 16; text++)
		count = count * 10 + (size_t)(*text - '0');
	if (count == 0 || count > 16 || memcmp(text, "ul>", 3) != 0)
		return false;
	out->kind = TERRA_KIND_BOOL_ARRAY;
	out->count = (uint8_t)count;
	out->words = count > 8 ? 2 : 1;
	out->abi = count > 8 ? TERRA_ABI_INTEGER_INTEGER : TERRA_ABI_INTEGER;
	return true;
}

static bool is_pointer(const char *text, size_t size)
{
	return size > 0 && (text[size - 1] == '&' || text[size - 1] == '*');
}

void terra_kind_classify(const char *text, size_t size, struct terra_parameter *out)
{
	memset(out, 0, sizeof(*out));
	if (!text)
		return;
	for (size_t i = 0; i < sizeof(known_types) / sizeof(known_types[0]); i++) {
		const struct known_type *type = &known_types[i];

		if (!spelled(text, size, type->text))
			continue;
		out->kind = type->kind;
		out->abi = type->abi;
		out->words = type->words;
		out->by_ref = type->by_ref;
		out->is_mutable = type->is_mutable;
		return;
	}
	if (classify_bool_array(text, size, out) || !is_pointer(text, size))
		return;
	out->abi = TERRA_ABI_INTEGER;
	out->words = 1;
	out->by_ref = 1;
}

const char *terra_kind_name(enum terra_kind kind)
{
	static const char *const names[TERRA_KIND_COUNT] = {
		[TERRA_KIND_OPAQUE] = "opaque",
		[TERRA_KIND_TENSOR] = "Tensor",
		[TERRA_KIND_OPT_TENSOR] = "Tensor?",
		[TERRA_KIND_TENSOR_LIST] = "Tensor[]",
		[TERRA_KIND_ITENSOR_LIST] = "ITensor[]",
		[TERRA_KIND_OPT_TENSOR_LIST] = "Tensor?[]",
		[TERRA_KIND_SCALAR] = "Scalar",
		[TERRA_KIND_OPT_SCALAR] = "Scalar?",
		[TERRA_KIND_SCALAR_LIST] = "Scalar[]",
		[TERRA_KIND_INT] = "int",
		[TERRA_KIND_OPT_INT] = "int?",
		[TERRA_KIND_INT_LIST] = "int[]",
		[TERRA_KIND_OPT_INT_LIST] = "int[]?",
		[TERRA_KIND_SYMINT] = "SymInt",
		[TERRA_KIND_OPT_SYMINT] = "SymInt?",
		[TERRA_KIND_SYMINT_LIST] = "SymInt[]",
		[TERRA_KIND_OPT_SYMINT_LIST] = "SymInt[]?",
		[TERRA_KIND_DOUBLE] = "float",
		[TERRA_KIND_OPT_DOUBLE] = "float?",
		[TERRA_KIND_DOUBLE_LIST] = "float[]",
		[TERRA_KIND_OPT_DOUBLE_LIST] = "float[]?",
		[TERRA_KIND_BOOL] = "bool",
		[TERRA_KIND_OPT_BOOL] = "bool?",
		[TERRA_KIND_BOOL_ARRAY] = "bool[N]",
		[TERRA_KIND_STRING] = "str",
		[TERRA_KIND_OPT_STRING] = "str?",
		[TERRA_KIND_DTYPE] = "ScalarType",
		[TERRA_KIND_OPT_DTYPE] = "ScalarType?",
		[TERRA_KIND_LAYOUT] = "Layout",
		[TERRA_KIND_OPT_LAYOUT] = "Layout?",
		[TERRA_KIND_DEVICE] = "Device",
		[TERRA_KIND_OPT_DEVICE] = "Device?",
		[TERRA_KIND_MEMORY_FORMAT] = "MemoryFormat",
		[TERRA_KIND_OPT_MEMORY_FORMAT] = "MemoryFormat?",
		[TERRA_KIND_GENERATOR] = "Generator?",
		[TERRA_KIND_STORAGE] = "Storage",
		[TERRA_KIND_KEYSET] = "DispatchKeySet",
	};

	return (unsigned)kind < TERRA_KIND_COUNT ? names[kind] : "?";
}
