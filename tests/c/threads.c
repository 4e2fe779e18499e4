/* SPDX-License-Identifier: MIT */
/*
 * Threads on ONE mapping: TSan sees a race only if both sides use the same address.
 *
 *     threads THREADS SECONDS SEED DENTRIES
 */
#include <pthread.h>
#include <stdbool.h>

#include "work.h"

static struct world world;
static struct shmlock_arena *arena; /* static, so that the leak checker sees it */
static int64_t end;
static uint64_t seed;

static void *work(void *argument)
{
	int id = (int)(intptr_t)argument;
	struct worker worker = {
		.arena = arena,
		.world = &world,
		.id = id,
		.random = seed * 1000003 + (uint64_t)id,
		.may_leave = 1,
	};

	if (shmlock_enter(arena))
		FAIL("thread %d cannot enter", id);
	work_until(&worker, end);
	if (id % 2 && shmlock_leave(arena)) /* the others' tasks end with the thread */
		FAIL("thread %d ended with locks", id);
	return NULL;
}

static void *look(void *argument)
{
	(void)argument;
	for (uint64_t n = seed; now_ns() < end; n++)
		look_around(arena, n);
	return NULL;
}

/* More attachments of one process share one mapping. */
static void *attach_too(void *argument)
{
	int fd = *(int *)argument;
	struct shmlock_arena *second;

	while (now_ns() < end) {
		if (shmlock_attach(fd, 0, &second) || second != arena)
			FAIL("a second attachment is not the first");
		if (shmlock_enter(second) || shmlock_leave(second) || shmlock_close(second))
			FAIL("enter, leave, close");
	}
	return NULL;
}

static bool all_reached(void)
{
	return counter(arena, "recycled") && counter(arena, "reclaimed") &&
	       counter(arena, "sleeps") && counter(arena, "deadlocks");
}

static void work_all(int threads, int fd, int64_t time, uint64_t round)
{
	pthread_t thread[WORKERS + 2];

	seed += round;
	end = now_ns() + time;
	for (int i = 0; i < threads; i++)
		if (pthread_create(&thread[i], NULL, work, (void *)(intptr_t)i))
			FAIL("pthread_create");
	if (pthread_create(&thread[threads], NULL, look, NULL) ||
	    pthread_create(&thread[threads + 1], NULL, attach_too, &fd))
		FAIL("pthread_create");
	for (int i = 0; i < threads + 2; i++)
		pthread_join(thread[i], NULL);
}

int main(int argc, char **argv)
{
	int threads, fd;
	uint64_t total = 0;

	if (argc != 5)
		FAIL("usage: threads THREADS SECONDS SEED DENTRIES");
	threads = atoi(argv[1]);
	seed = strtoull(argv[3], NULL, 10);
	if (threads < 1 || threads > WORKERS)
		FAIL("1 to %d threads", WORKERS);
	fd = new_arena((uint32_t)atoi(argv[4]), WORKERS + 4);
	if (shmlock_attach(fd, 0, &arena))
		FAIL("attach");
	guard_against_hang(arena, (unsigned int)(ROUNDS * atof(argv[2]) + 60));
	shmlock_perturb(arena, seed, 2000); /* debug build only */
	world_set_up(arena, &world);
	/* On a slow machine again, until it has been where it is sent. */
	for (int round = 0; round < ROUNDS && !all_reached(); round++)
		work_all(threads, fd, (int64_t)(atof(argv[2]) * 1e9), (uint64_t)round);
	for (int i = 0; i < threads; i++)
		total += world.ops[i];
	printf("threads: seed %s, %llu operations\n", argv[3], (unsigned long long)total);
	print_counters(arena);
	world_judge(arena, &world);
	if (!all_reached())
		FAIL("not all was reached: the arena is too large or the time too short");
	if (shmlock_leave(arena) || shmlock_close(arena))
		FAIL("leave, close");
	return 0;
}
