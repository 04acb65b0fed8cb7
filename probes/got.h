/* got.h - redirects calls between shared libraries by writing their global offset tables.
 *
 * A call from one library to an exported function of another (or to an own one that may be preempted) goes through a
 * slot that the dynamic linker fills: DT_JMPREL/JUMP_SLOT for calls through the PLT, DT_RELA/GLOB_DAT for -fno-plt calls
 * and for addresses that are taken. Writing every slot of a symbol redirects all its callers without touching code.
 *
 * All libraries are visited except the one that contains this code and the C library's own parts (libc, libm, libpthread,
 * libdl, librt, ld.so). Stores are single aligned 8-byte atomics: other threads call either the old or the new target.
 * Calls here are serialised by a lock. They use malloc and the dynamic linker, so not for signal handlers, and not from
 * within a dl_iterate_phdr callback.
 */
#ifndef TERRA_PROBES_GOT_H
#define TERRA_PROBES_GOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct got_patch {
	const char *symbol;  /* mangled name; borrowed */
	void *replacement;   /* what the slots are to hold; NULL: this entry is skipped */
	void *original;      /* out: the definition that the library with the first slot sees (its own scope, not the
			      * global one, so never a preloaded definition); NULL while no slot was found.
			      * It is set before the first slot is written. */
	uint32_t n_slots;    /* out: slots written, added up over calls */
	bool exact;          /* there may be other functions of that name, which are to stay: `original` is given, and only
			      * slots that lead there are written */
};

/* What was visited already. Zero it before the first call. */
struct got_watch {
	unsigned long long adds, subs; /* the dynamic linker's counts of loaded and unloaded libraries */
	size_t n_libraries;
};

/* Patches every slot of every symbol. `only_library`, when not NULL, is the base name of the one library whose slots are
 * written ("libtorch_cpu.so"). A symbol without slots is no error. Slots that already hold the replacement are left
 * alone, so a second call repairs what the lazy binder of another thread wrote over.
 * Returns the number of slots written, or -errno; after an error slots may be written in part (got_unpatch undoes them). */
int got_patch(struct got_patch *patches, size_t n, const char *only_library);

/* The same for libraries loaded since the last call with this watch (all of them at the first call). One cheap look at the
 * dynamic linker's counters (under 100 ns) when nothing was loaded. Returns the number of slots written or -errno. */
int got_patch_new_libraries(struct got_patch *patches, size_t n, const char *only_library, struct got_watch *watch);

/* Puts `original` into every slot that holds the replacement. Returns the number of slots written or -errno. */
int got_unpatch(struct got_patch *patches, size_t n);

#endif
