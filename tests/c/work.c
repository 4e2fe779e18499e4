/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE /* memfd_create */
#include "work.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PATH_ROOM 600
#define SHARED_DIRS 3
#define SHARED_NAMES 5

int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

uint64_t next_random(uint64_t *state) /* splitmix64 */
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ull;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static unsigned int below(struct worker *worker, unsigned int n)
{
	return (unsigned int)(next_random(&worker->random) % n);
}

/* What check says; of an arena in use, only what it says again and again means something. */
static int print_faults(struct shmlock_arena *arena, int quiescent)
{
	struct shmlock_fault fault[20];
	int n = shmlock_check(arena, quiescent, fault, 20);

	for (int i = 0; i < n && i < 20; i++)
		fprintf(stderr, "I%u: cell %u: found %#llx, expected %#llx: %s\n",
			fault[i].invariant, fault[i].cell, (unsigned long long)fault[i].found,
			(unsigned long long)fault[i].expected,
			shmlock_invariant((int)fault[i].invariant));
	return n;
}

/* Nobody scribbles here, so no call may say that somebody did. */
static int not_damaged(struct worker *worker, int ret, const char *path)
{
	if (ret == -EUCLEAN || ret == -ENOTRECOVERABLE) {
		fprintf(stderr, "worker %d: %.40s: %d\n", worker->id, path, ret);
		print_faults(worker->arena, 0);
	}
	return ret;
}

/* ---- Names --------------------------------------------------------------------------------- */

/* "dir/name", padded with x to a name of: its own length, 31, 32, 120 or 255 bytes. */
static void set_path(char *path, const char *dir, const char *name, int i)
{
	static const int lengths[] = { 0, 31, 0, 32, 0, 120, 0, 255 };
	int length = lengths[i % 8];
	int at = snprintf(path, PATH_ROOM, "%s/%s", dir, name), have = (int)strlen(name);

	for (; have < length; have++)
		path[at++] = 'x';
	path[at] = 0;
}

static const char *own_dir(int i)
{
	return i % 2 ? "/stays1" : "/stays0";
}

static void own_path(char *path, int id, int i)
{
	char name[32];

	snprintf(name, sizeof(name), "own-%d-%d-", id, i);
	set_path(path, own_dir(i), name, i / 2);
}

static void guard_path(char *path, int i)
{
	char name[32];

	snprintf(name, sizeof(name), "guard%d-", i);
	set_path(path, own_dir(i), name, i);
}

/* A name that all meet at; sometimes its directory, sometimes something in it. */
static void shared_path(struct worker *worker, char *path)
{
	unsigned int dir = below(worker, SHARED_DIRS), n = below(worker, SHARED_NAMES);
	char parent[32], name[32];

	snprintf(parent, sizeof(parent), "/s/%u", dir);
	snprintf(name, sizeof(name), "n%u", n);
	set_path(path, parent, name, (int)n);
	switch (below(worker, 6)) {
	case 0:
		strcpy(path, parent);
		break;
	case 1:
		strcat(path, below(worker, 2) ? "/in" : "/..");
		break;
	}
}

/* ---- Calls --------------------------------------------------------------------------------- */

enum call { MKDIR, CREATE, UNLINK, RMDIR, CALLS };

static int call_once(struct shmlock_arena *arena, enum call call, const char *path, int64_t timeout)
{
	switch (call) {
	case MKDIR:
		return shmlock_mkdir(arena, path, timeout);
	case CREATE:
		return shmlock_create(arena, path, timeout);
	case UNLINK:
		return shmlock_unlink(arena, path, timeout);
	default:
		return shmlock_rmdir(arena, path, timeout);
	}
}

static int do_call(struct worker *worker, enum call call, const char *path, int64_t timeout)
{
	int ret = call_once(worker->arena, call, path, timeout);

	while (ret == -EINTR)
		ret = call_once(worker->arena, call, path, SHMLOCK_RESUME);
	return not_damaged(worker, ret, path);
}

static int acquire(struct shmlock_name *lock, int64_t timeout)
{
	int ret = shmlock_name_acquire(lock, timeout);

	while (ret == -EINTR)
		ret = shmlock_name_acquire(lock, SHMLOCK_RESUME);
	return ret;
}

static void release(struct shmlock_name *lock)
{
	int ret = shmlock_name_release(lock);

	if (ret)
		FAIL("release of %.40s: %d", lock->path, ret);
}

static struct shmlock_name lock_of(struct worker *worker, const char *path)
{
	return (struct shmlock_name){ .arena = &worker->arena, .path = path };
}

static enum own kind_of(struct shmlock_arena *arena, const char *path)
{
	struct shmlock_stat st;
	int ret = shmlock_stat(arena, path, 1, &st);

	if (ret == -ENOENT)
		return ABSENT;
	if (ret)
		FAIL("stat %.40s: %d", path, ret);
	return S_ISDIR(st.st_mode) ? IS_DIR : IS_FILE;
}

/* ---- Own names ------------------------------------------------------------------------------ */

static int expected(enum call call, enum own is)
{
	static const int answers[CALLS][4] = {
		[MKDIR] = { 0, -EEXIST, -EEXIST, -EEXIST },
		[CREATE] = { 0, -EEXIST, -EEXIST, -EEXIST },
		[UNLINK] = { -ENOENT, 0, -EISDIR, -EISDIR },
		[RMDIR] = { -ENOENT, -ENOTDIR, 0, -ENOTEMPTY },
	};

	return answers[call][is];
}

static void own_call(struct worker *worker, int i, const char *path)
{
	int *model = &worker->world->own[worker->id][i];
	enum call call = (enum call)below(worker, CALLS);
	enum own is = (enum own)*model;
	int want = expected(call, is), ret;

	*model = UNSURE;
	ret = do_call(worker, call, path, SHMLOCK_FOREVER);
	if (ret != want && !(ret == -ENOSPC && want == 0 && call <= CREATE))
		FAIL("worker %d: call %d on own %.40s (%d): %d, not %d", worker->id, call, path, is,
		     ret, want);
	if (ret)
		*model = is;
	else
		*model = call == MKDIR ? IS_DIR : call == CREATE ? IS_FILE : ABSENT;
}

/* A child comes or goes in an own directory. */
static void own_child(struct worker *worker, int i, const char *path)
{
	int *model = &worker->world->own[worker->id][i], is = *model, ret;
	char child[PATH_ROOM + 4];

	snprintf(child, sizeof(child), "%s/in", path);
	*model = UNSURE;
	ret = do_call(worker, is == IS_DIR ? CREATE : UNLINK, child, SHMLOCK_FOREVER);
	if (ret && !(ret == -ENOSPC && is == IS_DIR))
		FAIL("worker %d: child of own %.40s (%d): %d", worker->id, path, is, ret);
	*model = ret ? is : is == IS_DIR ? FULL_DIR : IS_DIR;
}

/* A call under the name's own lock. */
static void own_locked(struct worker *worker, int i, const char *path)
{
	struct shmlock_name lock = lock_of(worker, path);
	int ret = acquire(&lock, SHMLOCK_FOREVER);

	if (ret == -ENOSPC)
		return;
	if (ret)
		FAIL("worker %d: lock of own %.40s: %d", worker->id, path, ret);
	own_call(worker, i, path);
	release(&lock);
}

/* A predecessor was killed in the middle of a call. */
static void own_again(struct worker *worker, int i, const char *path)
{
	int *model = &worker->world->own[worker->id][i];
	char child[PATH_ROOM + 4];

	snprintf(child, sizeof(child), "%s/in", path);
	*model = (int)kind_of(worker->arena, path);
	if (*model == IS_DIR && kind_of(worker->arena, child) != ABSENT)
		*model = FULL_DIR;
}

static void own_name(struct worker *worker)
{
	int i = (int)below(worker, OWN_NAMES), *model = &worker->world->own[worker->id][i];
	char path[PATH_ROOM];
	enum own is;

	own_path(path, worker->id, i);
	if (*model == UNSURE)
		own_again(worker, i, path);
	is = *model == FULL_DIR ? IS_DIR : (enum own)*model;
	switch (below(worker, 8)) {
	case 0:
		if (kind_of(worker->arena, path) != is)
			FAIL("worker %d: own %.40s is not %d", worker->id, path, is);
		break;
	case 1:
	case 2:
		if (is == IS_DIR) {
			own_child(worker, i, path);
			break;
		} /* fallthrough */
	case 3:
		own_locked(worker, i, path);
		break;
	default:
		own_call(worker, i, path);
	}
}

/* Times that a name is in a listing of `size` bytes. */
static int times_listed(const char *listing, size_t size, const char *path)
{
	const char *name = strrchr(path, '/') + 1;
	int times = 0;

	for (size_t at = 0; at < size;) {
		unsigned char length = (unsigned char)listing[at + 12];

		times += strlen(name) == length && !memcmp(listing + at + 13, name, length);
		at += 13u + length;
	}
	return times;
}

static void own_listing(struct worker *worker)
{
	int dir = (int)below(worker, 2), times, is;
	char path[PATH_ROOM];
	int64_t size = shmlock_listdir(worker->arena, own_dir(dir), worker->listing, LISTING_ROOM);

	if (size < 0 || size > LISTING_ROOM)
		FAIL("listdir %s: %lld", own_dir(dir), (long long)size);
	for (int i = dir; i < OWN_NAMES; i += 2) {
		is = worker->world->own[worker->id][i];
		own_path(path, worker->id, i);
		times = times_listed(worker->listing, (size_t)size, path);
		if (is != UNSURE && times != (is != ABSENT))
			FAIL("worker %d: own %.40s (%d) is listed %d times", worker->id, path, is,
			     times);
	}
}

/* ---- Shared names ---------------------------------------------------------------------------- */

static bool can_be(int ret, const int *errors)
{
	for (; *errors; errors++)
		if (ret == -*errors)
			return true;
	return ret == 0;
}

static int64_t some_timeout(struct worker *worker)
{
	static const int64_t timeouts[] = { SHMLOCK_FOREVER, SHMLOCK_FOREVER, 0, 200000 };

	return timeouts[below(worker, 4)];
}

static void shared_name(struct worker *worker)
{
	static const int errors[CALLS][10] = {
		[MKDIR] = { EEXIST, ENOENT, ENOTDIR, ENOSPC, ETIMEDOUT, EDEADLK },
		[CREATE] = { EEXIST, ENOENT, ENOTDIR, ENOSPC, ETIMEDOUT, EDEADLK },
		[UNLINK] = { ENOENT, ENOTDIR, EISDIR, ETIMEDOUT, EDEADLK },
		[RMDIR] = { ENOENT, ENOTDIR, ENOTEMPTY, EBUSY, ETIMEDOUT, EDEADLK },
	};
	enum call call = (enum call)below(worker, CALLS);
	char path[PATH_ROOM];
	int ret;

	shared_path(worker, path);
	ret = do_call(worker, call, path, some_timeout(worker));
	if (!can_be(ret, errors[call]))
		FAIL("worker %d: call %d on %.40s: %d", worker->id, call, path, ret);
}

static void shared_look(struct worker *worker)
{
	static const int errors[] = { ENOENT, ENOTDIR, 0 };
	struct shmlock_stat st;
	char path[PATH_ROOM];
	int64_t ret;

	shared_path(worker, path);
	ret = shmlock_stat(worker->arena, path, 1, &st);
	if (!can_be((int)ret, errors))
		FAIL("worker %d: stat %.40s: %d", worker->id, path, (int)ret);
	if (ret == 0 && (!st.st_mode || !st.st_nlink))
		FAIL("worker %d: stat %.40s: mode %o nlink %u", worker->id, path, st.st_mode,
		     st.st_nlink);
	ret = shmlock_listdir(worker->arena, path, worker->listing, LISTING_ROOM);
	if (ret < 0 && !can_be((int)ret, errors))
		FAIL("worker %d: listdir %.40s: %d", worker->id, path, (int)ret);
}

static void shared_lock(struct worker *worker)
{
	static const int errors[] = { ENOENT, ENOTDIR, ENOSPC, ETIMEDOUT, EDEADLK, EBUSY, 0 };
	struct shmlock_owner owner;
	struct shmlock_name lock;
	char path[PATH_ROOM];
	int ret;

	shared_path(worker, path);
	lock = lock_of(worker, path);
	ret = acquire(&lock, some_timeout(worker));
	if (!can_be(ret, errors))
		FAIL("worker %d: lock of %.40s: %d", worker->id, path, ret);
	if (ret) {
		ret = shmlock_name_owner(worker->arena, path, &owner);
		if (ret != 1 && !can_be(ret, errors))
			FAIL("worker %d: owner of %.40s: %d", worker->id, path, ret);
		return;
	}
	shared_name(worker);
	release(&lock);
}

/* ---- Guards ----------------------------------------------------------------------------------- */

/* Make or remove the name under its own lock: nobody else can, so the answer is known. */
static void guard_change(struct worker *worker, struct guard *guard, const char *path)
{
	enum call call = (enum call)below(worker, CALLS);
	int want = expected(call, (enum own)guard->exists);
	int ret = do_call(worker, call, path, SHMLOCK_FOREVER);

	if (ret != want && !(ret == -ENOSPC && want == 0 && call <= CREATE))
		FAIL("worker %d: call %d on %.40s (%d), locked: %d, not %d", worker->id, call, path,
		     guard->exists, ret, want);
	if (!ret)
		guard->exists = call == MKDIR ? IS_DIR : call == CREATE ? IS_FILE : ABSENT;
}

static void guard_own(struct worker *worker, const struct shmlock_name *lock, const char *path)
{
	struct shmlock_name again = lock_of(worker, path);
	struct shmlock_owner owner;
	int ret = shmlock_name_owner(worker->arena, path, &owner);

	if (ret != 1 || owner.task != lock->task || !owner.person)
		FAIL("worker %d: owner of %.40s: %d", worker->id, path, ret);
	ret = acquire(&again, 0);
	if (ret != -ETIMEDOUT)
		FAIL("worker %d: try own lock: %d", worker->id, ret);
	ret = acquire(&again, SHMLOCK_FOREVER);
	if (ret != -EDEADLK)
		FAIL("worker %d: wait for own lock: %d", worker->id, ret);
}

/* `depth`: locks held already, so that circles come about and must be told. */
static void guarded(struct worker *worker, int depth, int not_this)
{
	int i = (int)below(worker, GUARDS), ret;
	struct guard *guard = &worker->world->guard[i];
	struct shmlock_name lock;
	char path[PATH_ROOM];

	if (i == not_this)
		return;
	guard_path(path, i);
	lock = lock_of(worker, path);
	ret = acquire(&lock, depth ? SHMLOCK_FOREVER : some_timeout(worker));
	if (ret == -ETIMEDOUT || ret == -ENOSPC || (depth && ret == -EDEADLK))
		return;
	if (ret)
		FAIL("worker %d: lock of %.40s: %d", worker->id, path, ret);
	if (lock.recovered) {
		guard->inside = 0;
		guard->exists = (int)kind_of(worker->arena, path);
	}
	if (guard->inside)
		FAIL("workers %d and %d both hold %.40s", worker->id, guard->inside - 1, path);
	guard->inside = worker->id + 1;
	guard->entered++;
	switch (below(worker, 8)) {
	case 0:
		guard_own(worker, &lock, path);
		break;
	case 1:
		shared_name(worker);
		break;
	case 2:
	case 3:
		if (!depth)
			guarded(worker, 1, i);
		break;
	default:
		guard_change(worker, guard, path);
	}
	if (guard->inside != worker->id + 1)
		FAIL("worker %d: %d came in %.40s", worker->id, guard->inside - 1, path);
	guard->inside = 0;
	release(&lock);
}

/* ---- The whole --------------------------------------------------------------------------------- */

static void come_and_go(struct worker *worker)
{
	int ret = shmlock_leave(worker->arena);

	if (ret)
		FAIL("worker %d: held %d locks at its end", worker->id, ret);
	ret = shmlock_enter(worker->arena);
	if (ret)
		FAIL("worker %d: enter: %d", worker->id, ret);
}

void work_until(struct worker *worker, int64_t end)
{
	uint64_t *ops = &worker->world->ops[worker->id];

	worker->listing = malloc(LISTING_ROOM);
	if (!worker->listing)
		FAIL("no memory");
	while (now_ns() < end) {
		for (int n = 0; n < 16; n++, ++*ops) {
			unsigned int kind = below(worker, 64);

			if (kind < 24)
				own_name(worker);
			else if (kind < 26)
				own_listing(worker);
			else if (kind < 42)
				shared_name(worker);
			else if (kind < 48)
				shared_look(worker);
			else if (kind < 54)
				shared_lock(worker);
			else if (kind < 63 || !worker->may_leave)
				guarded(worker, 0, -1);
			else if (below(worker, 16) == 0)
				come_and_go(worker);
		}
	}
	free(worker->listing);
}

void world_set_up(struct shmlock_arena *arena, struct world *world)
{
	static const char *const stay[] = { "/stays0", "/stays1", "/s" };

	memset(world, 0, sizeof(*world));
	for (size_t i = 0; i < sizeof(stay) / sizeof(stay[0]); i++)
		if (shmlock_mkdir(arena, stay[i], SHMLOCK_FOREVER))
			FAIL("mkdir %s", stay[i]);
}

void world_judge(struct shmlock_arena *arena, struct world *world)
{
	struct worker worker = { .arena = arena, .world = world };
	char path[PATH_ROOM];
	int is, faults, ret;

	for (int id = 0; id < WORKERS; id++)
		for (int i = 0; i < OWN_NAMES; i++) {
			own_path(path, id, i);
			worker.id = id;
			if (world->own[id][i] == UNSURE)
				own_again(&worker, i, path);
			is = world->own[id][i] == FULL_DIR ? IS_DIR : world->own[id][i];
			if ((int)kind_of(arena, path) != is)
				FAIL("at the end own %.40s is not %d", path, is);
		}
	for (int i = 0; i < GUARDS; i++) {
		struct shmlock_name lock = lock_of(&worker, path);

		guard_path(path, i);
		ret = acquire(&lock, SHMLOCK_FOREVER);
		if (ret == -ENOSPC && kind_of(arena, path) == ABSENT)
			continue; /* it never came to be, and the arena is full */
		if (ret)
			FAIL("at the end lock of %.40s: %d", path, ret);
		if (!lock.recovered &&
		    (world->guard[i].inside || (int)kind_of(arena, path) != world->guard[i].exists))
			FAIL("at the end %.40s is not %d", path, world->guard[i].exists);
		release(&lock);
	}
	shmlock_sweep(arena);
	faults = print_faults(arena, 1);
	if (faults)
		FAIL("%d broken invariants", faults);
	if (shmlock_violations(arena) > 0)
		FAIL("two tasks in one name's critical section, %d times",
		     shmlock_violations(arena));
}

void look_around(struct shmlock_arena *arena, uint64_t seed)
{
	static _Thread_local struct shmlock_fault fault[20];
	static _Thread_local struct shmlock_task_info task[64];
	static _Thread_local struct shmlock_hold_info hold[64];
	struct shmlock_usage usage;
	char path[4096];
	int ret;

	/* What check says of a moving arena counts only if it is seen twice; here it must just run. */
	if (shmlock_check(arena, 0, fault, 20) < 0 || shmlock_tasks(arena, task, 64) < 0 ||
	    shmlock_holds(arena, hold, 64) < 0 || shmlock_in_flight(arena) < 0 ||
	    shmlock_live_tasks(arena) < 0 || shmlock_sweep(arena) < 0)
		FAIL("a tool's call failed");
	if (shmlock_usage(arena, &usage))
		FAIL("usage");
	ret = shmlock_path_of(arena, 1 + (uint32_t)(next_random(&seed) % usage.dentries), path,
			      sizeof(path));
	if (ret < 0 && ret != -ENOENT)
		FAIL("path_of: %d", ret);
}

/* ---- Helpers of the programs -------------------------------------------------------------------- */

int new_arena(uint32_t dentries, uint32_t tasks)
{
	struct shmlock_params params = { dentries, tasks, SHMLOCK_DENTRY };
	int64_t size = shmlock_size(&params);
	int fd = memfd_create("shmlock-test", MFD_CLOEXEC);

	if (fd < 0 || size < 0 || ftruncate(fd, size) || shmlock_format(fd, &params))
		FAIL("no arena");
	return fd;
}

uint64_t counter(struct shmlock_arena *arena, const char *name)
{
	uint64_t values[64];
	int n = shmlock_counters(arena, values, 64);

	for (int i = 0; i < n; i++)
		if (!strcmp(shmlock_counter_name(i), name))
			return values[i];
	FAIL("no counter %s", name);
}

void print_counters(struct shmlock_arena *arena)
{
	uint64_t values[64];
	int n = shmlock_counters(arena, values, 64);

	for (int i = 0; i < n; i++)
		printf("%s%s %llu", i ? ", " : "  ", shmlock_counter_name(i),
		       (unsigned long long)values[i]);
	putchar('\n');
}

static struct shmlock_arena *watched;

static void hang(int number)
{
	static struct shmlock_task_info task[64];
	static struct shmlock_hold_info hold[64];
	int n = shmlock_tasks(watched, task, 64);

	(void)number; /* stdio in a handler: this process is past saving */
	fprintf(stderr, "FAIL: it hangs\n");
	for (int i = 0; i < n && i < 64; i++)
		fprintf(stderr, "task %u tid %u: waits (%s) for cell %u, held by task %u\n",
			task[i].task, task[i].tid, shmlock_wait_name((int)task[i].wait_kind),
			task[i].wait_cell, task[i].wait_owner);
	n = shmlock_holds(watched, hold, 64);
	for (int i = 0; i < n && i < 64; i++)
		fprintf(stderr, "task %u holds cell %u (kind %u)\n", hold[i].task, hold[i].cell,
			hold[i].kind);
	abort();
}

void guard_against_hang(struct shmlock_arena *arena, unsigned int seconds)
{
	watched = arena;
	signal(SIGALRM, hang);
	alarm(seconds);
}
