/* SPDX-License-Identifier: MIT */
#include "namelock.h"

#include "futex.h"
#include "recover.h"

/* A free entry of names[], -ENOLCK when there is none. */
static int free_record(struct task *task)
{
	struct shm_slot *slot = task->slot;
	uint32_t i = task->name_hint;

	for (uint32_t n = 0; n < SHM_NAMES; n++, i++) {
		i = i < SHM_NAMES ? i : 0;
		if (!atomic_load_explicit(&slot->names[i], memory_order_relaxed)) {
			task->name_hint = i;
			return (int)i;
		}
	}
	return -ENOLCK;
}

static int acquire_once(struct task *task, struct shmlock_name *lock, uint32_t record)
{
	struct shm_slot *slot = task->slot;
	struct name_key key;
	struct locked locked;
	struct found found;
	struct walk walk;
	int ret = walk_parent(task->arena, lock->path, &walk);

	if (ret)
		return ret;
	if (walk.last != WALK_NORM)
		return -EBUSY;
	name_key(task->arena, &key, walk.dir.ino, &walk.name);
	ret = dcache_lookup(task->arena, &key, &found);
	if (!ret)
		ret = dentry_lock_person(task, &walk.dir, &key, &found, &locked);
	if (ret)
		return ret;
	/* Into names[] before out of held[]: at every instant one of the two names it (R4). */
	atomic_store_explicit(&slot->names_since[record], (uint64_t)futex_now_coarse(),
			      memory_order_relaxed);
	atomic_store_explicit(&slot->names[record], locked.name, memory_order_release);
	if (atomic_load_explicit(&slot->names_top, memory_order_relaxed) <= record)
		atomic_store_explicit(&slot->names_top, record + 1, memory_order_release);
	task_unhold(task, locked.name);
	PAUSE(task->arena, PERSON_HELD);
	lock->cell = locked.name;
	lock->record = record;
	lock->generation = task->generation;
	lock->process = task->tgid;
	lock->recovered = locked.recovered;
	lock->task = task->id;
	return 0;
}

int namelock_acquire(struct task *task, struct shmlock_name *lock)
{
	int record = free_record(task), ret;

	if (record < 0)
		return record;
	do
		ret = acquire_once(task, lock, (uint32_t)record);
	while (ret == -DENTRY_RESTART && dentry_again(task, &ret));
	return ret;
}

static bool holds(struct task *task, uint32_t record, uint32_t cell)
{
	uint32_t w;

	if (record >= SHM_NAMES || !cell_valid(task->arena, cell) ||
	    atomic_load_explicit(&task->slot->names[record], memory_order_relaxed) != cell)
		return false;
	w = atomic_load_explicit(&cell_at(task->arena, cell)->d_flags, memory_order_relaxed);
	return (w & DCACHE_PERSON) && dlock_owner(w) == task->id;
}

static void release_record(struct task *task, uint32_t record, uint32_t cell, uint32_t set)
{
	struct locked locked = { .name = cell };

	/* dentry_unlock() takes it out of held[], so put it there first. */
	task_hold(task, cell);
	atomic_store_explicit(&task->slot->names[record], 0, memory_order_release);
	dentry_unlock(task, &locked, set, DCACHE_PERSON);
	task->name_hint = record;
}

int namelock_release(struct task *task, struct shmlock_name *lock, bool abandon)
{
	if (lock->task != task->id || lock->generation != task->generation ||
	    lock->process != task->tgid || !holds(task, lock->record, lock->cell))
		return -EPERM;
	lock->task = 0;
	release_record(task, lock->record, lock->cell,
		       abandon && lock->recovered ? DCACHE_RECOVERED : 0);
	return 0;
}

int namelock_release_all(struct task *task)
{
	uint32_t top = atomic_load(&task->slot->names_top);
	int released = 0;

	for (uint32_t i = 0; i < top && i < SHM_NAMES; i++) {
		uint32_t cell = atomic_load(&task->slot->names[i]);

		if (cell && holds(task, i, cell)) {
			release_record(task, i, cell, 0);
			released++;
		}
		atomic_store(&task->slot->names[i], 0);
	}
	return released;
}

static uint64_t held_since(struct shm_slot *slot, uint32_t cell)
{
	uint32_t top = atomic_load(&slot->names_top);

	for (uint32_t i = 0; i < top && i < SHM_NAMES; i++)
		if (atomic_load(&slot->names[i]) == cell)
			return atomic_load(&slot->names_since[i]);
	return 0;
}

int namelock_owner(struct shmlock_arena *arena, const char *path, struct shmlock_owner *out)
{
	struct name_key key;
	struct found found;
	struct walk walk;
	uint32_t w, id;
	int ret = walk_parent(arena, path, &walk);

	if (ret)
		return ret == -ENOENT ? 0 : ret;
	if (walk.last != WALK_NORM)
		return -EBUSY;
	name_key(arena, &key, walk.dir.ino, &walk.name);
	ret = dcache_lookup(arena, &key, &found);
	if (ret || !found.cell)
		return ret;
again:
	w = atomic_load(&cell_at(arena, found.cell)->d_flags);
	id = dlock_owner(w);
	if (!task_valid(arena, id))
		return 0;
	if (recover_task_state(arena, id) == SHMLOCK_TASK_DEAD) {
		/* Whoever asked for it now would get it. */
		recover_task(arena, id, NULL);
		return 0;
	}
	out->task = id;
	out->person = w & DCACHE_PERSON ? 1 : 0;
	out->pid = atomic_load(&slot_at(arena, id)->tgid);
	out->tid = atomic_load(&slot_at(arena, id)->tid);
	out->since = held_since(slot_at(arena, id), found.cell);
	/* Another owner meanwhile: then the slot may have told of another lock. A waiter that has
	 * come is no other owner. */
	if ((atomic_load(&cell_at(arena, found.cell)->d_flags) ^ w) & ~DCACHE_LOCK_WAITER)
		goto again;
	return 1;
}
