/* SPDX-License-Identifier: MIT */
/* Who holds and waits for what, how full the arena is: copied out for tools, changing nothing. */
#ifndef SHMLOCK_SNAPSHOT_H
#define SHMLOCK_SNAPSHOT_H

#include "walk.h"

int snapshot_tasks(struct shmlock_arena *arena, struct shmlock_task_info *out, int n);
int snapshot_holds(struct shmlock_arena *arena, struct shmlock_hold_info *out, int n);
int snapshot_usage(struct shmlock_arena *arena, struct shmlock_usage *out);
int snapshot_counters(struct shmlock_arena *arena, uint64_t *out, int n);
const char *snapshot_counter_name(int counter);
int snapshot_in_flight(struct shmlock_arena *arena);
/* The circle of this thread's last -EDEADLK, as text. */
int snapshot_circle(char *buf, size_t size);

#endif
