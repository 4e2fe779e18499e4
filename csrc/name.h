/* SPDX-License-Identifier: MIT */
/*
 * Names: read from a path, padded to four words, hashed with their directory, compared.
 *
 * The hash is a multiply-and-fold over the directory's number and the name, seeded by the arena's
 * secret, so that who chooses names cannot choose collisions.  The low bits of the last two bytes
 * are left out and put back by XOR, so that names that count (f1000, f1001, ...) fall into
 * neighbouring buckets: one cache line serves eight of them.
 */
#ifndef SHMLOCK_NAME_H
#define SHMLOCK_NAME_H

#include <string.h>

#include "arena.h"

#define NAME_LONG 255u /* byte 31 of a long name */
#define NAME_LONG_PREFIX 24u
/* The last word of a long name without the text cell's index (bytes 24-27). */
#define NAME_LONG_MASK 0xffffffff00000000ull

/* A path's component: its bytes, and as it is stored in d_name (text index 0). */
struct name {
	const char *bytes;
	uint32_t length;
	uint32_t local;    /* goes into the bucket's number as it is, see above */
	uint64_t mix[2];   /* goes into the hash: the words without `local` (not of long names) */
	uint64_t word[SHM_NAME_WORDS];
};

/* A name in a directory. */
struct name_key {
	uint64_t dir; /* ino of the directory */
	uint32_t hash;
	const struct name *name;
};

/* Bits of a name's last two bytes (shifted so that it ends at bit 63) that are left out of the
 * hash and given to the bucket's number as they are. */
#define NAME_LOCAL_MASK 0x070f000000000000ull

#define NAME_ONES 0x0101010101010101ull

/* Bytes that are '/' or 0: top bits, exact up to and with the first one. */
static inline uint64_t name_ends(uint64_t word)
{
	uint64_t slash = word ^ '/' * NAME_ONES;

	return (((word - NAME_ONES) & ~word) | ((slash - NAME_ONES) & ~slash)) & 0x80 * NAME_ONES;
}

/* All but the fast path of name_scan(). */
uint32_t name_scan_slow(const char *p, struct name *name);

static inline uint64_t name_fold(uint64_t a, uint64_t b)
{
	unsigned __int128 product = (unsigned __int128)a * b;

	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

__attribute__((no_sanitize("address,thread"))) static inline uint64_t name_load8(const char *p)
{
	uint64_t word;

	memcpy(&word, p, sizeof(word));
	return word;
}

/* Cut the word off where its component ends, `n` bytes on: two shifts, as one by 64 is none. */
static inline uint64_t name_cut(uint64_t word, uint32_t n)
{
	return word & ((1ull << 7 * n << n) - 1);
}

/* Take the local bits out of the word that has the name's last n bytes, 1 to 8. */
static inline uint64_t name_take_local(struct name *name, uint64_t word, uint32_t n)
{
	uint32_t shift = 64 - 8 * n;
	uint64_t last = word << shift;

	name->local = (uint32_t)(last >> 56 & 7) | (uint32_t)(last >> 48 & 15) << 3;
	return word & ~(NAME_LOCAL_MASK >> shift);
}

#define NAME_FOLD_2 0x9e3779b97f4a7c15ull
#define NAME_FOLD_3 0xd1b54a32d192ed03ull

/* Names of 16 to 31 bytes: words 0 and 1 are full. */
uint32_t name_scan_more(const char *p, struct name *name, uint64_t word0, uint64_t word1);

/*
 * Read the component that begins at p, eight bytes a look, into name.  Returns its length, which
 * may be over SHM_NAME_MAX.  May read some bytes beyond its end, never into another page, and
 * throws them away: hence not for the sanitizers.  Everything stays in registers: a word stored as
 * bytes and loaded as a word would stall the processor for longer than all of this takes.
 */
__attribute__((no_sanitize("address,thread"))) static inline uint32_t name_scan(const char *p,
										struct name *name)
{
	uint64_t word, end, last;
	uint32_t n;

	if (__builtin_expect(((uintptr_t)p & 4095) > 4096 - 16, 0))
		return name_scan_slow(p, name);
	name->bytes = p;
	word = name_load8(p);
	end = name_ends(word);
	if (end) {
		n = (uint32_t)__builtin_ctzll(end) / 8;
		word = name_cut(word, n);
		name->word[0] = word;
		name->word[1] = 0;
		name->mix[0] = n ? name_take_local(name, word, n) : 0;
		name->mix[1] = n;
	} else {
		last = word;
		word = name_load8(p + 8);
		end = name_ends(word);
		if (!end)
			return name_scan_more(p, name, last, word);
		n = (uint32_t)__builtin_ctzll(end) / 8;
		word = name_cut(word, n);
		name->word[0] = last;
		name->word[1] = word;
		name->mix[0] = n ? last : name_take_local(name, last, 8);
		name->mix[1] = n ? name_take_local(name, word, n) : 0;
		n += 8;
		name->mix[1] ^= (uint64_t)n;
	}
	name->word[2] = 0;
	name->word[3] = (uint64_t)n << 56;
	name->length = n;
	return n;
}

uint32_t name_hash_long(const struct shmlock_arena *arena, uint64_t dir, const char *bytes,
			uint32_t length);

/* Requires: 1 <= name->length <= SHM_NAME_MAX. The key refers to the name. */
static inline void name_key(const struct shmlock_arena *arena, struct name_key *key, uint64_t dir,
			    const struct name *name)
{
	uint64_t h;

	key->dir = dir;
	key->name = name;
	if (__builtin_expect(name->length > SHM_NAME_INLINE, 0)) {
		key->hash = name_hash_long(arena, dir, name->bytes, name->length);
		return;
	}
	h = name_fold(name->mix[0] ^ arena->hash_secret[0] ^ dir * 0x9e3779b97f4a7c15ull,
		      name->mix[1] ^ arena->hash_secret[1]);
	/* The multiplication mixes upwards: take the high half too. */
	key->hash = (uint32_t)(h ^ h >> 32) ^ name->local;
}

/* The text of a long name, copied out of its text cells. False: they make no sense (now). */
bool name_read_text(const struct shmlock_arena *arena, uint32_t text, char *out, uint32_t from,
		    uint32_t length);

/* The rest of a long name is compared in its text cells. */
bool name_equal_long(const struct shmlock_arena *arena, struct shm_cell *cell,
		     const struct name *name);

/* Is this cell's name the key's?  To be believed only if d_seq is the same before and after. */
static inline bool name_equal(const struct shmlock_arena *arena, struct shm_cell *cell,
			      const struct name_key *key)
{
	const uint64_t *word = key->name->word;

	if (atomic_load_explicit(&cell->d_hash, memory_order_acquire) != key->hash ||
	    atomic_load_explicit(&cell->d_parent, memory_order_acquire) != key->dir ||
	    ((atomic_load_explicit(&cell->d_name[0], memory_order_acquire) ^ word[0]) |
	     (atomic_load_explicit(&cell->d_name[1], memory_order_acquire) ^ word[1]) |
	     (atomic_load_explicit(&cell->d_name[2], memory_order_acquire) ^ word[2])))
		return false;
	if (__builtin_expect(key->name->length <= SHM_NAME_INLINE, 1))
		return atomic_load_explicit(&cell->d_name[3], memory_order_acquire) == word[3];
	return name_equal_long(arena, cell, key->name);
}

/*
 * Copy the cell's name out, SHM_NAME_MAX bytes at most. Returns its length, 0 when it makes no
 * sense (it is being rewritten: compare d_seq).
 */
uint32_t name_read(const struct shmlock_arena *arena, struct shm_cell *cell, char *out);

#endif
