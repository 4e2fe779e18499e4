/* SPDX-License-Identifier: MIT */
/*
 * The chains of the hash table, without a lock.  New names go in at the head only; any name may
 * come out (Harris 2001, Michael 2002: mark the link of the cell that goes, then swing its
 * predecessor's).
 *
 * Why no lock: there is then nothing a dead task could leave locked or half-linked.  Taking out
 * is finished by whoever meets the mark; recovery just does it again.
 *
 * Invariants
 *   a cell's link changes only upwards in tag, across all its lives: a compare-and-swap that
 *   was prepared in an earlier life fails (after 2^31 changes it could not: documented);
 *   a marked link never changes, until its owner has seen the cell out of the chain.
 *
 * A walker may stand on a cell that is taken out and used again.  Two things keep it right.  After
 * reading a cell's link it looks whether the cell still belongs to this chain, and starts again
 * if not.  And it believes its walk only if the head has not changed meanwhile: a cell taken out is
 * not used again before the head's word has changed (taken out in the middle: by its tag alone).
 * So in a walk that is believed, no cell met was used again; one that was only taken out leads on
 * by its frozen link.  A hit needs no such proof: it is validated by d_seq.
 */
#ifndef SHMLOCK_CHAIN_H
#define SHMLOCK_CHAIN_H

#include "arena.h"

static inline shm_word64 *chain_head(struct shmlock_arena *arena, uint32_t hash)
{
	return &arena->buckets[hash & arena->bucket_mask];
}

/* After reading the cell's link: is it (still) a member of this chain, and not of another? */
static inline bool chain_member(const struct shmlock_arena *arena, uint32_t hash,
				struct shm_cell *cell)
{
	return !((atomic_load_explicit(&cell->d_hash, memory_order_acquire) ^ hash) &
		 arena->bucket_mask);
}

/* Walks longer than this are circles: somebody scribbled. */
static inline uint64_t chain_budget(const struct shmlock_arena *arena)
{
	return 4ull * arena->cells_end + 100000;
}

/*
 * Put the cell in at the head if the head is still `seen`.  A sequentially consistent RMW: the
 * publication, the uniqueness check and the barrier D1 of a new name in one.
 */
bool chain_push(struct shmlock_arena *arena, uint32_t hash, uint64_t seen, uint32_t cell);

/*
 * Take the cell out.  Requires: the caller owns it (nobody else puts it in or takes it out).
 * Harmless when it is out already.  0 or -EUCLEAN.
 */
int chain_remove(struct shmlock_arena *arena, uint32_t hash, uint32_t cell);

/* Is the cell in the chain (unmarked or marked)? 1, 0 or -EUCLEAN. */
int chain_contains(struct shmlock_arena *arena, uint32_t hash, uint32_t cell);

#endif
