/* SPDX-License-Identifier: MIT */
/*
 * Names: finding them, putting them into the hash table, taking them out.
 *
 * A name is immobile: a cell for (directory inode, name) that never changes either while it is
 * hashed; rename will move the inode pointer (docs/decisions.md).  A lookup takes no lock and
 * writes nothing: a hit is validated by d_seq, a miss by the bucket's unchanged word.
 *
 * Invariants (numbers as in check.c and docs/arena.md)
 *   I1 an unlocked SHM_DENTRY cell is in the chain of its hash, once
 *   I2 no two hashed names have the same directory and bytes
 */
#ifndef SHMLOCK_DCACHE_H
#define SHMLOCK_DCACHE_H

#include "chain.h"
#include "name.h"

/* A directory as a walker has it: if the generation in its i_id no longer fits, it is gone. */
struct dir {
	uint32_t cell;
	uint64_t ino;
};

struct found {
	uint32_t cell;   /* the name; 0: there is none */
	uint32_t seq;    /* its d_seq, even */
	uint32_t inode;  /* 0: negative */
	uint64_t bucket; /* the bucket's word: what chain_push() must still find there */
};

int dcache_lookup_slow(struct shmlock_arena *arena, const struct name_key *key,
		       struct found *found);

/* 0 (see found->cell) or -EUCLEAN. Lock-free; reads per name: bucket, name line. */
static inline int dcache_lookup(struct shmlock_arena *arena, const struct name_key *key,
				struct found *found)
{
	uint64_t link = atomic_load_explicit(chain_head(arena, key->hash), memory_order_acquire);
	uint32_t cell = (uint32_t)(link & SHM_LINK_NEXT), seq;
	struct shm_cell *c;

	found->bucket = link;
	found->cell = cell;
	found->inode = 0;
	if (!cell) /* an empty chain: one load is the whole truth */
		return 0;
	if (__builtin_expect(cell_valid(arena, cell), 1)) {
		c = cell_at(arena, cell);
		seq = found->seq = atomic_load_explicit(&c->d_seq, memory_order_acquire);
		if (__builtin_expect(name_equal(arena, c, key) && !(seq & 1), 1)) {
			found->inode = atomic_load_explicit(&c->d_inode, memory_order_acquire);
			if (__builtin_expect(atomic_load_explicit(&c->d_seq,
								  memory_order_acquire) == seq,
					     1))
				return 0;
		}
	}
	return dcache_lookup_slow(arena, key, found);
}

/* Is the cell a hashed name and still this one? What a waiter and a claimer ask (rule F4). */
bool dcache_matches(struct shmlock_arena *arena, uint32_t cell, const struct name_key *key);

/* Write a new identity, negative. Requires: LOCK on the cell, and it is not hashed. */
void dcache_identify(struct shmlock_arena *arena, uint32_t cell, const struct name_key *key,
		     uint32_t text);

/* Point the name at an inode, or at none: the commit word. Requires: the name's LOCK. */
static inline void dcache_point(struct shm_cell *name, uint32_t inode)
{
	uint32_t seq = atomic_load_explicit(&name->d_seq, memory_order_relaxed);

	atomic_store_explicit(&name->d_inode, inode, memory_order_release);
	/* Raised after it, before the unlock: who sees the same seq and no lock on both sides of
	 * reading d_inode has read name, pointer and lock as one (rule M9). */
	atomic_store_explicit(&name->d_seq, (seq | 1) + 1, memory_order_release);
}

/* The directory's liveness, read after the claim: barrier D1 of dlock.h. */
static inline uint32_t dir_flags(struct shmlock_arena *arena, const struct dir *dir, bool *same)
{
	struct shm_cell *inode = cell_at(arena, dir->cell);
	uint32_t flags = atomic_load(&inode->i_flags);

	/* The generation after the flags: a reused inode's flags are not believed. */
	*same = inode_number(atomic_load_explicit(&inode->i_id, memory_order_acquire), dir->cell) ==
		dir->ino;
	return flags;
}

#endif
