/* SPDX-License-Identifier: MIT */
/*
 * dentry_lock: one name's lock, with all that must be true of it.  The rules that stand here:
 *
 *   match, dying-check   after the claim: still that name, directory neither S_DYING nor S_DEAD
 *   F3                   an S_DYING directory is waited for with empty hands, then all starts again
 *   F4                   before every sleep: is the name still the one?
 *
 * Order: this is the only lock taken here; a new name is made locked (dalloc.h).
 */
#ifndef SHMLOCK_DENTRY_LOCK_H
#define SHMLOCK_DENTRY_LOCK_H

#include "dalloc.h"

/* Internal: something waited for has changed, begin again from the lookups. */
#define DENTRY_RESTART 85 /* ERESTART */

/* A locked name. */
struct locked {
	uint32_t name;
	bool borrowed;  /* under this task's own person's lock: not to be unlocked */
	bool recovered; /* the last person to hold it died */
};

/*
 * Lock name `key` of directory `dir`, of which the lookup said `found`.
 * Returns 0: locked, in held[], still that name, directory neither S_DYING nor S_DEAD at that
 * moment, so that no removal can complete before the unlock.  -ENOENT: the directory is dead, or
 * no such name.  -DENTRY_RESTART: begin again.  -ESTALE -ENOTRECOVERABLE: of the arena.  -EUCLEAN,
 * -ENOSPC and the errors of waiting.
 */
int dentry_lock(struct task *task, const struct dir *dir, const struct name_key *key,
		const struct found *found, struct locked *out);
/* The same; a name that is not there is made, negative. */
int dentry_lock_make(struct task *task, const struct dir *dir, const struct name_key *key,
		     const struct found *found, struct locked *out);
/* The same, for a NameLock: DCACHE_PERSON is set, and this task's own lock is no help. */
int dentry_lock_person(struct task *task, const struct dir *dir, const struct name_key *key,
		       const struct found *found, struct locked *out);

/* Unlock and take out of held[]. A name left negative may be reused by this task later. */
void dentry_unlock(struct task *task, const struct locked *locked, uint32_t set, uint32_t clear);

/* After -DENTRY_RESTART: true to begin again; false: *ret says why not (deadline, or a lie). */
bool dentry_again(struct task *task, int *ret);

#endif
