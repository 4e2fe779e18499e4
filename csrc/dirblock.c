/* SPDX-License-Identifier: MIT */
#include "dirblock.h"

#include <sched.h>

#include "stock.h"

/* With timeout 0 a block's holder, who may have lost the processor, is given so many chances. */
#define PATIENCE 10000

/* Blocks looked at for a free entry before a new block is made; the place is remembered, so that
 * all holes are found in time and a big full directory still costs no more than this. */
#define SEARCH_BLOCKS 8

static inline struct shm_block *block_at(struct shmlock_arena *arena, uint32_t block)
{
	return (struct shm_block *)cell_at(arena, block);
}

static bool is_block_of(struct shmlock_arena *arena, uint32_t block, uint64_t dir)
{
	struct shm_block *b = block_at(arena, block);

	return (atomic_load(&b->d_flags) & SHM_KIND_MASK) == SHM_BLOCK &&
	       atomic_load(&b->b_dir) == dir;
}

/* An entry whose name does not say so too and is not being worked on: left by a death. */
static bool is_orphan(struct shmlock_arena *arena, uint32_t block, uint32_t name)
{
	struct shm_cell *c;

	if (!cell_valid(arena, name))
		return true;
	c = cell_at(arena, name);
	return !(atomic_load(&c->d_flags) & DCACHE_LOCK) && atomic_load(&c->d_block) != block;
}

/* Requires: the block's LOCK. Entry that the name may have, -1 if none. */
static int free_entry(struct shmlock_arena *arena, uint32_t block, uint32_t name)
{
	struct shm_block *b = block_at(arena, block);
	int best = -1;

	for (int i = 0; i < (int)SHM_BLOCK_ENTRIES; i++) {
		uint32_t e = atomic_load_explicit(shm_block_entry(b, (uint32_t)i), memory_order_acquire);

		if (e == name) /* its own orphan: else it would be listed twice */
			return i;
		if (!e && best < 0)
			best = i;
	}
	for (int i = 0; best < 0 && i < (int)SHM_BLOCK_ENTRIES; i++)
		if (is_orphan(arena, block, atomic_load(shm_block_entry(b, (uint32_t)i))))
			best = i;
	return best;
}

/* 1: listed; 0: no room, busy, or no longer this directory's block. Waits for nothing. */
static int try_block(struct task *task, uint64_t dir, uint32_t block, uint32_t name)
{
	struct shmlock_arena *arena = task->arena;
	struct shm_block *b;
	uint32_t seen;
	int entry = -1;

	if (!cell_valid(arena, block) || !is_block_of(arena, block, dir))
		return 0;
	b = block_at(arena, block);
	task_hold(task, block);
	if (dlock_try(task, &b->d_flags, 0, 0, &seen)) {
		if (is_block_of(arena, block, dir))
			entry = free_entry(arena, block, name);
		if (entry >= 0) {
			/* The name says it first: an entry is then never unknown to its name. */
			atomic_store(&cell_at(arena, name)->d_block, block);
			atomic_store(shm_block_entry(b, (uint32_t)entry), name);
		}
		dlock_unlock(task, &b->d_flags, 0, 0);
	}
	task_unhold(task, block);
	return entry >= 0;
}

/* Lock the first block; 0, -ENOENT when it is the directory's no more, or a wait's error. */
static int lock_first(struct task *task, uint64_t dir, uint32_t first)
{
	struct shm_block *b = block_at(task->arena, first);
	uint32_t seen;
	int ret = 0, patience = PATIENCE;

	task_hold(task, first);
	while (!ret && !dlock_try(task, &b->d_flags, 0, 0, &seen)) {
		if (!is_block_of(task->arena, first, dir))
			ret = -ENOENT;
		else if (!task->timeout && patience-- > 0)
			sched_yield(); /* "do not wait" is about names; this lasts some 50 ns */
		else if (dlock_prepare(task, &b->d_flags, &seen))
			ret = wait_for(task, SHM_WAIT_LIST, &b->d_flags, seen,
				       atomic_load(&cell_at(task->arena, ino_cell(dir))->i_dentry));
	}
	if (!ret && !is_block_of(task->arena, first, dir)) {
		dlock_unlock(task, &b->d_flags, 0, 0);
		ret = -ENOENT;
	}
	if (ret)
		task_unhold(task, first);
	return ret;
}

/* A new block with the name in its first entry. Returned locked and held, not yet on the list. */
static int make_block(struct task *task, uint64_t dir, uint32_t name, uint32_t *out)
{
	struct shm_block *b;
	int ret = stock_get(task, out);

	if (ret)
		return ret;
	b = block_at(task->arena, *out);
	for (uint32_t i = 0; i < SHM_BLOCK_ENTRIES; i++)
		atomic_store_explicit(shm_block_entry(b, i), 0, memory_order_relaxed);
	atomic_store(&b->b_next, 0);
	atomic_store(&b->b_dir, dir);
	stock_rekind(task, *out, SHM_BLOCK);
	atomic_store(&cell_at(task->arena, name)->d_block, *out);
	atomic_store(shm_block_entry(b, 0), name);
	task_count(task, COUNT_BLOCKS);
	PAUSE(task->arena, BLOCK_MADE);
	return 0;
}

static void drop_block(struct task *task, uint32_t block, uint32_t name)
{
	dirblock_remove(task->arena, name);
	stock_put(task, block);
}

static int add_block(struct task *task, const struct dir *dir, uint32_t name, uint32_t *made)
{
	struct shmlock_arena *arena = task->arena;
	uint64_t none = dir->ino & ~0xffffffffull;
	uint32_t first = dirblock_of(arena, dir->ino), block;
	struct shm_block *f;
	int ret = make_block(task, dir->ino, name, &block);

	if (ret)
		return ret;
	if (!first) {
		/* The generation in the word: a reused inode does not get our block. */
		if (atomic_compare_exchange_strong(&cell_at(arena, dir->cell)->i_children, &none,
						   none | block))
			goto listed;
		first = dirblock_of(arena, dir->ino);
		if (!cell_valid(arena, first)) {
			drop_block(task, block, name);
			return -ENOENT;
		}
	} else if (!cell_valid(arena, first)) {
		drop_block(task, block, name);
		return -EUCLEAN;
	}
	/* The directory may have died since, and its first block be the very cell we got. */
	ret = first == block ? -ENOENT : lock_first(task, dir->ino, first);
	if (ret) {
		drop_block(task, block, name);
		return ret;
	}
	f = block_at(arena, first);
	atomic_store(&block_at(arena, block)->b_next, atomic_load(&f->b_next));
	atomic_store(&f->b_next, block);
	dlock_unlock(task, &f->d_flags, 0, 0);
	task_unhold(task, first);
listed:
	PAUSE(arena, BLOCK_CHAINED);
	dlock_unlock(task, &block_at(arena, block)->d_flags, 0, 0);
	task_unhold(task, block);
	*made = block;
	return 0;
}

/* Look for room from block *at on, at most `limit` blocks. 1: in *at; 0: none, *at is the next. */
static int search(struct task *task, uint64_t dir, uint32_t *at, uint64_t limit, uint32_t name)
{
	while (*at && limit--) {
		if (!cell_valid(task->arena, *at) || !is_block_of(task->arena, *at, dir)) {
			*at = 0;
			return 0;
		}
		if (try_block(task, dir, *at, name))
			return 1;
		*at = atomic_load(&block_at(task->arena, *at)->b_next);
	}
	return 0;
}

int dirblock_add(struct task *task, const struct dir *dir, uint32_t name)
{
	struct task_hint *hint = &task->hint[ino_cell(dir->ino) % TASK_HINTS];
	uint32_t at;
	int ret;

	if (hint->dir != dir->ino) {
		hint->dir = dir->ino;
		hint->block = 0;
		hint->cursor = 0;
	}
	if (hint->block && try_block(task, dir->ino, hint->block, name))
		return 0;
	if (!hint->cursor)
		hint->cursor = dirblock_of(task->arena, dir->ino);
	if (search(task, dir->ino, &hint->cursor, SEARCH_BLOCKS, name)) {
		hint->block = hint->cursor;
		return 0;
	}
	ret = add_block(task, dir, name, &hint->block);
	if (ret != -ENOSPC)
		return ret;
	at = dirblock_of(task->arena, dir->ino); /* full? then every hole counts */
	return search(task, dir->ino, &at, task->arena->cells_end, name) ? 0 : ret;
}

void dirblock_remove(struct shmlock_arena *arena, uint32_t name)
{
	struct shm_cell *c = cell_at(arena, name);
	uint32_t block = atomic_load(&c->d_block), e;

	atomic_store(&c->d_block, 0);
	if (!cell_valid(arena, block) ||
	    (atomic_load(&block_at(arena, block)->d_flags) & SHM_KIND_MASK) != SHM_BLOCK)
		return;
	for (uint32_t i = 0; i < SHM_BLOCK_ENTRIES; i++) {
		e = name; /* CAS: if it was taken for an orphan meanwhile, it is not ours to clear */
		if (atomic_load_explicit(shm_block_entry(block_at(arena, block), i),
					 memory_order_relaxed) == name &&
		    atomic_compare_exchange_strong(shm_block_entry(block_at(arena, block), i), &e, 0))
			return;
	}
}

bool dirblock_empty(struct shmlock_arena *arena, uint32_t block)
{
	for (uint32_t i = 0; i < SHM_BLOCK_ENTRIES; i++) {
		uint32_t e = atomic_load(shm_block_entry(block_at(arena, block), i));

		if (e && !is_orphan(arena, block, e))
			return false;
	}
	return true;
}

bool dirblock_reachable(struct shmlock_arena *arena, uint32_t block)
{
	uint64_t dir = atomic_load(&block_at(arena, block)->b_dir), budget = chain_budget(arena);
	uint32_t at;

	if (!cell_valid(arena, ino_cell(dir)) ||
	    inode_number(atomic_load(&cell_at(arena, ino_cell(dir))->i_id), ino_cell(dir)) != dir)
		return false;
	for (at = dirblock_of(arena, dir); cell_valid(arena, at) && budget--;
	     at = atomic_load(&block_at(arena, at)->b_next))
		if (at == block)
			return true;
	return false;
}

void dirblock_purge(struct task *task, uint64_t dir, uint32_t first)
{
	struct shmlock_arena *arena = task->arena;
	uint64_t budget = chain_budget(arena);
	uint32_t block = first, next, seen;

	while (cell_valid(arena, block) && is_block_of(arena, block, dir) && budget--) {
		struct shm_block *b = block_at(arena, block);

		next = atomic_load(&b->b_next);
		task_hold(task, block);
		if (!dlock_try(task, &b->d_flags, 0, 0, &seen)) {
			task_unhold(task, block);
		} else if (is_block_of(arena, block, dir) && dirblock_empty(arena, block)) {
			stock_put(task, block);
		} else {
			dlock_unlock(task, &b->d_flags, 0, 0);
			task_unhold(task, block);
		}
		block = next;
	}
}

void dirblock_first(struct shmlock_arena *arena, const struct dir *dir, struct dir_walk *walk)
{
	walk->arena = arena;
	walk->dir = dir->ino;
	walk->budget = chain_budget(arena);
	walk->block = dirblock_of(arena, dir->ino);
	walk->at = 0;
}

int dirblock_next(struct dir_walk *walk)
{
	struct shmlock_arena *arena = walk->arena;

	while (walk->block) {
		uint32_t block = walk->block, e;
		struct shm_block *b;

		if (!cell_valid(arena, block) || !walk->budget--)
			return -EUCLEAN;
		b = block_at(arena, block);
		while (walk->at < SHM_BLOCK_ENTRIES) {
			e = atomic_load(shm_block_entry(b, walk->at++));
			if (!e)
				continue;
			/* After the entry: a freed block's words mean something else. */
			if (!is_block_of(arena, block, walk->dir))
				return -ESTALE;
			if (cell_valid(arena, e) &&
			    atomic_load(&cell_at(arena, e)->d_block) == block) {
				walk->name = e;
				return 1;
			}
		}
		walk->block = atomic_load(&b->b_next);
		walk->at = 0;
		if (!is_block_of(arena, block, walk->dir))
			return -ESTALE;
	}
	return 0;
}
