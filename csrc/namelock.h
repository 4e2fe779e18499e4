/* SPDX-License-Identifier: MIT */
/*
 * Locks for people: the lock bit of a name, held for as long as a person likes, by the task that
 * took it.  The name is locked whether or not anything has it; a removal of its directory answers
 * EBUSY; operations of the holding task on the name run under it.
 *
 * If the holder dies: the name gets DCACHE_RECOVERED, which stays, also through other people's
 * recoveries, until somebody takes the lock for a person; such a name is never reused.
 */
#ifndef SHMLOCK_NAMELOCK_H
#define SHMLOCK_NAMELOCK_H

#include "dentry_lock.h"
#include "walk.h"

int namelock_acquire(struct task *task, struct shmlock_name *lock);
/* `abandon`: the taker never learned that it had it; leave the mark "recovered" as it was. */
int namelock_release(struct task *task, struct shmlock_name *lock, bool abandon);
int namelock_owner(struct shmlock_arena *arena, const char *path, struct shmlock_owner *out);
/* Release every lock of this task (its close): how many there were. */
int namelock_release_all(struct task *task);

#endif
