/* SPDX-License-Identifier: MIT */
#include "debug.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "futex.h"

const char *debug_point_name(int point)
{
	static const char *const names[] = {
#define POINT(id, name) name,
#include "points.def"
#undef POINT
	};

	return point >= 0 && point < DEBUG_POINTS ? names[point] : "";
}

const char *debug_rule_name(int rule)
{
	static const char *const names[] = {
#define RULE(id, name) name,
#include "rules.def"
#undef RULE
	};

	return rule >= 0 && rule < DEBUG_RULES ? names[rule] : "";
}

_Static_assert(DEBUG_POINTS <= SHM_POINTS, "pause points fit the debug page");
_Static_assert(DEBUG_RULES <= 64, "rules fit one word");

#ifdef SHMLOCK_DEBUG

enum { POINT_OFF, POINT_ARMED, POINT_REACHED, POINT_GO };

void debug_bug(const char *what, const char *file, int line)
{
	fprintf(stderr, "shmlock: bug: %s (%s:%d, pid %d)\n", what, file, line, (int)getpid());
	abort();
}

/* xorshift64*, seeded per thread from the arena's seed and the thread's id: repeatable. */
static uint64_t perturb_random(uint64_t seed)
{
	static _Thread_local uint64_t state, seeded_with;
	uint64_t x;

	if (seeded_with != seed) {
		seeded_with = seed;
		state = (seed + 1) * 0x9e3779b97f4a7c15ull ^ (uint64_t)syscall(SYS_gettid) << 17;
	}
	x = state | 1;
	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	state = x;
	return x * 0x2545f4914f6cdd1dull;
}

static void perturb(struct shm_debug *debug)
{
	uint64_t seed = atomic_load_explicit(&debug->perturb_seed, memory_order_relaxed);
	uint64_t r;

	if (!seed)
		return;
	r = perturb_random(seed);
	if (r % 1000000 >= atomic_load_explicit(&debug->perturb_ppm, memory_order_relaxed))
		return;
	if (r >> 40 & 1) {
		sched_yield();
	} else {
		struct timespec t = { 0, (long)(r >> 44 & 0x1ffff) }; /* up to 131 us */

		nanosleep(&t, NULL);
	}
}

void debug_point(struct shmlock_arena *arena, enum debug_point i)
{
	struct shm_point *point;
	uint32_t tid, armed = POINT_ARMED;

	if (!arena->debug || arena->readonly)
		return;
	perturb(arena->debug);
	point = &arena->debug->point[i];
	if (atomic_load_explicit(&point->state, memory_order_relaxed) != POINT_ARMED)
		return;
	tid = atomic_load(&point->tid);
	if (tid && tid != (uint32_t)syscall(SYS_gettid))
		return;
	if (!atomic_compare_exchange_strong(&point->state, &armed, POINT_REACHED))
		return;
	atomic_store(&point->who, (uint32_t)syscall(SYS_gettid));
	atomic_fetch_add(&point->reached, 1);
	futex_wake_all(&point->reached);
	while (atomic_load(&point->state) == POINT_REACHED)
		futex_wait(&point->state, POINT_REACHED, NULL, 0, FUTEX_NO_DEADLINE);
}

int debug_point_set(struct shmlock_arena *arena, int i, int action, uint32_t tid)
{
	struct shm_point *point;

	if (i < 0 || i >= DEBUG_POINTS)
		return -EINVAL;
	point = &arena->debug->point[i];
	if (action == 1) {
		atomic_store(&point->tid, tid);
		atomic_store(&point->reached, 0);
		atomic_store(&point->state, POINT_ARMED);
	} else {
		atomic_store(&point->state, action == 2 ? POINT_GO : POINT_OFF);
	}
	futex_wake_all(&point->state);
	return 0;
}

int debug_rule_set(struct shmlock_arena *arena, int rule, int on)
{
	if (rule < 0 || rule >= DEBUG_RULES)
		return -EINVAL;
	if (on)
		atomic_fetch_and(&arena->debug->broken_rules, ~(1ull << rule));
	else
		atomic_fetch_or(&arena->debug->broken_rules, 1ull << rule);
	return 0;
}

int debug_perturb(struct shmlock_arena *arena, uint64_t seed, uint32_t ppm)
{
	atomic_store(&arena->debug->perturb_ppm, ppm);
	atomic_store(&arena->debug->perturb_seed, seed);
	return 0;
}

int debug_point_wait(struct shmlock_arena *arena, int i, int64_t deadline)
{
	struct shm_point *point;
	int ret;

	if (i < 0 || i >= DEBUG_POINTS)
		return -EINVAL;
	point = &arena->debug->point[i];
	while (!atomic_load(&point->reached)) {
		ret = futex_wait(&point->reached, 0, NULL, 0, deadline);
		if (ret == -ETIMEDOUT || ret == -EINTR)
			return ret;
	}
	return (int)atomic_load(&point->who);
}

#endif
