/* SPDX-License-Identifier: MIT */
#include "stock.h"

#include "dirblock.h"

/* Cells that one look at the common hand covers: as many as a stock holds, so that a fresh arena
 * is used from front to back without gaps. */
#define HAND_STEP SHM_STOCK_MAX
/* So many steps look for free cells only, before negative names are taken too. */
#define GENTLE_STEPS 8u

static inline shm_word *flags_of(struct shmlock_arena *arena, uint32_t cell)
{
	return &cell_at(arena, cell)->d_flags;
}

void stock_rekind(struct task *task, uint32_t cell, uint32_t kind)
{
	shm_word *word = flags_of(task->arena, cell);
	uint32_t w = atomic_load_explicit(word, memory_order_relaxed);

	while (!atomic_compare_exchange_weak(word, &w, task->owner | kind))
		;
	if (w & DCACHE_LOCK_WAITER)
		dlock_wake(task, word);
}

void stock_put(struct task *task, uint32_t cell)
{
	struct shm_slot *slot = task->slot;

	if (task->stock < task->arena->stock_max) {
		stock_rekind(task, cell, SHM_STOCK);
		atomic_store_explicit(&slot->stock[task->stock++], cell, memory_order_release);
	} else {
		dlock_unlock(task, flags_of(task->arena, cell), 0, SHM_FLAGS_MASK);
	}
	task_unhold(task, cell);
}

/* ---- Text ---------------------------------------------------------------------------------- */

static void free_text(struct shmlock_arena *arena, uint32_t name)
{
	struct shm_cell *c = cell_at(arena, name);
	uint64_t last = atomic_load(&c->d_name[SHM_NAME_WORDS - 1]);
	uint32_t text = (uint32_t)last, next, w;

	if (last >> 56 != NAME_LONG)
		return;
	for (int i = 0; cell_valid(arena, text) && i < (int)SHM_TEXT_CELLS; i++, text = next) {
		struct shm_text *t = (struct shm_text *)cell_at(arena, text);

		next = atomic_load(&t->t_next);
		w = SHM_TEXT;
		if (atomic_load(&t->t_user) != name ||
		    !atomic_compare_exchange_strong(&t->d_flags, &w, SHM_FREE))
			break; /* scribbled or already gone: the search finds what is left over */
	}
}

bool stock_text_used(struct shmlock_arena *arena, uint32_t cell)
{
	struct shm_text *t = (struct shm_text *)cell_at(arena, cell);
	uint32_t user = atomic_load(&t->t_user), text, flags;
	struct shm_cell *c;
	uint64_t last;

	if (!cell_valid(arena, user))
		return false;
	c = cell_at(arena, user);
	last = atomic_load(&c->d_name[SHM_NAME_WORDS - 1]);
	flags = atomic_load(&c->d_flags);
	if ((flags & SHM_KIND_MASK) != SHM_DENTRY)
		return false;
	/* Somebody is at work on the name, perhaps freeing its texts one by one: not ours to judge. */
	if (flags & DCACHE_LOCK)
		return true;
	if (last >> 56 != NAME_LONG)
		return false;
	text = (uint32_t)last;
	for (int i = 0; cell_valid(arena, text) && i < (int)SHM_TEXT_CELLS; i++) {
		if (text == cell)
			return true;
		text = atomic_load(&((struct shm_text *)cell_at(arena, text))->t_next);
	}
	return false;
}

/* ---- Reuse --------------------------------------------------------------------------------- */

int stock_forget_name(struct shmlock_arena *arena, uint32_t cell, bool keep_listed)
{
	struct shm_cell *c = cell_at(arena, cell);
	int ret = chain_remove(arena, atomic_load_explicit(&c->d_hash, memory_order_relaxed), cell);

	if (ret)
		return ret;
	/* No name until it gets a new identity: odd, so that no walker still standing here takes
	 * the words of a later use for this name's. */
	atomic_store_explicit(&c->d_seq, atomic_load_explicit(&c->d_seq, memory_order_relaxed) | 1,
			      memory_order_release);
	if (!keep_listed)
		dirblock_remove(arena, cell);
	if (__builtin_expect(atomic_load_explicit(&c->d_name[3], memory_order_relaxed) >> 56 ==
				     NAME_LONG,
			     0)) {
		free_text(arena, cell);
		atomic_store(&c->d_name[3], 0); /* never freed twice */
	}
	return 0;
}

/* The mark of a dead holder keeps its name, as long as anybody can ask for that name. */
static bool mark_matters(struct shmlock_arena *arena, struct shm_cell *c)
{
	uint64_t dir = atomic_load(&c->d_parent);
	struct shm_cell *inode;

	if (!cell_valid(arena, ino_cell(dir)))
		return false;
	inode = cell_at(arena, ino_cell(dir));
	return inode_number(atomic_load(&inode->i_id), ino_cell(dir)) == dir &&
	       !(atomic_load(&inode->i_flags) & S_DEAD);
}

static inline bool reusable(struct shmlock_arena *arena, struct shm_cell *c, uint32_t flags)
{
	return (flags & (DCACHE_LOCK | SHM_KIND_MASK)) == SHM_DENTRY &&
	       !atomic_load_explicit(&c->d_inode, memory_order_acquire) &&
	       (!(flags & DCACHE_RECOVERED) || !mark_matters(arena, c));
}

/* Lock a negative name for reuse; held on success. */
static bool claim_negative(struct task *task, uint32_t cell)
{
	struct shm_cell *c = cell_at(task->arena, cell);
	uint32_t w = atomic_load_explicit(&c->d_flags, memory_order_relaxed);

	if (!reusable(task->arena, c, w))
		return false;
	task_hold(task, cell);
	if (atomic_compare_exchange_strong(&c->d_flags, &w,
					   (w & ~DCACHE_RING) | task->owner)) {
		/* Only now, under LOCK, is "negative" more than a guess, and the directory's
		 * death (for the mark) for good. */
		if (!atomic_load_explicit(&c->d_inode, memory_order_acquire) &&
		    (!(w & DCACHE_RECOVERED) || !mark_matters(task->arena, c))) {
			if (w & DCACHE_RECOVERED)
				dlock_flags(task, &c->d_flags, 0, DCACHE_RECOVERED);
			PAUSE(task->arena, RECYCLE_LOCKED);
			return true;
		}
		dlock_unlock(task, &c->d_flags, 0, 0);
	}
	task_unhold(task, cell);
	return false;
}

/* Positive again, or locked just now: who empties it next may remember it again. */
static void drop_ring_flag(struct task *task, uint32_t cell)
{
	uint32_t seen;

	if (!cell_valid(task->arena, cell) ||
	    (atomic_load(flags_of(task->arena, cell)) & SHM_KIND_MASK) != SHM_DENTRY)
		return;
	task_hold(task, cell);
	if (dlock_try(task, flags_of(task->arena, cell), 0, 0, &seen))
		dlock_unlock(task, flags_of(task->arena, cell), 0, DCACHE_RING);
	task_unhold(task, cell);
}

bool stock_recycle(struct task *task, uint64_t dir, uint32_t *cell)
{
	struct shmlock_arena *arena = task->arena;
	struct shm_slot *slot = task->slot;
	uint32_t count = atomic_load_explicit(&slot->ring_count, memory_order_relaxed);
	uint32_t head = atomic_load_explicit(&slot->ring_head, memory_order_relaxed);

	/* Few empty names: rather a fresh cell, so that known names stay known. */
	for (int tries = 0; count >= arena->ring_max && tries < 4; tries++) {
		uint32_t at = atomic_load_explicit(&slot->ring[head % SHM_RING_MAX],
						   memory_order_relaxed);
		bool got = cell_valid(arena, at) && claim_negative(task, at);

		head++;
		count--;
		atomic_store_explicit(&slot->ring_head, head % SHM_RING_MAX, memory_order_relaxed);
		atomic_store_explicit(&slot->ring_count, count, memory_order_relaxed);
		if (!got) {
			drop_ring_flag(task, at);
			continue;
		}
		if (stock_forget_name(arena, at,
				      atomic_load(&cell_at(arena, at)->d_parent) == dir)) {
			dlock_unlock(task, flags_of(arena, at), 0, 0);
			task_unhold(task, at);
			return false;
		}
		PAUSE(arena, RECYCLE_UNHASHED);
		task_count(task, COUNT_RECYCLED);
		*cell = at;
		return true;
	}
	return false;
}

uint32_t stock_remember(struct task *task, uint32_t cell)
{
	struct shm_slot *slot = task->slot;
	uint32_t count = atomic_load_explicit(&slot->ring_count, memory_order_relaxed), head;

	if (count >= SHM_RING_MAX)
		return 0;
	head = atomic_load_explicit(&slot->ring_head, memory_order_relaxed);
	atomic_store_explicit(&slot->ring[(head + count) % SHM_RING_MAX], cell,
			      memory_order_relaxed);
	atomic_store_explicit(&slot->ring_count, count + 1, memory_order_relaxed);
	return DCACHE_RING;
}

/* ---- The search ---------------------------------------------------------------------------- */

/* Move a cell that is locked and held into the stock. */
static void keep(struct task *task, uint32_t cell)
{
	stock_rekind(task, cell, SHM_STOCK);
	atomic_store_explicit(&task->slot->stock[task->stock++], cell, memory_order_release);
	task_unhold(task, cell);
}

static bool take_free(struct task *task, uint32_t cell)
{
	shm_word *word = flags_of(task->arena, cell);
	uint32_t zero = SHM_FREE;

	atomic_store_explicit(&task->slot->stock[task->stock], cell, memory_order_relaxed);
	atomic_signal_fence(memory_order_seq_cst);
	if (!atomic_compare_exchange_strong(word, &zero, SHM_STOCK | task->owner)) {
		atomic_store_explicit(&task->slot->stock[task->stock], 0, memory_order_relaxed);
		return false;
	}
	task->stock++;
	PAUSE(task->arena, STOCK_CLAIMED);
	return true;
}

static bool take_negative(struct task *task, uint32_t cell)
{
	struct shm_cell *c = cell_at(task->arena, cell);

	/* Its inode may serve another name: then only line 0 is free, and it stays a name. */
	if ((uint32_t)atomic_load(&c->i_id) || !claim_negative(task, cell))
		return false;
	if ((uint32_t)atomic_load(&c->i_id) || stock_forget_name(task->arena, cell, false)) {
		dlock_unlock(task, &c->d_flags, 0, 0);
		task_unhold(task, cell);
		return false;
	}
	task_count(task, COUNT_RECLAIMED);
	keep(task, cell);
	return true;
}

/* Blocks of dead directories and texts of dead names: left over by a death or a race. */
static bool take_garbage(struct task *task, uint32_t cell, uint32_t kind)
{
	struct shmlock_arena *arena = task->arena;
	uint32_t w = kind;
	bool used;

	if (kind == SHM_BLOCK ? !dirblock_empty(arena, cell) : stock_text_used(arena, cell))
		return false;
	task_hold(task, cell);
	if (!atomic_compare_exchange_strong(flags_of(arena, cell), &w, kind | task->owner)) {
		task_unhold(task, cell);
		return false;
	}
	used = kind == SHM_BLOCK ? !dirblock_empty(arena, cell) || dirblock_reachable(arena, cell) :
				   stock_text_used(arena, cell);
	if (used) {
		dlock_unlock(task, flags_of(arena, cell), 0, 0);
		task_unhold(task, cell);
		return false;
	}
	keep(task, cell);
	return true;
}

static void take(struct task *task, uint32_t cell, bool gentle)
{
	uint32_t w = atomic_load_explicit(flags_of(task->arena, cell), memory_order_relaxed);

	if (w == SHM_FREE)
		take_free(task, cell);
	else if (gentle || w & DCACHE_LOCK)
		return;
	else if ((w & SHM_KIND_MASK) == SHM_DENTRY)
		take_negative(task, cell);
	else if (w == SHM_BLOCK || w == SHM_TEXT)
		take_garbage(task, cell, w);
}

static int refill(struct task *task)
{
	struct shmlock_arena *arena = task->arena;
	uint32_t cells = arena->cells_end - (SHM_ROOT + 1);
	/* Round once, and a bit more: others move the hand too. */
	uint32_t steps = 2 * (cells / HAND_STEP + 1) + GENTLE_STEPS;

	task_count(task, COUNT_REFILLS);
	for (uint32_t step = 0; step < steps && !task->stock; step++) {
		uint32_t hand = atomic_fetch_add(&arena->header->hand, HAND_STEP);

		for (uint32_t i = 0; i < HAND_STEP && task->stock < arena->stock_max; i++)
			take(task, SHM_ROOT + 1 + (hand + i) % cells, step < GENTLE_STEPS);
	}
	return task->stock ? 0 : -ENOSPC;
}

int stock_get(struct task *task, uint32_t *cell)
{
	struct shm_slot *slot = task->slot;
	uint32_t at;
	int ret;

	for (;;) {
		if (!task->stock) {
			ret = refill(task);
			if (ret)
				return ret;
		}
		at = atomic_load_explicit(&slot->stock[task->stock - 1], memory_order_relaxed);
		if (!cell_valid(task->arena, at) ||
		    (atomic_load(flags_of(task->arena, at)) &
		     (SHM_OWNER_MASK | DCACHE_LOCK | SHM_KIND_MASK)) !=
			    (task->owner | SHM_STOCK)) {
			/* Scribbled. Ours no longer: drop it. */
			atomic_store(&slot->stock[--task->stock], 0);
			continue;
		}
		task_hold(task, at); /* before it leaves the stock: one of the two names it */
		atomic_store_explicit(&slot->stock[--task->stock], 0, memory_order_relaxed);
		*cell = at;
		return 0;
	}
}

void stock_purge_names(struct task *task, const struct dir *dir)
{
	struct dir_walk walk;

	for (dirblock_first(task->arena, dir, &walk); dirblock_next(&walk) > 0;) {
		struct shm_cell *c = cell_at(task->arena, walk.name);

		if (atomic_load(&c->d_parent) != dir->ino ||
		    (uint32_t)atomic_load(&c->i_id) || !claim_negative(task, walk.name))
			continue;
		if (atomic_load(&c->d_parent) != dir->ino || (uint32_t)atomic_load(&c->i_id) ||
		    stock_forget_name(task->arena, walk.name, false)) {
			dlock_unlock(task, &c->d_flags, 0, 0);
			task_unhold(task, walk.name);
			continue;
		}
		stock_put(task, walk.name);
	}
}

void stock_release(struct shmlock_arena *arena, struct shm_slot *slot, uint32_t id)
{
	for (uint32_t i = 0; i < SHM_STOCK_MAX; i++) {
		uint32_t cell = atomic_load(&slot->stock[i]);

		if (cell_valid(arena, cell) &&
		    (atomic_load(flags_of(arena, cell)) & SHM_KIND_MASK) == SHM_STOCK)
			dlock_free_dead(flags_of(arena, cell), id, 0, SHM_FLAGS_MASK);
		atomic_store(&slot->stock[i], 0);
	}
}
