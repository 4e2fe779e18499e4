/* SPDX-License-Identifier: MIT */
/* Walks every structure and reports broken invariants. Changes nothing, follows nothing unchecked. */
#ifndef SHMLOCK_CHECK_H
#define SHMLOCK_CHECK_H

#include "arena.h"

int check_arena(struct shmlock_arena *arena, bool quiescent, struct shmlock_fault *out, int n);
const char *check_invariant(int n);

#endif
