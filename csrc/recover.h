/* SPDX-License-Identifier: MIT */
/*
 * Owner death: a dead task's slot is found, what it was doing is finished or taken back, its locks
 * are freed and their waiters woken.  Called by whoever meets the death: a waiter, an attach, a
 * sweep.  Every step may be done twice and may be cut short by the recoverer's own death: the
 * kernel then marks the slot again, for the next one (recovery.md, test E).
 *
 * Requires of everybody else: rule R4 (recorded before claimed, taken out after the wake-up), and
 * a redo record before a commit word (layout.h).
 */
#ifndef SHMLOCK_RECOVER_H
#define SHMLOCK_RECOVER_H

#include "task.h"

/* Recover task `id` if it is dead. -EAGAIN: done, or somebody else does, or not dead: look again.
 * -ENOTRECOVERABLE: three recoverers died over it, the arena is poisoned. `by` may be NULL. */
int recover_task(struct shmlock_arena *arena, uint32_t id, struct task *by);
/* The same for a slot whose mutex this thread has just got with EOWNERDEAD; keeps the mutex. */
int recover_owned_slot(struct shmlock_arena *arena, uint32_t id, struct task *by);
/* A death that the kernel did not mark: judged by pid and start time (recovery.md, section 3). */
void recover_backstop(struct shmlock_arena *arena, uint32_t id, struct task *by);
/* Recover all dead tasks; how many were dead. */
int recover_sweep(struct shmlock_arena *arena);

/* Orderly end: give back what a task keeps ahead, empty the slot. Requires: its mutex. */
void recover_release_slot(struct shmlock_arena *arena, struct shm_slot *slot);

/* Does the slot record any person's lock? */
bool recover_task_holds_names(struct shm_slot *slot);
/* Does task `id` record the lock whose word this is? If not, the word's owner is a lie. */
bool recover_task_records(struct shmlock_arena *arena, uint32_t id, shm_word *word);
int recover_live_tasks(struct shmlock_arena *arena);
/* Is the slot's task live, dead, or is there none? enum shmlock_task_state. */
int recover_task_state(struct shmlock_arena *arena, uint32_t id);

#endif
