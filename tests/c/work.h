/* SPDX-License-Identifier: MIT */
/*
 * What a worker of the C stress programs does: a seeded mix of every call, each answer judged.
 *
 * Judges
 *   - names of its own, in directories that all use: each call must do what the model says;
 *   - guards: plain variables that only the holder of a name's lock may touch. A second holder is
 *     seen by their values, and by TSan as a data race;
 *   - shared names: any result, but only of the errors that the call can have.
 */
#ifndef WORK_H
#define WORK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "shmlock.h"

#define WORKERS 16
#define OWN_NAMES 20
#define GUARDS 6
#define ROUNDS 20

/* What the model says of an own name. */
enum own { ABSENT, IS_FILE, IS_DIR, FULL_DIR, UNSURE };

/* Shared by all workers, threads or processes. Nothing in it is atomic, on purpose. */
struct world {
	struct guard {
		int inside; /* worker in the section + 1 */
		int exists; /* what the holder left under the name: ABSENT, IS_FILE, IS_DIR */
		uint64_t entered;
	} guard[GUARDS];
	/* Survives a killed worker: UNSURE while a call was in progress. */
	int own[WORKERS][OWN_NAMES];
	uint64_t ops[WORKERS];
};

struct worker {
	struct shmlock_arena *arena;
	struct world *world;
	int id;
	uint64_t random;
	int may_leave; /* end its task now and then, and begin a new one */
	char *listing; /* LISTING_ROOM bytes */
};

#define LISTING_ROOM (1u << 18)

#define FAIL(...) \
	do { \
		fprintf(stderr, "FAIL %s:%d: ", __FILE__, __LINE__); \
		fprintf(stderr, __VA_ARGS__); \
		fputc('\n', stderr); \
		fflush(NULL); \
		_Exit(1); \
	} while (0)

/* The directories that stay, and the models of nothing there. Call once, before the workers. */
void world_set_up(struct shmlock_arena *arena, struct world *world);
/* Work until CLOCK_MONOTONIC is `end` (ns). */
void work_until(struct worker *worker, int64_t end);
/* After the last worker: every own name and guard is as the models say, the arena is sound. */
void world_judge(struct shmlock_arena *arena, struct world *world);
/* A tool's look at everything, while others work. */
void look_around(struct shmlock_arena *arena, uint64_t seed);

/* Format a new object; returns its descriptor. */
int new_arena(uint32_t dentries, uint32_t tasks);
/* Of all tasks since the arena was made; FAIL for a name that is no counter. */
uint64_t counter(struct shmlock_arena *arena, const char *name);
void print_counters(struct shmlock_arena *arena);
/* A hang is a failure that says who waits for what. */
void guard_against_hang(struct shmlock_arena *arena, unsigned int seconds);
int64_t now_ns(void);
uint64_t next_random(uint64_t *state);

#endif
