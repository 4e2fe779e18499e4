/* SPDX-License-Identifier: MIT */
#include "check.h"

#include <stdlib.h>

#include "dirblock.h"
#include "inode.h"
#include "recover.h"
#include "stock.h"
#include "walk.h"

/* The numbers are cited in code, tests and docs/arena.md: never renumber. */
static const char *const invariants[] = {
	[0] = "",
	[1] = "an unlocked name is in the chain of its hash, once",
	[2] = "no two hashed names have the same directory and bytes",
	[3] = "a chain ends, and its links are valid and not marked",
	[4] = "an unlocked name is in one entry, of the block that its d_block names",
	[5] = "a directory's list of blocks ends and has only its own blocks",
	[6] = "what a name points to is a live inode, and nlink counts its names",
	[7] = "a directory has one name, its i_dentry, and its ancestors lead to the root",
	[8] = "a live name's directory is alive",
	[9] = "a lock word's owner is a task, live or not yet recovered, that records it",
	[10] = "S_DYING only with i_rwsem held, S_DEAD only without a name",
	[11] = "a live inode has a name",
	[12] = "a cell in stock is in its owner's slot",
	[13] = "a text belongs to a name",
	[14] = "at rest: nothing is locked, dying, waited for or half-done",
};
#define INVARIANTS ((int)(sizeof(invariants) / sizeof(invariants[0])))

const char *check_invariant(int n)
{
	return n > 0 && n < INVARIANTS ? invariants[n] : "";
}

struct check {
	struct shmlock_arena *arena;
	bool quiescent;
	struct shmlock_fault *out;
	int n, count;
	uint32_t *links;  /* names that point to this inode */
	uint8_t *chained; /* times met in the chain of its hash */
	uint8_t *listed;  /* times met in the block of its d_block */
	uint8_t *unknown; /* inode: one of its names was being worked on */
};

static void fault(struct check *check, uint32_t invariant, uint32_t cell, uint64_t found,
		  uint64_t expected)
{
	if (check->count < check->n)
		check->out[check->count] =
			(struct shmlock_fault){ invariant, cell, found, expected };
	check->count++;
}

static uint32_t kind_of(struct shmlock_arena *arena, uint32_t cell)
{
	return atomic_load(&cell_at(arena, cell)->d_flags) & SHM_KIND_MASK;
}

static void check_chain(struct check *check, uint32_t bucket)
{
	struct shmlock_arena *arena = check->arena;
	uint64_t link = atomic_load(&arena->buckets[bucket]);
	uint32_t cell, steps = 0;

	while ((cell = (uint32_t)(link & SHM_LINK_NEXT))) {
		if (!cell_valid(arena, cell) || steps++ > arena->cells_end) {
			fault(check, 3, cell, bucket, 0);
			return;
		}
		if (kind_of(arena, cell) != SHM_DENTRY ||
		    (atomic_load(&cell_at(arena, cell)->d_hash) & arena->bucket_mask) != bucket) {
			fault(check, 3, cell, bucket, atomic_load(&cell_at(arena, cell)->d_hash));
			return;
		}
		if (check->chained[cell] < 255)
			check->chained[cell]++;
		link = atomic_load(&cell_at(arena, cell)->d_next);
		if (link & SHM_LINK_MARK && check->quiescent)
			fault(check, 3, cell, link, 0);
	}
}

static void check_blocks(struct check *check, uint32_t inode)
{
	struct shmlock_arena *arena = check->arena;
	struct dir dir = { inode, inode_ino(arena, inode) };
	struct dir_walk walk;
	int ret;

	dirblock_first(arena, &dir, &walk);
	while ((ret = dirblock_next(&walk)) > 0) {
		struct shm_cell *c = cell_at(arena, walk.name);

		if (atomic_load(&c->d_parent) != dir.ino && !(atomic_load(&c->d_flags) & DCACHE_LOCK))
			fault(check, 4, walk.name, atomic_load(&c->d_parent), dir.ino);
		if (check->listed[walk.name] < 255)
			check->listed[walk.name]++;
	}
	if (ret)
		fault(check, 5, inode, (uint64_t)-ret, 0);
}

/* Is the cell's own name found under its name, and only it? */
static void check_unique(struct check *check, uint32_t cell)
{
	struct shmlock_arena *arena = check->arena;
	struct shm_cell *c = cell_at(arena, cell);
	char bytes[SHM_NAME_MAX + 1] = { 0 };
	uint32_t length = name_read(arena, c, bytes);
	struct name name;
	struct name_key key;
	struct found found;

	if (!length || name_scan(bytes, &name) != length) {
		fault(check, 2, cell, 0, 0);
		return;
	}
	name_key(arena, &key, atomic_load(&c->d_parent), &name);
	if (key.hash != atomic_load(&c->d_hash))
		fault(check, 1, cell, atomic_load(&c->d_hash), key.hash);
	else if (dcache_lookup(arena, &key, &found) || found.cell != cell)
		fault(check, 2, cell, found.cell, cell);
}

static void check_target(struct check *check, uint32_t cell)
{
	struct shmlock_arena *arena = check->arena;
	struct shm_cell *c = cell_at(arena, cell);
	uint32_t inode = atomic_load(&c->d_inode);
	uint64_t parent = atomic_load(&c->d_parent);

	if (!inode)
		return;
	if (!cell_valid(arena, inode) || !inode_mode(arena, inode) || inode == SHM_ROOT) {
		fault(check, 6, cell, inode, 0);
		return;
	}
	check->links[inode]++;
	if (!inode_is(arena, parent) || !S_ISDIR(inode_mode(arena, ino_cell(parent))))
		fault(check, 8, cell, parent, 0);
	if (S_ISDIR(inode_mode(arena, inode)) &&
	    atomic_load(&cell_at(arena, inode)->i_dentry) != cell)
		fault(check, 7, inode, atomic_load(&cell_at(arena, inode)->i_dentry), cell);
}

static void check_name(struct check *check, uint32_t cell)
{
	struct shm_cell *c = cell_at(check->arena, cell);

	if (atomic_load(&c->d_flags) & DCACHE_LOCK) {
		/* Somebody is at work on it: nothing can be said of what it points to either. */
		uint32_t inode = atomic_load(&c->d_inode);

		check->unknown[cell] = 1;
		if (cell_valid(check->arena, inode))
			check->unknown[inode] = 1;
		return;
	}
	if (check->chained[cell] != 1)
		fault(check, 1, cell, check->chained[cell], 1);
	else
		check_unique(check, cell);
	/* A dead directory's list is not walked: its names are garbage. */
	if (inode_is(check->arena, atomic_load(&c->d_parent)) && check->listed[cell] != 1)
		fault(check, 4, cell, check->listed[cell], 1);
	if (check->quiescent && atomic_load(&c->d_seq) & 1)
		fault(check, 14, cell, atomic_load(&c->d_seq), 0);
	check_target(check, cell);
}

static void check_owner(struct check *check, uint32_t cell, shm_word *word)
{
	uint32_t w = atomic_load(word), id = dlock_owner(w);

	if (!(w & DCACHE_LOCK)) {
		if (w & (DCACHE_LOCK_WAITER | SHM_OWNER_MASK))
			fault(check, 9, cell, w, 0);
		return;
	}
	/* A dead owner is sound: whoever wants the lock next recovers it. */
	if (!task_valid(check->arena, id) ||
	    recover_task_state(check->arena, id) == SHMLOCK_TASK_FREE ||
	    !recover_task_records(check->arena, id, word))
		fault(check, (w & SHM_KIND_MASK) == SHM_STOCK ? 12 : 9, cell, w, 0);
	if (check->quiescent && (w & SHM_KIND_MASK) != SHM_STOCK)
		fault(check, 14, cell, w, 0);
}

static void check_inode(struct check *check, uint32_t inode)
{
	struct shm_cell *i = cell_at(check->arena, inode);
	uint32_t mode = (uint32_t)atomic_load(&i->i_id), flags = atomic_load(&i->i_flags);
	bool busy = atomic_load(&i->d_flags) & DCACHE_LOCK;

	if (!mode || busy || check->unknown[inode])
		return;
	if (inode == SHM_ROOT)
		check->links[inode]++;
	if (!check->links[inode])
		fault(check, 11, inode, 0, 1);
	else if (check->links[inode] != atomic_load(&i->i_nlink))
		fault(check, 6, inode, atomic_load(&i->i_nlink), check->links[inode]);
	if (S_ISDIR(mode) && check->links[inode] > 1)
		fault(check, 7, inode, check->links[inode], 1);
	if ((flags & S_DYING && !(flags & DCACHE_LOCK)) ||
	    (flags & S_DEAD && check->links[inode] && !(flags & DCACHE_LOCK)))
		fault(check, 10, inode, flags, 0);
	if (S_ISDIR(mode))
		check_owner(check, inode, &i->i_flags);
}

static void check_ancestors(struct check *check, uint32_t inode)
{
	struct dir dir = { inode, inode_ino(check->arena, inode) };
	uint32_t steps = 0;

	while (dir.cell != SHM_ROOT) {
		if (!S_ISDIR(inode_mode(check->arena, dir.cell)) ||
		    walk_up(check->arena, &dir) || steps++ > check->arena->cells_end) {
			fault(check, 7, inode, dir.ino, SHM_ROOT);
			return;
		}
	}
}

static void check_cells(struct check *check)
{
	struct shmlock_arena *arena = check->arena;

	for (uint32_t cell = SHM_ROOT; cell < arena->cells_end; cell++) {
		uint32_t kind = kind_of(arena, cell);

		if (kind == SHM_DENTRY)
			check_name(check, cell);
		else if (kind == SHM_TEXT && !stock_text_used(arena, cell) && check->quiescent)
			fault(check, 13, cell, 0, 0);
		check_owner(check, cell, &cell_at(arena, cell)->d_flags);
	}
	for (uint32_t cell = SHM_ROOT; cell < arena->cells_end; cell++) {
		uint32_t kind = kind_of(arena, cell);

		if (kind != SHM_DENTRY && kind != SHM_INODE)
			continue;
		check_inode(check, cell);
		if (S_ISDIR(inode_mode(arena, cell)) && check->links[cell])
			check_ancestors(check, cell);
	}
}

static void check_slots(struct check *check)
{
	struct shmlock_arena *arena = check->arena;

	for (uint32_t id = 1; check->quiescent && id <= arena->tasks; id++) {
		struct shm_slot *slot = slot_at(arena, id);
		uint32_t held = 0;

		for (uint32_t i = 0; i < SHM_HELD; i++)
			held += atomic_load(&slot->held[i]) != 0;
		if (held || atomic_load(&slot->held_dir) || atomic_load(&slot->wait_seq) & 1 ||
		    atomic_load(&slot->redo.code))
			fault(check, 14, 0, id, held);
	}
}

int check_arena(struct shmlock_arena *arena, bool quiescent, struct shmlock_fault *out, int n)
{
	struct check check = { .arena = arena, .quiescent = quiescent, .out = out, .n = n };

	check.links = calloc(arena->cells_end, sizeof(*check.links));
	check.chained = calloc(arena->cells_end, 1);
	check.listed = calloc(arena->cells_end, 1);
	check.unknown = calloc(arena->cells_end, 1);
	if (!check.links || !check.chained || !check.listed || !check.unknown) {
		check.count = -ENOMEM;
	} else {
		for (uint32_t bucket = 0; bucket <= arena->bucket_mask; bucket++)
			check_chain(&check, bucket);
		for (uint32_t cell = SHM_ROOT; cell < arena->cells_end; cell++)
			if ((kind_of(arena, cell) == SHM_DENTRY || cell == SHM_ROOT) &&
			    S_ISDIR(inode_mode(arena, cell)))
				check_blocks(&check, cell);
		check_cells(&check);
		check_slots(&check);
	}
	free(check.links);
	free(check.chained);
	free(check.listed);
	free(check.unknown);
	return check.count;
}
