/* SPDX-License-Identifier: MIT */
/*
 * Tasks: one slot per attached thread per arena.
 *
 * A slot's robust mutex `live` is allocator, liveness word and recovery lock in one:
 *   trylock 0           the slot is free, and now ours
 *   trylock EBUSY       its task lives, or somebody is recovering it
 *   trylock EOWNERDEAD  its task died, and we are the recoverer
 * No pid is compared, so a reused pid cannot be mistaken for the owner.  The kernel marks the
 * mutex's word when its thread dies, however it dies (recovery.md, section 4 has the exceptions).
 *
 * Protects: nothing but the process's own list of attachments (attach_mutex).
 * Order: attach_mutex is taken outside everything else and never while holding a lock word.
 */
#ifndef SHMLOCK_TASK_H
#define SHMLOCK_TASK_H

#include <linux/futex.h>

#include "debug.h"

#define TASK_HINTS 8u

/* A thread's task, private to its process. */
struct task {
	struct shmlock_arena *arena;
	struct shm_slot *slot;
	uint32_t id, owner; /* slot number; DCACHE_LOCK | id in lock-word form */
	uint32_t generation, tgid, tid;
	uint32_t held;  /* entries of slot->held[] in use */
	uint32_t stock; /* entries of slot->stock[] in use */
	uint32_t name_hint; /* where to look for a free entry of slot->names[] */
	int64_t timeout;  /* of the call in progress, as passed */
	int64_t deadline; /* absolute; 0: not needed yet, so no clock was read */
	int64_t waiting_since; /* this call's wait for this word began; 0: it has not waited */
	shm_word *waiting_word;
	uint32_t restarts; /* of the call in progress */
	bool interrupted; /* the last wait ended by a signal, so the next call goes on with it */
	uint32_t orphan_looks, unrecorded; /* how often a word looked like a lie, see wait.c */
	shm_word *unrecorded_word;
	struct robust_list_head *robust; /* this thread's, for rule R2 */
	struct task_hint {
		uint64_t dir;
		uint32_t block, cursor; /* last had room; where to look on for holes */
	} hint[TASK_HINTS]; /* by directory: where a new name's entry may find room */
	struct task *next;  /* this thread's other arenas */
};

extern _Thread_local struct task *task_current; /* the thread's list, last used first */
extern uint32_t *task_fork_guard; /* 1; a page that a forked child sees as 0 */

int task_enter_slow(struct shmlock_arena *arena, struct task **out);

/* This thread's task in the arena, attached on first use. -EAGAIN, -EBADF, -EROFS, -ENOMEM. */
static inline int task_enter(struct shmlock_arena *arena, struct task **out)
{
	struct task *task = task_current;

	/* The guard costs one load from a page nobody writes; getpid() would cost a system call. */
	if (__builtin_expect(task && task->arena == arena && *task_fork_guard == 1 &&
				     arena->handles,
			     1)) {
		*out = task;
		return 0;
	}
	return task_enter_slow(arena, out);
}

/*
 * Keep the mapping for the length of a call by a thread that has no task here (and needs none: it
 * only reads).  -EBADF when the arena is closed.
 */
int task_pin(struct shmlock_arena *arena);
void task_unpin(struct shmlock_arena *arena);

/* This thread's task, NULL when it has none yet. */
struct task *task_find(struct shmlock_arena *arena);
/* End the thread's task. Requires: it holds nothing. May unmap the arena (last one, closed). */
void task_leave(struct task *task);

/* One attachment per process, file and mode: found or made. Takes over fd when made. */
int task_attach_arena(int fd, bool readonly, struct shmlock_arena **out);
int task_close_arena(struct shmlock_arena *arena);

/* Rule R4: say so in the slot, then claim. No operation holds more than six (see dalloc.c). */
static inline void task_hold(struct task *task, uint32_t cell)
{
	SHM_BUG_ON(task->held >= SHM_HELD);
	atomic_store_explicit(&task->slot->held[task->held], cell, memory_order_relaxed);
	task->held++;
	/* Program order is enough: the claiming CAS is a release, and a dead thread's stores up
	 * to its last instruction are all visible to who finds it dead. */
	atomic_signal_fence(memory_order_seq_cst);
}

static inline void task_unhold(struct task *task, uint32_t cell)
{
	uint32_t last = task->held - 1, i = last;

	/* Nearly always the last one. */
	while (i > 0 && atomic_load_explicit(&task->slot->held[i], memory_order_relaxed) != cell)
		i--;
	atomic_signal_fence(memory_order_seq_cst);
	/* Copy the last over it first: a moment with a double entry, never with a missing one. */
	if (i != last)
		atomic_store_explicit(
			&task->slot->held[i],
			atomic_load_explicit(&task->slot->held[last], memory_order_relaxed),
			memory_order_relaxed);
	atomic_signal_fence(memory_order_seq_cst);
	atomic_store_explicit(&task->slot->held[last], 0, memory_order_relaxed);
	task->held = last;
}

static inline void task_count(struct task *task, uint32_t counter)
{
	shm_word64 *word = &task->slot->counters[counter];

	/* Only this task writes it: a plain add, no atomic read-modify-write. */
	atomic_store_explicit(word, atomic_load_explicit(word, memory_order_relaxed) + 1,
			      memory_order_relaxed);
}

enum task_counter {
#define COUNTER(id, name) COUNT_##id,
#include "counters.def"
#undef COUNTER
	TASK_COUNTERS
};
_Static_assert(TASK_COUNTERS <= SHM_COUNTERS, "counters fit the slot");

/* The slot's mutex: what its futex word says. */
static inline shm_word *slot_live_word(struct shm_slot *slot)
{
	return (shm_word *)&slot->live;
}

static inline bool live_word_dead(uint32_t word)
{
	return word & FUTEX_OWNER_DIED;
}

static inline bool live_word_free(uint32_t word)
{
	return !(word & (FUTEX_TID_MASK | FUTEX_OWNER_DIED));
}

#endif
