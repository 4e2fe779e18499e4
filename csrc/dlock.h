/* SPDX-License-Identifier: MIT */
/*
 * The lock word: the only file, with dlock.c, that writes DCACHE_LOCK, DCACHE_LOCK_WAITER and the
 * owner.  layout.h says what each bit means; wait.h draws why no wake-up is lost.
 *
 * Protects, by word: d_flags the name (what it is, what it points to) and the cell's free inode;
 * i_flags, with S_DYING, the directory's list of names against a removal.
 *
 * Order: a name, then the i_flags of the directory it points to, then (draining) that
 * directory's children: always downwards.  Waits for S_DYING are made with empty hands (F3).
 *
 * Atomics: lock 1, unlock 1.  Lines written: the word's, and the task's own slot line (R4).
 *
 * Barriers.  The claim is sequentially consistent and is followed by a sequentially consistent
 * load of the directory's i_flags (D1); setting S_DYING is one too, followed by such loads of the
 * children's words (D2).  Store, barrier, load on both sides: at least one sees the other.  The
 * unlock is a release; the claim an acquire, which makes what the last owner wrote visible.
 *
 * If the holder dies: after the claim, the record in held[] or names[] (R4) lets recovery free
 * the word; between the unlocking RMW and the wake-up, recovery wakes, for the record is still
 * there.
 */
#ifndef SHMLOCK_DLOCK_H
#define SHMLOCK_DLOCK_H

#include "debug.h"
#include "wait.h"

static inline uint32_t dlock_owner(uint32_t word)
{
	return word & DCACHE_LOCK ? (word & SHM_OWNER_MASK) >> SHM_OWNER_SHIFT : 0;
}

/*
 * Claim the word if it is free, setting and clearing flags in the same step.  Requires: the
 * claim is recorded in the slot (R4).  False: *seen has LOCK.  Nothing is waited for.
 */
static inline bool dlock_try(struct task *task, shm_word *word, uint32_t set, uint32_t clear,
			     uint32_t *seen)
{
	uint32_t w = atomic_load_explicit(word, memory_order_relaxed);

	while (!(w & DCACHE_LOCK) || !RULE_HOLDS(task->arena, EXCLUSION)) {
		uint32_t locked = (w & ~clear & ~SHM_OWNER_MASK) | task->owner | set;

		if (__builtin_expect(atomic_compare_exchange_weak(word, &w, locked), 1)) {
			*seen = w;
			return true;
		}
	}
	*seen = w;
	return false;
}

void dlock_wake(struct task *task, shm_word *word);

/* Unlock: LOCK, WAITER and owner go, flags change, in one step; then wake all (R3). */
static inline void dlock_unlock(struct task *task, shm_word *word, uint32_t set, uint32_t clear)
{
	uint32_t w = atomic_load_explicit(word, memory_order_relaxed);

	SHM_BUG_ON(RULE_HOLDS(task->arena, EXCLUSION) && dlock_owner(w) != task->id);
	while (!atomic_compare_exchange_weak_explicit(word, &w,
						      (w & SHM_FLAGS_MASK & ~clear) | set,
						      memory_order_release, memory_order_relaxed))
		;
	PAUSE(task->arena, LOCK_CLEARED);
	if (__builtin_expect(w & DCACHE_LOCK_WAITER, 0))
		dlock_wake(task, word);
	PAUSE(task->arena, UNLOCK_WOKEN);
}

/* Change flags of a word that this task has locked. Others may only add WAITER meanwhile. */
static inline uint32_t dlock_flags(struct task *task, shm_word *word, uint32_t set, uint32_t clear)
{
	uint32_t w = atomic_load_explicit(word, memory_order_relaxed);

	(void)task;
	SHM_BUG_ON(RULE_HOLDS(task->arena, EXCLUSION) && dlock_owner(w) != task->id);
	while (!atomic_compare_exchange_weak(word, &w, (w & ~clear) | set))
		;
	return (w & ~clear) | set;
}

/*
 * Before sleeping on a word seen as locked: spin a little, then set WAITER.  True: *seen is
 * locked, has WAITER, and the caller checks once more that it still wants it (F4), then sleeps
 * by wait_for().  False: the word is free or changed, try again.
 */
bool dlock_prepare(struct task *task, shm_word *word, uint32_t *seen);

/*
 * Free a dead task's word; for the recoverer only.  Flags change in the same step.  Wakes all in
 * any case: the dead task may have been between its unlock and its wake-up.
 */
bool dlock_free_dead(shm_word *word, uint32_t dead, uint32_t set, uint32_t clear);

#endif
