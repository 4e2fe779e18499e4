/* SPDX-License-Identifier: MIT */
/* Closed loops over the operations, so that Python's own cost can be told apart. Measures only. */
#ifndef SHMLOCK_BENCH_H
#define SHMLOCK_BENCH_H

#include "namei.h"
#include "namelock.h"

const char *bench_name(int loop);
int64_t bench_run(struct task *task, int loop, const char *path, const char *prefix, uint64_t ops);

#endif
