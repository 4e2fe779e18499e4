/* SPDX-License-Identifier: MIT */
#include "namei.h"

#include <time.h>

#include "futex.h"
#include "recover.h"

static inline struct shm_cell *name_at(struct task *task, uint32_t name)
{
	return cell_at(task->arena, name);
}

/* ---- What a filesystem operation costs, if somebody asked for it ----------------------------- */

static COLD void latency_slow(uint64_t sleep_ns, uint64_t spin_ns)
{
	/* A scribbled arena may ask for years. */
	sleep_ns = sleep_ns < ARENA_LATENCY_MAX ? sleep_ns : ARENA_LATENCY_MAX;
	spin_ns = spin_ns < ARENA_LATENCY_MAX ? spin_ns : ARENA_LATENCY_MAX;

	struct timespec t = { (time_t)(sleep_ns / 1000000000), (long)(sleep_ns % 1000000000) };
	int64_t end;

	if (sleep_ns)
		nanosleep(&t, NULL); /* cut short by a signal: no matter */
	if (spin_ns)
		for (end = futex_now() + (int64_t)spin_ns; futex_now() < end;)
			;
}

static inline void latency(struct task *task)
{
	struct shm_header *header = task->arena->header;
	uint64_t sleep_ns = atomic_load_explicit(&header->latency_sleep, memory_order_relaxed);
	uint64_t spin_ns = atomic_load_explicit(&header->latency_spin, memory_order_relaxed);

	if (__builtin_expect(sleep_ns | spin_ns, 0))
		latency_slow(sleep_ns, spin_ns);
}

/* ---- The redo record ---------------------------------------------------------------------------- */

static inline void redo_begin(struct task *task, enum shm_redo_code code, uint32_t name,
			      uint32_t inode, uint64_t ino)
{
	struct shm_redo *redo = &task->slot->redo;

	atomic_store_explicit(&redo->name, name, memory_order_relaxed);
	atomic_store_explicit(&redo->inode, inode, memory_order_relaxed);
	atomic_store_explicit(&redo->ino, ino, memory_order_relaxed);
	atomic_store_explicit(&redo->code, code, memory_order_release);
}

static inline void redo_end(struct task *task)
{
	atomic_store_explicit(&task->slot->redo.code, SHM_REDO_NONE, memory_order_release);
}

/* ---- One call = lookups, lock, ask again, change ------------------------------------------------- */

/* Everything that an operation on a last component begins with. */
struct target {
	struct walk walk;
	struct name_key key;
	struct found found;
};

static int look_up(struct task *task, const char *path, struct target *t)
{
	int ret = walk_parent(task->arena, path, &t->walk);

	if (ret || t->walk.last != WALK_NORM)
		return ret;
	name_key(task->arena, &t->key, t->walk.dir.ino, &t->walk.name);
	ret = dcache_lookup(task->arena, &t->key, &t->found);
	if (!ret && t->found.inode && !cell_valid(task->arena, t->found.inode))
		ret = -EUCLEAN;
	return ret;
}

/* The lookup's answer may be given as it is, if nobody is at work on the name just now. */
static bool nobody_at_it(struct task *task, const struct target *t)
{
	struct shm_cell *c = name_at(task, t->found.cell);

	/* d_seq: what was read of the inode since is this name's, not a freed or a new one's. */
	return !t->found.cell ||
	       (!(atomic_load(&c->d_flags) & DCACHE_LOCK) &&
		atomic_load_explicit(&c->d_seq, memory_order_acquire) == t->found.seq);
}

/* F9: what does the name point to, asked under its lock? */
static uint32_t ask_again(struct task *task, const struct target *t, const struct locked *locked)
{
	uint32_t inode = atomic_load_explicit(&name_at(task, locked->name)->d_inode,
					      memory_order_acquire);

	if (inode != t->found.inode)
		task_count(task, COUNT_REJUDGED);
	return RULE_HOLDS(task->arena, F9) ? inode : t->found.inode;
}

static int make_once(struct task *task, const char *path, uint32_t mode)
{
	struct locked locked;
	struct target t;
	uint32_t inode;
	int ret = look_up(task, path, &t);

	if (ret == -ENAMETOOLONG && t.walk.slash && !S_ISDIR(mode))
		return -EISDIR; /* open(2) looks at the slash first */
	if (ret)
		return ret;
	if (t.walk.last != WALK_NORM)
		return -EEXIST;
	if (t.walk.slash && !S_ISDIR(mode))
		return -EISDIR;
	if (t.found.inode && nobody_at_it(task, &t))
		return -EEXIST;
	PAUSE(task->arena, LOOKED_UP);
	ret = dentry_lock_make(task, &t.walk.dir, &t.key, &t.found, &locked);
	if (ret)
		return ret;
	inode = locked.name; /* the one beside the name */
	if (ask_again(task, &t, &locked)) {
		ret = -EEXIST;
	} else if (inode_mode(task->arena, inode) && RULE_HOLDS(task->arena, F9)) {
		ret = -EUCLEAN; /* in use by nobody whom this name knows */
	} else {
		redo_begin(task, SHM_REDO_MAKE, locked.name, inode, inode_ino(task->arena, inode));
		inode_make(task->arena, inode, locked.name, mode);
		PAUSE(task->arena, INODE_MADE);
		latency(task);
		dcache_point(name_at(task, locked.name), inode); /* commit */
		PAUSE(task->arena, MAKE_COMMITTED);
		redo_end(task);
	}
	dentry_unlock(task, &locked, 0, 0);
	return ret;
}

static int unlink_error(struct task *task, const struct target *t, uint32_t inode)
{
	if (!inode)
		return -ENOENT;
	if (S_ISDIR(inode_mode(task->arena, inode)))
		return -EISDIR;
	return t->walk.slash ? -ENOTDIR : 0;
}

static int unlink_once(struct task *task, const char *path)
{
	struct locked locked;
	struct target t;
	uint32_t inode;
	uint64_t ino;
	int ret = look_up(task, path, &t);

	if (ret)
		return ret;
	if (t.walk.last != WALK_NORM)
		return -EISDIR;
	ret = unlink_error(task, &t, t.found.inode);
	if (ret && nobody_at_it(task, &t))
		return ret;
	PAUSE(task->arena, LOOKED_UP);
	ret = dentry_lock(task, &t.walk.dir, &t.key, &t.found, &locked);
	if (ret)
		return ret;
	inode = ask_again(task, &t, &locked);
	ret = cell_valid(task->arena, inode) || !inode ? unlink_error(task, &t, inode) : -EUCLEAN;
	if (!ret) {
		ino = inode_ino(task->arena, inode);
		redo_begin(task, SHM_REDO_REMOVE, locked.name, inode, ino);
		latency(task);
		dcache_point(name_at(task, locked.name), 0); /* commit */
		PAUSE(task->arena, REMOVE_COMMITTED);
		inode_free(task->arena, ino);
		redo_end(task);
	}
	dentry_unlock(task, &locked, 0, 0);
	return ret;
}

/* ---- rmdir ------------------------------------------------------------------------------------------ */

/* One child, read as one: 0 none of ours or empty, else its lock word with the answer in *live. */
static uint32_t read_child(struct task *task, const struct dir *dir, uint32_t name, bool *live)
{
	struct shm_cell *c = name_at(task, name);
	uint32_t seq = atomic_load_explicit(&c->d_seq, memory_order_acquire);
	uint32_t w = atomic_load(&c->d_flags); /* (D2) */

	*live = atomic_load_explicit(&c->d_inode, memory_order_acquire) != 0;
	if (atomic_load_explicit(&c->d_parent, memory_order_acquire) != dir->ino)
		*live = false;
	/* M9: no lock before and after, no change in between: then pointer and lock are one. */
	if (atomic_load(&c->d_flags) != w ||
	    atomic_load_explicit(&c->d_seq, memory_order_acquire) != seq)
		w |= DCACHE_LOCK; /* somebody is at work on it */
	return w;
}

static bool is_child(struct task *task, const struct dir *dir, uint32_t name)
{
	return atomic_load(&name_at(task, name)->d_parent) == dir->ino;
}

/* A dead holder keeps nobody out: the drain's wait recovers it. */
static bool holder_lives(struct task *task, uint32_t w)
{
	uint32_t id = dlock_owner(w);

	return task_valid(task->arena, id) &&
	       recover_task_state(task->arena, id) != SHMLOCK_TASK_DEAD;
}

/*
 * M9: before S_DYING, a live child that nobody is at work on answers for itself; a locked one may
 * be on its way out, so it is not judged here.
 */
static int early_notempty(struct task *task, const struct dir *dir)
{
	struct dir_walk walk;
	uint32_t w;
	bool live;
	int ret;

	dirblock_first(task->arena, dir, &walk);
	while ((ret = dirblock_next(&walk)) > 0) {
		w = read_child(task, dir, walk.name, &live);
		if ((w & DCACHE_PERSON) && holder_lives(task, w) && is_child(task, dir, walk.name))
			return -EBUSY;
		if (live && (!(w & DCACHE_LOCK) || !RULE_HOLDS(task->arena, M9)))
			return -ENOTEMPTY;
	}
	return ret == -ESTALE ? -EUCLEAN : ret;
}

/* Wait until this child is not locked, or no child any more. 0, -EBUSY, or a wait's error. */
static int drain_child(struct task *task, const struct dir *dir, uint32_t name, bool *waited)
{
	shm_word *word = &name_at(task, name)->d_flags;
	uint32_t seen;
	int ret;

	while ((seen = atomic_load(word)) & DCACHE_LOCK) { /* (D2) */
		if (!RULE_HOLDS(task->arena, DRAIN))
			return 0;
		if (dlock_owner(seen) == task->id) /* a child's lock of our own is a NameLock */
			return seen & DCACHE_PERSON ? -EBUSY : -EUCLEAN;
		if (!dlock_prepare(task, word, &seen))
			continue;
		/* F5, after WAITER is set: still a child?  Else it could be locked by somebody
		 * who waits for us (H8). */
		if (!is_child(task, dir, name) && RULE_HOLDS(task->arena, F5))
			return 0;
		if ((seen & DCACHE_PERSON) && holder_lives(task, seen))
			return -EBUSY; /* may be held for hours: not waited for */
		if (!*waited)
			task_count(task, COUNT_DRAINS_WAITED);
		*waited = true;
		PAUSE(task->arena, DRAIN_SLEEP);
		ret = wait_for(task, SHM_WAIT_DRAIN, word, seen, name);
		if (ret)
			return ret;
	}
	return 0;
}

/*
 * After S_DYING: nothing new can start in the directory, wait for what has.  0: empty, and it stays
 * so; -ENOTEMPTY, -EBUSY, or a wait's error.
 */
static int drain(struct task *task, const struct dir *dir)
{
	struct dir_walk walk;
	bool waited = false, live;
	uint32_t w;
	int ret;

	dirblock_first(task->arena, dir, &walk);
	while ((ret = dirblock_next(&walk)) > 0) {
		do {
			ret = drain_child(task, dir, walk.name, &waited);
			if (ret)
				return ret;
			w = read_child(task, dir, walk.name, &live);
		} while ((w & DCACHE_LOCK) && is_child(task, dir, walk.name) &&
			 RULE_HOLDS(task->arena, DRAIN));
		if (live)
			return -ENOTEMPTY;
	}
	return ret == -ESTALE ? -EUCLEAN : ret;
}

/* i_rwsem exclusive and S_DYING in one step. Requires: the name's lock. */
static int dying_begin(struct task *task, const struct dir *dir)
{
	struct shm_cell *inode = cell_at(task->arena, dir->cell);
	uint32_t seen;
	int ret;

	atomic_store_explicit(&task->slot->held_dir, dir->cell, memory_order_relaxed);
	while (!dlock_try(task, &inode->i_flags, S_DYING, 0, &seen)) {
		ret = dlock_prepare(task, &inode->i_flags, &seen) ?
			      wait_for(task, SHM_WAIT_RWSEM, &inode->i_flags, seen,
				       atomic_load(&inode->i_dentry)) :
			      0;
		if (ret) {
			atomic_store_explicit(&task->slot->held_dir, 0, memory_order_release);
			return ret;
		}
	}
	return 0;
}

static void dying_end(struct task *task, const struct dir *dir)
{
	dlock_unlock(task, &cell_at(task->arena, dir->cell)->i_flags, 0, S_DYING);
	atomic_store_explicit(&task->slot->held_dir, 0, memory_order_release);
}

/* Requires: the directory's name locked, S_DYING, drained and empty. */
static void kill_dir(struct task *task, const struct locked *locked, const struct dir *dir)
{
	struct shm_cell *inode = cell_at(task->arena, dir->cell);
	uint32_t first = dirblock_of(task->arena, dir->ino);

	redo_begin(task, SHM_REDO_REMOVE, locked->name, dir->cell, dir->ino);
	latency(task);
	dlock_flags(task, &inode->i_flags, S_DEAD, 0); /* commit */
	PAUSE(task->arena, RMDIR_DEAD);
	dcache_point(name_at(task, locked->name), 0);
	/* Who waits for S_DYING finds S_DEAD, or the inode gone: ENOENT. */
	dlock_unlock(task, &inode->i_flags, 0, S_DYING);
	stock_purge_names(task, dir);
	dirblock_purge(task, dir->ino, first);
	inode_free(task->arena, dir->ino);
	redo_end(task);
	atomic_store_explicit(&task->slot->held_dir, 0, memory_order_release);
}

static int remove_dir(struct task *task, const struct locked *locked, uint32_t inode)
{
	struct dir dir = { inode, inode_ino(task->arena, inode) };
	int ret = early_notempty(task, &dir);

	if (ret)
		return ret;
	PAUSE(task->arena, RMDIR_LOCKED);
	ret = dying_begin(task, &dir);
	if (ret)
		return ret;
	PAUSE(task->arena, RMDIR_DYING);
	ret = drain(task, &dir);
	if (ret) {
		dying_end(task, &dir);
		return ret;
	}
	PAUSE(task->arena, RMDIR_DRAINED);
	kill_dir(task, locked, &dir);
	return 0;
}

static int rmdir_error(struct task *task, uint32_t inode)
{
	if (!inode)
		return -ENOENT;
	return S_ISDIR(inode_mode(task->arena, inode)) ? 0 : -ENOTDIR;
}

static int rmdir_once(struct task *task, const char *path)
{
	static const int not_names[] = {
		[WALK_ROOT] = -EBUSY,
		[WALK_DOT] = -EINVAL,
		[WALK_DOTDOT] = -ENOTEMPTY,
	};
	struct locked locked;
	struct target t;
	uint32_t inode;
	int ret = look_up(task, path, &t);

	if (ret)
		return ret;
	if (t.walk.last != WALK_NORM)
		return not_names[t.walk.last];
	ret = rmdir_error(task, t.found.inode);
	if (ret && nobody_at_it(task, &t))
		return ret;
	PAUSE(task->arena, LOOKED_UP);
	ret = dentry_lock(task, &t.walk.dir, &t.key, &t.found, &locked);
	if (ret)
		return ret;
	inode = ask_again(task, &t, &locked);
	ret = cell_valid(task->arena, inode) || !inode ? rmdir_error(task, inode) : -EUCLEAN;
	if (!ret)
		ret = remove_dir(task, &locked, inode);
	dentry_unlock(task, &locked, 0, 0);
	return ret;
}

/* ---- Whole calls ------------------------------------------------------------------------------------ */

static inline bool again(struct task *task, int *ret)
{
	return __builtin_expect(*ret == -DENTRY_RESTART, 0) && dentry_again(task, ret);
}

int namei_make(struct task *task, const char *path, uint32_t mode)
{
	int ret;

	do
		ret = make_once(task, path, mode);
	while (again(task, &ret));
	return ret;
}

int namei_unlink(struct task *task, const char *path)
{
	int ret;

	do
		ret = unlink_once(task, path);
	while (again(task, &ret));
	return ret;
}

int namei_rmdir(struct task *task, const char *path)
{
	int ret;

	do
		ret = rmdir_once(task, path);
	while (again(task, &ret));
	return ret;
}
