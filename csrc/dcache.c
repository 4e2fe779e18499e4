/* SPDX-License-Identifier: MIT */
#include "dcache.h"

#include <sched.h>

enum step { STEP_NEXT, STEP_AGAIN, STEP_HIT };

/* Is this cell the one?  Its fields are believed only if d_seq was even and stays the same. */
static enum step try_cell(struct shmlock_arena *arena, const struct name_key *key,
			  struct shm_cell *c, struct found *found)
{
	uint32_t seq = atomic_load_explicit(&c->d_seq, memory_order_acquire);
	uint32_t inode;

	if (!name_equal(arena, c, key))
		return STEP_NEXT;
	/* Odd: its pointer is being moved.  It must be read again, not skipped: a miss here would
	 * let a second cell for the same name in. */
	if (seq & 1)
		return STEP_AGAIN;
	inode = atomic_load_explicit(&c->d_inode, memory_order_acquire);
	if (atomic_load_explicit(&c->d_seq, memory_order_acquire) != seq)
		return STEP_AGAIN;
	found->seq = seq;
	found->inode = inode;
	return STEP_HIT;
}

/* One pass through the chain. 1: hit or validated miss; 0: again; -EUCLEAN. */
static int look(struct shmlock_arena *arena, const struct name_key *key, struct found *found,
		uint64_t *budget)
{
	shm_word64 *head = chain_head(arena, key->hash);
	uint64_t link = found->bucket = atomic_load_explicit(head, memory_order_acquire);
	uint32_t cell;

	while ((cell = (uint32_t)(link & SHM_LINK_NEXT))) {
		struct shm_cell *c;
		enum step step;

		if (!cell_valid(arena, cell) || !--*budget)
			return -EUCLEAN;
		c = cell_at(arena, cell);
		step = try_cell(arena, key, c, found);
		if (step == STEP_HIT) {
			found->cell = cell;
			return 1;
		}
		if (step == STEP_AGAIN)
			return 0;
		link = atomic_load_explicit(&c->d_next, memory_order_acquire);
		if (!chain_member(arena, key->hash, c))
			return 0;
	}
	found->cell = 0;
	found->inode = 0;
	/* Unchanged, so nothing was put in meanwhile: the miss is true. */
	return atomic_load_explicit(head, memory_order_acquire) == found->bucket;
}

int dcache_lookup_slow(struct shmlock_arena *arena, const struct name_key *key,
		       struct found *found)
{
	uint64_t budget = chain_budget(arena);
	int ret;

	while ((ret = look(arena, key, found, &budget)) == 0) {
		if (!--budget)
			return -EUCLEAN;
		if (!(budget & 255))
			sched_yield();
	}
	return ret < 0 ? ret : 0;
}

bool dcache_matches(struct shmlock_arena *arena, uint32_t cell, const struct name_key *key)
{
	struct shm_cell *c = cell_at(arena, cell);
	uint32_t seq = atomic_load_explicit(&c->d_seq, memory_order_acquire);

	return !(seq & 1) && name_equal(arena, c, key) &&
	       (atomic_load_explicit(&c->d_flags, memory_order_acquire) & SHM_KIND_MASK) ==
		       SHM_DENTRY &&
	       atomic_load_explicit(&c->d_seq, memory_order_acquire) == seq;
}

void dcache_identify(struct shmlock_arena *arena, uint32_t cell, const struct name_key *key,
		     uint32_t text)
{
	struct shm_cell *c = cell_at(arena, cell);
	uint32_t seq = atomic_load_explicit(&c->d_seq, memory_order_relaxed) | 1;

	/* Odd first, even last; each store in between a release, so that a reader who sees any of
	 * them also sees the odd one. */
	atomic_store_explicit(&c->d_seq, seq, memory_order_relaxed);
	atomic_store_explicit(&c->d_inode, 0, memory_order_release);
	atomic_store_explicit(&c->d_parent, key->dir, memory_order_release);
	atomic_store_explicit(&c->d_hash, key->hash, memory_order_release);
	for (uint32_t i = 0; i < SHM_NAME_WORDS; i++)
		atomic_store_explicit(&c->d_name[i], key->name->word[i] | (i == 3 ? text : 0),
				      memory_order_release);
	atomic_store_explicit(&c->d_seq, seq + 1, memory_order_release);
}
