/* SPDX-License-Identifier: MIT */
#include "wait.h"

#include <sched.h>

#include "debug.h"
#include "futex.h"
#include "recover.h"

/* A sleep's longest stretch: bounds how late an unmarked death is found, and a signal that came
 * just before the system call.  Nothing but lateness hangs on it. */
#define CAP_NS 500000000
#define CIRCLE_NS 10000000

/* A word owned by a free slot means that its owner is leaving just now: look again, so often. */
#define ORPHAN_LOOKS 20000u

_Thread_local struct wait_circle wait_last_circle;

const char *wait_kind_name(int kind)
{
	static const char *const names[SHM_WAIT_KINDS] = {
		[SHM_WAIT_NONE] = "",
		[SHM_WAIT_NAME] = "name",
		[SHM_WAIT_DYING] = "S_DYING",
		[SHM_WAIT_DRAIN] = "drain",
		[SHM_WAIT_RWSEM] = "i_rwsem",
		[SHM_WAIT_RENAME_LOCK] = "RENAME_LOCK",
		[SHM_WAIT_GLOBAL] = "rename_lock",
		[SHM_WAIT_LIST] = "list of names",
	};

	return kind > 0 && kind < SHM_WAIT_KINDS ? names[kind] : "";
}

void wait_begin(struct task *task, int64_t timeout)
{
	if (timeout == SHMLOCK_RESUME) /* deadline as it was, or still to come */
		return;
	task->timeout = timeout;
	task->deadline = 0;
	/* Called again after a signal, it is still the same wait (if it is for the same word). */
	if (!task->interrupted)
		task->waiting_since = 0;
	task->interrupted = false;
	task->restarts = 0;
	task->orphan_looks = 0;
}

/* ---- Publishing -------------------------------------------------------------------------- */

static void publish(struct task *task, enum shm_wait_kind kind, shm_word *word, uint32_t cell)
{
	struct shm_slot *slot = task->slot;

	/* Even: nobody believes these yet. */
	atomic_store_explicit(&slot->wait_kind, kind, memory_order_release);
	atomic_store_explicit(&slot->wait_word, word_offset(task->arena, word),
			      memory_order_release);
	atomic_store_explicit(&slot->wait_cell, cell, memory_order_release);
	atomic_store_explicit(&slot->wait_since, (uint64_t)task->waiting_since,
			      memory_order_release);
	/* Odd.  Sequentially consistent: of two tasks that close a circle at the same time, each
	 * publishes and then reads the other's, so at least one sees the whole circle. */
	atomic_fetch_add(&slot->wait_seq, 1);
}

static void unpublish(struct task *task)
{
	atomic_fetch_add(&task->slot->wait_seq, 1);
}

bool wait_read(struct shmlock_arena *arena, uint32_t id, struct wait_edge *out)
{
	struct shm_slot *slot = slot_at(arena, id);
	shm_word *word;
	uint32_t w;

	out->task = id;
	out->seq = atomic_load(&slot->wait_seq);
	if (!(out->seq & 1))
		return false;
	out->kind = atomic_load_explicit(&slot->wait_kind, memory_order_acquire);
	out->word = atomic_load_explicit(&slot->wait_word, memory_order_acquire);
	out->cell = atomic_load_explicit(&slot->wait_cell, memory_order_acquire);
	out->since = atomic_load_explicit(&slot->wait_since, memory_order_acquire);
	out->pid = atomic_load_explicit(&slot->tgid, memory_order_acquire);
	out->tid = atomic_load_explicit(&slot->tid, memory_order_acquire);
	out->person = recover_task_holds_names(slot);
	word = word_at(arena, out->word);
	if (!word || out->kind >= SHM_WAIT_KINDS || atomic_load(&slot->wait_seq) != out->seq)
		return false;
	w = atomic_load(word);
	out->owner = w & DCACHE_LOCK ? (w & SHM_OWNER_MASK) >> SHM_OWNER_SHIFT : 0;
	if (!task_valid(arena, out->owner))
		out->owner = 0;
	return true;
}

/* ---- Circles ----------------------------------------------------------------------------- */

/*
 * Who gives up: the youngest waiter that holds a person's lock.  A circle without any cannot
 * come from our rules (docs/locking.md); should it, somebody gives up all the same.
 */
static bool gives_up_before(const struct wait_edge *a, const struct wait_edge *b)
{
	if (a->person != b->person)
		return a->person;
	return a->since > b->since || (a->since == b->since && a->task > b->task);
}

/* Once round: its length, 0 if it does not close; `sum` tells this very circle from another. */
static uint32_t go_round(struct shmlock_arena *arena, uint32_t id, struct wait_circle *out,
			 uint64_t *sum)
{
	uint32_t at = id, length = 0, mark = 0;
	struct wait_edge edge;

	*sum = 0;
	out->edges = 0;
	do {
		if (!wait_read(arena, at, &edge) || !edge.owner)
			return 0;
		if (out->edges < WAIT_CIRCLE_MAX)
			out->edge[out->edges++] = edge;
		if (!length || gives_up_before(&edge, &out->loser))
			out->loser = edge;
		*sum = (*sum ^ edge.seq ^ (uint64_t)edge.task << 32) * 0x9e3779b97f4a7c15ull;
		/* A circle that this task only leads to: met again a task left behind as a mark
		 * (Brent: the marks lie ever further apart). */
		if (edge.owner == mark || ++length > arena->tasks)
			return 0;
		if (!(length & (length - 1)))
			mark = edge.owner;
		at = edge.owner;
	} while (at != id);
	return length;
}

/*
 * Read round the circle twice.  A task cannot give up a lock while its wait lasts, so if every
 * wait is the same one both times, all of them lasted at once in between: the circle was real.
 */
bool wait_circle_from(struct shmlock_arena *arena, uint32_t id, struct wait_circle *out)
{
	uint64_t first, second;

	out->arena = arena;
	out->length = go_round(arena, id, out, &first);
	return out->length && go_round(arena, id, out, &second) == out->length && first == second;
}

/*
 * Every member works this out for itself, from the same words, so exactly one gives up.
 * Returns -EDEADLK: it is this task; 1: another one, which was told; 0: no circle.
 */
static int check_circle(struct task *task)
{
	struct wait_circle *circle = &wait_last_circle;
	shm_word *word;

	if (!wait_circle_from(task->arena, task->id, circle))
		return 0;
	if (circle->loser.task == task->id) {
		task_count(task, COUNT_DEADLOCKS);
		return -EDEADLK;
	}
	word = word_at(task->arena, circle->loser.word);
	if (word)
		futex_wake_all(word);
	return 1;
}

/* ---- Sleeping ---------------------------------------------------------------------------- */

static int deadline_passed(struct task *task, int64_t now)
{
	if (task->timeout == SHMLOCK_FOREVER)
		return 0;
	if (!task->deadline)
		task->deadline = task->timeout < INT64_MAX - now ? now + task->timeout :
								   FUTEX_NO_DEADLINE - 1;
	if (task->timeout && now < task->deadline)
		return 0;
	task_count(task, COUNT_TIMEOUTS);
	return -ETIMEDOUT;
}

int wait_expired(struct task *task)
{
	return deadline_passed(task, futex_now());
}

/* The owner's liveness word, with FUTEX_WAITERS set (rule R1); or a reason to look again. */
static int watch_owner(struct task *task, uint32_t id, uint32_t *live)
{
	struct shm_slot *slot = slot_at(task->arena, id);
	shm_word *word = slot_live_word(slot);
	uint32_t w = atomic_load(word);

	if (live_word_dead(w))
		return recover_task(task->arena, id, task);
	if (live_word_free(w)) {
		/* A task leaves only with empty hands: the word must change at once, or it lies. */
		if (++task->orphan_looks > ORPHAN_LOOKS)
			return -EUCLEAN;
		sched_yield();
		return -EAGAIN;
	}
	task->orphan_looks = 0;
	if (!(w & FUTEX_WAITERS)) {
		if (!atomic_compare_exchange_strong(word, &w, w | FUTEX_WAITERS))
			return -EAGAIN;
		w |= FUTEX_WAITERS;
	}
	*live = w;
	return 0;
}

static int sleep_on_both(struct task *task, shm_word *word, uint32_t value, uint32_t owner,
			 uint32_t live, int64_t until)
{
	shm_word *live_word = slot_live_word(slot_at(task->arena, owner));
	struct robust_list_head *robust = task->robust;
	int ret;

	/* Rule R2.  glibc uses this pointer only inside its own mutex calls; the one in
	 * recover_task() leaves it NULL, when there is nothing more to pass on. */
	robust->list_op_pending =
		(struct robust_list *)((char *)live_word - robust->futex_offset);
	atomic_signal_fence(memory_order_seq_cst);
	ret = futex_wait(word, value, live_word, live, until);
	/* The owner died: clean up before the pointer goes, so that our own death is passed on. */
	if (live_word_dead(atomic_load(live_word))) {
		int err = recover_task(task->arena, owner, NULL);

		if (err && err != -EAGAIN)
			ret = err;
	}
	atomic_signal_fence(memory_order_seq_cst);
	robust->list_op_pending = NULL;
	return ret;
}

/* The cap has passed. Was the death not marked, or is the word a lie? */
static int at_cap(struct task *task, shm_word *word, uint32_t value, uint32_t owner)
{
	uint32_t w = atomic_load(word);

	recover_backstop(task->arena, owner, task);
	if (w == value && (w & DCACHE_LOCK) &&
	    !recover_task_records(task->arena, owner, word)) {
		/* Twice, because the owner may be between its unlock and our look. */
		if (task->unrecorded_word == word && ++task->unrecorded > 1)
			return -EUCLEAN;
		task->unrecorded_word = word;
	} else {
		task->unrecorded_word = NULL;
		task->unrecorded = 0;
	}
	/* Only the main thread runs signal handlers: let it look whether one waits. */
	return task->tid == task->tgid ? -EINTR : 0;
}

int wait_for(struct task *task, enum shm_wait_kind kind, shm_word *word, uint32_t value,
	     uint32_t cell)
{
	uint32_t owner = (value & SHM_OWNER_MASK) >> SHM_OWNER_SHIFT, live = 0;
	int64_t now, until, cap;
	bool capped;
	int ret = arena_state(task->arena);

	if (ret)
		return ret;
	if (!task_valid(task->arena, owner))
		return -EUCLEAN;
	ret = watch_owner(task, owner, &live);
	if (ret)
		return ret == -EAGAIN ? 0 : ret;
	now = futex_now();
	ret = deadline_passed(task, now);
	if (ret)
		return ret;
	if (!task->waiting_since || task->waiting_word != word) {
		task->waiting_since = now;
		task->waiting_word = word;
	}
	until = task->timeout == SHMLOCK_FOREVER ? FUTEX_NO_DEADLINE : task->deadline;
	publish(task, kind, word, cell);
	ret = check_circle(task);
	/* Who is to give up may not have been asleep yet when it was woken: look again soon. */
	cap = ret > 0 ? CIRCLE_NS : CAP_NS;
	capped = until - now > cap;
	if (ret >= 0) {
		task_count(task, COUNT_SLEEPS);
		ret = sleep_on_both(task, word, value, owner, live, capped ? now + cap : until);
	}
	unpublish(task);
	if (ret == -EAGAIN)
		return 0;
	if (ret == -EINTR)
		task_count(task, COUNT_INTERRUPTED);
	else if (ret == -ETIMEDOUT)
		ret = !capped	     ? deadline_passed(task, futex_now()) :
		      cap == CAP_NS ? at_cap(task, word, value, owner) :
				      0;
	task->interrupted = ret == -EINTR;
	return ret;
}
