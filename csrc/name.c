/* SPDX-License-Identifier: MIT */
#include "name.h"

uint32_t name_hash_long(const struct shmlock_arena *arena, uint64_t dir, const char *bytes,
			uint32_t length)
{
	uint64_t h = dir * 0x9e3779b97f4a7c15ull ^ arena->hash_secret[0], pair[2];

	for (uint32_t at = 0; at < length; at += sizeof(pair)) {
		uint32_t n = length - at;

		memset(pair, 0, sizeof(pair));
		memcpy(pair, bytes + at, n < sizeof(pair) ? n : sizeof(pair));
		h = name_fold(h ^ pair[0], pair[1] ^ arena->hash_secret[1]);
	}
	return (uint32_t)name_fold(h, length ^ arena->hash_secret[1]);
}

/* The same mix as in name_scan(), for any place of the last byte. */
static void mix(struct name *name, uint32_t n)
{
	uint64_t word[SHM_NAME_WORDS];
	uint32_t last = (n - 1) / 8;

	memcpy(word, name->word, sizeof(word));
	word[3] &= ~0ull >> 8; /* without the length */
	word[last] = name_take_local(name, word[last], (n - 1) % 8 + 1);
	name->mix[0] = word[0];
	name->mix[1] = word[1] ^ n;
	if (n > 16)
		name->mix[1] ^= name_fold(word[2] ^ NAME_FOLD_2, word[3] ^ NAME_FOLD_3);
}

uint32_t name_scan_slow(const char *p, struct name *name)
{
	unsigned char pad[32] = { 0 };
	uint32_t n = 0;

	while (n <= SHM_NAME_MAX && p[n] && p[n] != '/')
		n++;
	name->bytes = p;
	name->length = n;
	if (n <= SHM_NAME_INLINE) {
		memcpy(pad, p, n);
		pad[31] = (unsigned char)n;
	} else {
		memcpy(pad, p, NAME_LONG_PREFIX);
		pad[30] = (unsigned char)n;
		pad[31] = NAME_LONG;
	}
	memcpy(name->word, pad, sizeof(pad));
	if (n && n <= SHM_NAME_INLINE)
		mix(name, n);
	return n;
}

__attribute__((no_sanitize("address,thread"))) uint32_t
name_scan_more(const char *p, struct name *name, uint64_t word0, uint64_t word1)
{
	uint64_t word2, word3 = 0, mix3 = 0, end, mix1 = word1, mix2;
	uint32_t n;

	if (((uintptr_t)p & 4095) > 4096 - 32)
		return name_scan_slow(p, name);
	word2 = name_load8(p + 16);
	end = name_ends(word2);
	if (end) {
		n = (uint32_t)__builtin_ctzll(end) / 8;
		word2 = name_cut(word2, n);
		if (n)
			mix2 = name_take_local(name, word2, n);
		else
			mix2 = 0, mix1 = name_take_local(name, word1, 8);
		n += 16;
	} else {
		word3 = name_load8(p + 24);
		end = name_ends(word3);
		if (!end)
			return name_scan_slow(p, name);
		n = (uint32_t)__builtin_ctzll(end) / 8;
		word3 = name_cut(word3, n);
		mix2 = n ? word2 : name_take_local(name, word2, 8);
		mix3 = n ? name_take_local(name, word3, n) : 0;
		n += 24;
	}
	name->bytes = p;
	name->length = n;
	name->word[0] = word0;
	name->word[1] = word1;
	name->word[2] = word2;
	name->word[3] = word3 | (uint64_t)n << 56;
	name->mix[0] = word0;
	name->mix[1] = mix1 ^ n;
	if (n > 16)
		name->mix[1] ^= name_fold(mix2 ^ NAME_FOLD_2, mix3 ^ NAME_FOLD_3);
	return n;
}

bool name_equal_long(const struct shmlock_arena *arena, struct shm_cell *cell,
		     const struct name *name)
{
	uint64_t last = atomic_load_explicit(&cell->d_name[3], memory_order_acquire);
	char rest[SHM_NAME_MAX];

	return (last & NAME_LONG_MASK) == (name->word[3] & NAME_LONG_MASK) &&
	       name_read_text(arena, (uint32_t)last, rest, NAME_LONG_PREFIX, name->length) &&
	       !memcmp(rest, name->bytes + NAME_LONG_PREFIX, name->length - NAME_LONG_PREFIX);
}

bool name_read_text(const struct shmlock_arena *arena, uint32_t text, char *out, uint32_t from,
		    uint32_t length)
{
	uint64_t word;

	/* The prefix is in the name itself, the text cells hold what comes after it. */
	for (uint32_t done = from; done < length;) {
		struct shm_text *cell;

		if (!cell_valid(arena, text))
			return false;
		cell = (struct shm_text *)cell_at(arena, text);
		for (uint32_t i = 0; i < SHM_TEXT_WORDS && done < length; i++) {
			uint32_t n = length - done < 8 ? length - done : 8;

			word = atomic_load_explicit(shm_text_word(cell, i), memory_order_acquire);
			memcpy(out + done - from, &word, n);
			done += n;
		}
		text = atomic_load_explicit(&cell->t_next, memory_order_acquire);
	}
	return true;
}

uint32_t name_read(const struct shmlock_arena *arena, struct shm_cell *cell, char *out)
{
	uint64_t word[SHM_NAME_WORDS];
	unsigned char *pad = (unsigned char *)word;
	uint32_t length;

	for (uint32_t i = 0; i < SHM_NAME_WORDS; i++)
		word[i] = atomic_load_explicit(&cell->d_name[i], memory_order_acquire);
	length = pad[31];
	if (length <= SHM_NAME_INLINE) {
		memcpy(out, pad, length);
		return length;
	}
	length = pad[30];
	if (pad[31] != NAME_LONG || length <= SHM_NAME_INLINE)
		return 0;
	memcpy(out, pad, NAME_LONG_PREFIX);
	return name_read_text(arena, (uint32_t)word[3], out + NAME_LONG_PREFIX, NAME_LONG_PREFIX,
			      length) ?
		       length :
		       0;
}
