/* SPDX-License-Identifier: MIT */
#include "dlock.h"

#include "futex.h"

/* About a microsecond: an operation holds its name for some 50 ns, a sleep costs 10 us. */
#define SPINS 100

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

void dlock_wake(struct task *task, shm_word *word)
{
	(void)task;
	/* R3: wake-one would be swallowed by a waiter that is dying or no longer interested,
	 * and leave the others watching an owner that is no longer the owner. */
	if (RULE_HOLDS(task->arena, R3))
		futex_wake_all(word);
	else
		futex_wake_one(word);
}

bool dlock_prepare(struct task *task, shm_word *word, uint32_t *seen)
{
	uint32_t w = *seen;

	task_count(task, COUNT_CONTENDED);
	for (int i = 0; i < SPINS; i++) {
		w = atomic_load_explicit(word, memory_order_relaxed);
		if (!(w & DCACHE_LOCK))
			return false;
		if (w & DCACHE_LOCK_WAITER) /* others sleep already: no use to spin */
			break;
		cpu_relax();
	}
	if (!(w & DCACHE_LOCK_WAITER)) {
		/* (A) of wait.h */
		if (!atomic_compare_exchange_strong(word, &w, w | DCACHE_LOCK_WAITER))
			return false;
		w |= DCACHE_LOCK_WAITER;
	}
	*seen = w;
	return true;
}

bool dlock_free_dead(shm_word *word, uint32_t dead, uint32_t set, uint32_t clear)
{
	uint32_t w = atomic_load(word);
	bool freed = false;

	while (dlock_owner(w) == dead) {
		if (atomic_compare_exchange_weak(word, &w, (w & SHM_FLAGS_MASK & ~clear) | set)) {
			freed = true;
			break;
		}
	}
	futex_wake_all(word);
	return freed;
}
