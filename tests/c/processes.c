/* SPDX-License-Identifier: MIT */
/*
 * Processes, each with a mapping of its own; some are killed at any instant, the others recover
 * what they left.
 *
 *     processes PROCESSES SECONDS SEED DENTRIES
 */
#include <errno.h>
#include <signal.h>
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

int main(int argc, char **argv)
{
	int processes, fd;
	struct world *world;
	pid_t pid[WORKERS];
	uint64_t random, total = 0;
	int64_t end;

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
	end = now_ns() + (int64_t)(atof(argv[2]) * 1e9);
	for (int id = 0; id < processes; id++)
		pid[id] = start(fd, world, id, next_random(&random), end);
	while (now_ns() < end) {
		struct timespec t = { 0, (long)(next_random(&random) % 10000000) };
		int id = (int)(next_random(&random) % (uint64_t)processes);

		nanosleep(&t, NULL);
		if (now_ns() >= end)
			break;
		kill(pid[id], SIGKILL);
		reap(pid[id], 1);
		kills++;
		pid[id] = start(fd, world, id, next_random(&random), end);
	}
	for (int id = 0; id < processes; id++)
		reap(pid[id], 0);
	if (shmlock_attach(fd, 0, &arena))
		FAIL("attach");
	guard_against_hang(arena, 60);
	for (int id = 0; id < processes; id++)
		total += world->ops[id];
	printf("processes: seed %s, %llu operations, %d kills\n", argv[3],
	       (unsigned long long)total, kills);
	print_counters(arena);
	world_judge(arena, world);
	if (!counter(arena, "recoveries") || !counter(arena, "locks_recovered") ||
	    !counter(arena, "sleeps"))
		FAIL("nobody was recovered: the run was too short");
	if (shmlock_leave(arena) || shmlock_close(arena))
		FAIL("leave, close");
	return 0;
}
