/* SPDX-License-Identifier: MIT */
/*
 * The public C interface.  Everything between the two marker comments is also, letter for
 * letter, what cffi is told (build_ffi.py), so that the two cannot drift apart.
 *
 * Conventions
 *   - a function returns >= 0, or -errno from the closed list below; never through errno;
 *   - `timeout` is in nanoseconds from now; SHMLOCK_FOREVER; 0: do not wait (-ETIMEDOUT);
 *     SHMLOCK_RESUME: this thread's last call was ended by a signal (-EINTR), go on to its
 *     deadline.  The clock is read only when something has to be waited for;
 *   - paths are NUL-terminated bytes, relative to the root with or without a leading '/';
 *   - a call that fails has changed nothing and holds nothing.
 *
 * -errno: ENOENT EEXIST ENOTDIR EISDIR ENOTEMPTY EBUSY EINVAL ENAMETOOLONG ELOOP EPERM (as in the
 * man pages), ENOSPC (no free cell), ETIMEDOUT, EINTR (a signal: run handlers, call again with
 * SHMLOCK_RESUME), EDEADLK (a circle: shmlock_circle() tells it), ESTALE (arena unlinked),
 * EUCLEAN (the arena's bytes make no sense), ENOTRECOVERABLE (poisoned), EAGAIN (no free task
 * slot), ENOLCK (too many locks held), EROFS (attached read-only), ENOMEM, ENOTRECOVERABLE.
 */
#ifndef SHMLOCK_H
#define SHMLOCK_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */

/* ---- Arenas ---------------------------------------------------------------------------- */

enum shmlock_locking { SHMLOCK_DENTRY = 0, SHMLOCK_INODE = 1, SHMLOCK_BOTH = 2 };

struct shmlock_limits {
	uint32_t min_dentries, max_dentries, min_tasks, max_tasks;
	uint32_t layout_version, debug_build;
	uint32_t header_size, slot_size, cell_size, mutex_size;
	uint32_t names_per_task; /* locks that one task can hold at once */
	uint32_t name_max, path_max;
};

struct shmlock_params {
	uint32_t dentries, tasks, locking;
};

/* What an arena's header says; r/o facts, copied out. */
struct shmlock_info {
	uint64_t magic;
	uint32_t layout_version, debug_build;
	uint32_t header_size, slot_size, cell_size, mutex_size, mutex_word, pointer_bits;
	uint32_t locking, dentries, tasks, buckets;
	uint64_t length, pidns_dev, pidns_ino, created;
	uint32_t unlinked, poisoned;
};

struct shmlock_arena; /* this process's attachment; opaque */

enum shmlock_attach_flags { SHMLOCK_READONLY = 1 };

/* What this build can do. */
void shmlock_limits(struct shmlock_limits *out);
/* Bytes that an arena of these sizes needs; -EINVAL when out of range. */
int64_t shmlock_size(const struct shmlock_params *params);
/* Format the object behind fd, which has exactly shmlock_size() bytes, reserved. */
int shmlock_format(int fd, const struct shmlock_params *params);
/* Copy the header out by read(2), without mapping. -EUCLEAN: too short or no magic. */
int shmlock_probe(int fd, struct shmlock_info *out);
/* What a header must say here, in the fields that must agree (pidns, sizes, version). */
void shmlock_expect(struct shmlock_info *out);
/*
 * Map the arena behind fd, or find the mapping this process already has of it. Each success is
 * to be paired with one shmlock_close().  The fd is duplicated. -EUCLEAN: header does not agree.
 */
int shmlock_attach(int fd, uint32_t flags, struct shmlock_arena **out);
/* Give this thread its task slot now (else the first call does). -EAGAIN: table full. */
int shmlock_enter(struct shmlock_arena *arena);
/* End this thread's task: drops every lock it holds. Returns how many locks for people it held. */
int shmlock_leave(struct shmlock_arena *arena);
/*
 * Give back one shmlock_attach().  When it was the last: later calls get -EBADF, and the mapping
 * goes when the last attached thread has ended or left. Call shmlock_leave() first.
 */
int shmlock_close(struct shmlock_arena *arena);
/* Live tasks of the whole arena, by any process. */
int shmlock_live_tasks(struct shmlock_arena *arena);
/* From now on new locks get -ESTALE: the arena has lost its name. */
int shmlock_mark_unlinked(struct shmlock_arena *arena);
/* Header facts of an attached arena, `unlinked` and `poisoned` as of now. */
void shmlock_info(struct shmlock_arena *arena, struct shmlock_info *out);
/* Task slot number of this thread in this arena; 0: none (yet). */
uint32_t shmlock_task_id(struct shmlock_arena *arena);
/* Every filesystem operation takes this long while its locks are held (stored in the arena). */
int shmlock_set_latency(struct shmlock_arena *arena, uint64_t sleep_ns, uint64_t spin_ns);
/* Sweep: recover every dead task. Returns how many were dead. */
int shmlock_sweep(struct shmlock_arena *arena);

/* ---- The namespace --------------------------------------------------------------------- */

enum shmlock_timeout { SHMLOCK_FOREVER = -1, SHMLOCK_RESUME = -2 };

struct shmlock_stat {
	uint64_t st_ino;
	uint32_t st_mode, st_nlink;
	uint64_t st_size;
};

int shmlock_mkdir(struct shmlock_arena *arena, const char *path, int64_t timeout);
int shmlock_create(struct shmlock_arena *arena, const char *path, int64_t timeout);
int shmlock_unlink(struct shmlock_arena *arena, const char *path, int64_t timeout);
int shmlock_rmdir(struct shmlock_arena *arena, const char *path, int64_t timeout);
/* follow: 0 for lstat. Takes no lock, waits for nothing. */
int shmlock_stat(struct shmlock_arena *arena, const char *path, int follow,
		 struct shmlock_stat *out);
/*
 * Entries of a directory, each { uint64 ino; uint32 mode; uint8 length; bytes name }, unaligned,
 * into buf as far as they fit.  Returns the bytes that all need (more than size: grow, again).
 * An entry there throughout appears exactly once. Takes no lock.
 */
int64_t shmlock_listdir(struct shmlock_arena *arena, const char *path, char *buf, size_t size);

/* ---- Locks for people ------------------------------------------------------------------ */

/*
 * One NameLock object's state.  Zero it, set arena and path; keep both alive while in use.
 * `arena` points at the Arena object's own pointer, which its close() sets to NULL (-EBADF).
 */
struct shmlock_name {
	struct shmlock_arena *const *arena;
	const char *path;
	uint32_t task;      /* holder's task slot while held through this object; 0: not held */
	uint32_t cell;      /* the name, while held */
	uint32_t record;    /* where the holder's slot says so */
	uint32_t generation; /* of the holder's slot */
	uint32_t recovered; /* the previous holder died while holding */
	uint32_t process;   /* tgid of the holder: a forked child's copy is not the holder */
};

struct shmlock_owner {
	uint32_t pid, tid, task, person;
	uint64_t since; /* CLOCK_MONOTONIC ns; 0 unknown */
};

/* -EDEADLK: a circle, or this task holds it already (then with timeout 0: -ETIMEDOUT). */
int shmlock_name_acquire(struct shmlock_name *lock, int64_t timeout);
/* -EPERM: this task does not hold it through this object. */
int shmlock_name_release(struct shmlock_name *lock);
/*
 * Undo an acquire whose caller was interrupted before it could know: as release, and the mark
 * "recovered" is left for the next owner. Harmless when not held through this object.
 */
int shmlock_name_abandon(struct shmlock_name *lock);
/* 1: somebody holds the lock on that name, filled in; 0: nobody does. */
int shmlock_name_owner(struct shmlock_arena *arena, const char *path, struct shmlock_owner *out);
/* Text of the circle that made this thread's last call fail with -EDEADLK. Returns its length. */
int shmlock_circle(char *buf, size_t size);

/* ---- For tools --------------------------------------------------------------------------- */

enum shmlock_task_state { SHMLOCK_TASK_FREE, SHMLOCK_TASK_LIVE, SHMLOCK_TASK_DEAD };

struct shmlock_task_info {
	uint32_t task, state, pid, tid, generation;
	uint32_t wait_kind; /* index for shmlock_wait_name(); 0: not waiting */
	uint32_t wait_cell; /* the name (of the directory, if one is) waited for; 1: the root */
	uint32_t wait_owner; /* task that holds it, 0: none now */
	uint32_t persons;   /* locks for people held */
	uint32_t on_circle; /* it waits for itself, at last */
	uint64_t wait_since, attached_at;
};

enum shmlock_hold_kind {
	SHMLOCK_HOLD_NAME, /* DCACHE_LOCK by an operation */
	SHMLOCK_HOLD_PERSON, /* DCACHE_LOCK by a NameLock */
	SHMLOCK_HOLD_RWSEM, /* i_rwsem exclusive */
	SHMLOCK_HOLD_DYING /* i_rwsem exclusive and S_DYING */
};

struct shmlock_hold_info {
	uint32_t task, kind, cell, waiters; /* cell: the name, also a directory's; 1: the root */
	uint64_t since; /* CLOCK_MONOTONIC ns; 0 unknown */
};

struct shmlock_usage {
	uint32_t dentries; /* capacity */
	uint32_t used;     /* cells with a name, a block or text */
	uint32_t positive, negative, locked, blocks, texts, stock, inodes, directories;
};

struct shmlock_fault {
	uint32_t invariant; /* n of In, see docs/arena.md */
	uint32_t cell;
	uint64_t found, expected;
};

/* Each fills at most n records and returns how many there are. */
int shmlock_tasks(struct shmlock_arena *arena, struct shmlock_task_info *out, int n);
int shmlock_holds(struct shmlock_arena *arena, struct shmlock_hold_info *out, int n);
int shmlock_check(struct shmlock_arena *arena, int quiescent, struct shmlock_fault *out, int n);
/* What invariant n says, "" beyond the last. */
const char *shmlock_invariant(int n);
int shmlock_usage(struct shmlock_arena *arena, struct shmlock_usage *out);
/* Path of a name's cell (1: "/") as of now. Returns its length; -ENOENT: no such name now. */
int shmlock_path_of(struct shmlock_arena *arena, uint32_t cell, char *buf, size_t size);
const char *shmlock_wait_name(int kind);
/* Counters, summed over all slots since the arena was made. */
int shmlock_counters(struct shmlock_arena *arena, uint64_t *out, int n);
const char *shmlock_counter_name(int counter);
/* Most names locked at this instant in one directory. */
int shmlock_in_flight(struct shmlock_arena *arena);

/* ---- Debug build only (release: -ENOSYS) ------------------------------------------------- */

enum shmlock_point_action { SHMLOCK_POINT_OFF, SHMLOCK_POINT_STOP, SHMLOCK_POINT_GO };

/* Name of pause point i, "" beyond the last. */
const char *shmlock_point_name(int point);
/* STOP: the next task (of thread tid, or any if 0) to come by waits there until GO. */
int shmlock_point_set(struct shmlock_arena *arena, int point, int action, uint32_t tid);
/* Wait until the armed point is reached: tid of who stands there, or -ETIMEDOUT. */
int shmlock_point_wait(struct shmlock_arena *arena, int point, int64_t timeout);
/* Name of rule i that can be switched off, "" beyond the last. */
const char *shmlock_rule_name(int rule);
int shmlock_rule_set(struct shmlock_arena *arena, int rule, int on);
/* Random delays at pause points, from this seed, with this chance in a million. */
int shmlock_perturb(struct shmlock_arena *arena, uint64_t seed, uint32_t ppm);
/* Times that two tasks were seen inside one name's critical section. */
int shmlock_violations(struct shmlock_arena *arena);

/* ---- Measurement -------------------------------------------------------------------------- */

/* Name of closed loop i, "" beyond the last. */
const char *shmlock_bench_name(int loop);
/*
 * Run a closed loop for `ops` operations on names of `path` (a directory) that start with
 * `prefix`; ns of wall time taken, or -errno.
 */
int64_t shmlock_bench(struct shmlock_arena *arena, int loop, const char *path, const char *prefix,
		      uint64_t ops);

/* ---- The Python type that `with lock:` runs on (pylock.c) --------------------------------- */

/* Add type LockBase to this extension module (its full dotted name). */
int shmlock_install_types(const char *module);

/* cffi: end */

#endif
