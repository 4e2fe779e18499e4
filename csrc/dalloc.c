/* SPDX-License-Identifier: MIT */
#include "dalloc.h"

/* Line 1 may still hold a block's entries or a text: all but i_id starts anew. */
static void scrub(struct shm_cell *c)
{
	atomic_store_explicit(&c->i_flags, 0, memory_order_relaxed);
	atomic_store_explicit(&c->i_nlink, 0, memory_order_relaxed);
	atomic_store_explicit(&c->i_children, 0, memory_order_relaxed);
	atomic_store_explicit(&c->i_rename, 0, memory_order_relaxed);
	atomic_store_explicit(&c->i_dentry, 0, memory_order_relaxed);
	atomic_store_explicit(&c->i_text, 0, memory_order_relaxed);
	atomic_store_explicit(&c->i_size, 0, memory_order_relaxed);
	atomic_store_explicit(&c->i_lock, 0, memory_order_relaxed);
	atomic_store_explicit(&c->d_block, 0, memory_order_relaxed);
	atomic_store_explicit(&c->d_occupant, 0, memory_order_relaxed);
}

static int get_cell(struct task *task, uint64_t dir, uint32_t *name)
{
	struct shm_cell *c;
	int ret;

	if (stock_recycle(task, dir, name))
		return 0;
	ret = stock_get(task, name);
	if (ret)
		return ret;
	c = cell_at(task->arena, *name);
	scrub(c);
	/* No identity yet: odd, and no text to be freed. */
	atomic_store_explicit(&c->d_seq, atomic_load_explicit(&c->d_seq, memory_order_relaxed) | 1,
			      memory_order_relaxed);
	atomic_store_explicit(&c->d_name[SHM_NAME_WORDS - 1], 0, memory_order_release);
	stock_rekind(task, *name, SHM_DENTRY);
	return 0;
}

static void fill_text(struct shm_text *t, const char *bytes, uint32_t length)
{
	for (uint32_t i = 0; i < SHM_TEXT_WORDS; i++) {
		uint64_t word = 0;

		if (i * 8 < length)
			memcpy(&word, bytes + i * 8, length - i * 8 < 8 ? length - i * 8 : 8);
		atomic_store_explicit(shm_text_word(t, i), word, memory_order_release);
	}
}

/* Text cells for what a long name has beyond its prefix. All stay locked and held. */
static int make_text(struct task *task, const struct name_key *key, uint32_t name,
		     uint32_t text[SHM_TEXT_CELLS], uint32_t *count)
{
	uint32_t at = key->name->length;
	int ret;

	*count = 0;
	/* From the end, so that each knows its successor. */
	for (uint32_t left = key->name->length - NAME_LONG_PREFIX; left; left = at - NAME_LONG_PREFIX) {
		uint32_t part = left % (SHM_TEXT_WORDS * 8) ? left % (SHM_TEXT_WORDS * 8) :
							      SHM_TEXT_WORDS * 8;
		struct shm_text *t;

		ret = stock_get(task, &text[*count]);
		if (ret)
			return ret;
		at -= part;
		t = (struct shm_text *)cell_at(task->arena, text[*count]);
		fill_text(t, key->name->bytes + at, part);
		atomic_store(&t->t_user, name);
		atomic_store(&t->t_next, *count ? text[*count - 1] : 0);
		stock_rekind(task, text[*count], SHM_TEXT);
		++*count;
	}
	return 0;
}

int dalloc(struct task *task, const struct dir *dir, const struct name_key *key, uint32_t *name)
{
	struct shmlock_arena *arena = task->arena;
	uint32_t text[SHM_TEXT_CELLS], texts = 0;
	int ret = get_cell(task, dir->ino, name);

	if (ret)
		return ret;
	if (key->name->length > SHM_NAME_INLINE)
		ret = make_text(task, key, *name, text, &texts);
	if (!ret) {
		dcache_identify(arena, *name, key, texts ? text[texts - 1] : 0);
		PAUSE(arena, NAME_WRITTEN);
		if (!atomic_load_explicit(&cell_at(arena, *name)->d_block, memory_order_relaxed))
			ret = dirblock_add(task, dir, *name);
	}
	/* From the head: what is still locked is then held, and recovery can follow the rest. */
	for (uint32_t i = texts; i-- > 0;) {
		if (ret) {
			stock_put(task, text[i]);
			continue;
		}
		dlock_unlock(task, &cell_at(arena, text[i])->d_flags, 0, 0);
		task_unhold(task, text[i]);
	}
	if (ret) {
		if (texts) /* given back just now */
			atomic_store(&cell_at(arena, *name)->d_name[SHM_NAME_WORDS - 1], 0);
		dalloc_discard(task, *name);
	} else {
		PAUSE(arena, NAME_LISTED);
	}
	return ret;
}

bool dalloc_publish(struct task *task, const struct name_key *key, uint64_t bucket, uint32_t name)
{
	if (!chain_push(task->arena, key->hash, bucket, name))
		return false;
	/* Who set WAITER for the name that this cell was (a recycled one) must be woken: F4 made him
	 * look before the name changed, and the new name's lock may be held for hours.  After the
	 * push, a full barrier: who sets WAITER later sees the new name. */
	if (atomic_load(&cell_at(task->arena, name)->d_flags) & DCACHE_LOCK_WAITER)
		stock_rekind(task, name, SHM_DENTRY);
	PAUSE(task->arena, NAME_HASHED);
	task_count(task, COUNT_NAMES_MADE);
	return true;
}

void dalloc_discard(struct task *task, uint32_t name)
{
	/* Not in its chain; taking it out anyway costs a look and keeps one way of doing it. */
	if (stock_forget_name(task->arena, name, false)) {
		dlock_unlock(task, &cell_at(task->arena, name)->d_flags, 0, 0);
		task_unhold(task, name);
		return;
	}
	stock_put(task, name);
}
