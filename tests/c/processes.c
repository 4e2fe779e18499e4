/* SPDX-License-Identifier: MIT */
/*
 * Processes, each with a mapping of its own; some are killed at any instant, the others recover
 * what they left.
 *
 *     processes PROCESSES SECONDS SEED DENTRIES
 */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "work.h"

/* Static, so that the leak checker sees them: what was attached is never freed, on purpose. */
static struct shmlock_arena *first, *arena;
static int kills;

static void child(int fd, struct world *world, int id, uint64_t random, int64_t end)
{
	struct worker worker = { .world = world, .id = id, .random = random, .may_leave = 1 };

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (shmlock_attach(fd, 0, &arena))
		FAIL("attach");
	worker.arena = arena;
	guard_against_hang(arena, (unsigned int)((end - now_ns()) / 1000000000 + 60));
	work_until(&worker, end);
	if (shmlock_leave(arena))
		FAIL("worker %d ended with locks", id);
	shmlock_close(arena);
	exit(0);
}

static pid_t start(int fd, struct world *world, int id, uint64_t random, int64_t end)
{
	pid_t pid = fork();

	if (pid < 0)
		FAIL("fork");
	if (!pid)
		child(fd, world, id, random, end);
	return pid;
}

/* The exit status of a worker that nobody killed must be 0. */
static void reap(pid_t pid, int killed)
{
	int status;

	if (waitpid(pid, &status, 0) != pid)
		FAIL("waitpid");
	if (killed && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
		return;
	if (status)
		FAIL("a worker ended with status %#x", (unsigned int)status);
}

static void work_all(int processes, int fd, struct world *world, uint64_t *random, int64_t time)
{
	int64_t end = now_ns() + time;
	pid_t pid[WORKERS];

	for (int id = 0; id < processes; id++)
		pid[id] = start(fd, world, id, next_random(random), end);
	for (;;) {
		struct timespec t = { 0, (long)(next_random(random) % 10000000) };
		int id = (int)(next_random(random) % (uint64_t)processes);

		nanosleep(&t, NULL);
		if (now_ns() >= end)
			break;
		kill(pid[id], SIGKILL);
		reap(pid[id], 1);
		kills++;
		pid[id] = start(fd, world, id, next_random(random), end);
	}
	for (int id = 0; id < processes; id++)
		reap(pid[id], 0);
}

int main(int argc, char **argv)
{
	int processes, fd;
	struct world *world;
	uint64_t random, total = 0;
	bool reached = false;

	if (argc != 5)
		FAIL("usage: processes PROCESSES SECONDS SEED DENTRIES");
	processes = atoi(argv[1]);
	random = strtoull(argv[3], NULL, 10);
	if (processes < 2 || processes > WORKERS)
		FAIL("2 to %d processes", WORKERS);
	fd = new_arena((uint32_t)atoi(argv[4]), WORKERS + 4);
	world = mmap(NULL, sizeof(*world), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (world == MAP_FAILED || shmlock_attach(fd, 0, &first))
		FAIL("attach");
	shmlock_perturb(first, random + 1, 2000); /* debug build only */
	world_set_up(first, world);
	/* Left before the fork: the children's mappings are their own. */
	if (shmlock_leave(first) || shmlock_close(first))
		FAIL("leave, close");
	/* On a slow machine again, until it has been where it is sent. */
	for (int round = 0; round < ROUNDS && !reached; round++) {
		work_all(processes, fd, world, &random, (int64_t)(atof(argv[2]) * 1e9));
		if (shmlock_attach(fd, 0, &arena))
			FAIL("attach");
		guard_against_hang(arena, 60);
		reached = counter(arena, "recoveries") && counter(arena, "locks_recovered") &&
			  counter(arena, "sleeps");
		if (!reached && (shmlock_leave(arena) || shmlock_close(arena)))
			FAIL("leave, close");
		alarm(0);
	}
	if (!reached)
		FAIL("nobody was recovered: the time is too short");
	guard_against_hang(arena, 60);
	for (int id = 0; id < processes; id++)
		total += world->ops[id];
	printf("processes: seed %s, %llu operations, %d kills\n", argv[3],
	       (unsigned long long)total, kills);
	print_counters(arena);
	world_judge(arena, world);
	if (shmlock_leave(arena) || shmlock_close(arena))
		FAIL("leave, close");
	return 0;
}
