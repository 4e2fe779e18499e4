/* SPDX-License-Identifier: MIT */
#include "snapshot.h"

#include <stdio.h>
#include <stdlib.h>

#include "dlock.h"
#include "recover.h"

static uint32_t count_names(struct shm_slot *slot)
{
	uint32_t top = atomic_load(&slot->names_top), n = 0;

	for (uint32_t i = 0; i < top && i < SHM_NAMES; i++)
		n += atomic_load(&slot->names[i]) != 0;
	return n;
}

int snapshot_tasks(struct shmlock_arena *arena, struct shmlock_task_info *out, int n)
{
	static _Thread_local struct wait_circle circle;
	int count = 0;

	for (uint32_t id = 1; id <= arena->tasks; id++) {
		struct shm_slot *slot = slot_at(arena, id);
		int state = recover_task_state(arena, id);
		struct shmlock_task_info *info = &out[count];
		struct wait_edge wait;

		if (state == SHMLOCK_TASK_FREE || count++ >= n)
			continue;
		*info = (struct shmlock_task_info){
			.task = id,
			.state = (uint32_t)state,
			.pid = atomic_load(&slot->tgid),
			.tid = atomic_load(&slot->tid),
			.generation = atomic_load(&slot->generation),
			.persons = count_names(slot),
			.attached_at = atomic_load(&slot->attached_at),
		};
		if (wait_read(arena, id, &wait)) {
			info->wait_kind = wait.kind;
			info->wait_cell = wait.cell;
			info->wait_owner = wait.owner;
			info->wait_since = wait.since;
			info->on_circle = wait_circle_from(arena, id, &circle);
		}
	}
	return count;
}

/* ---- Locks held ------------------------------------------------------------------------------ */

struct holds {
	struct shmlock_arena *arena;
	struct shmlock_hold_info *out;
	int n, count;
};

static uint32_t count_waiters(struct shmlock_arena *arena, shm_word *word)
{
	uint64_t offset = word_offset(arena, word);
	uint32_t n = 0;

	for (uint32_t id = 1; id <= arena->tasks; id++)
		n += (atomic_load(&slot_at(arena, id)->wait_seq) & 1) &&
		     atomic_load(&slot_at(arena, id)->wait_word) == offset;
	return n;
}

static void add_hold(struct holds *holds, uint32_t task, shm_word *word, uint32_t kind,
		     uint32_t cell, uint64_t since)
{
	uint32_t w = atomic_load(word);

	if (dlock_owner(w) != task)
		return; /* recorded before the claim, or after the unlock */
	if (holds->count < holds->n)
		holds->out[holds->count] = (struct shmlock_hold_info){
			.task = task,
			.kind = kind,
			.cell = cell,
			.since = since,
			.waiters = w & DCACHE_LOCK_WAITER ? count_waiters(holds->arena, word) : 0,
		};
	holds->count++;
}

static bool is_name(struct shmlock_arena *arena, uint32_t cell)
{
	return cell_valid(arena, cell) &&
	       (atomic_load(&cell_at(arena, cell)->d_flags) & SHM_KIND_MASK) == SHM_DENTRY;
}

static void add_slot(struct holds *holds, uint32_t id)
{
	struct shmlock_arena *arena = holds->arena;
	struct shm_slot *slot = slot_at(arena, id);
	uint32_t dir = atomic_load(&slot->held_dir), cell;
	uint32_t top = atomic_load(&slot->names_top);

	for (uint32_t i = 0; i < SHM_HELD; i++) {
		cell = atomic_load(&slot->held[i]);
		if (is_name(arena, cell))
			add_hold(holds, id, &cell_at(arena, cell)->d_flags, SHMLOCK_HOLD_NAME, cell,
				 0);
	}
	for (uint32_t i = 0; i < top && i < SHM_NAMES; i++) {
		cell = atomic_load(&slot->names[i]);
		if (is_name(arena, cell))
			add_hold(holds, id, &cell_at(arena, cell)->d_flags, SHMLOCK_HOLD_PERSON,
				 cell, atomic_load(&slot->names_since[i]));
	}
	if (cell_valid(arena, dir)) {
		shm_word *word = &cell_at(arena, dir)->i_flags;

		cell = dir == SHM_ROOT ? SHM_ROOT : atomic_load(&cell_at(arena, dir)->i_dentry);
		add_hold(holds, id, word,
			 atomic_load(word) & S_DYING ? SHMLOCK_HOLD_DYING : SHMLOCK_HOLD_RWSEM,
			 cell, 0);
	}
}

int snapshot_holds(struct shmlock_arena *arena, struct shmlock_hold_info *out, int n)
{
	struct holds holds = { .arena = arena, .out = out, .n = n };

	for (uint32_t id = 1; id <= arena->tasks; id++)
		if (recover_task_state(arena, id) != SHMLOCK_TASK_FREE)
			add_slot(&holds, id);
	return holds.count;
}

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* Directories of all locked names; the longest run of one after sorting. */
int snapshot_in_flight(struct shmlock_arena *arena)
{
	int room = 4096, count, best = 0, run = 0;
	struct shmlock_hold_info *holds = malloc((size_t)room * sizeof(*holds));
	uint64_t *dirs = malloc((size_t)room * sizeof(*dirs));

	count = holds && dirs ? snapshot_holds(arena, holds, room) : 0;
	count = count < room ? count : room;
	for (int i = 0; i < count; i++)
		dirs[i] = holds[i].kind <= SHMLOCK_HOLD_PERSON ?
				  atomic_load(&cell_at(arena, holds[i].cell)->d_parent) :
				  0;
	if (count)
		qsort(dirs, (size_t)count, sizeof(*dirs), compare_u64);
	for (int i = 0; i < count; i++) {
		run = i && dirs[i] == dirs[i - 1] ? run + 1 : 1;
		if (dirs[i] && run > best)
			best = run;
	}
	free(holds);
	free(dirs);
	return best;
}

/* ---- Numbers --------------------------------------------------------------------------------- */

int snapshot_usage(struct shmlock_arena *arena, struct shmlock_usage *out)
{
	*out = (struct shmlock_usage){ .dentries = arena->dentries };
	for (uint32_t cell = SHM_ROOT; cell < arena->cells_end; cell++) {
		struct shm_cell *c = cell_at(arena, cell);
		uint32_t w = atomic_load_explicit(&c->d_flags, memory_order_relaxed);
		uint32_t kind = w & SHM_KIND_MASK, mode = 0;

		out->used += kind == SHM_DENTRY || kind == SHM_BLOCK || kind == SHM_TEXT;
		out->blocks += kind == SHM_BLOCK;
		out->texts += kind == SHM_TEXT;
		out->stock += kind == SHM_STOCK;
		if (kind == SHM_DENTRY) {
			out->locked += (w & DCACHE_LOCK) != 0;
			if (atomic_load_explicit(&c->d_inode, memory_order_relaxed))
				out->positive++;
			else
				out->negative++;
		}
		if (kind == SHM_DENTRY || kind == SHM_INODE)
			mode = (uint32_t)atomic_load_explicit(&c->i_id, memory_order_relaxed);
		out->inodes += mode != 0;
		out->directories += S_ISDIR(mode);
	}
	return 0;
}

const char *snapshot_counter_name(int counter)
{
	static const char *const names[] = {
#define COUNTER(id, name) name,
#include "counters.def"
#undef COUNTER
	};

	return counter >= 0 && counter < TASK_COUNTERS ? names[counter] : "";
}

int snapshot_counters(struct shmlock_arena *arena, uint64_t *out, int n)
{
	for (int i = 0; i < n && i < TASK_COUNTERS; i++) {
		out[i] = 0;
		for (uint32_t id = 1; id <= arena->tasks; id++)
			out[i] += atomic_load_explicit(&slot_at(arena, id)->counters[i],
						       memory_order_relaxed);
	}
	return TASK_COUNTERS;
}

/* ---- The circle -------------------------------------------------------------------------------- */

int snapshot_circle(char *buf, size_t size)
{
	struct wait_circle *circle = &wait_last_circle;
	char path[WALK_PATH_MAX + 1];
	size_t at = 0;

	if (!size)
		return 0;
	buf[0] = 0;
	for (uint32_t i = 0; i < circle->edges && at + 1 < size; i++) {
		struct wait_edge *e = &circle->edge[i];
		struct shm_slot *owner = slot_at(circle->arena, e->owner);
		int n;

		if (walk_path_of(circle->arena, e->cell, path, sizeof(path)) < 0)
			strcpy(path, "?");
		n = snprintf(buf + at, size - at,
			     "%spid %u tid %u waits for %s (%s), held by pid %u tid %u",
			     i ? "; " : "", e->pid, e->tid, path, wait_kind_name((int)e->kind),
			     atomic_load(&owner->tgid), atomic_load(&owner->tid));
		if (n > 0)
			at += (size_t)n;
	}
	return (int)(at < size ? at : size - 1);
}
