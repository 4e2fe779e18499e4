/* SPDX-License-Identifier: MIT */
/*
 * A directory's list of names: putting one in, taking one out, walking all.
 *
 * Protects: an entry is taken under its block's LOCK, given back by the owner of the name's LOCK.
 * Order: a block's LOCK is taken while holding a name that is not hashed yet, or none at all;
 * its holder waits for nothing. So it closes no circle.
 *
 * Invariants
 *   I4 an unlocked name is in exactly one entry, of the block that its d_block names
 *   I5 a block reachable from a live directory belongs to it; at most one task makes the first
 */
#ifndef SHMLOCK_DIRBLOCK_H
#define SHMLOCK_DIRBLOCK_H

#include "dcache.h"
#include "dlock.h"

/*
 * List the name in the directory. Requires: the name's LOCK; it is in no block; the task may take
 * cells.  0; -ENOSPC; -ENOENT (the directory is gone); a wait's error.
 */
int dirblock_add(struct task *task, const struct dir *dir, uint32_t name);

/* Take the name off its list. Requires: the name's LOCK (or its dead owner's recovery). */
void dirblock_remove(struct shmlock_arena *arena, uint32_t name);

/* Free the blocks of a dead directory as far as they are empty and unlocked. */
void dirblock_purge(struct task *task, uint64_t dir, uint32_t first);

/* Is the block on the list of a living directory? Else it is garbage once it is empty. */
bool dirblock_reachable(struct shmlock_arena *arena, uint32_t block);
bool dirblock_empty(struct shmlock_arena *arena, uint32_t block);

/* A walk over all entries: for (dirblock_first(..); dirblock_next(..) > 0;) it.name ... */
struct dir_walk {
	struct shmlock_arena *arena;
	uint64_t dir;
	uint64_t budget;
	uint32_t block, at;
	uint32_t name; /* the cell in this entry, says the block; it says so too */
};
void dirblock_first(struct shmlock_arena *arena, const struct dir *dir, struct dir_walk *walk);
/* 1: walk->name; 0: no more; -ESTALE: the directory went meanwhile; -EUCLEAN. */
int dirblock_next(struct dir_walk *walk);

/* The first block of a directory, 0 if none (or another generation's). */
static inline uint32_t dirblock_of(struct shmlock_arena *arena, uint64_t dir)
{
	uint64_t children = atomic_load(&cell_at(arena, ino_cell(dir))->i_children);

	return children >> 32 == dir >> 32 ? (uint32_t)children : 0;
}

#endif
