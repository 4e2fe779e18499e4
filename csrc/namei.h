/* SPDX-License-Identifier: MIT */
/*
 * Operations on names: look up, lock, ask again, change, unlock.  The only file that may hold more
 * than one lock word of the namespace at once, and the place of the protocol's rules:
 *
 *   dentry_lock   namei_lock_name(): claim, match, dying-check
 *   F3            an S_DYING directory is waited for with empty hands, then all starts again
 *   F4            before every sleep: is the name still the one?
 *   F5            the same for a drain: is the child still a child?
 *   F9            what the lookup said is asked again under the lock
 *   M9            ENOTEMPTY at once only for an unlocked live child, read as one
 *
 * Order: a name; then, in rmdir, the i_flags of the directory it points to; then that directory's
 * children, waited for but never held.  The way is always downwards, so it closes no circle;
 * waits for S_DYING are made with nothing in hand.
 *
 * Every function here returns 0 or -errno, and on error has undone everything.
 */
#ifndef SHMLOCK_NAMEI_H
#define SHMLOCK_NAMEI_H

#include "dalloc.h"
#include "walk.h"

/* Internal: something waited for has changed, begin again from the lookups. */
#define NAMEI_RESTART 85 /* ERESTART */

int namei_make(struct task *task, const char *path, uint32_t mode);
int namei_unlink(struct task *task, const char *path);
int namei_rmdir(struct task *task, const char *path);

/* After -NAMEI_RESTART: true to begin again; false: *ret says why not (deadline, or a lie). */
bool namei_again(struct task *task, int *ret);

/* A locked name. */
struct locked {
	uint32_t name;
	bool borrowed;  /* under this task's own person's lock: not to be unlocked */
	bool recovered; /* the last person to hold it died */
};

#define NAMEI_MAKE 1u   /* make the name (negative) if it is not there */
#define NAMEI_PERSON 2u /* for a NameLock: never borrowed, made if need be, DCACHE_PERSON set */

/*
 * dentry_lock: lock name `key` of directory `dir`, of which the lookup said `found`; `how` is 0 or
 * NAMEI_PERSON.
 * Returns 0: locked, in held[], still that name, directory neither S_DYING nor S_DEAD at that
 * moment, so that no removal can complete before the unlock.  -ENOENT: the directory is dead, or
 * no such name.  -NAMEI_RESTART: begin again.  -ENOSPC and the errors of waiting.
 */
int namei_lock_name(struct task *task, const struct dir *dir, const struct name_key *key,
		    const struct found *found, uint32_t how, struct locked *out);
/* Unlock and take out of held[]. A name left negative may be reused by this task later. */
void namei_unlock_name(struct task *task, const struct locked *locked, uint32_t set,
		       uint32_t clear);

#endif
