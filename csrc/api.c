/* SPDX-License-Identifier: MIT */
/* The public functions of shmlock.h: check arguments, find the task, call down. No policy. */
#include "shmlock.h"

#include "bench.h"
#include "check.h"
#include "debug.h"
#include "futex.h"
#include "listing.h"
#include "namei.h"
#include "namelock.h"
#include "recover.h"
#include "snapshot.h"

/*
 * A call that takes no task needs the mapping all the same: this thread's task keeps it, or a pin.
 * Every function below that uses this ends with end_reading().
 */
static inline int begin_reading(struct shmlock_arena *arena, bool *pinned)
{
	struct task *task = task_current;

	*pinned = !(arena && task && task->arena == arena && *task_fork_guard == 1 &&
		    atomic_load_explicit(&arena->handles, memory_order_relaxed));
	return *pinned ? task_pin(arena) : 0;
}

static inline void end_reading(struct shmlock_arena *arena, bool pinned)
{
	if (pinned)
		task_unpin(arena);
}

/* `call` with the mapping kept. */
#define READING(arena, call) \
	do { \
		bool pinned_; \
		int64_t ret_ = begin_reading(arena, &pinned_); \
\
		if (!ret_) { \
			ret_ = (call); \
			end_reading(arena, pinned_); \
		} \
		return (__typeof__(call))ret_; \
	} while (0)

/* ---- Arenas -------------------------------------------------------------------------------- */

void shmlock_limits(struct shmlock_limits *out)
{
	arena_limits(out);
}

int64_t shmlock_size(const struct shmlock_params *params)
{
	return arena_size(params);
}

int shmlock_format(int fd, const struct shmlock_params *params)
{
	return arena_format(fd, params);
}

int shmlock_probe(int fd, struct shmlock_info *out)
{
	return arena_probe(fd, out);
}

void shmlock_expect(struct shmlock_info *out)
{
	arena_expect(out);
}

int shmlock_attach(int fd, uint32_t flags, struct shmlock_arena **out)
{
	return task_attach_arena(fd, flags & SHMLOCK_READONLY, out);
}

int shmlock_enter(struct shmlock_arena *arena)
{
	struct task *task;

	return task_enter(arena, &task);
}

int shmlock_leave(struct shmlock_arena *arena)
{
	struct task *task = task_find(arena);
	int released;

	if (!task)
		return 0;
	released = namelock_release_all(task);
	task_leave(task);
	return released;
}

int shmlock_close(struct shmlock_arena *arena)
{
	return arena ? task_close_arena(arena) : -EBADF;
}

int shmlock_live_tasks(struct shmlock_arena *arena)
{
	READING(arena, recover_live_tasks(arena));
}

int shmlock_mark_unlinked(struct shmlock_arena *arena)
{
	READING(arena, arena_mark_unlinked(arena));
}

void shmlock_info(struct shmlock_arena *arena, struct shmlock_info *out)
{
	bool pinned;

	*out = (struct shmlock_info){ 0 };
	if (begin_reading(arena, &pinned))
		return;
	arena_info(arena, out);
	end_reading(arena, pinned);
}

uint32_t shmlock_task_id(struct shmlock_arena *arena)
{
	struct task *task = task_find(arena);

	return task ? task->id : 0;
}

int shmlock_set_latency(struct shmlock_arena *arena, uint64_t sleep_ns, uint64_t spin_ns)
{
	READING(arena, arena_set_latency(arena, sleep_ns, spin_ns));
}

int shmlock_sweep(struct shmlock_arena *arena)
{
	READING(arena, arena->readonly ? -EROFS : recover_sweep(arena));
}

/* ---- The namespace --------------------------------------------------------------------------- */

/* Begin a call that may wait: this thread's task, the deadline. */
static inline int begin(struct shmlock_arena *arena, int64_t timeout, struct task **task)
{
	int ret = task_enter(arena, task);

	if (!ret)
		wait_begin(*task, timeout);
	return ret;
}

int shmlock_mkdir(struct shmlock_arena *arena, const char *path, int64_t timeout)
{
	struct task *task;
	int ret = begin(arena, timeout, &task);

	return ret ? ret : namei_make(task, path, S_IFDIR | 0777);
}

int shmlock_create(struct shmlock_arena *arena, const char *path, int64_t timeout)
{
	struct task *task;
	int ret = begin(arena, timeout, &task);

	return ret ? ret : namei_make(task, path, S_IFREG | 0666);
}

int shmlock_unlink(struct shmlock_arena *arena, const char *path, int64_t timeout)
{
	struct task *task;
	int ret = begin(arena, timeout, &task);

	return ret ? ret : namei_unlink(task, path);
}

int shmlock_rmdir(struct shmlock_arena *arena, const char *path, int64_t timeout)
{
	struct task *task;
	int ret = begin(arena, timeout, &task);

	return ret ? ret : namei_rmdir(task, path);
}

int shmlock_stat(struct shmlock_arena *arena, const char *path, int follow,
		 struct shmlock_stat *out)
{
	(void)follow; /* no symlinks yet */
	READING(arena, listing_stat(arena, path, out));
}

int64_t shmlock_listdir(struct shmlock_arena *arena, const char *path, char *buf, size_t size)
{
	READING(arena, listing_dir(arena, path, buf, size));
}

/* ---- Locks for people ------------------------------------------------------------------------ */

int shmlock_name_acquire(struct shmlock_name *lock, int64_t timeout)
{
	struct task *task;
	int ret = begin(*lock->arena, timeout, &task);

	return ret ? ret : namelock_acquire(task, lock);
}

static int release(struct shmlock_name *lock, bool abandon)
{
	struct shmlock_arena *arena = *lock->arena;
	struct task *task = arena ? task_current : NULL;

	if (!arena)
		return -EBADF;
	if (!task || task->arena != arena)
		task = task_find(arena);
	return task && *task_fork_guard == 1 ? namelock_release(task, lock, abandon) : -EPERM;
}

int shmlock_name_release(struct shmlock_name *lock)
{
	return release(lock, false);
}

int shmlock_name_abandon(struct shmlock_name *lock)
{
	return release(lock, true);
}

int shmlock_name_owner(struct shmlock_arena *arena, const char *path, struct shmlock_owner *out)
{
	READING(arena, namelock_owner(arena, path, out));
}

int shmlock_circle(char *buf, size_t size)
{
	return snapshot_circle(buf, size);
}

/* ---- For tools ------------------------------------------------------------------------------- */

int shmlock_tasks(struct shmlock_arena *arena, struct shmlock_task_info *out, int n)
{
	READING(arena, snapshot_tasks(arena, out, n));
}

int shmlock_holds(struct shmlock_arena *arena, struct shmlock_hold_info *out, int n)
{
	READING(arena, snapshot_holds(arena, out, n));
}

int shmlock_check(struct shmlock_arena *arena, int quiescent, struct shmlock_fault *out, int n)
{
	READING(arena, check_arena(arena, quiescent, out, n));
}

const char *shmlock_invariant(int n)
{
	return check_invariant(n);
}

int shmlock_usage(struct shmlock_arena *arena, struct shmlock_usage *out)
{
	READING(arena, snapshot_usage(arena, out));
}

int shmlock_path_of(struct shmlock_arena *arena, uint32_t cell, char *buf, size_t size)
{
	READING(arena, walk_path_of(arena, cell, buf, size));
}

const char *shmlock_wait_name(int kind)
{
	return wait_kind_name(kind);
}

int shmlock_counters(struct shmlock_arena *arena, uint64_t *out, int n)
{
	READING(arena, snapshot_counters(arena, out, n));
}

const char *shmlock_counter_name(int counter)
{
	return snapshot_counter_name(counter);
}

int shmlock_in_flight(struct shmlock_arena *arena)
{
	READING(arena, snapshot_in_flight(arena));
}

/* ---- Debug build only -------------------------------------------------------------------------- */

const char *shmlock_point_name(int point)
{
	return SHMLOCK_DEBUG_BUILD ? debug_point_name(point) : "";
}

const char *shmlock_rule_name(int rule)
{
	return SHMLOCK_DEBUG_BUILD ? debug_rule_name(rule) : "";
}

#ifdef SHMLOCK_DEBUG

int shmlock_point_set(struct shmlock_arena *arena, int point, int action, uint32_t tid)
{
	READING(arena, debug_point_set(arena, point, action, tid));
}

int shmlock_point_wait(struct shmlock_arena *arena, int point, int64_t timeout)
{
	int64_t deadline = timeout < 0 ? FUTEX_NO_DEADLINE : futex_now() + timeout;

	READING(arena, debug_point_wait(arena, point, deadline));
}

int shmlock_rule_set(struct shmlock_arena *arena, int rule, int on)
{
	READING(arena, debug_rule_set(arena, rule, on));
}

int shmlock_perturb(struct shmlock_arena *arena, uint64_t seed, uint32_t ppm)
{
	READING(arena, debug_perturb(arena, seed, ppm));
}

int shmlock_violations(struct shmlock_arena *arena)
{
	READING(arena, (int)atomic_load(&arena->debug->violations));
}

#else

int shmlock_point_set(struct shmlock_arena *arena, int point, int action, uint32_t tid)
{
	(void)arena, (void)point, (void)action, (void)tid;
	return -ENOSYS;
}

int shmlock_point_wait(struct shmlock_arena *arena, int point, int64_t timeout)
{
	(void)arena, (void)point, (void)timeout;
	return -ENOSYS;
}

int shmlock_rule_set(struct shmlock_arena *arena, int rule, int on)
{
	(void)arena, (void)rule, (void)on;
	return -ENOSYS;
}

int shmlock_perturb(struct shmlock_arena *arena, uint64_t seed, uint32_t ppm)
{
	(void)arena, (void)seed, (void)ppm;
	return -ENOSYS;
}

int shmlock_violations(struct shmlock_arena *arena)
{
	(void)arena;
	return -ENOSYS;
}

#endif

/* ---- Measurement --------------------------------------------------------------------------------- */

const char *shmlock_bench_name(int loop)
{
	return bench_name(loop);
}

int64_t shmlock_bench(struct shmlock_arena *arena, int loop, const char *path, const char *prefix,
		      uint64_t ops)
{
	struct task *task;
	int ret = begin(arena, SHMLOCK_FOREVER, &task);

	return ret ? ret : bench_run(task, loop, path, prefix, ops);
}
