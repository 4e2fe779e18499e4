/* SPDX-License-Identifier: MIT */
/*
 * Cells: where they come from and where they go.
 *
 * There is no free list: a free cell is one that says SHM_FREE, so nothing can be lost by a death
 * between two words.  A task claims free cells a few at a time into its stock (the word then says
 * SHM_STOCK and whose); the search goes round the arena from a common hand.  An empty (negative)
 * name is reused, oldest first, by the task that emptied it (its ring), else by the search.
 *
 * Never reused: a name that is locked, waited for, positive, or marked DCACHE_RECOVERED; an inode
 * with a name or an open handle.  A name that somebody merely looked up may be reused: he finds
 * that out after his claim (match) or before his sleep (F4).
 *
 * If the holder dies: stock[] or held[] names each claimed cell before the claim (R4), and
 * recovery gives back what is not in use.
 *
 * Atomics: a cell from the stock 0 (its word is already ours); a recycled name 3 to 4 (claim,
 * mark if it has a successor, unhash; its unlock is the new name's).
 */
#ifndef SHMLOCK_STOCK_H
#define SHMLOCK_STOCK_H

#include "dcache.h"
#include "dlock.h"

/* A whole cell, both lines free. On return it is SHM_STOCK, locked by and held[] of this task. */
int stock_get(struct task *task, uint32_t *cell);

/*
 * An old negative name of this task's ring, unhashed, ready for a new identity, or nothing
 * (false).  On return it is SHM_DENTRY, locked and held.  Still listed if it is in directory `dir`
 * (d_block is set), else in no block.
 */
bool stock_recycle(struct task *task, uint64_t dir, uint32_t *cell);

/* Give a cell back. Requires: locked and held by this task, in no chain and no block. */
void stock_put(struct task *task, uint32_t cell);

/* Change what a locked cell is. Wakes who waits for what it was. */
void stock_rekind(struct task *task, uint32_t cell, uint32_t kind);

/*
 * The name is empty now: the task may reuse it later.  Requires: DCACHE_RING is not set.  Returns
 * the flag to set at its unlock.
 */
uint32_t stock_remember(struct task *task, uint32_t cell);

/* Unhash, unlist, drop the long text. Requires: LOCK on the name. For recovery and purges too. */
int stock_forget_name(struct shmlock_arena *arena, uint32_t cell, bool keep_listed);

/* Free the names of a dead directory that nobody holds. */
void stock_purge_names(struct task *task, const struct dir *dir);

/* Give the whole stock back. For detach and recovery: `id` owned it. */
void stock_release(struct shmlock_arena *arena, struct shm_slot *slot, uint32_t id);

/* Is the text cell still part of a name or a symlink? */
bool stock_text_used(struct shmlock_arena *arena, uint32_t cell);

#endif
