/* SPDX-License-Identifier: MIT */
/*
 * Past bugs of the core that need an instant which no pause point marks, one per subcommand: the
 * core is built with hook.h, so that something can happen before any access to a shared
 * word.  tests/test_regressions.py builds and runs this.  Exit status 0: as it should be; 1: not,
 * and stderr says what.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "dirblock.h"
#include "namei.h"
#include "shmlock.h"
#include "task.h"

#define SECOND 1000000000

#define FAIL(...) \
	do { \
		fprintf(stderr, "FAIL line %d: ", __LINE__); \
		fprintf(stderr, __VA_ARGS__); \
		fputc('\n', stderr); \
		_Exit(1); \
	} while (0)
#define MUST(call, wanted) \
	do { \
		long ret_ = (long)(call); \
\
		if (ret_ != (wanted)) \
			FAIL("%s: %ld, not %ld", #call, ret_, (long)(wanted)); \
	} while (0)

/* ---- What happens before the n-th access ------------------------------------------------------- */

static _Thread_local int countdown; /* 0: nothing */
static _Thread_local bool only_stores;
static _Thread_local void (*happens)(void);

void regress_access(int store)
{
	if (!countdown || (only_stores && !store) || --countdown)
		return;
	happens();
}

static void arm(int n, bool stores, void (*what)(void))
{
	only_stores = stores;
	happens = what;
	countdown = n;
}

/* True: it did happen. */
static bool disarm(void)
{
	bool happened = !countdown;

	countdown = 0;
	return happened;
}

/* ---- Arenas ------------------------------------------------------------------------------------ */

static struct shmlock_arena *arena;
static int arena_fd;

static void make_arena(uint32_t dentries)
{
	struct shmlock_params params = { dentries, 8, 0 };

	arena_fd = memfd_create("regress", 0);
	MUST(ftruncate(arena_fd, shmlock_size(&params)), 0);
	MUST(shmlock_format(arena_fd, &params), 0);
	MUST(shmlock_attach(arena_fd, 0, &arena), 0);
}

static void drop_arena(void)
{
	shmlock_leave(arena);
	shmlock_close(arena);
	close(arena_fd);
}

static void must_be_sound(const char *what, int n)
{
	struct shmlock_fault fault;
	int faults = shmlock_check(arena, 1, &fault, 1);

	if (faults)
		FAIL("%s, %d: %d faults, the first is I%u at cell %u: found %llx, expected %llx", what, n,
		     faults, fault.invariant, fault.cell, (unsigned long long)fault.found,
		     (unsigned long long)fault.expected);
}

/* ---- kills: SIGKILL before each store of a call ------------------------------------------------ */

static void die(void)
{
	kill(getpid(), SIGKILL);
}

/* What is made, killed in, and used afterwards: a name in the root, the first one of a directory
 * (which gets its list of names with it), and one too long for its cell. */
static const char *where;
static char below[512];

static void choose(const char *path)
{
	where = path;
	snprintf(below, sizeof(below), "%s/x", path);
}

static int nothing(void)
{
	return 0;
}

static int make_file(void)
{
	return shmlock_create(arena, where, SECOND);
}

static int make_dir(void)
{
	return shmlock_mkdir(arena, where, SECOND);
}

static int make_used_dir(void)
{
	return make_dir() || shmlock_create(arena, below, SECOND) ||
	       shmlock_unlink(arena, below, SECOND);
}

static int call_unlink(void)
{
	return shmlock_unlink(arena, where, SECOND);
}

static int call_rmdir(void)
{
	return shmlock_rmdir(arena, where, SECOND);
}

static int make_and_unlink(void)
{
	return make_file() || call_unlink();
}

static int lock_and_unlock(void)
{
	struct shmlock_name name = { .arena = &arena, .path = where };

	return shmlock_name_acquire(&name, SECOND) || shmlock_name_release(&name);
}

static const struct {
	const char *name;
	int (*before)(void), (*call)(void);
} killed[] = {
	{ "unlink", make_file, call_unlink },
	{ "rmdir", make_used_dir, call_rmdir },
	{ "create", nothing, make_file },
	{ "create again", make_and_unlink, make_file },
	{ "mkdir", nothing, make_dir },
	{ "acquire and release", nothing, lock_and_unlock },
	{ "acquire and release of a file", make_file, lock_and_unlock },
};
#define KILLED (sizeof(killed) / sizeof(killed[0]))

/* Whatever it was before, it can be removed, made, removed, made a directory, and removed. */
static void must_be_usable(const char *what, int n)
{
	struct shmlock_name name = { .arena = &arena, .path = where };
	struct shmlock_stat stat;
	int ret;

	must_be_sound(what, n);
	ret = shmlock_stat(arena, where, 0, &stat);
	if (!ret)
		ret = S_ISDIR(stat.st_mode) ? call_rmdir() : call_unlink();
	else if (ret == -ENOENT)
		ret = 0;
	if (!ret)
		ret = make_file() || call_unlink() || make_used_dir() || call_rmdir() ||
		      make_file() || call_unlink();
	if (ret)
		FAIL("%s, killed before store %d: the name cannot be used: %d", what, n, ret);
	MUST(shmlock_name_acquire(&name, SECOND), 0);
	MUST(shmlock_name_release(&name), 0);
	must_be_sound(what, n);
}

/* False: it ended before its n-th store. */
static bool kill_before(int (*before)(void), int (*call)(void), const char *what, int n)
{
	int status;
	pid_t pid;

	make_arena(64);
	MUST(shmlock_mkdir(arena, "/d", SECOND), 0);
	MUST(before(), 0);
	pid = fork();
	if (!pid) {
		MUST(shmlock_enter(arena), 0);
		arm(n, true, die);
		MUST(call(), 0);
		_exit(0);
	}
	MUST(waitpid(pid, &status, 0), pid);
	if (!WIFSIGNALED(status))
		MUST(status, 0);
	shmlock_sweep(arena);
	must_be_usable(what, n);
	drop_arena();
	return WIFSIGNALED(status);
}

static void run_kills(void)
{
	char longer[SHM_NAME_MAX + 2] = "/";

	memset(longer + 1, 'l', SHM_NAME_MAX);
	for (size_t i = 0; i < 3 * KILLED; i++) {
		const char *what = killed[i / 3].name;
		int n = 1;

		choose(i % 3 == 0 ? "/f" : i % 3 == 1 ? "/d/f" : longer);
		while (kill_before(killed[i / 3].before, killed[i / 3].call, what, n))
			n++;
		if (n < 6)
			FAIL("%s has only %d stores: nothing was tested", what, n - 1);
		printf("%s of %.8s: killed before each of %d stores\n", what, where, n - 1);
	}
}

/* ---- chain: a cell is taken out and put in again under a walker --------------------------------- */

enum { A, W, C, D, CHAINED }; /* in the order of their making: the chain is d c w a */
static const char *const paths[CHAINED] = { "/a", "/w", "/c", "/d" };
static struct name_key keys[CHAINED];
static struct found cells[CHAINED];
static uint64_t stale;

static void look_up(int i)
{
	static char bytes[CHAINED][64]; /* the key points to them, and they are read by words */
	static struct name names[CHAINED];

	strcpy(bytes[i], paths[i] + 1);
	name_scan(bytes[i], &names[i]);
	name_key(arena, &keys[i], walk_root(arena).ino, &names[i]);
	MUST(dcache_lookup(arena, &keys[i], &cells[i]), 0);
	if (!cells[i].cell)
		FAIL("%s is not there", paths[i]);
}

/* One chain for all names. `stale` is what its head was when it had only the first. */
static void make_chain(void)
{
	make_arena(64);
	arena->bucket_mask = 0;
	for (int i = 0; i < CHAINED; i++) {
		MUST(shmlock_create(arena, paths[i], SECOND), 0);
		look_up(i);
		if (i == A)
			stale = *chain_head(arena, keys[A].hash);
	}
}

/* Another task reclaims c and wants to put it in under a name that it looked up long ago. */
static void reclaim(void)
{
	MUST(chain_remove(arena, keys[C].hash, cells[C].cell), 0);
	MUST(chain_push(arena, keys[C].hash, stale, cells[C].cell), false);
}

static void find_name(void)
{
	struct found found;

	MUST(dcache_lookup(arena, &keys[W], &found), 0);
	if (found.cell != cells[W].cell)
		FAIL("a lookup missed a name that was there all the time");
}

static void find_cell(void)
{
	MUST(chain_contains(arena, keys[W].hash, cells[W].cell), 1);
}

static void take_out(void)
{
	MUST(chain_remove(arena, keys[W].hash, cells[W].cell), 0);
}

static bool reclaim_before(void (*walk)(void), int n)
{
	bool happened;

	make_chain();
	arm(n, false, reclaim);
	walk();
	happened = disarm();
	if (walk == take_out) /* and not just out of sight */
		MUST(chain_contains(arena, keys[W].hash, cells[W].cell), 0);
	drop_arena();
	return happened;
}

static void run_chain(void)
{
	static void (*const walks[])(void) = { find_name, find_cell, take_out };

	for (int i = 0; i < 3; i++) {
		int n = 1;

		while (reclaim_before(walks[i], n))
			n++;
		if (n < 6)
			FAIL("walk %d has only %d accesses: nothing was tested", i, n - 1);
		printf("walk %d: disturbed before each of %d accesses\n", i, n - 1);
	}
}

/* ---- block: a block of the directory's list is locked, but only for a moment ---------------------- */

static atomic_int block_state; /* 0; 1 locked; 2 asked to go; 3 free */

/* libc's is not called: whoever gives way lets the block's holder go on. */
int sched_yield(void)
{
	int locked = 1;

	atomic_compare_exchange_strong(&block_state, &locked, 2);
	while (atomic_load(&block_state) == 2)
		;
	return 0;
}

static void *hold_block(void *unused)
{
	struct shm_cell *block;
	struct task *task;
	uint32_t seen, cell;

	MUST(task_enter(arena, &task), 0);
	cell = dirblock_of(arena, walk_root(arena).ino);
	block = cell_at(arena, cell);
	task_hold(task, cell);
	MUST(dlock_try(task, &block->d_flags, 0, 0, &seen), true);
	atomic_store(&block_state, 1);
	while (atomic_load(&block_state) != 2)
		;
	dlock_unlock(task, &block->d_flags, 0, 0);
	task_unhold(task, cell);
	atomic_store(&block_state, 3);
	return unused;
}

static void run_block(void)
{
	struct shmlock_name name = { .arena = &arena, .path = "/new" };
	pthread_t thread;
	char path[16];

	make_arena(4096);
	for (int i = 0; i < (int)SHM_BLOCK_ENTRIES; i++) { /* the first block is full */
		snprintf(path, sizeof(path), "/f%d", i);
		MUST(shmlock_create(arena, path, SECOND), 0);
	}
	pthread_create(&thread, NULL, hold_block, NULL);
	while (atomic_load(&block_state) != 1)
		;
	MUST(shmlock_name_acquire(&name, 0), 0);
	MUST(shmlock_name_release(&name), 0);
	pthread_join(thread, NULL);
	must_be_sound("block", 0);
}

/* ---- owner: a waiter comes while somebody asks who holds the lock -------------------------------- */

static void waiter_comes(void)
{
	atomic_fetch_or(&cell_at(arena, cells[A].cell)->d_flags, DCACHE_LOCK_WAITER);
}

static bool ask_owner(int n)
{
	struct shmlock_name name = { .arena = &arena, .path = paths[A] };
	struct shmlock_owner owner = { 0 };
	bool happened;

	make_arena(64);
	MUST(shmlock_name_acquire(&name, 0), 0);
	look_up(A);
	arm(n, false, waiter_comes);
	MUST(shmlock_name_owner(arena, paths[A], &owner), 1);
	happened = disarm();
	MUST(owner.pid, getpid());
	MUST(shmlock_name_release(&name), 0);
	drop_arena();
	return happened;
}

static void run_owner(void)
{
	int n = 1;

	while (ask_owner(n))
		n++;
	if (n < 6)
		FAIL("only %d accesses: nothing was tested", n - 1);
	printf("owner: disturbed before each of %d accesses\n", n - 1);
}

/* ---- latency: the arena's words ask for years ------------------------------------------------------ */

static bool fast; /* each look at the clock takes a second */
static time_t slept;

int clock_gettime(clockid_t clock, struct timespec *now)
{
	static time_t later;

	if (fast)
		later++;
	if (syscall(SYS_clock_gettime, clock, now))
		return -1;
	now->tv_sec += later;
	return 0;
}

int nanosleep(const struct timespec *wanted, struct timespec *left)
{
	(void)left;
	slept += wanted->tv_sec;
	return 0;
}

static void run_latency(void)
{
	make_arena(64);
	arena->header->latency_sleep = arena->header->latency_spin = 1ull << 60;
	alarm(5);
	fast = true;
	choose("/f");
	MUST(make_file(), 0);
	if (slept < 1 || slept > 60)
		FAIL("slept %ld s", (long)slept);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} bugs[] = {
		{ "kills", run_kills },
		{ "chain", run_chain },
		{ "block", run_block },
		{ "owner", run_owner },
		{ "latency", run_latency },
	};

	for (size_t i = 0; argc == 2 && i < sizeof(bugs) / sizeof(bugs[0]); i++) {
		if (!strcmp(argv[1], bugs[i].name)) {
			bugs[i].run();
			return 0;
		}
	}
	return 2;
}
