/* SPDX-License-Identifier: MIT */
#include "recover.h"

#include "dirblock.h"
#include "futex.h"
#include "inode.h"
#include "proc.h"
#include "stock.h"

#define MAX_TRIES 3u

bool recover_task_holds_names(struct shm_slot *slot)
{
	uint32_t top = atomic_load_explicit(&slot->names_top, memory_order_acquire);

	for (uint32_t i = 0; i < top && i < SHM_NAMES; i++)
		if (atomic_load_explicit(&slot->names[i], memory_order_acquire))
			return true;
	return false;
}

bool recover_task_records(struct shmlock_arena *arena, uint32_t id, shm_word *word)
{
	struct shm_slot *slot = slot_at(arena, id);
	uint64_t offset = (uint64_t)((unsigned char *)word - (unsigned char *)arena->cells);
	uint32_t cell = (uint32_t)(offset / sizeof(struct shm_cell));

	if ((unsigned char *)word < (unsigned char *)arena->cells || !cell_valid(arena, cell))
		return true; /* a global lock word */
	if (word == &cell_at(arena, cell)->i_flags)
		return atomic_load(&slot->held_dir) == cell;
	for (uint32_t i = 0; i < SHM_HELD; i++)
		if (atomic_load(&slot->held[i]) == cell)
			return true;
	for (uint32_t i = 0; i < SHM_NAMES; i++)
		if (atomic_load(&slot->names[i]) == cell)
			return true;
	for (uint32_t i = 0; i < SHM_STOCK_MAX; i++)
		if (atomic_load(&slot->stock[i]) == cell)
			return true;
	return false;
}

int recover_task_state(struct shmlock_arena *arena, uint32_t id)
{
	uint32_t live = atomic_load(slot_live_word(slot_at(arena, id)));

	if (live_word_dead(live))
		return SHMLOCK_TASK_DEAD;
	return live_word_free(live) ? SHMLOCK_TASK_FREE : SHMLOCK_TASK_LIVE;
}

int recover_live_tasks(struct shmlock_arena *arena)
{
	int live = 0;

	for (uint32_t id = 1; id <= arena->tasks; id++)
		live += recover_task_state(arena, id) == SHMLOCK_TASK_LIVE;
	return live;
}

/* ---- The operation that was in flight ------------------------------------------------------ */

static void finish_rmdir(struct shmlock_arena *arena, uint32_t id, uint32_t name, uint64_t ino)
{
	struct shm_cell *dir = cell_at(arena, ino_cell(ino));

	if (atomic_load(&cell_at(arena, name)->d_inode) == ino_cell(ino))
		dcache_point(cell_at(arena, name), 0);
	dlock_free_dead(&dir->i_flags, id, 0, S_DYING);
	/* What is left of its children is garbage by its number; the search finds it. */
	inode_free(arena, ino);
}

static void redo(struct shmlock_arena *arena, uint32_t id, struct shm_redo *r)
{
	uint32_t code = atomic_load(&r->code), name = atomic_load(&r->name);
	uint32_t inode = atomic_load(&r->inode);
	uint64_t ino = atomic_load(&r->ino);
	bool points;

	if (code == SHM_REDO_NONE || !cell_valid(arena, name) || !cell_valid(arena, inode) ||
	    ino_cell(ino) != inode || !inode_is(arena, ino) ||
	    dlock_owner(atomic_load(&cell_at(arena, name)->d_flags)) != id)
		return; /* nothing begun, or all of it done */
	points = atomic_load(&cell_at(arena, name)->d_inode) == inode;
	if (code == SHM_REDO_MAKE) {
		if (!points)
			inode_free(arena, ino);
	} else if (code == SHM_REDO_REMOVE) {
		if (S_ISDIR(inode_mode(arena, inode))) {
			if (atomic_load(&cell_at(arena, inode)->i_flags) & S_DEAD)
				finish_rmdir(arena, id, name, ino);
		} else if (!points) {
			inode_free(arena, ino);
		}
	}
}

/* ---- Its locks ------------------------------------------------------------------------------ */

static void free_name(struct shmlock_arena *arena, uint32_t id, uint32_t cell)
{
	struct shm_cell *c = cell_at(arena, cell);
	uint32_t hash = atomic_load(&c->d_hash), w = atomic_load(&c->d_flags);
	uint32_t seq = atomic_load(&c->d_seq);
	bool hashed = !(seq & 1) && !(atomic_load(&c->d_next) & SHM_LINK_MARK) &&
		      chain_contains(arena, hash, cell) == 1;

	atomic_store(&c->d_occupant, 0); /* the judge's mark of the dead task */
	if (hashed) {
		/* The pointer's second store may be missing: rule M9 wants it before the unlock. */
		atomic_store(&c->d_seq, seq + 2);
		dlock_free_dead(&c->d_flags, id, w & DCACHE_PERSON ? DCACHE_RECOVERED : 0,
				DCACHE_PERSON | DCACHE_RING);
		return;
	}
	/* In the making, or on its way out: gone. */
	if (stock_forget_name(arena, cell, false))
		return; /* scribbled: leave it locked rather than make it worse */
	atomic_store(&c->d_occupant, 0);
	dlock_free_dead(&c->d_flags, id, SHM_FREE, SHM_FLAGS_MASK);
}

static void free_other(struct shmlock_arena *arena, uint32_t id, uint32_t cell, uint32_t kind)
{
	shm_word *word = &cell_at(arena, cell)->d_flags;
	bool used = kind == SHM_TEXT  ? stock_text_used(arena, cell) :
		    kind == SHM_BLOCK ? dirblock_reachable(arena, cell) ||
						!dirblock_empty(arena, cell) :
					false;

	/* Nothing but its kind: a claimer for a person may have died here on a name long gone. */
	dlock_free_dead(word, id, 0, SHM_FLAGS_MASK & ~(used ? SHM_KIND_MASK : 0));
}

/* One recorded cell. First the names, then what belongs to them. */
static int free_cell(struct shmlock_arena *arena, uint32_t id, uint32_t cell, bool names)
{
	uint32_t w, kind;

	if (!cell_valid(arena, cell))
		return 0;
	w = atomic_load(&cell_at(arena, cell)->d_flags);
	kind = w & SHM_KIND_MASK;
	if (dlock_owner(w) != id) {
		futex_wake_all(&cell_at(arena, cell)->d_flags); /* R4: died before its wake-up? */
		return 0;
	}
	if ((kind == SHM_DENTRY) != names)
		return 0;
	if (names)
		free_name(arena, id, cell);
	else
		free_other(arena, id, cell, kind);
	return 1;
}

static uint32_t free_locks(struct shmlock_arena *arena, uint32_t id, struct shm_slot *slot)
{
	uint32_t dir = atomic_load(&slot->held_dir), freed = 0;

	if (cell_valid(arena, dir))
		freed += dlock_free_dead(&cell_at(arena, dir)->i_flags, id, 0, S_DYING);
	atomic_store(&slot->held_dir, 0);
	for (uint32_t i = 0; i < SHM_NAMES; i++) {
		freed += (uint32_t)free_cell(arena, id, atomic_load(&slot->names[i]), true);
		atomic_store(&slot->names[i], 0);
	}
	for (int pass = 0; pass < 2; pass++)
		for (uint32_t i = 0; i < SHM_HELD; i++)
			freed += (uint32_t)free_cell(arena, id, atomic_load(&slot->held[i]),
						     pass == 0);
	for (uint32_t i = 0; i < SHM_HELD; i++)
		atomic_store(&slot->held[i], 0);
	return freed;
}

static void empty_slot(struct shmlock_arena *arena, struct shm_slot *slot)
{
	uint32_t id = (uint32_t)(slot - arena->slots) + 1;

	/* First: so that nobody judges the next task by this one's start time. */
	atomic_store(&slot->tid, 0);
	stock_release(arena, slot, id);
	if (atomic_load(&slot->wait_seq) & 1)
		atomic_fetch_add(&slot->wait_seq, 1);
	for (uint32_t i = 0; i < SHM_READS; i++)
		atomic_store(&slot->reads[i], 0);
	for (uint32_t i = 0; i < SHM_PINS; i++)
		atomic_store(&slot->pins[i], 0);
	atomic_store(&slot->names_top, 0);
	atomic_store(&slot->tgid, 0);
}

void recover_release_slot(struct shmlock_arena *arena, struct shm_slot *slot)
{
	empty_slot(arena, slot);
}

static void add_count(struct shm_slot *slot, uint32_t counter, uint32_t n)
{
	atomic_fetch_add(&slot->counters[counter], n);
}

int recover_owned_slot(struct shmlock_arena *arena, uint32_t id, struct task *by)
{
	struct shm_slot *slot = slot_at(arena, id);
	uint32_t freed;

	(void)by;
	if (atomic_fetch_add(&slot->recover_tries, 1) >= MAX_TRIES) {
		atomic_fetch_or(&arena->header->state, SHM_STATE_POISONED);
		return -ENOTRECOVERABLE;
	}
	PAUSE(arena, RECOVER_BEGIN);
	atomic_store(&slot->tid, 0);
	redo(arena, id, &slot->redo);
	atomic_store(&slot->redo.code, SHM_REDO_NONE);
	PAUSE(arena, RECOVER_REDONE);
	freed = free_locks(arena, id, slot);
	empty_slot(arena, slot);
	PAUSE(arena, RECOVER_RELEASED);
	atomic_store(&slot->recover_tries, 0);
	/* Counted in the dead task's own slot, whose mutex we have. */
	add_count(slot, COUNT_RECOVERIES, 1);
	add_count(slot, COUNT_RECOVERED, freed);
	return 0;
}

int recover_task(struct shmlock_arena *arena, uint32_t id, struct task *by)
{
	struct shm_slot *slot = slot_at(arena, id);
	int ret;

	if (arena->readonly)
		return -EROFS;
	ret = pthread_mutex_trylock(&slot->live);
	if (ret == EBUSY)
		return -EAGAIN;
	if (ret == EOWNERDEAD) {
		ret = recover_owned_slot(arena, id, by);
		if (!ret)
			pthread_mutex_consistent(&slot->live);
	} else if (ret) {
		return -ENOTRECOVERABLE;
	}
	pthread_mutex_unlock(&slot->live);
	return ret ? ret : -EAGAIN;
}

void recover_backstop(struct shmlock_arena *arena, uint32_t id, struct task *by)
{
	struct shm_slot *slot = slot_at(arena, id);
	shm_word *word = slot_live_word(slot);
	uint32_t live = atomic_load(word), tid = atomic_load(&slot->tid);
	uint32_t tgid = atomic_load(&slot->tgid);
	uint64_t start = atomic_load(&slot->start_time);

	if (live_word_dead(live) || !tid || (live & FUTEX_TID_MASK) != tid || !start ||
	    proc_judge(tgid, tid, start) != PROC_DEAD || atomic_load(&slot->tid) != tid)
		return;
	if (!atomic_compare_exchange_strong(word, &live, FUTEX_OWNER_DIED | FUTEX_WAITERS))
		return;
	if (by)
		task_count(by, COUNT_BACKSTOPS);
	recover_task(arena, id, by);
}

int recover_sweep(struct shmlock_arena *arena)
{
	int dead = 0;

	for (uint32_t id = 1; id <= arena->tasks; id++) {
		if (recover_task_state(arena, id) == SHMLOCK_TASK_LIVE)
			recover_backstop(arena, id, NULL);
		if (recover_task_state(arena, id) == SHMLOCK_TASK_DEAD) {
			dead++;
			recover_task(arena, id, NULL);
		}
	}
	return dead;
}
