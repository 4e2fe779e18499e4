/* SPDX-License-Identifier: MIT */
#include "chain.h"

#include <sched.h>

static inline uint64_t next_tag(uint64_t link)
{
	return (link + SHM_LINK_TAG_ONE) & SHM_LINK_TAG;
}

bool chain_push(struct shmlock_arena *arena, uint32_t hash, uint64_t seen, uint32_t cell)
{
	struct shm_cell *c = cell_at(arena, cell);
	uint64_t own = atomic_load_explicit(&c->d_next, memory_order_relaxed);

	/* Ours alone until the head points to it; a stale helper's CAS fails by the tag. */
	atomic_store_explicit(&c->d_next, next_tag(own) | (seen & SHM_LINK_NEXT),
			      memory_order_release);
	return atomic_compare_exchange_strong(chain_head(arena, hash), &seen, next_tag(seen) | cell);
}

/* Freeze the cell's own link, so that nobody takes out its successor through it meanwhile. */
static void mark(struct shm_cell *c)
{
	uint64_t link = atomic_load_explicit(&c->d_next, memory_order_relaxed);

	/* The last in a chain stays the last: new ones go in at the head. Nothing to freeze. */
	while ((link & SHM_LINK_NEXT) && !(link & SHM_LINK_MARK))
		if (atomic_compare_exchange_weak(&c->d_next, &link, link | SHM_LINK_MARK))
			break;
}

/* Raise the head's tag. */
static void stamp(shm_word64 *head)
{
	uint64_t link = atomic_load_explicit(head, memory_order_relaxed);

	while (!atomic_compare_exchange_weak(head, &link, next_tag(link) | (link & SHM_LINK_NEXT)))
		;
}

enum step { STEP_ON, STEP_AGAIN, STEP_FROM_HEAD };

/*
 * From link word `at`, whose value is *link, look at the next cell; take it out if it is the
 * wanted one or marked by somebody who may have died.  STEP_ON moves *at on.
 */
static enum step remove_step(struct shmlock_arena *arena, uint32_t hash, shm_word64 **at,
			     uint64_t *link, uint32_t wanted)
{
	uint32_t cell = (uint32_t)(*link & SHM_LINK_NEXT);
	struct shm_cell *c = cell_at(arena, cell);
	uint64_t own = atomic_load_explicit(&c->d_next, memory_order_acquire);

	if (!chain_member(arena, hash, c))
		return STEP_AGAIN;
	if (cell != wanted && !(own & SHM_LINK_MARK)) {
		*at = &c->d_next;
		*link = own;
		return STEP_ON;
	}
	if (*link & SHM_LINK_MARK) /* the predecessor is on its way out: it goes first */
		return STEP_AGAIN;
	if (!atomic_compare_exchange_strong(*at, link, next_tag(*link) | (own & SHM_LINK_NEXT)))
		return STEP_AGAIN;
	if (cell == wanted)
		return *at == chain_head(arena, hash) ? STEP_FROM_HEAD : STEP_AGAIN;
	*link = atomic_load_explicit(*at, memory_order_acquire);
	return STEP_ON;
}

/*
 * One walk. 1: it was taken out from the head itself; 0: it is not in the chain, which the head,
 * unchanged, vouches for; -EAGAIN; -EUCLEAN.
 */
static int remove_walk(struct shmlock_arena *arena, uint32_t hash, uint32_t cell, uint64_t *budget)
{
	shm_word64 *head = chain_head(arena, hash), *at = head;
	uint64_t link = atomic_load_explicit(at, memory_order_acquire), seen = link;
	enum step step;

	while (link & SHM_LINK_NEXT) {
		if (!cell_valid(arena, (uint32_t)(link & SHM_LINK_NEXT)) || !--*budget)
			return -EUCLEAN;
		step = remove_step(arena, hash, &at, &link, cell);
		if (step != STEP_ON)
			return step == STEP_FROM_HEAD ? 1 : -EAGAIN;
	}
	return atomic_load(head) == seen ? 0 : -EAGAIN;
}

int chain_remove(struct shmlock_arena *arena, uint32_t hash, uint32_t cell)
{
	uint64_t budget = chain_budget(arena);
	int ret;

	mark(cell_at(arena, cell));
	while ((ret = remove_walk(arena, hash, cell, &budget)) == -EAGAIN) {
		if (!--budget)
			return -EUCLEAN;
		if (!(budget & 255))
			sched_yield();
	}
	/* Out, but not by a change of the head: change it, before the cell may be used again. */
	if (ret == 0)
		stamp(chain_head(arena, hash));
	return ret < 0 ? ret : 0;
}

int chain_contains(struct shmlock_arena *arena, uint32_t hash, uint32_t cell)
{
	uint64_t budget = chain_budget(arena), link, seen;
	struct shm_cell *c;
	uint32_t at;

again:
	seen = link = atomic_load_explicit(chain_head(arena, hash), memory_order_acquire);
	while ((at = (uint32_t)(link & SHM_LINK_NEXT))) {
		if (!cell_valid(arena, at) || !budget--)
			return -EUCLEAN;
		if (at == cell)
			return 1;
		c = cell_at(arena, at);
		link = atomic_load_explicit(&c->d_next, memory_order_acquire);
		if (!chain_member(arena, hash, c))
			goto again;
	}
	if (atomic_load(chain_head(arena, hash)) != seen && --budget)
		goto again;
	return 0;
}
