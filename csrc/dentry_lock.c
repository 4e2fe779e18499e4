/* SPDX-License-Identifier: MIT */
#include "dentry_lock.h"

#include <sched.h>

#define MAKE 1u   /* make the name (negative) if it is not there */
#define PERSON 2u /* for a NameLock: never borrowed, DCACHE_PERSON set */

static inline struct shm_cell *name_at(struct task *task, uint32_t name)
{
	return cell_at(task->arena, name);
}

/* ---- The debug build's judge: who is inside a name's critical section? ------------------------ */

#ifdef SHMLOCK_DEBUG
static void occupy(struct task *task, uint32_t name)
{
	if (atomic_exchange(&name_at(task, name)->d_occupant, task->id))
		atomic_fetch_add(&task->arena->debug->violations, 1);
}

static void vacate(struct task *task, uint32_t name)
{
	if (atomic_exchange(&name_at(task, name)->d_occupant, 0) != task->id)
		atomic_fetch_add(&task->arena->debug->violations, 1);
}
#else
#define occupy(task, name) ((void)0)
#define vacate(task, name) ((void)0)
#endif

/* ---- dentry_lock ------------------------------------------------------------------------------ */

static void unclaim(struct task *task, const struct locked *locked, uint32_t how)
{
	if (locked->borrowed)
		return;
	/* The mark of a dead holder stays for whoever really takes the lock. */
	dlock_unlock(task, &name_at(task, locked->name)->d_flags,
		     locked->recovered ? DCACHE_RECOVERED : 0,
		     how & PERSON ? DCACHE_PERSON : 0);
	task_unhold(task, locked->name);
}

static inline bool claim_try(struct task *task, uint32_t name, uint32_t how, uint32_t *seen)
{
	bool person = how & PERSON;

	return dlock_try(task, &name_at(task, name)->d_flags, person ? DCACHE_PERSON : 0,
			 person ? DCACHE_RECOVERED : 0, seen);
}

/* The name is taken: by a NameLock of this task, or wait. Requires: recorded; unless 0, undone. */
static COLD int claim_wait(struct task *task, const struct name_key *key, uint32_t how,
			   struct locked *out, uint32_t *seen)
{
	shm_word *word = &name_at(task, out->name)->d_flags;
	int ret;

	do {
		if (dlock_owner(*seen) == task->id && (*seen & DCACHE_PERSON) &&
		    !(how & PERSON)) {
			out->borrowed = true;
			if (RULE_HOLDS(task->arena, R4))
				task_unhold(task, out->name);
			return 0;
		}
		if (!dlock_prepare(task, word, seen))
			continue;
		/* F4: after WAITER is set, so that a change from here on wakes us. */
		ret = dcache_matches(task->arena, out->name, key) ? 0 : -DENTRY_RESTART;
		PAUSE(task->arena, LOCK_SLEEP);
		if (!ret)
			ret = wait_for(task, SHM_WAIT_NAME, word, *seen, out->name);
		if (ret) {
			if (RULE_HOLDS(task->arena, R4))
				task_unhold(task, out->name);
			return ret;
		}
	} while (!claim_try(task, out->name, how, seen));
	return 0;
}

/* Claim and match. 0, -DENTRY_RESTART (no longer that name), or a wait's error. */
static inline int claim(struct task *task, const struct found *found, const struct name_key *key,
			uint32_t how, struct locked *out)
{
	uint32_t seen;
	int ret;

	*out = (struct locked){ .name = found->cell };
	if (RULE_HOLDS(task->arena, R4))
		task_hold(task, out->name);
	PAUSE(task->arena, LOCK_RECORDED);
	if (__builtin_expect(!claim_try(task, out->name, how, &seen), 0)) {
		ret = claim_wait(task, key, how, out, &seen);
		if (ret || out->borrowed)
			return ret;
	}
	out->recovered = (how & PERSON) && (seen & DCACHE_RECOVERED);
	PAUSE(task->arena, LOCK_CLAIMED);
	if (!RULE_HOLDS(task->arena, R4))
		task_hold(task, out->name);
	/* The same d_seq as at the lookup says it at once; else it may have changed and come back. */
	if (__builtin_expect(atomic_load_explicit(&name_at(task, out->name)->d_seq,
						  memory_order_acquire) == found->seq,
			     1) ||
	    dcache_matches(task->arena, out->name, key) || !RULE_HOLDS(task->arena, MATCH))
		return 0;
	unclaim(task, out, how);
	return -DENTRY_RESTART;
}

/* Make the name, locked, and publish it. -DENTRY_RESTART: somebody else was first. */
static COLD int make_name(struct task *task, const struct dir *dir, const struct name_key *key,
		     const struct found *found, uint32_t how, struct locked *out)
{
	uint64_t bucket = found->bucket;
	struct found again;
	uint32_t name;
	int ret = dalloc(task, dir, key, &name);

	if (ret)
		return ret;
	while (!dalloc_publish(task, key, bucket, name)) {
		/* The bucket changed: by this very name, or by another one? */
		ret = dcache_lookup(task->arena, key, &again);
		if (!ret && again.cell) {
			task_count(task, COUNT_NAMES_LOST);
			ret = -DENTRY_RESTART;
		}
		if (ret) {
			dalloc_discard(task, name);
			return ret;
		}
		bucket = again.bucket;
	}
	*out = (struct locked){ .name = name };
	if (how & PERSON)
		dlock_flags(task, &name_at(task, name)->d_flags, DCACHE_PERSON, 0);
	return 0;
}

/*
 * F3: wait, with nothing in hand, until the directory's removal has succeeded or failed.  Its owner
 * waits for operations that were there before; one that waited for it here while holding a name
 * in the directory would be waited for (H5, H6).
 */
static COLD int wait_dying(struct task *task, const struct dir *dir)
{
	struct shm_cell *inode = cell_at(task->arena, dir->cell);
	uint32_t seen;
	bool same;
	int ret = 0;

	task_count(task, COUNT_DYING_WAITS);
	PAUSE(task->arena, DYING_SLEEP);
	for (;;) {
		seen = dir_flags(task->arena, dir, &same);
		if (!same || !(seen & S_DYING) || !(seen & DCACHE_LOCK))
			return -DENTRY_RESTART;
		if (!dlock_prepare(task, &inode->i_flags, &seen))
			continue;
		dir_flags(task->arena, dir, &same);
		if (!same)
			return -DENTRY_RESTART;
		ret = wait_for(task, SHM_WAIT_DYING, &inode->i_flags, seen,
			       atomic_load(&inode->i_dentry));
		if (ret)
			return ret;
	}
}

/* The directory is dying or dead. Undoes the claim. */
static COLD int refuse(struct task *task, const struct dir *dir, uint32_t how,
		       const struct locked *locked, uint32_t flags)
{
	int ret;

	if (flags & S_DEAD) {
		task_count(task, COUNT_DEAD_DIRS);
		unclaim(task, locked, how);
		return -ENOENT;
	}
	if (!(flags & DCACHE_LOCK)) { /* S_DYING without i_rwsem: one word, so it is a lie */
		unclaim(task, locked, how);
		return -EUCLEAN;
	}
	if (RULE_HOLDS(task->arena, F3)) {
		unclaim(task, locked, how);
		return wait_dying(task, dir);
	}
	ret = wait_dying(task, dir);
	unclaim(task, locked, how);
	return ret;
}

/* The last part of dentry_lock: the directory is neither dying nor dead. */
static inline int check_dir(struct task *task, const struct dir *dir, uint32_t how,
			    const struct locked *locked)
{
	uint32_t flags;
	bool same;
	int ret = arena_state(task->arena);

	/* After the claim: the arena may have lost its name while this task waited for the lock,
	 * and another arena of that name may have given the same lock to somebody else. */
	if (__builtin_expect(ret, 0)) {
		unclaim(task, locked, how);
		return ret;
	}
	if (!RULE_HOLDS(task->arena, DYING))
		return 0;
	/* (D1): after the claim, sequentially consistent; pairs with (D2) in rmdir. */
	flags = dir_flags(task->arena, dir, &same);
	if (__builtin_expect(!same || flags & (S_DYING | S_DEAD), 0))
		return refuse(task, dir, how, locked, same ? flags : S_DEAD);
	PAUSE(task->arena, LOCK_CHECKED);
	return 0;
}

/* In line, so that `how` is a constant: half of it falls away for an operation. */
static inline __attribute__((always_inline)) int
lock_name(struct task *task, const struct dir *dir, const struct name_key *key,
	  const struct found *found, uint32_t how, struct locked *out)
{
	int ret;

	if (__builtin_expect(found->cell, 1))
		ret = claim(task, found, key, how, out);
	else if (how & MAKE)
		ret = make_name(task, dir, key, found, how, out);
	else
		ret = -ENOENT;
	if (!ret)
		ret = check_dir(task, dir, how, out);
	if (!ret && !out->borrowed)
		occupy(task, out->name);
	return ret;
}

int dentry_lock(struct task *task, const struct dir *dir, const struct name_key *key,
		const struct found *found, struct locked *out)
{
	return lock_name(task, dir, key, found, 0, out);
}

int dentry_lock_make(struct task *task, const struct dir *dir, const struct name_key *key,
		     const struct found *found, struct locked *out)
{
	return lock_name(task, dir, key, found, MAKE, out);
}

int dentry_lock_person(struct task *task, const struct dir *dir, const struct name_key *key,
		       const struct found *found, struct locked *out)
{
	return lock_name(task, dir, key, found, MAKE | PERSON, out);
}

void dentry_unlock(struct task *task, const struct locked *locked, uint32_t set, uint32_t clear)
{
	struct shm_cell *c = name_at(task, locked->name);

	if (locked->borrowed)
		return;
	vacate(task, locked->name);
	if (!atomic_load_explicit(&c->d_inode, memory_order_relaxed) &&
	    !(atomic_load_explicit(&c->d_flags, memory_order_relaxed) & DCACHE_RING))
		set |= stock_remember(task, locked->name);
	dlock_unlock(task, &c->d_flags, set, clear);
	task_unhold(task, locked->name);
}

/* Begun again so often without an answer: the words are a lie. Each time something had changed. */
#define RESTARTS_MAX 1000000u

bool dentry_again(struct task *task, int *ret)
{
	task_count(task, COUNT_RETRIES);
	if (++task->restarts < 1000)
		return true;
	sched_yield();
	if (!(task->restarts % 1024))
		*ret = wait_expired(task);
	if (task->restarts > RESTARTS_MAX)
		*ret = -EUCLEAN;
	return *ret == -DENTRY_RESTART || *ret == 0;
}
