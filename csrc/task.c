/* SPDX-License-Identifier: MIT */
#include "task.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "futex.h"
#include "proc.h"
#include "recover.h"

_Thread_local struct task *task_current;

static uint32_t no_guard; /* 0: before the first attach nobody may take the fast path */
uint32_t *task_fork_guard = &no_guard;

/* Guards: the arena list, handles, attached; and that one thread at a time attaches. */
static pthread_mutex_t attach_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct shmlock_arena *arenas;
static pthread_key_t thread_key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/*
 * A forked child has the parent's memory but another thread id and an empty robust list: it must
 * not use the parent's slots.  It forgets them here, holds nothing, and attaches anew.
 */
static void forget_parent(void)
{
	task_current = NULL; /* the parent's; a few bytes are lost in the child */
	for (struct shmlock_arena *arena = arenas; arena; arena = arena->next) {
		arena->attached = 0;
		atomic_store(&arena->pins, 0); /* calls of threads that the child does not have */
	}
	pthread_setspecific(thread_key, NULL);
	*task_fork_guard = 1;
}

static void before_fork(void)
{
	pthread_mutex_lock(&attach_mutex);
}

static void after_fork_parent(void)
{
	pthread_mutex_unlock(&attach_mutex);
}

static void after_fork_child(void)
{
	forget_parent();
	pthread_mutex_unlock(&attach_mutex);
}

/*
 * A thread ends.  A task that holds nothing leaves tidily.  One that still holds a lock is left
 * to the kernel, which marks its mutex as it does for a killed thread: the next owner is told.
 */
static void thread_ends(void *list)
{
	struct task *task = list, *next;

	if (*task_fork_guard != 1)
		return;
	task_current = NULL;
	for (; task; task = next) {
		next = task->next;
		/* (It stays counted in `attached`: its mutex must stay mapped until the kernel has
		 * walked the thread's robust list.) */
		if (task->held || atomic_load(&task->slot->held_dir) ||
		    recover_task_holds_names(task->slot))
			continue;
		task_leave(task);
	}
}

static void set_up(void)
{
	long page = sysconf(_SC_PAGESIZE);
	uint32_t *guard = mmap(NULL, (size_t)page, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	pthread_key_create(&thread_key, thread_ends);
	pthread_atfork(before_fork, after_fork_parent, after_fork_child);
	if (guard == MAP_FAILED)
		abort(); /* not even one page: nothing here could work */
	/* Catches what pthread_atfork does not: a bare fork system call. */
	madvise(guard, (size_t)page, MADV_WIPEONFORK);
	*guard = 1;
	task_fork_guard = guard;
}

struct task *task_find(struct shmlock_arena *arena)
{
	struct task *task;

	if (*task_fork_guard != 1)
		return NULL;
	for (task = task_current; task && task->arena != arena; task = task->next)
		;
	return task;
}

/* Take the slot: the mutex is held. Requires: everything of a former task was cleaned up. */
static void slot_take(struct task *task, struct shm_slot *slot)
{
	shm_word *live = slot_live_word(slot);

	atomic_store(&slot->names_top, 0);
	atomic_fetch_add(&slot->generation, 1);
	task->generation = atomic_load(&slot->generation);
	task->tgid = (uint32_t)getpid();
	task->tid = (uint32_t)syscall(SYS_gettid);
	atomic_store(&slot->tgid, task->tgid);
	atomic_store(&slot->start_time, proc_start_time(task->tgid, task->tid));
	atomic_store(&slot->attached_at, (uint64_t)futex_now());
	/* Last: from here on the backstop may judge by it (recovery.md, section 3). */
	atomic_store(&slot->tid, task->tid);
	/* Rule R1: so that the kernel always wakes a sleeper when this thread dies. */
	atomic_fetch_or(live, FUTEX_WAITERS);
}

static int slot_try(struct task *task, uint32_t id)
{
	struct shm_slot *slot = slot_at(task->arena, id);
	uint32_t word = atomic_load_explicit(slot_live_word(slot), memory_order_relaxed);
	int ret;

	/* Look before trying, so as not to disturb the lines of live tasks. */
	if (!live_word_free(word) && !live_word_dead(word))
		return -EBUSY;
	ret = pthread_mutex_trylock(&slot->live);
	if (ret == EOWNERDEAD) {
		ret = recover_owned_slot(task->arena, id, task);
		if (ret) { /* poisoned: leave it marked for good */
			pthread_mutex_unlock(&slot->live);
			return ret;
		}
		pthread_mutex_consistent(&slot->live);
	} else if (ret) {
		return -ret;
	}
	task->id = id;
	task->owner = DCACHE_LOCK | id << SHM_OWNER_SHIFT;
	task->slot = slot;
	slot_take(task, slot);
	return 0;
}

static int slot_find(struct task *task)
{
	uint32_t n = task->arena->tasks;

	for (uint32_t id = 1; id <= n; id++) {
		int ret = slot_try(task, id);

		if (ret == 0 || ret == -ENOTRECOVERABLE)
			return ret;
	}
	return -EAGAIN;
}

/*
 * Taking a slot is kept apart from unlink() by a file lock: either unlink() sees the new task, or
 * the task sees that the arena is unlinked.  A fresh open file description, because flock
 * belongs to that, and ours is shared with forked children.
 */
static int lock_file(struct shmlock_arena *arena)
{
	char path[40];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", arena->fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1; /* no /proc: then a forced unlink is only seen at the next lock */
	while (flock(fd, LOCK_SH) && errno == EINTR)
		;
	return fd;
}

/* Requires: attach_mutex, and the file lock. */
static int attach_thread(struct shmlock_arena *arena, struct task *task)
{
	int ret;

	if (!atomic_load(&arena->handles))
		return -EBADF;
	ret = slot_find(task);
	if (!ret)
		ret = arena_state(arena);
	if (ret && task->slot) {
		recover_release_slot(task->arena, task->slot);
		pthread_mutex_unlock(&task->slot->live);
	}
	if (ret)
		return ret;
	arena->attached++;
	task->next = task_current;
	task_current = task;
	pthread_setspecific(thread_key, task);
	return 0;
}

/*
 * The file lock first, and without attach_mutex: unlink() may hold it for long, and fork() waits
 * for attach_mutex with Python's big lock in hand, which that unlink() may need.
 */
static int new_task(struct shmlock_arena *arena, struct task **out)
{
	struct task *task = calloc(1, sizeof(*task));
	size_t size;
	int fd, ret;

	if (!task)
		return -ENOMEM;
	ret = task_pin(arena);
	if (ret) {
		free(task);
		return ret;
	}
	task->arena = arena;
	syscall(SYS_get_robust_list, 0, &task->robust, &size);
	fd = lock_file(arena);
	pthread_mutex_lock(&attach_mutex);
	ret = attach_thread(arena, task);
	pthread_mutex_unlock(&attach_mutex);
	if (fd >= 0)
		close(fd);
	task_unpin(arena);
	if (ret)
		free(task);
	else
		*out = task;
	return ret;
}

int task_enter_slow(struct shmlock_arena *arena, struct task **out)
{
	struct task *task, **link;

	if (!arena)
		return -EBADF;
	if (arena->readonly)
		return -EROFS;
	if (*task_fork_guard != 1) {
		pthread_mutex_lock(&attach_mutex);
		forget_parent();
		pthread_mutex_unlock(&attach_mutex);
	}
	for (link = &task_current; *link && (*link)->arena != arena; link = &(*link)->next)
		;
	task = *link;
	if (!arena->handles) { /* closed meanwhile, by another thread */
		if (task && !task->held && !recover_task_holds_names(task->slot))
			task_leave(task);
		return -EBADF;
	}
	if (task) { /* move to the front */
		*link = task->next;
		task->next = task_current;
		task_current = task;
		pthread_setspecific(thread_key, task);
		*out = task;
		return 0;
	}
	return new_task(arena, out);
}

static void drop_if_unused(struct shmlock_arena *arena)
{
	struct shmlock_arena **link = &arenas;

	if (atomic_load(&arena->handles) || arena->attached || atomic_load(&arena->pins) ||
	    !arena->base)
		return;
	while (*link && *link != arena)
		link = &(*link)->next;
	if (*link)
		*link = arena->next;
	/* The struct itself stays: a NameLock or a stale caller may still point to it. */
	arena_unmap(arena);
}

int task_pin(struct shmlock_arena *arena)
{
	if (!arena)
		return -EBADF;
	/* Pin, then look: whoever takes the last handle away looks for pins after that. */
	atomic_fetch_add(&arena->pins, 1);
	if (atomic_load(&arena->handles))
		return 0;
	task_unpin(arena);
	return -EBADF;
}

void task_unpin(struct shmlock_arena *arena)
{
	if (atomic_fetch_sub(&arena->pins, 1) != 1 || atomic_load(&arena->handles))
		return;
	pthread_mutex_lock(&attach_mutex);
	drop_if_unused(arena);
	pthread_mutex_unlock(&attach_mutex);
}

void task_leave(struct task *task)
{
	struct shmlock_arena *arena = task->arena;
	struct task **link = &task_current;

	while (*link && *link != task)
		link = &(*link)->next;
	if (*link)
		*link = task->next;
	pthread_setspecific(thread_key, task_current);
	recover_release_slot(arena, task->slot);
	/* Before any munmap: an orderly exit that unmaps first leaves the mutex stuck for ever. */
	pthread_mutex_unlock(&task->slot->live);
	free(task);
	pthread_mutex_lock(&attach_mutex);
	arena->attached--;
	drop_if_unused(arena);
	pthread_mutex_unlock(&attach_mutex);
}

int task_attach_arena(int fd, bool readonly, struct shmlock_arena **out)
{
	struct shmlock_arena *arena;
	struct stat st;
	int own, ret = 0;

	pthread_once(&once, set_up);
	if (fstat(fd, &st))
		return -errno;
	pthread_mutex_lock(&attach_mutex);
	for (arena = arenas; arena; arena = arena->next)
		if (arena->dev == st.st_dev && arena->ino == st.st_ino &&
		    arena->readonly == (uint32_t)readonly)
			break;
	if (!arena) {
		own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
		ret = own < 0 ? -errno : arena_map(own, readonly, &arena);
		if (ret && own >= 0)
			close(own);
		if (!ret) {
			arena->next = arenas;
			arenas = arena;
		}
	}
	if (!ret) {
		arena->handles++;
		*out = arena;
	}
	pthread_mutex_unlock(&attach_mutex);
	return ret;
}

int task_close_arena(struct shmlock_arena *arena)
{
	pthread_mutex_lock(&attach_mutex);
	if (arena->handles)
		arena->handles--;
	drop_if_unused(arena);
	pthread_mutex_unlock(&attach_mutex);
	return 0;
}
