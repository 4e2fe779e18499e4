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

enum step { STEP_ON, STEP_AGAIN, STEP_DONE };

/*
 * From link word `at`, whose value is *link, look at the next cell; take it out if it is the
 * wanted one or marked by somebody who may have died.  STEP_ON moves *at to it.
 */
static enum step remove_step(struct shmlock_arena *arena, uint32_t hash,
			     shm_word64 **at, uint64_t *link, uint32_t wanted)
{
	uint32_t cell = (uint32_t)(*link & SHM_LINK_NEXT);
	struct shm_cell *c = cell_at(arena, cell);
	uint64_t own = atomic_load_explicit(&c->d_next, memory_order_acquire);

	if (!chain_member(arena, hash, c))
		return STEP_AGAIN;
	if (cell == wanted || (own & SHM_LINK_MARK)) {
		if (*link & SHM_LINK_MARK) /* the predecessor is on its way out: it goes first */
			return STEP_AGAIN;
		if (!atomic_compare_exchange_strong(*at, link,
						    next_tag(*link) | (own & SHM_LINK_NEXT)))
			return STEP_AGAIN;
		if (cell == wanted)
			return STEP_DONE;
		*link = atomic_load_explicit(*at, memory_order_acquire);
		return STEP_ON;
	}
	*at = &c->d_next;
	*link = own;
	return STEP_ON;
}

int chain_remove(struct shmlock_arena *arena, uint32_t hash, uint32_t cell)
{
	uint64_t budget = chain_budget(arena);

	mark(cell_at(arena, cell));
	for (;;) {
		shm_word64 *at = chain_head(arena, hash);
		uint64_t link = atomic_load_explicit(at, memory_order_acquire);
		enum step step = STEP_ON;

		while (step == STEP_ON && (link & SHM_LINK_NEXT)) {
			if (!cell_valid(arena, (uint32_t)(link & SHM_LINK_NEXT)) || !budget--)
				return -EUCLEAN;
			step = remove_step(arena, hash, &at, &link, cell);
		}
		if (step != STEP_AGAIN)
			return 0;
		if (!(budget & 1023))
			sched_yield();
		if (!budget--)
			return -EUCLEAN;
	}
}

int chain_contains(struct shmlock_arena *arena, uint32_t hash, uint32_t cell)
{
	uint64_t budget = chain_budget(arena), link;
	struct shm_cell *c;
	uint32_t at;

again:
	link = atomic_load_explicit(chain_head(arena, hash), memory_order_acquire);
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
	return 0;
}
