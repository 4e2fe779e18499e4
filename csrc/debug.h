/* SPDX-License-Identifier: MIT */
/*
 * What only the debug build has: assertions, named pause points, random delays at them, and
 * rules that can be switched off by name (to show that a test would notice).  In the release
 * build every macro here is nothing at all.
 */
#ifndef SHMLOCK_DEBUG_H
#define SHMLOCK_DEBUG_H

#include "arena.h"

enum debug_point {
#define POINT(id, name) POINT_##id,
#include "points.def"
#undef POINT
	DEBUG_POINTS
};

enum debug_rule {
#define RULE(id, name) RULE_##id,
#include "rules.def"
#undef RULE
	DEBUG_RULES
};

const char *debug_point_name(int point);
const char *debug_rule_name(int rule);

#ifdef SHMLOCK_DEBUG

#define SHMLOCK_DEBUG_BUILD 1
void debug_bug(const char *what, const char *file, int line) __attribute__((noreturn));
void debug_point(struct shmlock_arena *arena, enum debug_point point);
int debug_point_set(struct shmlock_arena *arena, int point, int action, uint32_t tid);
int debug_rule_set(struct shmlock_arena *arena, int rule, int on);
int debug_perturb(struct shmlock_arena *arena, uint64_t seed, uint32_t ppm);
int debug_point_wait(struct shmlock_arena *arena, int point, int64_t deadline);

static inline int debug_rule_holds(struct shmlock_arena *arena, enum debug_rule rule)
{
	return !(atomic_load_explicit(&arena->debug->broken_rules, memory_order_relaxed) &
		 (1ull << rule));
}

/* Never assert(): setuptools may build with -DNDEBUG. */
#define SHM_BUG_ON(condition) \
	do { \
		if (condition) \
			debug_bug(#condition, __FILE__, __LINE__); \
	} while (0)
#define PAUSE(arena, point) debug_point(arena, POINT_##point)
/* True while the rule is in force. */
#define RULE_HOLDS(arena, rule) debug_rule_holds(arena, RULE_##rule)

#else

#define SHMLOCK_DEBUG_BUILD 0
#define SHM_BUG_ON(condition) ((void)0)
#define PAUSE(arena, point) ((void)0)
#define RULE_HOLDS(arena, rule) 1

#endif
#endif
