/* SPDX-License-Identifier: MIT */
/*
 * Waiting for a lock word: published, capped, woken by unlock and by the owner's death alike.
 *
 * A waiter sleeps on two words at once: the lock word, and the liveness word of its owner.
 *
 * Wakeups (lost-wakeup picture; the letters are cited in dlock.h)
 *
 *     waiter                                   owner
 *     sees LOCK, sets WAITER by CAS (A)        clears LOCK and WAITER in one RMW (B)
 *     is the name still the one? (F4)          old value had WAITER: wakes all (C)
 *     sleeps if the word is still (A)'s
 *
 *   (A) before (B): B's old value has WAITER, so (C) wakes; and if the sleep has not begun, the
 *   kernel's compare fails.  (B) before (A): the CAS (A) fails.  Nobody else clears WAITER.
 *
 * If a waiter dies asleep: rule R2 (its robust list's pending entry points at the owner's
 * liveness word) makes the kernel pass on the wake-up of a death that it may have swallowed.
 */
#ifndef SHMLOCK_WAIT_H
#define SHMLOCK_WAIT_H

#include "task.h"

/* Who waits for whom, found by following the published waits. */
#define WAIT_CIRCLE_MAX 128u /* told of; found are circles of any length */
struct wait_edge {
	uint32_t task, seq;   /* the waiter, and which of its waits */
	uint32_t kind, cell;  /* what for */
	uint32_t owner, person; /* who holds it; the waiter holds a person's lock */
	uint32_t pid, tid;
	uint64_t word, since;
};
struct wait_circle {
	struct shmlock_arena *arena;
	uint32_t length; /* waiters on the circle */
	uint32_t edges;  /* as many of them as are told, from the one asked about */
	struct wait_edge edge[WAIT_CIRCLE_MAX];
	struct wait_edge loser; /* who gives up */
};
/* The circle of this thread's last -EDEADLK. */
extern _Thread_local struct wait_circle wait_last_circle;

/* Begin a call that may wait: `timeout` as in shmlock.h. No clock is read. */
void wait_begin(struct task *task, int64_t timeout);

/* -ETIMEDOUT if the call's deadline has passed, else 0. */
int wait_expired(struct task *task);

/*
 * Sleep until the word may have changed.  `value` was seen in it, with LOCK and WAITER set.
 * Returns 0 (look again), -ETIMEDOUT, -EINTR, -EDEADLK, -EUCLEAN (nobody can own this word),
 * -ENOTRECOVERABLE.  Holds what it held.
 */
int wait_for(struct task *task, enum shm_wait_kind kind, shm_word *word, uint32_t value,
	     uint32_t cell);

/* One task's published wait: true and filled in if it waits. Used by tools and by the circles. */
bool wait_read(struct shmlock_arena *arena, uint32_t id, struct wait_edge *out);
/* Does following the waits from this task lead back to it? Fills the circle. */
bool wait_circle_from(struct shmlock_arena *arena, uint32_t id, struct wait_circle *out);
const char *wait_kind_name(int kind);

#endif
