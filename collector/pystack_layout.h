/* pystack_layout.h - plain data that describes CPython's frames and one walked stack; shared by BPF and user space. */
#ifndef TERRA_COLLECTOR_PYSTACK_LAYOUT_H
#define TERRA_COLLECTOR_PYSTACK_LAYOUT_H

#include <stdint.h>

#define PYSTACK_FRAME_BYTES 80	/* covers every frame field used; smaller than any _PyInterpreterFrame */
#define PYSTACK_CODE_BYTES 160	/* likewise for PyCodeObject */
#define PYSTACK_MAX_FRAMES 64	/* frames recorded of one stack, innermost first */
#define PYSTACK_MAX_THREADS 256 /* thread states looked at for one thread */

/* Where things lie in one interpreter, in bytes. Plain data: copied into a BPF map as it is. Fields marked "address"
 * are addresses in the traced process. */
struct pystack_layout {
	uint64_t threads_head; /* address of the word that points to the first thread state of the main interpreter */
	uint64_t code_type;    /* address of PyCode_Type */
	uint64_t unicode_type; /* address of PyUnicode_Type */
	uint64_t bytes_type;   /* address of PyBytes_Type */
	uint64_t get_state;    /* address of PyGILState_GetThisThreadState, 0: not exported */
	uint32_t version;      /* PY_VERSION_HEX */
	uint16_t state_next;   /* PyThreadState */
	uint16_t state_native_id;
	uint16_t state_frame;  /* the current frame, or the _PyCFrame that holds it */
	uint16_t cframe_frame; /* _PyCFrame: current frame */
	uint8_t has_cframe;    /* 3.11 and 3.12 */
	uint8_t frame_code;    /* _PyInterpreterFrame: the code object; low bits may be tags */
	uint8_t frame_previous;
	uint8_t frame_instr; /* address of the instruction that runs, or of the last one that began */
	uint8_t frame_owner;
	uint8_t owner_native; /* owners from this value on mark frames of the interpreter itself: no Python code */
	uint8_t code_first_line;
	uint8_t code_filename;
	uint8_t code_name;
	uint8_t code_qualname;
	uint8_t code_linetable;
	uint8_t code_bytecode; /* offset of the first instruction */
	uint8_t bytes_size;    /* PyBytesObject */
	uint8_t bytes_data;
	uint8_t unicode_length; /* PyASCIIObject */
	uint8_t unicode_state;
	uint8_t unicode_ascii;	 /* characters of a compact ASCII string */
	uint8_t unicode_compact; /* characters of any other compact string */
	uint8_t frame_locals;  /* _PyInterpreterFrame: the first local variable; low bits may be tags; 0: not known */
	uint8_t code_flags;
	uint8_t code_argcount;
	uint8_t padding[1];
};

/* One frame of a stack. `check` is made from the code object's name and line fields at the time of the walk: a code
 * object that was freed, and its memory given to another, no longer matches. */
struct pystack_entry {
	uint64_t code;	 /* address of the code object; 0: not a frame, frames further out are missing */
	uint32_t offset; /* bytes from the first instruction; 0xffffffff: the frame has not begun */
	uint32_t check;
	uint64_t self;	 /* the first local's value where the function takes one argument, * and **, else 0 */
};

struct pystack_scratch {
	uint8_t frame[128]; /* as far as the masks below reach */
	uint8_t code[256];
};

#define PYSTACK_NOT_BEGUN 0xffffffffu
#define PYSTACK_TAG_BITS 7ull
#define PYSTACK_TAKES_ANY 12u /* CO_VARARGS | CO_VARKEYWORDS */

/* A stack in a record: two words a frame, code and check << 32 | offset. The code's lowest bit says that `self` follows. */
#define PYSTACK_HAS_SELF 1ull
#define PYSTACK_ENTRY_WORDS 3 /* at most */

#endif
