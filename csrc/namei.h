/* SPDX-License-Identifier: MIT */
/*
 * Operations on names: look up, lock, ask again, change, unlock.  The only file that may hold more
 * than one lock word of the namespace at once.  The rules that stand here (the others of the
 * protocol: dentry_lock.h):
 *
 *   F5   a drain sleeps only on a child of the drained directory
 *   F9   what the lookup said is asked again under the lock
 *   M9   ENOTEMPTY at once only for an unlocked live child, read as one
 *
 * Order: a name; then, in rmdir, the i_flags of the directory it points to; then that directory's
 * children, waited for but never held.  The way is always downwards, so it closes no circle;
 * waits for S_DYING are made with nothing in hand.
 *
 * Every function here returns 0 or -errno, and on error has undone everything.
 */
#ifndef SHMLOCK_NAMEI_H
#define SHMLOCK_NAMEI_H

#include "dentry_lock.h"
#include "walk.h"

int namei_make(struct task *task, const char *path, uint32_t mode);
int namei_unlink(struct task *task, const char *path);
int namei_rmdir(struct task *task, const char *path);

#endif
